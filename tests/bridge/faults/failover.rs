//! The primary fails and its standby is promoted; the bridge was configured with both hosts.

use std::path::PathBuf;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::Cluster;
use tokio::time::{Instant, timeout};

use crate::support::{
    PATIENCE,
    account::Account,
    bridge::Bridge,
    database::{Database, start_cluster},
    expect_gap,
    frozen::Frozen,
    row_id,
    standby::Standby,
    until,
};

#[derive(Clone, Copy)]
enum Order {
    PrimaryFirst,
    StandbyFirst,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_knows_both_hosts_ends_on_the_promoted_standby() {
    let account = Account::without_repeats("primary killed, standby promoted");
    fail_over(account, Order::PrimaryFirst, async |primary| {
        signal(primary, Signal::SIGKILL);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_the_hosts_does_not_matter() {
    let account = Account::without_repeats("primary crashed, standby promoted");
    fail_over(account, Order::StandbyFirst, async |primary| {
        signal(primary, Signal::SIGQUIT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_holds_nobody_up_once_the_standby_is_promoted() {
    let account = Account::without_repeats("primary frozen, standby promoted");
    fail_over(account, Order::PrimaryFirst, Frozen::freeze).await;
}

fn signal(primary: &Cluster, signal: Signal) {
    let pid = primary.postmaster_pid().expect("a server");
    kill(Pid::from_raw(pid), signal).expect("a signal");
}

async fn fail_over<T>(mut account: Account, order: Order, fault: impl AsyncFnOnce(&Cluster) -> T) {
    let primary = start_cluster().await;
    let old = Database::create(&primary, "app").await;
    old.migrate().await;
    let standby = Standby::of(&primary).await;
    let new = Database::at(standby.cluster().url("app"));
    standby.follows(&primary).await;

    let bridge = Bridge::start(&old.through(&both(&primary, &standby, order))).await;
    let mut alice = bridge.connect_live("alice").await;
    old.execute("select send_notification('alice', 'before')")
        .await;
    let mut got = vec![row_id(&alice.next_event().await)];
    let id = alice.last_event_id().to_owned();
    old.until("select bool_and(sent) from notifications").await;
    old.execute("select send_notification('bob', 'before')")
        .await;
    standby.follows(&primary).await;

    // Kept until the end, so that a frozen primary stays frozen.
    let _broken = fault(&primary).await;
    standby.promote().await;
    let begin = Instant::now();
    new.execute("select send_notification('alice', 'meanwhile')")
        .await;

    // Alice's position is meaningless in the new history, so the bridge ends her stream. Until then
    // it gets heartbeats.
    let end = timeout(PATIENCE, alice.rest()).await;
    end.expect("the stream of the old history ends");
    bridge.until_ready_is(200).await;
    let mut alice = bridge.resume("alice", &id).await;
    expect_gap(&mut alice, "epoch").await;
    let backlog = until(&mut alice, "tidings.caught-up").await;
    account.recovered_after(begin.elapsed());
    got.extend(backlog.iter().map(row_id));
    new.execute("select send_notification('alice', 'after')")
        .await;
    let live = alice.next_event().await;
    assert_eq!(live.data, "after");
    got.push(row_id(&live));
    account.client(of(&new, "alice").await, &got);

    let mut bob = bridge.connect("bob").await;
    let backlog = until(&mut bob, "tidings.caught-up").await;
    let got: Vec<_> = backlog.iter().map(row_id).collect();
    account.client(of(&new, "bob").await, &got);
    new.until("select bool_and(sent) from notifications").await;
    account.close();
}

async fn of(database: &Database, user: &str) -> Vec<i64> {
    let query = format!("select id from notifications where user_id = '{user}'");
    database.ids(&query).await
}

/// Both hosts in the form of a connection string's `host`.
fn both(primary: &Cluster, standby: &Standby, order: Order) -> PathBuf {
    let mut hosts = [primary, standby.cluster()]
        .map(|cluster| cluster.folder().join("run").display().to_string());
    if let Order::StandbyFirst = order {
        hosts.reverse();
    }
    hosts.join(",").into()
}
