//! TLS on both sides: to Postgres as libpq's users ask for it, and to browsers,
//! with HTTP/2.

mod authority;
mod database;
mod server;
