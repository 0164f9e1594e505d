//! Promise 1: a committed row reaches every open connection of its user and no other user's, even
//! under load and with everything that applications do at once.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{SinkExt, future::join_all};
use tokio::task::JoinSet;

use crate::support::{bridge::Bridge, database::Database, no_repeats, row_id, rows, until};

const USERS: usize = 50;
const CONNECTIONS: usize = 3;
const WRITERS: usize = 8;
const ROWS_A_WRITER: usize = 2_500;

/// Writes `ROWS_A_WRITER` rows to changing users in every way that applications use, and as many
/// more that are rolled back.
async fn write(database: Database, writer: usize) {
    let client = database.connect().await;
    let user = |n: usize| format!("user{}", (n * 7 + writer) % USERS);
    let mut written = 0;
    while written < ROWS_A_WRITER {
        let kind = (written / 50 + writer) % 5;
        match kind {
            // One row per statement, as an application does.
            0 => {
                for n in written..written + 50 {
                    let insert = "insert into notifications (user_id, text) values ($1, $2)";
                    client
                        .execute(insert, &[&user(n), &format!("row {n}")])
                        .await
                        .expect("a row");
                }
            }
            // Many rows in one statement.
            1 => {
                let insert = format!(
                    "insert into notifications (user_id, text) \
                     select 'user' || (n * 7 + {writer}) % {USERS}, 'row ' || n \
                     from generate_series({written}, {written} + 49) n"
                );
                client.batch_execute(&insert).await.expect("rows");
            }
            2 => {
                let copy = client
                    .copy_in("copy notifications (user_id, text) from stdin")
                    .await;
                let mut copy = std::pin::pin!(copy.expect("a copy"));
                for n in written..written + 50 {
                    let line = format!("{}\trow {n}\n", user(n));
                    copy.send(bytes::Bytes::from(line)).await.expect("a line");
                }
                copy.finish().await.expect("the end of the copy");
            }
            // A transaction that stays open while others write and commit, with a savepoint that is
            // rolled back.
            3 => {
                client.batch_execute("begin").await.expect("begin");
                for n in written..written + 50 {
                    let call = "select send_notification($1, $2)";
                    client
                        .execute(call, &[&user(n), &format!("row {n}")])
                        .await
                        .expect("a row");
                    if n % 10 == 0 {
                        let undone = "savepoint s; \
                             insert into notifications (user_id, text) values ('user1', 'undone'); \
                             rollback to savepoint s";
                        client.batch_execute(undone).await.expect("a savepoint");
                    }
                }
                client.batch_execute("commit").await.expect("commit");
            }
            // Rows that are rolled back.
            _ => {
                let undone = "begin; \
                     insert into notifications (user_id, text) \
                     select 'user' || n, 'undone' from generate_series(0, 49) n; \
                     rollback";
                client.batch_execute(undone).await.expect("a rollback");
                let insert = format!(
                    "insert into notifications (user_id, text) \
                     select 'user' || (n * 7 + {writer}) % {USERS}, 'row ' || n \
                     from generate_series({written}, {written} + 49) n"
                );
                client.batch_execute(&insert).await.expect("rows");
            }
        }
        written += 50;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_receives_exactly_its_users_committed_rows() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut streams = JoinSet::new();
    let (all_known, _) = tokio::sync::broadcast::channel::<BTreeMap<String, usize>>(1);
    for user in 0..USERS {
        for _ in 0..CONNECTIONS {
            let user = format!("user{user}");
            let mut source = bridge.connect_live(&user).await;
            let mut known = all_known.subscribe();
            streams.spawn(async move {
                let mut got = Vec::new();
                // Until the number of rows is known, read whatever arrives.
                let expected = loop {
                    tokio::select! {
                        event = source.next_event() => got.push(row_id(&event)),
                        counts = known.recv() => break counts.expect("counts")[&user],
                    }
                };
                let missing = expected - got.len().min(expected);
                got.extend(rows(&mut source, missing).await);
                // Any row after the last one would be one too many.
                (user, got, source)
            });
        }
    }
    join_all((0..WRITERS).map(|writer| tokio::spawn(write(database.clone(), writer)))).await;

    let count = "select user_id, count(*), array_agg(id) from notifications group by user_id";
    let client = database.owner().connect().await;
    let mut expected: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for row in client.query(count, &[]).await.expect("counts") {
        expected.insert(row.get(0), row.get::<_, Vec<i64>>(2).into_iter().collect());
    }
    let total: usize = expected.values().map(BTreeSet::len).sum();
    assert_eq!(total, WRITERS * ROWS_A_WRITER);
    let counts = expected
        .iter()
        .map(|(user, ids)| (user.clone(), ids.len()))
        .collect();
    all_known.send(counts).expect("streams");

    let mut sources = Vec::new();
    while let Some(stream) = streams.join_next().await {
        let (user, got, source) = stream.expect("a stream");
        assert_eq!(no_repeats(&got), expected[&user], "{user}");
        sources.push((user, source));
    }
    database
        .until("select bool_and(sent) from notifications")
        .await;

    // A last row for every user; no other row may arrive before it.
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user' || n, 'last' from generate_series(0, {USERS} - 1) n"
        ))
        .await;
    for (user, mut source) in sources {
        assert_eq!(source.next_event().await.data, "last", "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bridges_on_one_database_serve_the_same_users() {
    let database = Database::migrated().await;
    let bridges = [
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    ];
    let mut sources = [
        bridges[0].connect_live("alice").await,
        bridges[1].connect_live("alice").await,
    ];
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    for source in &mut sources {
        assert_eq!(source.next_event().await.data, "hello");
    }
    // An id from one bridge is valid on the other.
    let id = sources[0].last_event_id().to_owned();
    let mut moved = bridges[1].resume("alice", &id).await;
    assert_eq!(until(&mut moved, "tidings.caught-up").await.len(), 0);
    let [one, other] = bridges;
    one.stop().await;
    database
        .execute("select send_notification('alice', 'again')")
        .await;
    assert_eq!(sources[1].next_event().await.data, "again");
    assert_eq!(moved.next_event().await.data, "again");
    other.stop().await;
}
