//! The settings for HTTPS.

use std::path::PathBuf;

use clap::Args;

use super::ConfigError;
use crate::tls::server_certificate::Certificate;

#[derive(Clone, Debug, Args)]
pub struct TlsOptions {
    /// Certificate with its chain (PEM): browsers then connect over HTTPS and HTTP/2.
    /// Renewed files are used within seconds, without a restart
    #[arg(long, env = "TIDINGS_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM, not encrypted)
    #[arg(long, env = "TIDINGS_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
}

impl TlsOptions {
    /// The certificate, if HTTPS is configured.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if only one of the two files is configured, or they can't be
    /// used.
    pub fn certificate(&self) -> Result<Option<Certificate>, ConfigError> {
        match (&self.tls_cert, &self.tls_key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Certificate::read(certificate.clone(), key.clone())
                .map(Some)
                .map_err(|error| ConfigError::Tls(error.into())),
            _ => Err(ConfigError::HalfTls),
        }
    }
}
