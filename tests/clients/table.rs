//! The table of `docs/clients.md`.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    adapter::browser_program,
    roster::{Client, Pinned},
    run::{Effort, Outcome},
};

/// The table is between these lines.
const BEGIN: &str = "<!-- counted by make clients -->";
const END: &str = "<!-- end -->";

/// A one-line summary for the terminal.
pub fn summary(outcome: &Outcome) -> String {
    let Outcome {
        inserted,
        received,
        lost,
        lost_but_forwarded,
        unended,
        lost_unended,
        repeats,
        sent_twice,
        again,
        changed,
        unknown,
        gave_up,
        errors,
        gaps,
        cuts,
        requests,
        deferrals,
        refusals,
        took,
        details: _,
    } = outcome;
    format!(
        "inserted {inserted} received {received} lost {lost} ({lost_but_forwarded} of them forwarded, {lost_unended} of {unended} cut after their id) \
         repeats {repeats} sent twice {sent_twice} again {again} changed {changed} unknown {unknown} \
         gave up {gave_up:?} errors {errors} gaps {gaps} cuts {cuts} requests {requests} \
         deferrals {deferrals} refusals {refusals:?} in {took:.0?}"
    )
}

/// Replaces the table of the page.
pub fn write(page: &str, outcomes: &[(&Client, &Outcome)], effort: Effort) {
    let text = fs::read_to_string(page).expect(page);
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where the table ends");
    let mut table = format!(
        "{BEGIN}\n\n{} streams a client, each cut {} times.\n\n\
         | client | version | used with | cuts | rows | lost | twice over one connection | again after a disconnect | gave up, opened anew |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        effort.streams, effort.cuts
    );
    for (client, outcome) in outcomes {
        let anew: usize = outcome.gave_up.values().sum();
        table += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {anew} |\n",
            client.title,
            version(client),
            client.note,
            outcome.cuts,
            outcome.inserted,
            outcome.lost,
            outcome.repeats,
            outcome.again,
        );
    }
    fs::write(page, format!("{before}{table}\n{END}{after}")).expect(page);
}

/// The pinned version, or what the browser reports.
fn version(client: &Client) -> String {
    let said = |command: &mut Command| {
        let output = command.arg("--version").output().expect("a version");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_number = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let version = said.split_whitespace().find(is_number).unwrap_or("");
        version.to_owned()
    };
    match client.pinned {
        Pinned::Browser => said(&mut Command::new(browser_program(client.runtime))),
        Pinned::Node => said(&mut Command::new("node")),
        Pinned::Npm(name) => {
            let pinned: Value =
                serde_json::from_str(include_str!("node/package.json")).expect("JSON");
            let version = pinned["dependencies"][name].as_str().expect(name);
            version.rsplit('@').next().unwrap_or(version).to_owned()
        }
        Pinned::PyPi(name) => {
            let lines = include_str!("python/requirements.txt").lines();
            let mut pins = lines.filter_map(|line| line.split_once("=="));
            pins.find(|(pinned, _)| *pinned == name)
                .expect(name)
                .1
                .to_owned()
        }
        Pinned::Cargo(name) => {
            let lock = include_str!("rust/Cargo.lock");
            let package = format!("name = \"{name}\"\nversion = \"");
            let (_, rest) = lock.split_once(&package).expect(name);
            rest.split('"').next().unwrap_or("").to_owned()
        }
    }
}
