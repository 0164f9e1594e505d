//! Promise 5: a connection receives rows in the order in which they became visible. Rows that
//! became visible together are ordered by transaction, then by id.

use crate::support::{bridge::Bridge, database::Database};

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_by_transaction_then_id_in_the_order_they_became_visible() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let early = database.connect().await;
    early
        .batch_execute("begin; insert into notifications (user_id, text) values ('alice', 'early')")
        .await
        .expect("a transaction");
    database
        .execute("insert into notifications (user_id, text) values ('alice', 'a'), ('alice', 'b')")
        .await;
    let texts = [
        source.next_event().await.data,
        source.next_event().await.data,
    ];
    assert_eq!(texts, ["a", "b"]);
    early.batch_execute("commit").await.expect("commit");
    assert_eq!(source.next_event().await.data, "early");
}
