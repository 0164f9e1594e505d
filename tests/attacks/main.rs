//! Denial of service: each attack of `docs/security.md` is made, and other clients
//! must not notice. Every test asserts an upper bound for them.
//!
//! A program of its own, since the other tests would disturb what is measured here:
//! `make attacks`.

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
