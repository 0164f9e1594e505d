//! `make bench`: what Tidings costs, measured from outside.
//!
//! The load generator is a process of its own. It starts a private PostgreSQL
//! and the release binary, opens streams over raw sockets, and inserts rows by
//! the clock.

fn main() {}
