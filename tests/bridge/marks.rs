//! Promise 6: a row that was sent is marked, whatever stands in the way.

use std::sync::Arc;

use tidings::{
    history::History,
    marker::{Marker, Marks},
    schema::SchemaName,
    sql::Sql,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::support::{bridge::Bridge, database::Database, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_has_locked_is_marked_once_it_is_free() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let client = database.connect().await;
    database
        .execute("select send_notification('alice', 'held'), send_notification('alice', 'free')")
        .await;
    client
        .batch_execute("begin; select from notifications where text = 'held' for update")
        .await
        .expect("a lock");
    let mut source = bridge.connect("alice").await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 2);
    // The lock holds up its own row and no other.
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
        .execute("select send_notification('alice', 'hello')")
        .await;
    let client = database.connect().await;
    let history = "select system_identifier from pg_control_system()";
    let system_identifier = client
        .query_one(history, &[])
        .await
        .expect("a history")
        .get(0);
    let (marks, stop) = (Arc::new(Marks::default()), CancellationToken::new());
    let url = database.url();
    let marker = Marker {
        marks: Arc::clone(&marks),
        pool: tidings::database::pool(&url, 1, Handle::current()).expect("a pool"),
        sql: Arc::new(Sql::new(&SchemaName::public())),
    };
    stop.cancel();
    marks.written(
        History {
            system_identifier,
            timeline: 1,
        },
        [1],
    );
    marker.run(stop).await;
    assert_eq!(
        database
            .ids("select id from notifications where sent")
            .await,
        [1]
    );
}
