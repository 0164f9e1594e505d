//! The files of `deploy/`, as they are shipped: what is to be replaced in them
//! is replaced, and nothing else.

pub mod front;
mod fronts;
mod hardening;
mod settings;
