//! Several bridges serve one database; some are killed or frozen, and their clients move to the
//! others.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use tokio::process::Child;

use super::load::Load;
use crate::support::{
    account::Account,
    database::Database,
    process::{serve, signal},
};

async fn several<const N: usize>(database: &Database) -> ([Child; N], [SocketAddr; N]) {
    let mut children = Vec::with_capacity(N);
    let mut addresses = Vec::with_capacity(N);
    for _ in 0..N {
        let (child, address) = serve(database, &[]).await;
        children.push(child);
        addresses.push(address);
    }
    let children = children.try_into();
    let addresses = addresses.try_into();
    (children.expect("all"), addresses.expect("all"))
}

/// Rows that a bridge sent but could no longer mark are sent and marked by another bridge.
async fn all_is_sent(database: &Database) {
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_bridge_that_is_killed_go_on_at_another() {
    let database = Database::migrated().await;
    let mut account = Account::without_repeats("bridge is killed, its clients go to another");
    for hangs_before in [false, true] {
        // Each user has one client on each bridge.
        let ([killed, _other], addresses) = several(&database).await;
        let load = Load::start(&database, &addresses).await;
        load.writes(50).await;
        if hangs_before {
            signal(&killed, Signal::SIGSTOP);
            load.writes(50).await;
        }
        signal(&killed, Signal::SIGKILL);
        account.recovered_after(load.flows().await);
        load.writes(50).await;
        load.end(&mut account).await;
        all_is_sent(&database).await;
    }
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_freezes_and_thaws_disturbs_nobody_and_goes_on() {
    let database = Database::migrated().await;
    let mut account = Account::without_repeats("bridge is frozen, its clients go to another");
    let ([sleeper, _other], [frozen, awake]) = several(&database).await;
    let load = Load::start(&database, &[frozen, awake]).await;
    // In the first round, one client of each user is connected to the frozen bridge; in the second,
    // all are.
    for clients in [3, 6] {
        load.writes(50).await;
        signal(&sleeper, Signal::SIGSTOP);
        load.writes(50).await;
        let breaks = load.breaks();
        // The frozen bridge's clients give up on it.
        load.serve_from(&[awake]);
        account.recovered_after(load.flows().await);
        assert_eq!(
            load.breaks(),
            breaks + clients,
            "the others aren't disturbed"
        );

        signal(&sleeper, Signal::SIGCONT);
        load.writes(20).await;
        // The thawed bridge continues where it stopped, and clients can connect to it again.
        load.serve_from(&[frozen]);
        load.flows().await;
        load.serve_from(&[frozen, awake]);
    }
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_bridges_serves_everybody() {
    let database = Database::migrated().await;
    let mut account = Account::without_repeats("of three bridges one is killed and one frozen");
    let ([killed, sleeper, _last], addresses) = several(&database).await;
    let load = Load::start(&database, &addresses).await;
    load.writes(50).await;
    signal(&killed, Signal::SIGKILL);
    account.recovered_after(load.flows().await);

    signal(&sleeper, Signal::SIGSTOP);
    load.writes(50).await;
    load.serve_from(&addresses[2..]);
    account.recovered_after(load.flows().await);

    // The thawed bridge now marks what it had sent but not marked.
    signal(&sleeper, Signal::SIGCONT);
    load.serve_from(&addresses[1..]);
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}
