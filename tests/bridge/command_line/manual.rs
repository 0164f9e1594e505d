//! Help for typing the command line.

use std::process::Stdio;

use clap::CommandFactory;
use tidings::config::Cli;

use super::{command, said};
use crate::support::bridge::SECRET;

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_pages_tell_of_each_command() {
    let cli = Cli::command();
    for (shell, own) in [
        ("bash", "complete -F _tidings "),
        ("zsh", "#compdef tidings\n"),
        ("fish", "complete -c tidings "),
    ] {
        let text = said(command(&["completions", shell]), "").await.well();
        assert!(text.contains(own), "{shell}: {text}");
        for name in cli.get_subcommands().map(clap::Command::get_name) {
            assert!(text.contains(name), "{shell} and {name}: {text}");
        }
    }
    let page = said(command(&["man"]), "").await.well();
    assert!(page.contains(".TH tidings 1"), "{page}");
    assert!(page.contains("tidings\\-check(1)"), "{page}");
    let page = said(command(&["man", "check"]), "").await.well();
    assert!(page.contains(".TH tidings-check 1"), "{page}");
    assert!(page.contains("max\\-clock\\-skew"), "{page}");
    let unknown = said(command(&["man", "nothing"]), "").await;
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.error.contains("tidings help"), "{unknown:?}");
}

/// As in `tidings man | head -1`: the reader is gone before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_enough_is_no_error() {
    for arguments in [&["man"][..], &["completions", "bash"], &["config"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command(arguments);
        command
            .env("DATABASE_URL", "host=db user=u")
            .env("TIDINGS_JWT_SECRET", SECRET)
            .stdout(Stdio::from(writer));
        let said = said(command, "").await;
        assert_eq!(
            (said.code, said.error.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}
