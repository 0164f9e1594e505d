//! Promise 3: a connection that returns with its last event id receives every row that it had not
//! been sent, and none twice, even if the database changed in unusual ways in the meantime.

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::support::{
    account::Account,
    bridge::{Bridge, NONE_RECENT},
    database::{Database, start_cluster},
    event_source::EventSource,
    expect_gap, opening, row_id, rows, until,
};

/// More open transactions than an event id can list.
const OPEN_TRANSACTIONS: usize = 90;

async fn begin(database: &Database, text: &str) -> Client {
    let client = database.connect().await;
    client
        .batch_execute(&format!(
            "begin; insert into notifications (user_id, text) values ('alice', '{text}')"
        ))
        .await
        .expect("a transaction");
    client
}

/// Connects a client, delivers one row live, disconnects, and returns the client's id.
async fn leave(bridge: &Bridge, database: &Database) -> String {
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'before')")
        .await;
    assert_eq!(source.next_event().await.data, "before");
    source.last_event_id().to_owned()
}

async fn alices_rows(database: &Database) -> Vec<i64> {
    let query = "select id from notifications where user_id = 'alice' order by xid, id";
    database.ids(query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn more_open_transactions_than_an_id_names_lose_nothing() {
    // A separate cluster: a snapshot lists the open transactions of all databases, so the ids of
    // other tests' clients would have no room for them either.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let open = join_all((0..OPEN_TRANSACTIONS).map(|_| begin(&database, "slow"))).await;
    let id = leave(&bridge, &database).await;
    // They end before the client returns, the last one first, and some are rolled back.
    for (index, client) in open.iter().enumerate().rev() {
        let how = if index % 3 == 0 { "rollback" } else { "commit" };
        client.batch_execute(how).await.expect(how);
    }
    let mut account = Account::with_repeats(
        "a client is away while 90 transactions are open, more than its id can name",
        "the id names 64",
    );
    let mut source = bridge.resume("alice", &id).await;
    let missed = until(&mut source, "tidings.caught-up").await;
    let got: Vec<i64> = missed.iter().map(row_id).collect();
    let owed = "select id from notifications where user_id = 'alice' and text = 'slow'";
    // The row that was already sent may be repeated, because the floor is lowered.
    let before = "select id from notifications where text = 'before'";
    let before = database.ids(before).await[0];
    let repeated = got.iter().filter(|&&id| id == before).count();
    assert!(repeated <= 1, "{got:?}");
    let mut owed = database.ids(owed).await;
    owed.push(before);
    let mut got = got;
    got.push(before);
    account.client(owed, &got);
    account.round();
    account.close();
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_while_thousands_commit_is_delivered_at_its_end() {
    // A separate cluster: with too many other open transactions, an id drops some.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let slow = begin(&database, "slow").await;
    let mut account = Account::without_repeats(
        "a transaction stays open while 3,000 others commit and its user breaks and returns",
    );
    let mut stayed = bridge.connect_live("alice").await;
    let mut source = bridge.connect_live("alice").await;
    let (mut got, mut got_by_stayed) = (Vec::new(), Vec::new());
    for round in 0..30 {
        // Each row in its own transaction.
        database
            .execute(
                "do $$ begin for n in 1..100 loop \
                   insert into notifications (user_id, text) \
                   values (case n % 10 when 0 then 'alice' else 'bob' end, 'quick'); commit; \
                 end loop; end $$",
            )
            .await;
        got.extend(rows(&mut source, 10).await);
        got_by_stayed.extend(rows(&mut stayed, 10).await);
        if round % 3 == 0 {
            let id = source.last_event_id().to_owned();
            source.reset();
            source = bridge.resume("alice", &id).await;
        }
    }
    slow.batch_execute("commit").await.expect("commit");
    got.extend(rows(&mut source, 1).await);
    got_by_stayed.extend(rows(&mut stayed, 1).await);
    let owed = alices_rows(&database).await;
    assert_eq!(owed.len(), 301);
    account.client(owed.clone(), &got);
    account.client(owed, &got_by_stayed);
    account.round();
    account.close();
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_subtransactions_come_with_their_transaction_and_undone_ones_never() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut stayed = bridge.connect_live("alice").await;
    let id = leave(&bridge, &database).await;
    assert_eq!(stayed.next_event().await.data, "before");
    let insert = |text: &str| {
        format!("insert into notifications (user_id, text) values ('alice', '{text}');")
    };
    let writer = database.connect().await;
    let work = [
        "begin;".to_owned(),
        insert("1"),
        "savepoint a;".to_owned(),
        insert("undone"),
        "savepoint b;".to_owned(),
        insert("undone"),
        "rollback to a;".to_owned(),
        insert("2"),
        "release a; savepoint c;".to_owned(),
        insert("3"),
    ];
    writer
        .batch_execute(&work.concat())
        .await
        .expect("a transaction");
    database
        .execute("select send_notification('alice', 'meanwhile')")
        .await;
    assert_eq!(stayed.next_event().await.data, "meanwhile");
    // One subtransaction more than a snapshot lists.
    for n in 0..70 {
        let work = format!("savepoint s{n};{}", insert("4"));
        writer.batch_execute(&work).await.expect("a subtransaction");
    }
    writer.batch_execute("commit").await.expect("commit");
    let owed = alices_rows(&database).await;
    let mut account =
        Account::without_repeats("savepoints, released, rolled back, and too many for a snapshot");
    let got = rows(&mut stayed, 73).await;
    let known: Vec<i64> = owed[..1].to_vec();
    let meanwhile = "select id from notifications where text = 'meanwhile'";
    let meanwhile = database.ids(meanwhile).await;
    account.client(owed.clone(), &[known.clone(), meanwhile, got].concat());
    let mut returning = bridge.resume("alice", &id).await;
    let got = rows(&mut returning, 74).await;
    account.client(owed, &[known, got].concat());
    account.round();
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_have_missed_removed_rows_is_told_of_a_gap() {
    // A separate cluster: for an id, any transaction of the cluster that has ended may be one whose
    // rows were removed.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &[NONE_RECENT]).await;
    let old = leave(&bridge, &database).await;
    database
        .execute("select send_notification('alice', 'missed and removed')")
        .await;
    database
        .execute("select send_notification('bob', 'the last to be removed')")
        .await;
    remove(&database, "true").await;
    let fresh = leave(&bridge, &database).await;
    database
        .execute("select send_notification('alice', 'left')")
        .await;
    let mut source = bridge.resume("alice", &old).await;
    expect_gap(&mut source, "pruned").await;
    // All remaining rows that it missed, including those sent to another tab.
    let left = until(&mut source, "tidings.caught-up").await;
    let texts: Vec<_> = left.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(texts, ["before", "left"]);
    // The gap is reported only once.
    let again = source.last_event_id().to_owned();
    assert_eq!(caught_up_at_once(&bridge, &again).await, 0);
    assert_eq!(caught_up_at_once(&bridge, &fresh).await, 1);
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_open_has_lost_no_row_before_its_end() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &[NONE_RECENT]).await;
    let slow = begin(&database, "slow").await;
    let mut id = leave(&bridge, &database).await;
    // The bridge has transactions of its own, such as for the drained floor. An id that lists one of
    // them may have missed removed rows, as far as it can know.
    while bridge.open_transactions(&id) != 1 {
        database.owner().execute("delete from notifications").await;
        id = leave(&bridge, &database).await;
    }
    // The row is newer than the open transaction, and it had been sent.
    remove(&database, "text = 'before'").await;
    assert_eq!(caught_up_at_once(&bridge, &id).await, 0);
    slow.batch_execute("commit").await.expect("commit");
    remove(&database, "text = 'slow'").await;
    let mut source = bridge.resume("alice", &id).await;
    expect_gap(&mut source, "pruned").await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 0);
    cluster.stop().await.expect("an end");
}

/// Removes rows in the way that the README documents.
async fn remove(database: &Database, which: &str) {
    let remove = format!(
        "with removed as (delete from notifications where {which} returning xid) \
         update tidings_pruned \
         set xid = greatest(xid, (select xid from removed order by xid desc limit 1))"
    );
    database.owner().execute(&remove).await;
}

/// How many events arrive before the stream has caught up, checking that nothing else does.
async fn caught_up_at_once(bridge: &Bridge, id: &str) -> usize {
    let mut source: EventSource = bridge.resume("alice", id).await;
    let events = until(&mut source, "tidings.caught-up").await;
    assert!(
        events.iter().all(|event| event.name == "message"),
        "{events:?}"
    );
    events.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_restored_under_a_running_bridge_are_delivered_and_hide_no_others() {
    let database = Database::migrated().await;
    // Only the owner may restamp restored rows.
    let bridge = Bridge::start(&database.owner()).await;
    let mut source = bridge.connect_live("alice").await;
    // As a dump from an older cluster leaves them, with that cluster's transaction ids. Alice's
    // rows are the last, after more rows than are restamped at once.
    database
        .owner()
        .execute(
            "alter table notifications disable trigger tidings_restamp; \
             insert into notifications (user_id, text, xid) \
             select case when n > 25000 then 'alice' else 'bob' end, 'restored', \
               (900000000 + n)::text::xid8 \
             from generate_series(1, 25003) n",
        )
        .await;
    database
        .execute("select send_notification('alice', 'new')")
        .await;
    let mut got = rows(&mut source, 4).await;
    got.sort_unstable();
    assert_eq!(got, [25_001, 25_002, 25_003, 25_004]);
    database
        .until("select bool_and(sent) from notifications where user_id = 'alice'")
        .await;
    let id = source.last_event_id().to_owned();
    assert_eq!(caught_up_at_once(&bridge, &id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_transaction_with_a_lower_id_reaches_both_tabs_also_the_one_that_dropped() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut first = bridge.connect_live("alice").await;
    let mut second = bridge.connect_live("alice").await;
    let slow = database.connect().await;
    slow.batch_execute("begin; insert into notifications (user_id, text) values ('alice', 'slow')")
        .await
        .expect("a slow transaction");

    database
        .execute("select send_notification('alice', 'quick')")
        .await;
    assert_eq!(first.next_event().await.data, "quick");
    assert_eq!(second.next_event().await.data, "quick");
    let last_event_id = first.last_event_id().to_owned();
    assert!(last_event_id.starts_with("2-"), "{last_event_id}");
    drop(first);
    bridge.until_connections(1).await;

    slow.batch_execute("commit").await.expect("commit");
    assert_eq!(second.next_event().await.data, "slow");
    database
        .until("select bool_and(sent) from notifications")
        .await;

    let mut first = bridge.resume("alice", &last_event_id).await;
    let missed = until(&mut first, "tidings.caught-up").await;
    assert_eq!(
        missed
            .iter()
            .map(|event| event.data.as_str())
            .collect::<Vec<_>>(),
        ["slow"]
    );
    database
        .execute("select send_notification('alice', 'after')")
        .await;
    assert_eq!(first.next_event().await.data, "after");
    assert_eq!(second.next_event().await.data, "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_at_any_event_misses_and_repeats_nothing() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    // Transactions of one, two and three rows, so that some are split.
    for n in 0..12 {
        let insert = format!(
            "insert into notifications (user_id, text) \
             select 'alice', 'row' from generate_series(0, {})",
            n % 3
        );
        database.execute(&insert).await;
    }
    let expected = database
        .ids("select id from notifications order by xid, id")
        .await;

    let mut got = Vec::new();
    let mut source = bridge.connect("alice").await;
    // Disconnects after each event. Rows that were written but not read may already be marked.
    while got.len() < expected.len() {
        got.extend(rows(&mut source, 1).await);
        let last_event_id = source.last_event_id().to_owned();
        source.reset();
        source = bridge.resume("alice", &last_event_id).await;
    }
    assert_eq!(got, expected);
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_before_its_first_event_is_no_stranger_when_it_returns() {
    let database = Database::migrated().await;
    // Alice has an earlier row, which must not be delivered again either. The bridge starts after
    // it, because a row that the bridge hasn't read yet would count as new.
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text, sent_at) values ('alice', 'past', now())",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let mut first = bridge.connect("alice").await;
    let id = opening(&mut first).await.last_event_id;
    assert!(id.starts_with("0-"), "{id}");
    drop(first);

    // Another tab receives the row, so it is marked.
    let mut second = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    assert_eq!(second.next_event().await.data, "hello");
    database
        .until("select bool_and(sent) from notifications")
        .await;

    first = bridge.resume("alice", &id).await;
    assert_eq!(until(&mut first, "tidings.caught-up").await.len(), 1);
}
