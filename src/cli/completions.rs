//! Shell completions and man pages.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{
    cli::AnyError,
    config::{Cli, ConfigError},
};

/// Prints the completion script for a shell.
pub fn complete(output: &mut impl Write, shell: Shell) -> io::Result<()> {
    // The generator panics if its output is closed, so it writes to memory.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidings", &mut text);
    output.write_all(&text)
}

/// Prints the man page of a command, or of `tidings` itself.
///
/// # Errors
///
/// An error, if there is no such command, or if `output` can't be written to.
pub fn page(output: &mut impl Write, name: Option<&str>) -> Result<(), AnyError> {
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
