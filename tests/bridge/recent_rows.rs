//! Clients that return within a minute get what they missed from their bridge, without a query, if
//! it is sure to have all of it.

use futures_util::future::join_all;

use private_postgres::Shutdown;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
    event_source::EventSource,
    rows, until,
};

const CLIENTS: usize = 50;

fn user(number: usize) -> String {
    format!("user {number}")
}

/// Pages that were read from the database, and pages of recent rows.
async fn pages(bridge: &Bridge) -> (f64, f64) {
    let metrics = bridge
        .until_metrics(|all| !all.is_empty(), "anything")
        .await;
    let value = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
        metrics.lines().find_map(value).expect(name)
    };
    (
        value("tidings_page_seconds_count"),
        value("tidings_recent_pages_total"),
    )
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

async fn send_to_all(database: &Database) {
    let last = CLIENTS - 1;
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user ' || n, 'a row' from generate_series(0, {last}) n"
        ))
        .await;
}

/// They return to this bridge, and each receives the rows that it missed, and nothing else.
async fn come_back(bridge: &Bridge, database: &Database, ids: &[String]) {
    let returning = ids.iter().enumerate().map(|(number, id)| {
        let user = user(number);
        async move {
            let header = [("Last-Event-ID", id.as_str())];
            let mut source = bridge.connect_with(&user, "", &header).await;
            let missed = until(&mut source, "tidings.caught-up").await;
            let missed = missed.iter().filter(|event| event.name == "message");
            assert_eq!(missed.count(), 1, "{user}");
            source
        }
    });
    let mut sources: Vec<EventSource> = join_all(returning).await;
    // Nothing is repeated, and they are live.
    send_to_all(database).await;
    for source in &mut sources {
        rows(source, 1).await;
    }
}

/// How many pages are read from the database when they return.
async fn pages_of_returning_clients(bridge: &Bridge, database: &Database, ids: &[String]) -> f64 {
    let (read, recent) = pages(bridge).await;
    come_back(bridge, database, ids).await;
    let (read_now, recent_now) = pages(bridge).await;
    let all = (read_now - read) + (recent_now - recent);
    assert!(all >= CLIENTS as f64, "{all}");
    read_now - read
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_return_soon_cost_no_query() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let ids = leave(&bridge, &database).await;
    send_to_all(&database).await;
    // A client that returns before the bridge has read its row gets it live.
    let read = format!("tidings_recent_rows {}\n", 2 * CLIENTS);
    bridge
        .until_metrics(|all| all.contains(&read), "all rows")
        .await;
    let read = pages_of_returning_clients(&bridge, &database, &ids).await;
    assert_eq!(read, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_may_not_have_all_rows_asks_the_database() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let ids = leave(&bridge, &database).await;
    send_to_all(&database).await;
    // One that started later, one that keeps none, and one where topics are used.
    let later = Bridge::start(&database).await;
    let read = pages_of_returning_clients(&later, &database, &ids).await;
    assert!(read >= CLIENTS as f64, "{read}");
    let without = Bridge::start_with(&database, &["--recent-bytes=0"]).await;
    let ids = leave(&without, &database).await;
    send_to_all(&database).await;
    let read = pages_of_returning_clients(&without, &database, &ids).await;
    assert!(read >= CLIENTS as f64, "{read}");
    let ids = leave(&bridge, &database).await;
    database.execute("select subscribe('user 1', 'team')").await;
    let member = bridge.connect_live("user 1").await;
    database.execute("select send_to_topic('team', 'x')").await;
    drop(member);
    bridge.until_connections(0).await;
    send_to_all(&database).await;
    let (read, _) = pages(&bridge).await;
    let header = [("Last-Event-ID", ids[1].as_str())];
    let mut member = bridge.connect_with("user 1", "", &header).await;
    let missed = until(&mut member, "tidings.caught-up").await;
    let texts = missed.iter().filter(|event| event.name == "message");
    assert_eq!(texts.count(), 2, "{missed:?}");
    assert!(pages(&bridge).await.0 > read);
}

/// What may not have been on disk is read again after a crash, and not published again.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_no_row_is_missing_that_was_read_before_it() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    for round in 0..4 {
        let alice = bridge.connect_live("alice").await;
        let id = alice.last_event_id().to_owned();
        drop(alice);
        bridge.until_connections(0).await;
        let metrics = bridge
            .until_metrics(|all| !all.is_empty(), "anything")
            .await;
        let recent = rows_kept(&metrics);
        let text = format!("hurried {round}");
        database
            .execute(&format!(
                "set synchronous_commit = off; select send_notification('alice', '{text}')"
            ))
            .await;
        // The bridge has read it, and can't know that the next commit flushes it.
        bridge
            .until_metrics(|all| rows_kept(all) > recent, "the row")
            .await;
        database
            .execute("select create_stream_ticket('alice', '1 hour')")
            .await;
        let restarting = cluster.restart(Shutdown::Immediate).await;
        restarting.expect("a restart");
        bridge.until_ready_is(200).await;
        let header = [("Last-Event-ID", id.as_str())];
        let mut alice = bridge.connect_with("alice", "", &header).await;
        let missed = until(&mut alice, "tidings.caught-up").await;
        // Those of earlier rounds may be repeated.
        let missed = missed.iter().filter(|event| event.data == text);
        assert_eq!(missed.count(), 1, "round {round}");
    }
}

fn rows_kept(metrics: &str) -> f64 {
    let value = |line: &str| line.strip_prefix("tidings_recent_rows ")?.parse().ok();
    metrics.lines().find_map(value).unwrap_or_default()
}
