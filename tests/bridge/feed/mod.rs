//! Bridges that share what they read through NATS: each row arrives once everywhere, whatever
//! happens to the messages, the servers, and the bridge that reads for the others.

mod access;
mod carrier;
mod faults;
mod sharing;

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::support::{
    bridge::Bridge, database::Database, event_source::EventSource, nats::NatsServer, rows,
};

/// How late a row may be whatever fails: the longest silence of a feeder, and time for a busy
/// machine.
const DELIVERED_WITHIN: Duration = Duration::from_secs(6);

const FEEDING: &str = r#"tidings_feed_role{role="feeding"} 1"#;
const FOLLOWING: &str = r#"tidings_feed_role{role="following"} 1"#;
const ALONE: &str = r#"tidings_feed_role{role="alone"} 1"#;

async fn bridge(database: &Database, nats: &NatsServer) -> Bridge {
    bridge_with(database, &nats.url(), &[]).await
}

async fn bridge_with(database: &Database, nats: &str, more: &[&str]) -> Bridge {
    Bridge::start_with(database, &[&["--nats-url", nats], more].concat()).await
}

async fn until_role(bridge: &Bridge, role: &str) {
    bridge.until_metrics(|all| all.contains(role), role).await;
}

/// Waits until it feeds or follows. Returns the metrics.
async fn until_shares(bridge: &Bridge) -> String {
    let shares = |all: &str| all.contains(FEEDING) || all.contains(FOLLOWING);
    bridge.until_metrics(shares, "a role").await
}

/// A bridge that feeds, and one that follows it.
async fn pair(database: &Database, nats: &NatsServer) -> (Bridge, Bridge) {
    let feeder = bridge(database, nats).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge(database, nats).await;
    until_role(&follower, FOLLOWING).await;
    (feeder, follower)
}

fn metric(metrics: &str, name: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    metrics.lines().find_map(value).expect(name)
}

async fn read_metric(bridge: &Bridge, name: &str) -> f64 {
    metric(&bridge.admin("/metrics").await.text().await, name)
}

/// Inserts a row for alice, and returns its id.
async fn send(database: &Database) -> i64 {
    let insert = "insert into notifications (user_id, text) values ('alice', 'x') returning id";
    database.ids(insert).await[0]
}

/// The next row of the stream is this one, and it comes in time.
async fn receives(source: &mut EventSource, id: i64) {
    let row = timeout(DELIVERED_WITHIN, rows(source, 1)).await;
    assert_eq!(row.expect("in time"), [id]);
}

/// Inserts rows for alice in transactions that overlap, of which some are rolled back. Returns the
/// ids of those that were committed.
async fn write(database: &Database, writers: usize, transactions: usize) -> BTreeSet<i64> {
    let writing = (0..writers).map(|writer| async move {
        let mut client = database.connect().await;
        let mut ids = Vec::new();
        for number in 0..transactions {
            let transaction = client.transaction().await.expect("a transaction");
            let insert = "insert into notifications (user_id, text) \
                          select 'alice', 'x' from generate_series(1, $1) returning id";
            let count = (writer + number) % 4 + 1;
            let inserted = transaction.query(insert, &[&(count as i32)]).await;
            let inserted: Vec<i64> = inserted
                .expect(insert)
                .iter()
                .map(|row| row.get(0))
                .collect();
            if number % 3 == writer % 3 {
                // Others commit in the meantime.
                let pause = transaction.execute("select pg_sleep(0.01)", &[]);
                pause.await.expect("a pause");
            }
            if number % 7 == 6 {
                transaction.rollback().await.expect("a rollback");
            } else {
                transaction.commit().await.expect("a commit");
                ids.extend(inserted);
            }
        }
        ids
    });
    join_all(writing).await.into_iter().flatten().collect()
}

/// The stream receives each of these rows once, and nothing else before a last row.
async fn receives_all(source: &mut EventSource, mut owed: BTreeSet<i64>, last: i64) {
    owed.insert(last);
    let mut got = BTreeSet::new();
    let receiving = async {
        while !got.contains(&last) || got.len() < owed.len() {
            for id in rows(source, 1).await {
                assert!(got.insert(id), "row {id} came twice");
            }
        }
    };
    let outcome = timeout(Duration::from_secs(60), receiving).await;
    let missing: Vec<_> = owed.difference(&got).collect();
    assert!(outcome.is_ok(), "missing: {missing:?}");
    assert_eq!(got, owed);
}
