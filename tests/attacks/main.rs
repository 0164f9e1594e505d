//! Denial of service: each attack of `docs/security.md` is made, and other
//! clients must not notice. Every test asserts an upper bound for them.

mod deadlines;
mod disconnections;
mod frames;
mod handshakes;
mod logging;
mod marks;
mod pages;
mod requests;
mod tickets;
mod transactions;
mod unread;
mod windows;
