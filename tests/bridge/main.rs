//! The bridge as its users meet it: a real PostgreSQL, real sockets, a real
//! browser. Tests wait for signals, never for time.

mod browser;
mod cli;
mod dev;
mod faults;
mod fuzz;
mod identity;
mod key_sets;
mod life;
mod migrations;
mod model;
mod plans;
mod positions;
mod promises;
mod restart;
mod secrets;
mod shutdown;
mod stream;
mod support;
mod tickets;
mod tls;
mod token_settings;
mod tokens;
