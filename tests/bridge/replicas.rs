//! Returning clients get what they missed from replicas, exactly as from the primary, which also
//! serves them whenever no replica can.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use futures_util::future::join_all;
use private_postgres::{Cluster, Shutdown};
use tidings::{
    check::{self, Installation},
    config::{Cli, Command},
    postgres::{connect::DatabaseUrl, schema::SchemaName},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    bridge::{ASKS_AGAIN, Bridge, NONE_RECENT},
    database::{Database, start_cluster},
    event_source::{Event, EventSource},
    proxy::Network,
    row_id, rows,
    standby::Standby,
    until,
};

/// How long a client may wait for what it missed while its replica can't be used. A second of it
/// is the limit for a replica that doesn't answer.
const SERVED_WITHIN: Duration = Duration::from_secs(4);

const CLIENTS: usize = 20;

/// A primary with the schema, and its replica.
struct Pair {
    primary: Cluster,
    database: Database,
    standby: Standby,
    replica: Database,
}

impl Pair {
    async fn start() -> Self {
        let primary = start_cluster().await;
        let database = Database::migrated_in(&primary).await;
        let standby = Standby::of(&primary).await;
        standby.follows(&primary).await;
        let replica = on_standby(&standby, &database);
        Self {
            primary,
            database,
            standby,
            replica,
        }
    }

    async fn bridge(&self) -> Bridge {
        bridge_with(&self.database, &self.replica.connection_string()).await
    }
}

/// The same database of a standby, for the bridge's role.
fn on_standby(standby: &Standby, database: &Database) -> Database {
    Database::at(standby.cluster().url(database.name())).bridge()
}

/// A bridge that keeps no recent rows, which would serve clients before a replica does.
async fn bridge_with(database: &Database, replicas: &str) -> Bridge {
    let settings = [NONE_RECENT, "--replica-database-url", replicas];
    Bridge::start_with(database, &settings).await
}

/// The sum of a metric over all replicas.
fn sum(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.sum()
}

async fn until_used(bridge: &Bridge) {
    bridge
        .until_metrics(|all| sum(all, "tidings_replica_ready{") >= 1.0, "a replica")
        .await;
}

async fn until_unused(bridge: &Bridge, reason: &str) {
    bridge
        .until_metrics(
            |all| sum(all, "tidings_replica_ready{") == 0.0,
            "no replica",
        )
        .await;
    let begin = Instant::now();
    loop {
        let page = bridge.admin("/overview").await.text().await;
        if page.contains(reason) {
            return;
        }
        assert!(begin.elapsed() < SERVED_WITHIN, "{page}");
        sleep(ASKS_AGAIN).await;
    }
}

/// Pages of missed rows: those from anywhere, and those from replicas.
async fn pages(bridge: &Bridge) -> (f64, f64) {
    let metrics = bridge
        .until_metrics(|all| !all.is_empty(), "anything")
        .await;
    (
        sum(&metrics, "tidings_page_seconds_count"),
        sum(&metrics, "tidings_replica_pages_total{"),
    )
}

fn user(number: usize) -> String {
    format!("user {number}")
}

async fn send_to_all(database: &Database) {
    let last = CLIENTS - 1;
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user ' || n, 'a row' from generate_series(0, {last}) n"
        ))
        .await;
}

/// Clients that have received a row each, and left. Returns their ids.
async fn leave(bridge: &Bridge, database: &Database) -> Vec<String> {
    let connecting = (0..CLIENTS).map(|number| {
        let user = user(number);
        async move { bridge.connect_live(&user).await }
    });
    let mut sources = join_all(connecting).await;
    send_to_all(database).await;
    let mut ids = Vec::new();
    for source in &mut sources {
        rows(source, 1).await;
        ids.push(source.last_event_id().to_owned());
    }
    drop(sources);
    bridge.until_connections(0).await;
    ids
}

/// They return, and each receives the row that it missed, and nothing else. Returns how many
/// pages of anything, and of replicas, that took.
async fn come_back(bridge: &Bridge, database: &Database, ids: &[String]) -> (f64, f64) {
    let (all, replicated) = pages(bridge).await;
    let begin = Instant::now();
    let returning = ids.iter().enumerate().map(|(number, id)| {
        let user = user(number);
        async move {
            let mut source = bridge.resume(&user, id).await;
            let missed = messages(until(&mut source, "tidings.caught-up").await);
            assert_eq!(missed.len(), 1, "{user}");
            source
        }
    });
    let mut sources: Vec<EventSource> = join_all(returning).await;
    assert!(begin.elapsed() < SERVED_WITHIN, "{:?}", begin.elapsed());
    let (all_now, replicated_now) = pages(bridge).await;
    // Nothing is repeated, and they are live.
    send_to_all(database).await;
    for source in &mut sources {
        rows(source, 1).await;
    }
    (all_now - all, replicated_now - replicated)
}

