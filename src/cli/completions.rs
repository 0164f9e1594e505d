//! What helps to type the command line: completions for shells, and pages for
//! `man`.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::config::{Cli, ConfigError};

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// An argument.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Nobody reads it.
    #[error("{0}")]
    Output(#[from] io::Error),
}

/// Writes what lets a shell complete the command line.
///
/// # Errors
///
/// If nobody reads it.
pub fn complete(output: &mut impl Write, shell: Shell) -> io::Result<()> {
    // The generator panics when its output is closed.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidings", &mut text);
    output.write_all(&text)
}

/// Writes the page of a command, or that of all.
///
/// # Errors
///
/// [`ManualError`].
pub fn page(output: &mut impl Write, name: Option<&str>) -> Result<(), ManualError> {
    let mut all = Cli::command();
    all.build();
    let command: Command = match name {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(command) => command.clone(),
            None => return Err(ConfigError::NoCommand(name.to_owned()).into()),
        },
    };
    Ok(Man::new(command).render(output)?)
}
