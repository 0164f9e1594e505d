//! The settings for sharing what is read with other bridges.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{
    ConfigError,
    secret::{self, Secret},
};
use crate::{
    delivery::feed::FeedPolicy,
    fanout::{NatsIdentity, NatsServers},
};

#[derive(Clone, Debug, Args)]
pub struct NatsOptions {
    /// NATS servers through which bridges share what they read, instead of each polling the
    /// database: `nats://host:4222` or `tls://host:4222`, with `user:password@` if needed,
    /// separated by commas
    #[arg(long, env = "TIDINGS_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<Secret>,
    /// File that contains `TIDINGS_NATS_URL`
    #[arg(long, env = "TIDINGS_NATS_URL_FILE")]
    pub nats_url_file: Option<PathBuf>,
    /// Credentials file for the NATS servers, with a user's JWT and NKEY seed
    #[arg(long, env = "TIDINGS_NATS_CREDENTIALS_FILE")]
    pub nats_credentials_file: Option<PathBuf>,
    /// File with the NKEY seed of a user of the NATS servers
    #[arg(long, env = "TIDINGS_NATS_NKEY_FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// Certificates, in a PEM file, that NATS servers' certificates must be signed by,
    /// instead of the system's
    #[arg(long, env = "TIDINGS_NATS_CA_FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// Whether this bridge may be the one that polls the database for the others
    #[arg(long, env = "TIDINGS_FEED", default_value = "auto")]
    pub feed: FeedSetting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FeedSetting {
    /// It is, if no other bridge is.
    Auto,
    /// It only follows others, and polls for itself while there are none.
    Never,
}

impl From<FeedSetting> for FeedPolicy {
    fn from(setting: FeedSetting) -> Self {
        match setting {
            FeedSetting::Auto => Self::Auto,
            FeedSetting::Never => Self::Never,
        }
    }
}

impl NatsOptions {
    /// The servers, if there are any.
    pub fn servers(&self) -> Result<Option<NatsServers>, ConfigError> {
        let name = "TIDINGS_NATS_URL";
        let (value, file) = (&self.nats_url, &self.nats_url_file);
        let Some(urls) = secret::given(name, value.as_ref(), file.as_deref())? else {
            return match self.without_url() {
                Some(name) => Err(ConfigError::NoNatsUrl(name)),
                None => Ok(None),
            };
        };
        let identity = match (&self.nats_credentials_file, &self.nats_nkey_file) {
            (None, None) => NatsIdentity::Anonymous,
            (Some(path), None) => {
                let text = file_text("TIDINGS_NATS_CREDENTIALS", path)?;
                NatsIdentity::Credentials(text.reveal().into())
            }
            (None, Some(path)) => {
                let seed = file_text("TIDINGS_NATS_NKEY", path)?;
                NatsIdentity::Nkey(seed.reveal().into())
            }
            (Some(_), Some(_)) => return Err(ConfigError::TwoNatsIdentities),
        };
        let servers = NatsServers::new(urls.reveal(), identity, self.nats_ca_file.clone());
        let servers = servers.map_err(|source| ConfigError::Nats(Box::new(source)))?;
        Ok(Some(servers))
    }

    /// A setting that means nothing without the URL.
    fn without_url(&self) -> Option<&'static str> {
        let files = [
            (&self.nats_credentials_file, "TIDINGS_NATS_CREDENTIALS_FILE"),
            (&self.nats_nkey_file, "TIDINGS_NATS_NKEY_FILE"),
            (&self.nats_ca_file, "TIDINGS_NATS_CA_FILE"),
        ];
        let mut given = files.into_iter().filter(|(file, _)| file.is_some());
        given.next().map(|(_, name)| name)
    }
}

fn file_text(name: &'static str, path: &Path) -> Result<Secret, ConfigError> {
    let text = secret::given(name, None, Some(path))?;
    text.ok_or(ConfigError::NoNatsUrl(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::runtime::error_chain::ErrorChain;

    fn options(url: Option<&str>) -> NatsOptions {
        NatsOptions {
            nats_url: url.and_then(|url| url.parse().ok()),
            nats_url_file: None,
            nats_credentials_file: None,
            nats_nkey_file: None,
            nats_ca_file: None,
            feed: FeedSetting::Auto,
        }
    }

    fn error(options: &NatsOptions) -> String {
        let error = options.servers().expect_err("an error");
        ErrorChain(&error).to_string()
    }

    #[test]
    fn without_a_url_nothing_is_shared() {
        assert!(options(None).servers().expect("none").is_none());
        let servers = options(Some("nats://a,b")).servers().expect("servers");
        assert_eq!(servers.expect("servers").to_string(), "a:4222, b:4222");
    }

    #[test]
    fn settings_that_contradict_each_other_are_rejected() {
        let file = std::env::temp_dir().join(format!("tidings-nats-{}", std::process::id()));
        fs::write(&file, "hunter2").expect("a file");
        let with = |url, credentials, nkey| NatsOptions {
            nats_credentials_file: credentials,
            nats_nkey_file: nkey,
            ..options(url)
        };
        let here = || Some(file.clone());
        let lone = error(&with(None, here(), None));
        assert!(
            lone.contains("TIDINGS_NATS_CREDENTIALS_FILE is set without"),
            "{lone}"
        );
        let both = error(&with(Some("nats://a"), here(), here()));
        assert!(both.contains("keep one of them"), "{both}");
        for wrong in [
            with(Some("nats://a"), here(), None),
            with(Some("nats://a"), None, here()),
            with(Some("redis://app:hunter2@a"), None, None),
            with(Some("nats://a"), Some("/nonexistent".into()), None),
        ] {
            let text = error(&wrong);
            assert!(text.contains("TIDINGS_NATS_"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        fs::remove_file(&file).expect("removed");
    }
}
