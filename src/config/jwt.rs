//! Whose tokens are good.

use std::path::PathBuf;

use clap::Args;

use super::{
    ConfigError,
    secret::{self, Hidden},
};
use crate::token::{JwtSecret, Tokens};

/// Whose tokens are good.
#[derive(Clone, Debug, Args)]
pub struct JwtOptions {
    /// The secret that signs users' tokens (HS256, 32 bytes at least)
    #[arg(long, env = "TIDINGS_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<Hidden>,
    /// The same, read from a file
    #[arg(long, env = "TIDINGS_JWT_SECRET_FILE")]
    pub jwt_secret_file: Option<PathBuf>,
}

impl JwtOptions {
    /// What tells good tokens from bad ones.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], also if nothing is configured: nothing is accepted by
    /// default.
    pub fn tokens(&self) -> Result<Tokens, ConfigError> {
        let (value, file) = (&self.jwt_secret, &self.jwt_secret_file);
        let secret = secret::given("TIDINGS_JWT_SECRET", value.as_ref(), file.as_deref())?;
        let secret = self::secret(&secret.ok_or(ConfigError::NoAuthentication)?)?;
        Ok(Tokens::signed_with(&secret))
    }
}

pub(super) fn secret(hidden: &Hidden) -> Result<JwtSecret, ConfigError> {
    hidden.reveal().parse().map_err(ConfigError::Secret)
}
