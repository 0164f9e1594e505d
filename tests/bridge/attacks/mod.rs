//! Denial of service: each attack of `docs/security.md` is made, and other
//! clients must not notice. Every test asserts an upper bound for them.

mod disconnections;
mod logging;
mod marks;
mod pages;
mod tickets;
mod transactions;
