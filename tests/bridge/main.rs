//! The bridge as its users meet it: a real PostgreSQL, real sockets, a real
//! browser. Tests wait for signals, never for time.

mod admission;
mod browser;
mod cli;
mod command_line;
mod deploy;
mod dev;
mod documented;
mod doorbell;
mod drained;
mod faults;
mod fuzz;
mod identity;
mod install;
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
mod prune_failures;
mod recipes;
mod reload;
mod restart;
mod restored_rows;
mod secrets;
mod seen_from_sql;
mod shutdown;
mod sockets;
mod stream;
mod supervision;
#[allow(dead_code, reason = "the tests of attacks use the rest")]
mod support;
mod tickets;
mod tls;
mod token_settings;
mod tokens;
