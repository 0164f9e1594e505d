//! TLS on both sides: to Postgres with libpq's options, and to browsers with HTTP/2.

mod browsers;
mod database;
mod handshakes;
mod origin;
mod renewal;
mod server;
