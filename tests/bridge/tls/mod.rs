//! TLS on both sides: to Postgres as libpq's users ask for it, and to browsers,
//! with HTTP/2.

mod authority;
mod browsers;
mod database;
mod handshakes;
mod http2;
mod origin;
mod renewal;
mod server;
mod tunnel;
