//! Promises 2, 3 and 5: backlog, resume, order; and expiry, and several bridges.

use futures_util::future::join_all;

use crate::support::{
    bridge::Bridge,
    database::Database,
    event_source::{Event, Item},
    no_repeats, row_id, rows, until,
};

fn ids(events: &[Event]) -> Vec<i64> {
    events.iter().map(row_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_wait_for_a_user_who_is_away_and_arrive_in_order_before_live_ones() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    // More than two pages.
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', 'row ' || n from generate_series(1, 1200) n",
        )
        .await;
    database
        .execute("select send_notification('bob', 'not for alice')")
        .await;
    assert_eq!(
        database
            .ids("select id from notifications where sent")
            .await,
        [0; 0]
    );

    let mut source = bridge.connect("alice").await;
    let backlog = until(&mut source, "tidings.caught-up").await;
    assert_eq!(ids(&backlog), (1..=1200).collect::<Vec<_>>());
    assert_eq!(backlog[1199].data, "row 1200");
    database
        .execute("select send_notification('alice', 'live')")
        .await;
    assert_eq!(source.next_event().await.data, "live");
    database
        .until("select count(*) = 1201 from notifications where sent")
        .await;
    assert_eq!(
        database
            .ids("select id from notifications where not sent")
            .await,
        [1201]
    );

    // What was sent doesn't come again to a tab that is new.
    let mut second = bridge.connect("alice").await;
    assert_eq!(until(&mut second, "tidings.caught-up").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_during_the_catch_up_are_neither_lost_nor_repeated() {
    let database = Database::migrated().await;
    // A queue so small that it overflows while pages are read.
    let bridge = Bridge::start_with(&database, &["--queue-bytes=1024"]).await;
    let source = bridge.connect_live("alice").await;
    let beginning = source.last_event_id().to_owned();
    drop(source);
    bridge.until_connections(0).await;
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 500) from generate_series(1, 3000) n",
        )
        .await;

    // One who comes without a position, and finds what nobody was sent.
    let newcomer = async {
        let mut source = bridge.connect("alice").await;
        no_repeats(&rows(&mut source, 4600).await).len()
    };
    let (_, count) = tokio::join!(write_small_rows(&database), newcomer);
    assert_eq!(count, 4600);

    // Those who return get all since then, whoever was sent it meanwhile.
    let returning = join_all((0..3).map(|_| async {
        let mut source = bridge.resume("alice", &beginning).await;
        no_repeats(&rows(&mut source, 6200).await).len()
    }));
    let (_, counts) = tokio::join!(write_small_rows(&database), returning);
    assert_eq!(counts, [6200; 3]);
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

/// Four writers with four hundred rows each, one a statement.
async fn write_small_rows(database: &Database) {
    let writers = (0..4).map(|_| {
        let database = database.clone();
        tokio::spawn(async move {
            let client = database.connect().await;
            for n in 0..400 {
                let insert = "insert into notifications (user_id, text) values ('alice', $1)";
                client
                    .execute(insert, &[&"y".repeat(n)])
                    .await
                    .expect("a row");
            }
        })
    });
    join_all(writers).await;
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
    // Transactions of one, two and three rows, so that some are cut in two.
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
    // Breaks after each event, and marks what others may have got.
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
    // She has a past, which must not come again either. The bridge starts after
    // it: what it has not seen yet is not past to it.
    database
        .execute(
            "insert into notifications (user_id, text, sent_at) values ('alice', 'past', now())",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let mut first = bridge.connect("alice").await;
    let id = loop {
        match first.next_item().await {
            Ok(Item::Id(id)) => break id,
            Ok(_) => {}
            Err(end) => panic!("{end:?}"),
        }
    };
    assert!(id.starts_with("0-"), "{id}");
    drop(first);

    // Another tab gets the row, so it is marked.
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

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_have_expired_are_not_delivered() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute(
            "insert into notifications (user_id, text, expires_at) values \
             ('alice', 'void', now() - interval '1 second'), \
             ('alice', 'valid', now() + interval '1 hour'), \
             ('alice', 'for ever', 'infinity'), \
             ('alice', 'never', '-infinity')",
        )
        .await;
    let mut source = bridge.connect("alice").await;
    let backlog = until(&mut source, "tidings.caught-up").await;
    let texts = |events: &[Event]| {
        events
            .iter()
            .map(|event| event.data.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(&backlog), ["valid", "for ever"]);
    database
        .execute(
            "insert into notifications (user_id, text, expires_at) values \
             ('alice', 'void', now() - interval '1 second'), ('alice', 'live', null)",
        )
        .await;
    assert_eq!(source.next_event().await.data, "live");
    // An expired row is not marked: nobody was sent it.
    database
        .until("select count(*) = 3 from notifications where sent")
        .await;
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
    // An id of one bridge is good at the other.
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
