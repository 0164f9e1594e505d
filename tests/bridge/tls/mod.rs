//! TLS on both sides: to Postgres as libpq's users ask for it, and to browsers,
//! with HTTP/2.

mod browsers;
mod database;
mod handshakes;
mod origin;
mod renewal;
mod server;
