//! Handles SIGHUP: reads secrets, keys, database URLs and certificates from their files
//! again. Open streams and database connections stay open.

use std::{error::Error, path::Path, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{info, warn};

use crate::{
    app::shutdown::Hangups,
    auth::jwt::{Keys, Tokens},
    config::ServeOptions,
    postgres::connect::DatabaseUrl,
    runtime::error_chain::ErrorChain,
    tls::server_certificate::Certificate,
};

/// After this time a warning is logged that the files can't be read: one of them may be
/// on a network drive that is gone. The reload keeps waiting for them.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// What to read again, and where the new values are used.
pub struct Reload {
    /// They name the files.
    pub options: Box<ServeOptions>,
    /// For reading pages and writing marks.
    pub url: DatabaseUrl,
    /// For the listener, if it connects elsewhere.
    pub direct_url: Option<DatabaseUrl>,
    pub replica_urls: Vec<DatabaseUrl>,
    pub tokens: Option<Arc<Tokens>>,
    pub certificate: Option<Arc<Certificate>>,
}

impl Reload {
    /// Reads everything again at each SIGHUP, forever.
    pub async fn run(self, hangups: Hangups) {
        let reload = Arc::new(self);
        loop {
            hangups.next().await;
            let files = Arc::clone(&reload);
            let mut reading = spawn_blocking(move || files.read());
            let read = match timeout(READ_LIMIT, &mut reading).await {
                Ok(read) => read,
                Err(_) => {
                    warn!(
                        "SIGHUP: reading the settings' files has taken {} s so far; still waiting",
                        READ_LIMIT.as_secs()
                    );
                    reading.await
                }
            };
            let fetches = reload.fetch_key_set();
            if matches!((read, fetches), (Ok(Reloaded::Nothing), Reloaded::Nothing)) {
                info!("SIGHUP: no setting is read from a file, so there is nothing to reload");
            }
        }
    }

    /// If a file can't be used, the value that was read before stays in use.
    fn read(&self) -> Reloaded {
        let database = &self.options.database;
        let jwt = &self.options.jwt;
        [
            self.read_secrets(jwt.secrets.jwt_secret_file.as_deref()),
            self.read_public_keys(jwt.jwt_public_key_file.as_deref()),
            read_file(
                "the database URL",
                database.database_url_file.as_deref(),
                || text(database.url()).map(|url| self.url.replace_by(&url)),
            ),
            read_file(
                "the direct database URL",
                database.direct_database_url_file.as_deref(),
                || {
                    if let (Some(used), Some(url)) =
                        (&self.direct_url, text(database.direct_url())?)
                    {
                        used.replace_by(&url);
                    }
                    Ok(())
                },
            ),
            read_file(
                "the replicas' URLs",
                database.replica_database_url_file.as_deref(),
                || self.use_replicas(&text(database.replica_urls())?),
            ),
            read_file(
                "the certificate",
                self.options.tls.tls_cert.as_deref(),
                || match &self.certificate {
                    Some(certificate) => text(certificate.reload()).map(drop),
                    None => Ok(()),
                },
            ),
        ]
        .into_iter()
        .fold(Reloaded::Nothing, Reloaded::or)
    }

    fn use_replicas(&self, urls: &[DatabaseUrl]) -> Result<(), String> {
        if urls.len() != self.replica_urls.len() {
            return Err("the number of replicas has changed, which requires a restart".to_owned());
        }
        for (used, url) in self.replica_urls.iter().zip(urls) {
            used.replace_by(url);
        }
        Ok(())
    }

    fn read_secrets(&self, file: Option<&Path>) -> Reloaded {
        read_file("the token secrets", file, || {
            let secrets = text(self.options.jwt.secret_keys())?;
            self.use_keys(|keys| keys.secrets = secrets)
        })
    }

    fn read_public_keys(&self, file: Option<&Path>) -> Reloaded {
        read_file("the tokens' public keys", file, || {
            let public = text(self.options.jwt.public_keys())?;
            self.use_keys(|keys| keys.public = public)
        })
    }

    fn use_keys(&self, change: impl FnOnce(&mut Keys)) -> Result<(), String> {
        let Some(tokens) = &self.tokens else {
            return Ok(());
        };
        let mut keys = Keys::clone(&tokens.keys());
        change(&mut keys);
        text(self.options.jwt.check(&keys, tokens.key_set()))?;
        tokens.replace_keys(keys);
        Ok(())
    }

    fn fetch_key_set(&self) -> Reloaded {
        let key_set = self.tokens.as_ref().and_then(|tokens| tokens.key_set());
        let Some(key_set) = key_set else {
            return Reloaded::Nothing;
        };
        key_set.fetch_anew();
        info!("SIGHUP: fetching the key set (TIDINGS_JWKS_URL) again");
        Reloaded::Something
    }
}

/// Whether there was anything to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reloaded {
    Something,
    Nothing,
}

impl Reloaded {
    fn or(self, other: Self) -> Self {
        match self {
            Self::Something => self,
            Self::Nothing => other,
        }
    }
}

fn text<T>(outcome: Result<T, impl Error + 'static>) -> Result<T, String> {
    outcome.map_err(|error| ErrorChain(&error).to_string())
}

/// Reads one kind of setting again, if it comes from a file, and logs the outcome, but
/// never the file's contents.
fn read_file(
    what: &'static str,
    file: Option<&Path>,
    read: impl FnOnce() -> Result<(), String>,
) -> Reloaded {
    let Some(file) = file.map(Path::display) else {
        return Reloaded::Nothing;
    };
    match read() {
        Ok(()) => info!(%file, "SIGHUP: reloaded {what} from {file}"),
        Err(error) => warn!(
            %file, %error,
            "SIGHUP: {what} in {file} can't be used, so the previous value stays in use: {error}"
        ),
    }
    Reloaded::Something
}
