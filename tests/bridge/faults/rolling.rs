//! Bridges are replaced one by one while applications write and browsers read. The replacement is
//! the same program or, with `make upgrade`, this program replaces an earlier version.

use std::time::{Duration, Instant};

use tokio::process::Command;

use super::load::Load;
use crate::support::{
    account::Account,
    database::Database,
    process::{PROGRAM, Served},
};

/// Names the earlier program.
const EARLIER: &str = "TIDINGS_UPGRADE_FROM";

/// Enough to distinguish a stampede from chance.
const CLIENTS_PER_USER: usize = 16;

const DRAIN: Duration = Duration::from_secs(1);

/// The longest `retry:` that a bridge sends to its clients.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

async fn migrate(program: &str, database: &Database) {
    let migrated = Command::new(program)
        .arg("migrate")
        .env("DATABASE_URL", database.owner().connection_string())
        .status()
        .await;
    assert!(migrated.expect("the program").success());
}

async fn start(program: &str, database: &Database) -> Served {
    let drain = format!("--drain={}s", DRAIN.as_secs());
    Served::start_program(program, database, &[&drain]).await
}

/// Asserts that no tenth of the time has more than two thirds of the reconnections, where chance
/// alone would bring a quarter.
fn assert_no_stampede(stopped: Instant, returned: &[Instant]) {
    let tenth = (DRAIN + LONGEST_WAIT) / 10;
    let together = returned.iter().enumerate().map(|(first, at)| {
        let upto = returned.partition_point(|other| *other <= *at + tenth);
        upto - first
    });
    let most = together.max().expect("somebody who returned");
    let since: Vec<_> = returned.iter().map(|at| *at - stopped).collect();
    assert!(
        most * 3 <= returned.len() * 2,
        "{most} of {} returned within {tenth:?}: {since:?}",
        returned.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_are_replaced_one_by_one_and_nobody_misses_a_row_or_comes_back_in_a_crowd() {
    let earlier = std::env::var(EARLIER).unwrap_or_else(|_| PROGRAM.to_owned());
    let database = Database::empty().await;
    let mut account = Account::without_repeats("bridges are replaced one by one");
    migrate(&earlier, &database).await;
    let mut running = vec![
        start(&earlier, &database).await,
        start(&earlier, &database).await,
    ];
    let addresses = [running[0].address(), running[1].address()];
    let load = Load::start_with_browsers(&database, &addresses, CLIENTS_PER_USER).await;
    load.writes(50).await;
    // The old bridges run on the schema that the new one needs.
    migrate(PROGRAM, &database).await;
    load.writes(50).await;
    for _ in 0..addresses.len() {
        running.push(start(PROGRAM, &database).await);
        let stopping = running.remove(0);
        let staying: Vec<_> = running.iter().map(Served::address).collect();
        load.serve_from(&staying);
        let stopped = Instant::now();
        let streams = stopping.stop().await;
        let returned = load.all_return(stopped).await;
        assert_eq!(returned.len() as u64, streams, "each returned once");
        assert_no_stampede(stopped, &returned);
        load.writes(50).await;
        account.recovered_after(load.flows().await);
    }
    load.end(&mut account).await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    account.close();
}
