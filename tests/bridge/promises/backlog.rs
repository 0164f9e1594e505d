//! Promise 2: rows that were committed while the user was offline are delivered first on the next
//! connection, oldest first, followed by live rows without gaps or duplicates.

use futures_util::future::join_all;

use crate::support::{
    bridge::Bridge, database::Database, event_source::Event, no_repeats, row_id, rows, until,
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

    // Rows that are already sent aren't delivered again to a new tab.
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

    // A client without a position receives the rows that are still unsent.
    let newcomer = async {
        let mut source = bridge.connect("alice").await;
        no_repeats(&rows(&mut source, 4600).await).len()
    };
    let (_, count) = tokio::join!(write_small_rows(&database), newcomer);
    assert_eq!(count, 4600);

    // Returning clients receive all rows since their position, even those sent to others in the
    // meantime.
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

/// Four writers that insert four hundred rows each, one per statement.
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
    // The expired row is not marked, because it was sent to no client.
    database
        .until("select count(*) = 3 from notifications where sent")
        .await;
}
