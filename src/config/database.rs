//! The settings for the database.

use std::path::PathBuf;

use clap::Args;

use super::{
    ConfigError,
    secret::{self, Secret},
};
use crate::postgres::{
    connect::{DatabaseUrl, DatabaseUrlError},
    schema::SchemaName,
};

/// The most replicas of a bridge: each gets a check per second and several connections.
pub const MOST_REPLICAS: usize = 16;

#[derive(Clone, Debug, Args)]
pub struct DatabaseOptions {
    /// Database, as a URL (`postgres://user:password@host/database`) or as keys and
    /// values (host=… dbname=…)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Secret>,
    /// File that contains DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// Database for the listener and migrations, if DATABASE_URL goes through a pooler
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL", hide_env_values = true)]
    pub direct_database_url: Option<Secret>,
    /// File that contains `TIDINGS_DIRECT_DATABASE_URL`
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL_FILE")]
    pub direct_database_url_file: Option<PathBuf>,
    /// Replicas of the database, from which returning clients are served what they missed: one
    /// or several URLs, separated by spaces or line breaks, or a line of keys and values for each
    #[arg(long, env = "TIDINGS_REPLICA_DATABASE_URL", hide_env_values = true)]
    pub replica_database_url: Option<Secret>,
    /// File that contains `TIDINGS_REPLICA_DATABASE_URL`
    #[arg(long, env = "TIDINGS_REPLICA_DATABASE_URL_FILE")]
    pub replica_database_url_file: Option<PathBuf>,
    /// Schema that contains everything
    #[arg(long, env = "TIDINGS_SCHEMA", default_value = "public")]
    pub schema: SchemaName,
}

impl DatabaseOptions {
    /// The database for reading pages and writing marks.
    pub fn url(&self) -> Result<DatabaseUrl, ConfigError> {
        let (value, file) = (&self.database_url, &self.database_url_file);
        let url = secret::given("DATABASE_URL", value.as_ref(), file.as_deref())?;
        database("DATABASE_URL", &url.ok_or(ConfigError::NoDatabase)?)
    }

    /// The database for the listener and migrations, if it is configured separately.
    pub fn direct_url(&self) -> Result<Option<DatabaseUrl>, ConfigError> {
        let name = "TIDINGS_DIRECT_DATABASE_URL";
        let (value, file) = (&self.direct_database_url, &self.direct_database_url_file);
        let url = secret::given(name, value.as_ref(), file.as_deref())?;
        url.map(|url| database(name, &url)).transpose()
    }

    /// The replicas of the database, if there are any.
    pub fn replica_urls(&self) -> Result<Vec<DatabaseUrl>, ConfigError> {
        let name = "TIDINGS_REPLICA_DATABASE_URL";
        let (value, file) = (&self.replica_database_url, &self.replica_database_url_file);
        let Some(urls) = secret::given(name, value.as_ref(), file.as_deref())? else {
            return Ok(Vec::new());
        };
        let each = urls.each_url();
        let urls: Vec<_> = each
            .map(|url| database(name, &url))
            .collect::<Result<_, _>>()?;
        match urls.len() {
            0..=MOST_REPLICAS => Ok(urls),
            count => Err(ConfigError::TooManyReplicas(count)),
        }
    }

    /// The URL for sessions that no pooler shares: the direct URL if there is one.
    pub fn session_url(&self) -> Result<DatabaseUrl, ConfigError> {
        match self.direct_url()? {
            Some(url) => Ok(url),
            None => self.url(),
        }
    }
}

fn database(name: &'static str, url: &Secret) -> Result<DatabaseUrl, ConfigError> {
    url.reveal()
        .trim()
        .parse()
        .map_err(|error: DatabaseUrlError| ConfigError::Database {
            name,
            source: error.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(text: &str) -> Result<Vec<String>, ConfigError> {
        let options = DatabaseOptions {
            database_url: None,
            database_url_file: None,
            direct_database_url: None,
            direct_database_url_file: None,
            replica_database_url: text.parse().ok(),
            replica_database_url_file: None,
            schema: SchemaName::public(),
        };
        let urls = options.replica_urls()?;
        Ok(urls.iter().map(DatabaseUrl::to_string).collect())
    }

    #[test]
    fn replicas_are_urls_between_white_space_or_lines_of_keys_and_values() {
        let urls = replicas(" postgres://a/app postgres://u:secret@b/app\n postgresql://c/app ");
        assert_eq!(urls.expect("urls"), ["a/app", "b/app", "c/app"]);
        let keys = replicas("host=a dbname=app\n\nhost=b user=u dbname=app\n");
        assert_eq!(keys.expect("keys"), ["a/app", "b/app"]);
        assert_eq!(replicas(" \n").expect("nothing"), [""; 0]);
        let many = "postgres://a/app ".repeat(MOST_REPLICAS + 1);
        let error = replicas(&many).expect_err("too many").to_string();
        assert!(
            error.contains("17 parts") && error.contains("at most 16"),
            "{error}"
        );
        assert!(replicas("postgres://a/app?sslmode=nonsense").is_err());
    }
}
