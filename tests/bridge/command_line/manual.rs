//! What helps to type the command line.

use std::process::Stdio;

use super::{command, said};

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_pages_tell_of_each_command() {
    for (shell, of_tidings) in [
        ("bash", " tidings\n"),
        ("zsh", "#compdef tidings\n"),
        ("fish", "complete -c tidings "),
    ] {
        let text = said(command(&["completions", shell]), "").await.well();
        for expected in [of_tidings, "uninstall", "status"] {
            assert!(text.contains(expected), "{expected:?} for {shell}: {text}");
        }
    }
    let page = said(command(&["man"]), "").await.well();
    assert!(page.contains(".TH tidings 1"), "{page}");
    assert!(page.contains("tidings\\-check(1)"), "{page}");
    let page = said(command(&["man", "check"]), "").await.well();
    assert!(page.contains("max\\-clock\\-skew"), "{page}");
    let told = said(command(&["man", "nothing"]), "").await.badly();
    assert!(told.contains("tidings help"), "{told}");
}

/// As in `tidings man | head -1`: the reader is gone before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_enough_is_no_error() {
    for arguments in [&["man"][..], &["completions", "bash"], &["config"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command(arguments);
        command.stdout(Stdio::from(writer));
        let said = said(command, "").await;
        assert_eq!(
            (said.code, said.error.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}
