//! The files of `deploy/` as shipped, with only their placeholders replaced.

pub mod front;
mod fronts;
mod hardening;
mod nats;
mod settings;
