//! The bridge as its users meet it: a real PostgreSQL, real sockets, a real
//! browser. Tests wait for signals, never for time.

mod admission;
mod browser;
mod check;
mod cli;
mod dev;
mod doorbell;
mod drained;
mod faults;
mod fuzz;
mod identity;
mod key_sets;
mod life;
mod logs;
mod metrics;
mod migrations;
mod model;
mod operator;
mod origins;
mod pages;
mod plans;
mod positions;
mod privileges;
mod promises;
mod proxies;
mod prune;
mod restart;
mod secrets;
mod shutdown;
mod sockets;
mod stream;
mod support;
mod tickets;
mod tls;
mod token_settings;
mod tokens;
