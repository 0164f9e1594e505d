//! The bridge as its users meet it: a real PostgreSQL, real sockets, a real
//! browser. Tests wait for signals, never for time.

mod browser;
mod cli;
mod delivery;
mod dev;
mod faults;
mod flood;
mod identity;
mod marks;
mod migrations;
mod model;
mod plans;
mod positions;
mod restart;
mod shutdown;
mod stream;
mod support;
