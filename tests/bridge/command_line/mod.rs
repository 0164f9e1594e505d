//! The command line as people and scripts meet it: the program is run, and what
//! it prints and how it ends is looked at.

mod bad_settings;
mod bridges;
mod dry_run;
mod errands;
mod health;
mod locks;
mod manual;
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

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Said {
    /// It ended well, and this is what it printed.
    pub fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It ended badly, and told why.
    fn badly(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.error.starts_with("tidings: "), "{self:?}");
        self.error
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// Without anything of this process's own settings.
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

/// Runs a command as the role that `database` is entered as.
pub async fn run(database: &Database, arguments: &[&str]) -> Said {
    let mut command = command(arguments);
    command.env("DATABASE_URL", database.connection_string());
    said(command, "").await
}
