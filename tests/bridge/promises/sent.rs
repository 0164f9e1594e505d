//! Promise 6: a row that was sent is marked, whatever delays the mark.

use std::{sync::Arc, time::Duration};

use tidings::{
    delivery::{
        delivered_watermark::DeliveredWatermark,
        marker::{Marker, Marks, Recipient},
        sse::Format,
        stream::{EventStream, Start},
    },
    domain::{
        history::{Incarnation, Since},
        notification::UserId,
    },
    postgres::{
        pool::{Pool, PoolMode},
        queries::Sql,
        schema::SchemaName,
    },
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    bridge::Bridge,
    database::Database,
    streams::{streams, until_caught_up},
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_has_locked_is_marked_once_it_is_free() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let client = database.owner().connect().await;
    database
        .execute("select send_notification('alice', 'held'), send_notification('alice', 'free')")
        .await;
    client
        .batch_execute("begin; select from notifications where text = 'held' for update")
        .await
        .expect("a lock");
    let mut source = bridge.connect("alice").await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 2);
    // The lock delays the mark of its own row and of no other.
    database
        .until("select sent from notifications where text = 'free'")
        .await;
    client.batch_execute("commit").await.expect("commit");
    database
        .until("select sent from notifications where text = 'held'")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_are_left_when_the_bridge_stops_are_written() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'hello'), send_notification('bob', 'hello')")
        .await;
    let client = database.bridge().connect().await;
    let since: Since = client
        .query_one("select since from tidings_incarnation", &[])
        .await
        .expect("a time")
        .get(0);
    let marks = Arc::new(Marks::new(Duration::from_secs(60), Arc::default()));
    let stop = CancellationToken::new();
    let url = database.url();
    let pool = Pool::new(&url, PoolMode::Session, 1, Handle::current()).expect("a pool");
    let (sql, schema) = (
        Arc::new(Sql::new(&SchemaName::public())),
        SchemaName::public(),
    );
    let drained = DeliveredWatermark::open(pool.clone(), Arc::clone(&sql), &schema).await;
    let marker = Marker {
        marks: Arc::clone(&marks),
        pool,
        sql,
        health: Arc::default(),
        drained: Arc::new(drained.expect("rights")),
        adopted: Arc::default(),
    };
    stop.cancel();
    // After a crash, ids from before it may belong to other rows.
    let before = Incarnation {
        timeline: 1,
        since: Since(since.0 - 1),
    };
    let now = Incarnation { timeline: 1, since };
    // Rows in flight settle, because the connections end with the bridge.
    marks.written(&Arc::new(Recipient::new(before)), [2]);
    marks.written(&Arc::new(Recipient::new(now)), [1]);
    Box::pin(marker.run(stop)).await;
    assert_eq!(
        database
            .ids("select id from notifications where sent")
            .await,
        [1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_hides_no_row_from_a_connection_that_was_open_before_it() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text, sent_at) values ('alice', 'before', now())",
        )
        .await;
    let streams = streams(&database).await;

    // The stream is open, but its first page is not read yet. Another tab is faster: it is sent the
    // row, and the row is marked.
    let alice = UserId::parse("alice").expect("a user");
    let start = Start::Backlog { replay: 0 };
    let mut stream = EventStream::open(
        &streams,
        &alice.into(),
        streams.hub.note(),
        &start,
        Format::Text,
    );
    database.owner().execute("insert into notifications (user_id, text, sent_at) values ('alice', 'while open', now())")
        .await;
    let body = until_caught_up(&mut stream).await;
    assert!(body.contains("data: while open\n"), "{body}");
    assert!(!body.contains("data: before\n"), "{body}");
}

/// A mark that moved its row to another page would cost an entry in each index.
#[tokio::test(flavor = "multi_thread")]
async fn marks_touch_no_index() {
    let database = Database::migrated().await;
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', 'a text of usual length, number ' || n from generate_series(1, 20000) n",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect("alice").await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 20_000);
    // A session's statistics are reported when it ends.
    bridge.stop().await;
    let counted = "from pg_stat_user_tables where relname = 'notifications'";
    database
        .until(&format!("select n_tup_upd >= 20000 {counted}"))
        .await;
    let share = format!("select (100 * n_tup_hot_upd / n_tup_upd)::bigint {counted}");
    let share = database.ids(&share).await[0];
    assert!(share >= 95, "{share} % were heap-only");
}