fn messages(events: Vec<Event>) -> Vec<Event> {
    let mut events = events;
    events.retain(|event| event.name == "message");
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn what_returning_clients_missed_is_read_from_a_replica() {
    let pair = Pair::start().await;
    // A dump of another cluster, after a failover there, was restored.
    pair.database
        .owner()
        .execute("insert into tidings_histories values (1, 99, now())")
        .await;
    let bridge = pair.bridge().await;
    until_used(&bridge).await;
    let ids = leave(&bridge, &pair.database).await;
    send_to_all(&pair.database).await;
    let (all, replicated) = come_back(&bridge, &pair.database, &ids).await;
    // On a busy machine, a page may not get its replica in time.
    assert!(replicated >= CLIENTS as f64 / 2.0, "{replicated} of {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_removed_are_a_gap_on_a_replica_too() {
    let pair = Pair::start().await;
    let bridge = pair.bridge().await;
    until_used(&bridge).await;
    let ids = leave(&bridge, &pair.database).await;
    send_to_all(&pair.database).await;
    pair.database
        .owner()
        .execute(
            "update notifications set created_at = now() - interval '2 days', \
             sent_at = now() - interval '2 days'; \
             select * from tidings_prune_batch(interval '1 day')",
        )
        .await;
    pair.standby.follows(&pair.primary).await;
    let (_, before) = pages(&bridge).await;
    let mut source = bridge.resume(&user(0), &ids[0]).await;
    let events = until(&mut source, "tidings.caught-up").await;
    let gap = events.iter().find(|event| event.name == "tidings.gap");
    assert!(gap.is_some(), "{events:?}");
    assert!(pages(&bridge).await.1 > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_replay_is_paused_is_not_used_until_it_resumes() {
    let pair = Pair::start().await;
    let bridge = pair.bridge().await;
    until_used(&bridge).await;
    let standby = pair.replica.superuser();
    let ids = leave(&bridge, &pair.database).await;
    standby.execute("select pg_wal_replay_pause()").await;
    standby
        .until("select pg_get_wal_replay_pause_state() = 'paused'")
        .await;
    send_to_all(&pair.database).await;
    let (_, replicated) = come_back(&bridge, &pair.database, &ids).await;
    assert_eq!(replicated, 0.0);
    until_unused(&bridge, "paused").await;
    assert!(found(&pair).await.contains("pg_wal_replay_resume"));
    let ids = leave(&bridge, &pair.database).await;
    standby.execute("select pg_wal_replay_resume()").await;
    until_used(&bridge).await;
    send_to_all(&pair.database).await;
    let (_, replicated) = come_back(&bridge, &pair.database, &ids).await;
    assert!(replicated > 0.0);
    assert_eq!(found(&pair).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_promoted_is_not_used() {
    let pair = Pair::start().await;
    let bridge = pair.bridge().await;
    until_used(&bridge).await;
    let ids = leave(&bridge, &pair.database).await;
    pair.standby.promote().await;
    send_to_all(&pair.database).await;
    let (_, replicated) = come_back(&bridge, &pair.database, &ids).await;
    assert_eq!(replicated, 0.0);
    until_unused(&bridge, "promoted").await;
    assert!(found(&pair).await.contains("promoted"));
}

/// After a failover, a standby may still follow the former primary, whose log is as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_former_primary_is_not_used() {
    let pair = Pair::start().await;
    let new = Standby::of(&pair.primary).await;
    new.follows(&pair.primary).await;
    new.promote().await;
    let promoted = Database::at(new.cluster().url(pair.database.name())).superuser();
    let bridge = bridge_with(&promoted.bridge(), &pair.replica.connection_string()).await;
    let ids = leave(&bridge, &promoted).await;
    // The former primary writes more than the new one will.
    pair.database
        .owner()
        .execute(
            "insert into notifications (user_id, text) \
             select 'nobody', repeat('x', 1000) from generate_series(1, 500)",
        )
        .await;
    pair.standby.follows(&pair.primary).await;
    send_to_all(&promoted).await;
    until_unused(&bridge, "doesn't follow this primary").await;
    let (_, replicated) = come_back(&bridge, &promoted, &ids).await;
    assert_eq!(replicated, 0.0);
    let replicas = [pair.replica.url()];
    let said = findings(&promoted, &replicas).await;
    assert!(said.contains("another primary"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_answer_delays_nobody_for_long() {
    let pair = Pair::start().await;
    let (network, far) = pair.replica.over_network().await;
    let bridge = bridge_with(&pair.database, &far.connection_string()).await;
    until_used(&bridge).await;
    for broken in [Network::BlackHole, Network::Refuse] {
        let ids = leave(&bridge, &pair.database).await;
        send_to_all(&pair.database).await;
        network.set(broken);
        if broken == Network::Refuse {
            network.reset();
        }
        let (_, replicated) = come_back(&bridge, &pair.database, &ids).await;
        assert_eq!(replicated, 0.0, "{broken:?}");
        until_unused(&bridge, "can't be read").await;
        network.set(Network::Pass);
        network.reset();
        until_used(&bridge).await;
    }
    // It would be used again.
    let ids = leave(&bridge, &pair.database).await;
    send_to_all(&pair.database).await;
    assert!(come_back(&bridge, &pair.database, &ids).await.1 > 0.0);
}

/// A conflict with recovery cancels the query of a page, but says nothing of the replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_conflicts_with_recovery_is_read_from_the_primary() {
    let pair = Pair::start().await;
    pair.replica
        .superuser()
        .execute("alter system set max_standby_streaming_delay = 0")
        .await;
    pair.replica
        .superuser()
        .execute("select pg_reload_conf()")
        .await;
    // Memberships that take their time on the replica.
    pair.database
        .superuser()
        .execute(
            "create function slow(member text) returns boolean language plpgsql volatile as $$ begin \
               if pg_catalog.pg_is_in_recovery() then perform pg_catalog.pg_sleep(0.6); end if; \
               return false; end $$; \
             create table member_rows (user_id text, topic text, since pg_snapshot); \
             insert into member_rows values ('user 0', 'topic', null); \
             create view members as select * from public.member_rows where public.slow(user_id); \
             grant select on members to public",
        )
        .await;
    let replica = pair.replica.connection_string();
    let settings = [
        NONE_RECENT,
        "--replica-database-url",
        &replica,
        "--memberships=public.members",
    ];
    let bridge = Bridge::start_with(&pair.database, &settings).await;
    until_used(&bridge).await;
    let ids = leave(&bridge, &pair.database).await;
    send_to_all(&pair.database).await;
    let vacuum = async {
        loop {
            pair.database
                .superuser()
                .execute("update notifications set sent_at = now()")
                .await;
            pair.database
                .superuser()
                .execute("vacuum (freeze) notifications")
                .await;
        }
    };
    let mut source = bridge.resume(&user(0), &ids[0]).await;
    let begin = Instant::now();
    let events = tokio::select! {
        () = vacuum => unreachable!("it goes on for ever"),
        events = until(&mut source, "tidings.caught-up") => events,
    };
    assert!(begin.elapsed() < SERVED_WITHIN);
    assert_eq!(messages(events).len(), 1);
    let metrics = bridge
        .until_metrics(|all| !all.is_empty(), "anything")
        .await;
    assert_eq!(sum(&metrics, "tidings_replica_pages_total{"), 0.0);
    assert_eq!(sum(&metrics, "tidings_replica_failures_total{"), 1.0);
    assert_eq!(sum(&metrics, "tidings_replica_ready{"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_topics_are_served_by_the_primary() {
    let pair = Pair::start().await;
    let bridge = pair.bridge().await;
    until_used(&bridge).await;
    let ids = leave(&bridge, &pair.database).await;
    pair.database
        .execute("select subscribe('user 0', 'team')")
        .await;
    pair.database
        .execute("select send_to_topic('team', 'x')")
        .await;
    pair.standby.follows(&pair.primary).await;
    let mut member = bridge.resume(&user(0), &ids[0]).await;
    let missed = messages(until(&mut member, "tidings.caught-up").await);
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert_eq!(missed[0].data, "x");
}

/// Clients that leave and return all the time, while transactions stay open, commit out of order
/// and roll back, and the replica lags a little: each row reaches its user, and none twice, since
/// a client never leaves before it has read what was written to it.
#[tokio::test(flavor = "multi_thread")]
async fn under_concurrent_writers_no_row_is_missing_or_repeated() {
    let pair = Pair::start().await;
    let standby = pair.replica.superuser();
    standby
        .execute("alter system set recovery_min_apply_delay = '12ms'")
        .await;
    standby.execute("select pg_reload_conf()").await;
    let bridge = Arc::new(pair.bridge().await);
    until_used(&bridge).await;
    let writing = Arc::new(AtomicBool::new(true));
    let mut readers = JoinSet::new();
    for number in 0..CLIENTS {
        let (bridge, writing) = (Arc::clone(&bridge), Arc::clone(&writing));
        readers.spawn(async move {
            (
                user(number),
                returns(&bridge, &user(number), &writing).await,
            )
        });
    }
    let writers = (0..8).map(|number| write(&pair.database, number));
    join_all(writers).await;
    writing.store(false, Ordering::Relaxed);
    let (all, replicated) = pages(&bridge).await;
    while let Some(read) = readers.join_next().await {
        let (user, ids) = read.expect("a reader");
        let unique: BTreeSet<i64> = ids.iter().copied().collect();
        assert_eq!(unique.len(), ids.len(), "{user} received rows twice");
        let owed = format!("select id from notifications where user_id = '{user}'");
        let owed: BTreeSet<i64> = pair.database.owner().ids(&owed).await.into_iter().collect();
        let missing: Vec<_> = owed.difference(&unique).collect();
        assert!(
            missing.is_empty(),
            "{user} misses {missing:?} of {}",
            owed.len()
        );
        assert_eq!(owed, unique, "{user}");
    }
    assert!(
        replicated >= all / 4.0,
        "only {replicated} of {all} pages are of the replica"
    );
}

/// Leaves and returns until nothing is written any more. Returns what it received.
async fn returns(bridge: &Bridge, user: &str, writing: &AtomicBool) -> Vec<i64> {
    let mut source = bridge.connect(user).await;
    let events = until(&mut source, "tidings.caught-up").await;
    let mut id = source.last_event_id().to_owned();
    let mut received: Vec<i64> = messages(events).iter().map(row_id).collect();
    loop {
        // The last time begins after the last row.
        let is_last = !writing.load(Ordering::Relaxed);
        drop(source);
        source = bridge.resume(user, &id).await;
        let events = until(&mut source, "tidings.caught-up").await;
        id = source.last_event_id().to_owned();
        received.extend(messages(events).iter().map(row_id));
        if is_last {
            return received;
        }
    }
}

/// Rows for all, in transactions of which some stay open for a while, and some roll back.
async fn write(database: &Database, number: u64) {
    let client = database.connect().await;
    for round in 0..40 {
        let begin = match (number + round) % 4 {
            0 => "begin; set local synchronous_commit = off",
            _ => "begin",
        };
        client.batch_execute(begin).await.expect(begin);
        for row in 0..3 {
            let to = (number * 7 + round * 3 + row) % CLIENTS as u64;
            let insert =
                format!("insert into notifications (user_id, text) values ('user {to}', 'x')");
            client.batch_execute(&insert).await.expect("an insert");
            // A transaction of another duration each time.
            sleep(Duration::from_millis((number * round + row) % 9)).await;
        }
        let end = if round % 5 == 4 { "rollback" } else { "commit" };
        client.batch_execute(end).await.expect(end);
    }
}

/// What was not on disk is gone after a crash, and a replica never had it.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_of_the_primary_no_row_is_missing() {
    let mut pair = Pair::start().await;
    let bridge = pair.bridge().await;
    for round in 0..3 {
        until_used(&bridge).await;
        let alice = bridge.connect_live("alice").await;
        let id = alice.last_event_id().to_owned();
        drop(alice);
        bridge.until_connections(0).await;
        let text = format!("hurried {round}");
        pair.database
            .execute(&format!(
                "set synchronous_commit = off; select send_notification('alice', '{text}')"
            ))
            .await;
        pair.database
            .execute("select create_stream_ticket('alice', '1 hour')")
            .await;
        let restarting = pair.primary.restart(Shutdown::Immediate).await;
        restarting.expect("a restart");
        bridge.until_ready_is(200).await;
        let mut alice = bridge.resume("alice", &id).await;
        let missed = until(&mut alice, "tidings.caught-up").await;
        // Those of earlier rounds may be repeated.
        let missed = missed.iter().filter(|event| event.data == text);
        assert_eq!(missed.count(), 1, "round {round}");
    }
}

async fn found(pair: &Pair) -> String {
    findings(&pair.database, &[pair.replica.url()]).await
}

/// What `tidings check` says of the replicas.
async fn findings(database: &Database, replicas: &[DatabaseUrl]) -> String {
    let Command::Check(options) = Cli::parse_from(["tidings", "check"]).command else {
        panic!("not check")
    };
    let place = Installation {
        nats: None,
        direct: &database.bridge().url(),
        pooled: None,
        schema: &SchemaName::public(),
        replicas,
        memberships: None,
    };
    let report = check::examine(place, &options.thresholds).await;
    let findings = report.expect("a report").findings;
    let of_replicas = findings.iter().filter(|one| one.topic.name() == "replica");
    let texts = of_replicas.map(|one| format!("{} {:?}", one.found, one.fix));
    texts.collect::<Vec<_>>().join("; ")
}
