//! The command line as people and scripts use it: the tests run the program and check its output
//! and exit code.

mod bad_settings;
mod bridges;
mod dry_run;
mod errands;
mod health;
mod locks;
mod manual;
mod memberships;
mod passwords;
mod prune;
mod rights;
mod settings;
mod state;
mod tail;
mod terminals;
mod uninstall;
mod visibility;

use std::process::Stdio;

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::support::{PATIENCE, database::Database};

/// A command's output and exit code.
#[derive(Debug)]
pub struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Said {
    /// Asserts that it succeeded, and returns its output.
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Asserts that it failed with a message, and returns the message.
    pub fn badly(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.error.starts_with("tidings: "), "{self:?}");
        self.error
    }

    /// Asserts that its arguments were rejected, and returns the message.
    pub fn misused(self) -> String {
        assert_eq!(self.code, Some(2), "{self:?}");
        self.error
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// A command without the settings in this process's environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let inherited = std::env::vars().map(|(name, _)| name);
    for name in inherited.filter(|name| name.starts_with("TIDINGS_") || name == "DATABASE_URL") {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn said(mut command: Command, input: &str) -> Said {
    let mut child = command.spawn().expect("the binary");
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.expect("an input");
    }
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("it ends").expect("its output");
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("text"),
        error: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Runs a command as the role that `database` connects as.
pub async fn run(database: &Database, arguments: &[&str]) -> Said {
    let mut command = command(arguments);
    command.env("DATABASE_URL", database.connection_string());
    said(command, "").await
}
