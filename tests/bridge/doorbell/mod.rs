//! The adaptive doorbell: writers send NOTIFY only while a bridge is asleep, and no row falls
//! between polling and NOTIFY.
//!
//! The safety poll, once per second, would hide a lost wake-up. Where no session of a sleeping
//! bridge dies, these tests disable it, so that a missed row never arrives.

mod bell;
mod bridges;
mod flapping;
mod midway;
mod queue;
mod rings;
mod strangers;
mod transactions;
mod witness;

/// Disables the safety poll in practice: rows are found only through the doorbell.
const BELL_ALONE: &str = "--safety-poll=3600s";
