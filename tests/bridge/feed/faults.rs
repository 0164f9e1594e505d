//! Whatever fails, rows arrive in time, once.

use std::{collections::BTreeSet, time::Duration};

use nix::sys::signal::Signal;
use private_postgres::Shutdown;
use tokio::time::{Instant, sleep};

use super::{
    ALONE, FEEDING, FOLLOWING, bridge, bridge_with, pair, receives, receives_all, send, until_role,
    until_shares, write,
};
use crate::support::{
    PATIENCE,
    bridge::ASKS_AGAIN,
    database::{Database, start_cluster, start_forgetful_cluster},
    nats::NatsServer,
    ports::free_address,
    process::Served,
    proxy::{Network, Proxy, Target},
    rows,
};

#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_live_without_nats_and_bridges_share_again_when_it_returns() {
    let database = Database::migrated().await;
    let mut nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    let mut sources = [
        feeder.connect_live("alice").await,
        follower.connect_live("alice").await,
    ];
    for _ in 0..2 {
        nats.kill();
        for _ in 0..3 {
            let id = send(&database).await;
            for source in &mut sources {
                receives(source, id).await;
            }
        }
        until_role(&follower, ALONE).await;
        until_role(&feeder, ALONE).await;
        nats.restart();
        for bridge in [&feeder, &follower] {
            until_shares(bridge).await;
        }
        let owed = write(&database, 2, 20).await;
        let last = send(&database).await;
        for source in &mut sources {
            receives_all(source, owed.clone(), last).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_delays_rows_by_little() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    nats.freeze();
    for _ in 0..5 {
        let id = send(&database).await;
        receives(&mut source, id).await;
    }
    nats.resume();
    for _ in 0..5 {
        let id = send(&database).await;
        receives(&mut source, id).await;
    }
    until_shares(&follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_starts_without_nats_and_shares_once_it_is_there() {
    let database = Database::migrated().await;
    let proxy = Proxy::to(Target::Tcp(free_address())).await;
    let url = format!("nats://{}", proxy.address());
    let first = bridge_with(&database, &url, &[]).await;
    let second = bridge_with(&database, &url, &[]).await;
    first.until_ready_is(200).await;
    let mut source = second.connect_live("alice").await;
    let id = send(&database).await;
    receives(&mut source, id).await;
    let nats = NatsServer::start();
    proxy.lead_to(Target::Tcp(nats.address()));
    for bridge in [&first, &second] {
        until_shares(bridge).await;
    }
    let id = send(&database).await;
    receives(&mut source, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_of_the_list_is_used_when_one_fails() {
    let database = Database::migrated().await;
    let (mut first, second) = (NatsServer::start(), NatsServer::start());
    let urls = format!("{}, {}", first.url(), second.url());
    // They are no cluster, so all have to be at the same one.
    first.kill();
    let feeder = bridge_with(&database, &urls, &[]).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge_with(&database, &urls, &[]).await;
    until_role(&follower, FOLLOWING).await;
}

/// What happens to the process that feeds.
#[derive(Clone, Copy)]
enum Feeder {
    Killed,
    Frozen,
    Stopped,
}

async fn rows_arrive_although_the_feeder_is(what: Feeder) {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let url = nats.url();
    let mut feeder = Served::start(&database, &["--nats-url", &url]).await;
    let is_one = |value: f64| value == 1.0;
    let feeding = r#"tidings_feed_role{role="feeding"}"#;
    feeder.until_metric(feeding, is_one).await;
    let follower = bridge(&database, &nats).await;
    until_role(&follower, FOLLOWING).await;
    let mut source = follower.connect_live("alice").await;
    let id = send(&database).await;
    receives(&mut source, id).await;
    // While rows flow, too: writers don't ring then.
    let writing = tokio::spawn({
        let database = database.clone();
        async move { write(&database, 2, 150).await }
    });
    let mut early = BTreeSet::new();
    early.extend(rows(&mut source, 20).await);
    match what {
        Feeder::Killed => feeder.signal(Signal::SIGKILL),
        Feeder::Frozen => feeder.signal(Signal::SIGSTOP),
        Feeder::Stopped => feeder.signal(Signal::SIGTERM),
    }
    let mut owed = writing.await.expect("rows");
    owed.retain(|id| !early.contains(id));
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    let id = send(&database).await;
    receives(&mut source, id).await;
    match what {
        // It still holds the lock, over a Unix socket.
        Feeder::Frozen => {
            until_role(&follower, ALONE).await;
            feeder.signal(Signal::SIGCONT);
            feeder.until_metric(feeding, |_| true).await;
        }
        Feeder::Killed | Feeder::Stopped => {
            until_role(&follower, FEEDING).await;
            feeder.ended().await;
        }
    }
    let owed = write(&database, 2, 30).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_feeder_is_replaced() {
    rows_arrive_although_the_feeder_is(Feeder::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_feeder_is_not_waited_for() {
    rows_arrive_although_the_feeder_is(Feeder::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_that_stops_is_replaced() {
    rows_arrive_although_the_feeder_is(Feeder::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_without_nats_leaves_it_to_another() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let proxy = Proxy::to(Target::Tcp(nats.address())).await;
    let url = format!("nats://{}", proxy.address());
    let feeder = bridge_with(&database, &url, &[]).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge(&database, &nats).await;
    until_role(&follower, FOLLOWING).await;
    let mut sources = [
        feeder.connect_live("alice").await,
        follower.connect_live("alice").await,
    ];
    // It notices by itself that nothing comes back.
    proxy.set(Network::BlackHole);
    let id = send(&database).await;
    for source in &mut sources {
        receives(source, id).await;
    }
    until_role(&follower, FEEDING).await;
    until_role(&feeder, ALONE).await;
    proxy.set(Network::Pass);
    proxy.reset();
    until_role(&feeder, FOLLOWING).await;
    let id = send(&database).await;
    for source in &mut sources {
        receives(source, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_network_fails_polls() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let feeder = bridge(&database, &nats).await;
    until_role(&feeder, FEEDING).await;
    let proxy = Proxy::to(Target::Tcp(nats.address())).await;
    let url = format!("nats://{}", proxy.address());
    let follower = bridge_with(&database, &url, &[]).await;
    let mut source = follower.connect_live("alice").await;
    for network in [
        Network::BlackHole,
        Network::Refuse,
        Network::Delay(Duration::from_secs(2)),
        Network::Throttle(2_000),
        Network::CutAfter(10_000),
    ] {
        proxy.set(Network::Pass);
        proxy.reset();
        until_role(&follower, FOLLOWING).await;
        proxy.set(network);
        if network == Network::Refuse {
            proxy.reset();
        }
        for _ in 0..3 {
            let id = send(&database).await;
            receives(&mut source, id).await;
        }
        let owed = write(&database, 2, 20).await;
        let last = send(&database).await;
        receives_all(&mut source, owed, last).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_that_loses_the_database_is_replaced() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (proxy, over_network) = database.over_network().await;
    let feeder = bridge(&over_network, &nats).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge(&database, &nats).await;
    until_role(&follower, FOLLOWING).await;
    let mut source = follower.connect_live("alice").await;
    proxy.set(Network::Refuse);
    proxy.reset();
    let id = send(&database).await;
    receives(&mut source, id).await;
    until_role(&follower, FEEDING).await;
    proxy.set(Network::Pass);
    until_role(&feeder, FOLLOWING).await;
    let id = send(&database).await;
    receives(&mut source, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_that_loses_both_networks_goes_on_once_they_are_back() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let nats_proxy = Proxy::to(Target::Tcp(nats.address())).await;
    let (proxy, over_network) = database.over_network().await;
    let url = format!("nats://{}", nats_proxy.address());
    // Until it resigns, it doesn't ask the database, and then it isn't answered.
    let feeder = bridge_with(&over_network, &url, &["--safety-poll=1h"]).await;
    // It becomes the feeder with a poll, for which something must be sent.
    while !feeder
        .admin("/metrics")
        .await
        .text()
        .await
        .contains(FEEDING)
    {
        send(&database).await;
    }
    let mut source = feeder.connect_live("alice").await;
    let asleep = "tidings_doorbell_awake 0";
    feeder
        .until_metrics(|all| all.contains(asleep), asleep)
        .await;
    proxy.set(Network::BlackHole);
    nats_proxy.set(Network::BlackHole);
    until_role(&feeder, ALONE).await;
    // It asks the database to release its lock, and gives up in time.
    let begin = Instant::now();
    let gives_up = async || {
        let answer = feeder.admin("/health/ready").await.text().await;
        answer.contains("did not answer within")
    };
    while !gives_up().await {
        assert!(begin.elapsed() < PATIENCE, "it waits");
        sleep(ASKS_AGAIN).await;
    }
    proxy.set(Network::Pass);
    nats_proxy.set(Network::Pass);
    let id = send(&database).await;
    receives(&mut source, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_reuse_ids_after_a_crash_arrive_at_followers() {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let nats = NatsServer::start();
    let (_feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    for round in 0..4 {
        let writer = database.connect().await;
        writer
            .batch_execute("set synchronous_commit = off")
            .await
            .expect("a setting");
        for number in 0..12 {
            let text = format!("forgotten {round} {number}");
            let insert = "insert into notifications (user_id, text) values ('alice', $1)";
            writer.execute(insert, &[&text]).await.expect(insert);
        }
        let last = format!("forgotten {round} 11");
        while source.next_event().await.data != last {}
        cluster
            .restart(Shutdown::Immediate)
            .await
            .expect("a restart");
        database.until_accepts().await;
        let again = format!(
            "insert into notifications (user_id, text) \
             select 'alice', 'again {round} ' || n from generate_series(0, 14) n"
        );
        while database
            .try_connect()
            .await
            .expect("a connection")
            .execute(&again, &[])
            .await
            .is_err()
        {
            sleep(ASKS_AGAIN).await;
        }
        let mut got = Vec::new();
        while got.len() < 15 {
            let event = source.next_event().await;
            if event.data.starts_with("again") {
                got.push(event.data);
            }
        }
        let owed: Vec<_> = (0..15).map(|n| format!("again {round} {n}")).collect();
        assert_eq!(got, owed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_bridges_share_again() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    // A new history of the same cluster begins for both.
    database
        .superuser()
        .execute("delete from tidings_incarnation")
        .await;
    for bridge in [&feeder, &follower] {
        let reconnected = "tidings_listener_reconnects_total 1";
        bridge
            .until_metrics(|all| all.contains(reconnected), reconnected)
            .await;
        until_shares(bridge).await;
    }
    let mut source = follower.connect_live("alice").await;
    let owed = write(&database, 2, 20).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
}
