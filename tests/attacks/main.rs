//! Denial of service: each attack of `docs/security.md` is carried out, and other
//! clients must not be affected. Every test asserts an upper bound for them.
//!
//! A separate test program, since other tests would disturb the measurements: `make
//! attacks`.

mod bystander;
mod deadlines;
mod disconnections;
mod frames;
mod handshakes;
mod logging;
mod marks;
mod pages;
mod requests;
mod stalled;
#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
#[path = "../bridge/support/mod.rs"]
mod support;
mod tickets;
mod transactions;
mod unread;
mod windows;
