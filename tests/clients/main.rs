//! Real clients: each opens streams through proxies that cut connections at random
//! bytes, while bridges are restarted, are full, and reject expired tokens. Lost and
//! duplicate rows are counted; `docs/clients.md` has the table.
//!
//! A separate test program, because its clients must be installed first: `make
//! clients`.

mod adapter;
mod control;
mod cutter;
mod roster;
mod run;
#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
#[path = "../bridge/support/mod.rs"]
mod support;
mod table;
mod text;
mod wire;

use std::{env, fs, path::PathBuf, sync::Arc};

use roster::{CLIENTS, Client, GivesUp, Id};
use run::{Effort, Outcome, run};
use tokio::{sync::Semaphore, task::JoinSet};

/// Reads a setting from the environment.
fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok().filter(|value| !value.is_empty())?;
    let parsed = value.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name} is {value}")))
}

/// The clients named in `TIDINGS_CLIENTS`, separated by commas; `quick` stands for
/// those of `.ci/run`.
fn chosen() -> Vec<&'static Client> {
    let wanted: Option<String> = setting("TIDINGS_CLIENTS");
    let Some(wanted) = wanted else {
        return CLIENTS.iter().collect();
    };
    let names: Vec<&str> = wanted.split(',').collect();
    let is_wanted = |client: &&Client| {
        names.contains(&client.key().as_str()) || client.is_quick && names.contains(&"quick")
    };
    let chosen: Vec<_> = CLIENTS.iter().filter(is_wanted).collect();
    assert!(!chosen.is_empty(), "TIDINGS_CLIENTS is {wanted}");
    chosen
}

/// If at least this many rows were cut after their id, a client that takes ids too
/// early must have lost one.
const ENOUGH: usize = 10;

/// Problems with the outcome of a client, if any.
fn faults(client: &Client, outcome: &Outcome, effort: Effort) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |is_fine: bool, what: String| {
        if !is_fine {
            faults.push(format!("{}: {what}", client.title));
        }
    };
    let wanted = effort.streams * effort.cuts;
    check(
        outcome.cuts >= wanted,
        format!("{} cuts, not {wanted}", outcome.cuts),
    );
    let lost = outcome.lost - outcome.lost_unended;
    check(lost == 0, format!("{lost} rows lost"));
    match client.id {
        Id::OfEvent => check(
            outcome.lost_unended == 0,
            format!(
                "{} rows lost that were cut after their id",
                outcome.lost_unended
            ),
        ),
        Id::OfLine => check(
            outcome.lost_unended > 0 || outcome.unended < ENOUGH,
            format!(
                "none of {} rows lost that were cut after their id",
                outcome.unended
            ),
        ),
    }
    check(
        outcome.sent_twice == 0,
        format!("{} rows sent twice over one connection", outcome.sent_twice),
    );
    check(
        outcome.repeats == 0,
        format!("{} rows came twice over one connection", outcome.repeats),
    );
    check(
        outcome.changed == 0,
        format!("{} texts changed", outcome.changed),
    );
    check(
        outcome.unknown == 0,
        format!("{} events that no row is known of", outcome.unknown),
    );
    check(outcome.errors == 0, format!("{} errors", outcome.errors));
    check(
        outcome.gaps == 0,
        format!("{} times told of a gap", outcome.gaps),
    );
    check(outcome.deferrals > 0, "never deferred".to_owned());
    let is_expected = match client.gives_up {
        GivesUp::Never => outcome.gave_up.is_empty(),
        GivesUp::Sometimes => true,
        GivesUp::Always => !outcome.gave_up.is_empty(),
    };
    check(is_expected, format!("gave up: {:?}", outcome.gave_up));
    faults
}

/// Writes what happened to the streams of a client that failed, for analysis.
fn report(client: &Client, outcome: &Outcome) -> PathBuf {
    let folder = adapter::installed("failed");
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(format!("{}.txt", client.key().replace(':', "-")));
    fs::write(&file, outcome.details.join("\n")).expect("a file");
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_loses_a_row_whatever_is_cut() {
    let effort = Effort {
        streams: setting("TIDINGS_CLIENTS_STREAMS").unwrap_or(50),
        cuts: setting("TIDINGS_CLIENTS_CUTS").unwrap_or(20),
        seed: setting("TIDINGS_CLIENTS_SEED").unwrap_or_else(rand::random),
    };
    println!("TIDINGS_CLIENTS_SEED={}", effort.seed);
    adapter::prepare();
    let turns = Arc::new(Semaphore::new(
        setting("TIDINGS_CLIENTS_AT_ONCE").unwrap_or(3),
    ));
    let mut running = JoinSet::new();
    for (place, client) in chosen().into_iter().enumerate() {
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire_owned().await.expect("a turn");
            let outcome = run(client, effort).await;
            println!("{:<30} {}", client.title, table::summary(&outcome));
            let faults = faults(client, &outcome, effort);
            if !faults.is_empty() {
                println!(
                    "{}; see {}",
                    faults.join("\n"),
                    report(client, &outcome).display()
                );
            }
            (place, client, outcome, faults)
        });
    }
    let mut outcomes = running.join_all().await;
    outcomes.sort_by_key(|(place, ..)| *place);
    let counts: Vec<_> = outcomes
        .iter()
        .map(|(_, client, outcome, _)| (*client, outcome))
        .collect();
    if let Some(page) = setting::<String>("TIDINGS_CLIENTS_WRITE") {
        table::write(&page, &counts, effort);
    }
    let faults: Vec<_> = outcomes.iter().flat_map(|(.., faults)| faults).collect();
    assert!(faults.is_empty(), "seed {}: {faults:#?}", effort.seed);
}
