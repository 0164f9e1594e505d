//! TLS clients, and the authorities that they trust.

pub mod authority;
pub mod http2;
pub mod tunnel;

use self::{authority::Authority, tunnel::ORIGIN};
use super::{bridge::Bridge, database::Database};

/// A bridge that serves HTTPS, with additional settings.
pub async fn start(database: &Database, authority: &Authority, more: &[&str]) -> Bridge {
    let settings = authority.issue("bridge", &[ORIGIN]).settings();
    let mut all: Vec<&str> = settings.iter().map(String::as_str).collect();
    all.extend(more);
    Bridge::start_with(database, &all).await
}
