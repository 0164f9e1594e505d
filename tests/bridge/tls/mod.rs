//! TLS on both sides: to Postgres as libpq's users ask for it, and to browsers,
//! with HTTP/2.

pub mod authority;
pub mod browsers;
mod database;
mod handshakes;
pub mod http2;
mod origin;
mod renewal;
mod server;
pub mod tunnel;
