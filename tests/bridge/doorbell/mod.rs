//! The adaptive doorbell: writers ring only while a bridge sleeps, and no row
//! falls between its polling and its being rung for.
//!
//! A look of every second would hide a wake-up that was lost. Where no session
//! of a sleeping bridge dies, these tests do without that look, so that a row
//! that is missed never comes.

mod bell;
mod bridges;
mod flapping;
mod midway;
mod queue;
mod rings;
mod strangers;
mod transactions;
mod witness;

/// The bell alone is to tell of rows.
const BELL_ALONE: &str = "--safety-look=3600s";
