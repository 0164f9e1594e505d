//! Certificates and keys, for the server and for connections to Postgres.
//!
//! May use: `runtime`.

pub mod certificates;
pub mod server_certificate;
