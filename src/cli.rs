//! The commands for people, and how their output is printed.
//!
//! May use: everything.

pub mod adopt;
pub mod completions;
pub mod dev;
pub mod health;
pub mod output;
pub mod prune;
pub mod send;
pub mod show_config;
pub mod status;
pub mod tail;
pub mod uninstall;

/// Why a command failed. `main` prints the error with its causes; their types decide the
/// exit code.
pub type AnyError = Box<dyn std::error::Error>;
