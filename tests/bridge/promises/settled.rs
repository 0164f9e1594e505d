//! Promise 6: sent means settled. A row counts as sent once a connection that it was written to has
//! stayed open for `TIDINGS_SETTLE`.

use std::time::Duration;

use nix::sys::signal::Signal;
use private_postgres::Shutdown;
use tokio::time::{Instant, timeout};

use crate::support::{
    bridge::{Bridge, token_that_ends_in},
    database::{Database, start_cluster},
    event_source::{End, EventSource},
    process::Served,
    row_id,
    tls::{self, authority::Authority, http2::Http2},
    until,
};

/// The default, which most tests here use.
const SETTLE: Duration = Duration::from_secs(2);
const SETTLES: &str = "--settle=2s";

/// Far longer than any test: a row that settles nevertheless did not settle by time.
const SETTLES_LATE: &str = "--settle=60s";

/// A generous upper bound for a mark once a row has settled, because many tests run side by side. A
/// mark usually takes about 150 ms.
const MARKED: Duration = Duration::from_secs(5);

async fn send(database: &Database, text: &str) {
    database
        .execute(&format!("select send_notification('alice', '{text}')"))
        .await;
}

async fn sent(database: &Database) -> Vec<i64> {
    database
        .ids("select id from notifications where sent order by id")
        .await
}

/// Waits until all rows are marked, and checks that this happens within `limit`.
async fn all_sent_within(database: &Database, limit: Duration) {
    let marked = database.until("select bool_and(sent) from notifications");
    let outcome = timeout(limit, marked).await;
    outcome.unwrap_or_else(|_| panic!("not marked within {limit:?}"));
}

/// The rows that a new page, which has no last event id, receives as its backlog.
async fn backlog(source: &mut EventSource) -> Vec<i64> {
    let events = until(source, "tidings.caught-up").await;
    events.iter().map(row_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_marked_after_the_settle_time_as_sent_when_it_was_written() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES]).await;
    let mut page = bridge.connect_live("alice").await;
    send(&database, "hello").await;
    page.next_event().await;
    let written = Instant::now();
    bridge
        .until_metrics(
            |text| text.contains("tidings_rows_in_flight 1\n"),
            "in flight",
        )
        .await;
    all_sent_within(&database, SETTLE + MARKED).await;
    let took = written.elapsed();
    assert!(took > SETTLE - Duration::from_millis(100), "{took:?}");
    bridge
        .until_metrics(
            |text| text.contains("tidings_rows_in_flight 0\n"),
            "settled",
        )
        .await;
    let late = "select id from notifications \
                where sent_at not between created_at - interval '50 ms' and created_at + interval '1.9 s'";
    assert_eq!(database.ids(late).await, [0; 0]);
}

/// The flow of a form: the old page receives the row just before it is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_page_received_as_it_was_left_comes_to_the_next_page_and_no_other() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES]).await;
    let mut page = bridge.connect_live("alice").await;
    for (id, resets) in (1_i64..).zip([false, true, false, true]) {
        send(&database, "saved").await;
        assert_eq!(row_id(&page.next_event().await), id);
        if resets {
            page.reset();
        } else {
            drop(page);
        }
        let mut next = bridge.connect("alice").await;
        let shown = Instant::now();
        assert_eq!(backlog(&mut next).await, [id]);
        all_sent_within(&database, SETTLE + MARKED).await;
        assert!(shown.elapsed() > SETTLE - Duration::from_millis(100));
        let mut after = bridge.connect("alice").await;
        assert_eq!(backlog(&mut after).await, [0; 0]);
        drop(next);
        page = after;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_left_over_http_2_leaves_its_rows_to_the_next_one() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = tls::start(&database, &authority, &[SETTLES]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    // The HTTP/2 connection stays open, as a browser's does when a page is left.
    let _other = connection.open("bob").await;
    let mut page = connection.open("alice").await;
    page.until("event: tidings.caught-up").await;
    send(&database, "saved").await;
    page.until("data: saved\nid: ").await;
    page.reset();
    let mut next = connection.open("alice").await;
    next.until("data: saved\nid: ").await;
    all_sent_within(&database, SETTLE + MARKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tab_settles_the_rows_of_a_page_that_is_left() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES]).await;
    let mut left = bridge.connect_live("alice").await;
    let mut stays = bridge.connect_live("alice").await;
    send(&database, "hello").await;
    left.next_event().await;
    stays.next_event().await;
    drop(left);
    all_sent_within(&database, SETTLE + MARKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_page_within_the_settle_time_gets_the_row_too() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES]).await;
    let mut first = bridge.connect_live("alice").await;
    send(&database, "hello").await;
    let id = row_id(&first.next_event().await);
    let mut second = bridge.connect("alice").await;
    assert_eq!(backlog(&mut second).await, [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_settle_time_a_row_is_marked_when_it_is_written() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    let mut page = bridge.connect_live("alice").await;
    send(&database, "hello").await;
    page.next_event().await;
    drop(page);
    all_sent_within(&database, MARKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_bridge_ends_settles_its_rows_at_once() {
    let database = Database::migrated().await;
    let settings = [SETTLES_LATE, "--max-stream-age=1s"];
    let bridge = Bridge::start_with(&database, &settings).await;
    let mut page = bridge.connect("alice").await;
    send(&database, "of age").await;
    page.next_event().await;
    assert_eq!(page.rest().await.1, End::Clean);
    all_sent_within(&database, MARKED).await;
    bridge.stop().await;

    let bridge = Bridge::start_with(&database, &[SETTLES_LATE]).await;
    let bearer = format!("Bearer {}", token_that_ends_in(2));
    let mut page = EventSource::open(
        bridge.address(),
        "/stream",
        &[("Authorization", bearer.as_str())],
    )
    .await;
    send(&database, "expired").await;
    page.next_event().await;
    assert_eq!(page.rest().await.1, End::Clean);
    all_sent_within(&database, MARKED).await;

    let mut page = bridge.connect_live("alice").await;
    send(&database, "drained").await;
    page.next_event().await;
    bridge.stop().await;
    assert_eq!(sent(&database).await, [1, 2, 3]);
}

/// A client that is logged out doesn't return with its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_with_a_logout_leaves_its_rows_to_the_next_login() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES]).await;
    let mut page = bridge.connect_live("alice").await;
    let mut other = bridge.connect_live("bob").await;
    send(&database, "last words").await;
    page.next_event().await;
    database
        .execute("select disconnect_user('alice'), send_notification('bob', 'later')")
        .await;
    page.rest().await;
    other.next_event().await;
    // By now, the rows written to alice would have settled too.
    database
        .until("select sent from notifications where user_id = 'bob'")
        .await;
    let mut next = bridge.connect("alice").await;
    assert_eq!(backlog(&mut next).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_returns_after_its_bridge_was_killed_acknowledges_what_it_received() {
    let database = Database::migrated().await;
    let killed = Served::start(&database, &[SETTLES_LATE]).await;
    let mut page = killed.connect_live("alice").await;
    send(&database, "one").await;
    database
        .execute("begin; savepoint s; select send_notification('alice', 'two'); commit")
        .await;
    send(&database, "three").await;
    for _ in 0..3 {
        page.next_event().await;
    }
    let id = page.last_event_id().to_owned();
    killed.signal(Signal::SIGKILL);
    page.rest().await;
    send(&database, "missed").await;

    let bridge = Bridge::start_with(&database, &[SETTLES_LATE]).await;
    let mut page = bridge.resume("alice", &id).await;
    assert_eq!(backlog(&mut page).await, [4]);
    let first = database.until("select bool_and(sent) from notifications where id <= 3");
    timeout(MARKED, first).await.expect("they are marked");
    // Rows after the id are in flight.
    assert_eq!(sent(&database).await, [1, 2, 3]);
}

/// Marks are not flushed to disk, so a crash loses some.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_returns_after_a_crash_of_postgres_acknowledges_what_it_received() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    // The bridge may have read the row while something else was not on disk yet. Then it can't know
    // whether the row survived, and delivers it again. In that case, try again.
    for _ in 0..10 {
        let mut page = bridge.connect_live("alice").await;
        send(&database, "hello").await;
        page.next_event().await;
        all_sent_within(&database, MARKED).await;
        let id = page.last_event_id().to_owned();
        // As if the crash had lost the mark: nothing records that the mark was removed.
        database
            .owner()
            .execute("set tidings.marking = on; update notifications set sent_at = null")
            .await;
        cluster
            .restart(Shutdown::Immediate)
            .await
            .expect("a restart");
        bridge.until_ready_is(200).await;
        drop(page);
        let mut page = bridge.resume("alice", &id).await;
        if backlog(&mut page).await.is_empty() {
            // The bridge must first reopen its sessions.
            return all_sent_within(&database, Duration::from_secs(10)).await;
        }
        database.owner().execute("delete from notifications").await;
    }
    panic!("the row is delivered again after every crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_acknowledges_only_what_its_client_has_received() {
    let database = Database::migrated().await;
    let owner = database.owner();
    let bridge = Bridge::start_with(&database, &[SETTLES_LATE]).await;
    // A transaction that begins earlier and commits later.
    let slow = database.connect().await;
    slow.batch_execute("begin; select send_notification('alice', 'slow')")
        .await
        .expect("a slow transaction");
    let mut page = bridge.connect_live("alice").await;
    // Older than the rows that alice receives, so that her position covers it.
    database
        .execute("select send_notification('bob', 'another user''s')")
        .await;
    send(&database, "received").await;
    send(&database, "reopened").await;
    for _ in 0..2 {
        page.next_event().await;
    }
    let id = page.last_event_id().to_owned();
    drop(page);
    bridge.until_connections(0).await;
    // The application reopens a row, so that it is delivered again.
    owner
        .execute("update notifications set sent_at = now() where text = 'reopened'")
        .await;
    owner
        .execute("update notifications set sent_at = null where text = 'reopened'")
        .await;
    slow.batch_execute("commit").await.expect("a commit");

    // A browser returns with the id of the user who was logged in before.
    let mut bob = bridge.resume("bob", &id).await;
    until(&mut bob, "tidings.caught-up").await;
    drop(bob);
    let mut page = bridge.resume("alice", &id).await;
    let missed = until(&mut page, "tidings.caught-up").await;
    let missed: Vec<_> = missed.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(missed, ["slow"]);
    let received = "select sent from notifications where text = 'received'";
    timeout(MARKED, database.until(received))
        .await
        .expect("it is marked");
    // The slow row is now in flight, and the position in the id doesn't cover it.
    let unsent = "select id from notifications where not sent order by id";
    let expected = "select id from notifications \
                    where text in ('reopened', 'another user''s', 'slow') order by id";
    assert_eq!(database.ids(unsent).await, database.ids(expected).await);
}

/// More rows than one statement handles, with some already marked rows among them.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rows_are_acknowledged_at_once() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SETTLES_LATE]).await;
    let mut page = bridge.connect_live("alice").await;
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', 'number ' || n from generate_series(1, 5000) n",
        )
        .await;
    for _ in 0..5_000 {
        page.next_event().await;
    }
    let id = page.last_event_id().to_owned();
    drop(page);
    database
        .owner()
        .execute(
            "set tidings.marking = on; update notifications set sent_at = now() where id % 7 = 0",
        )
        .await;
    let _page = bridge.resume("alice", &id).await;
    all_sent_within(&database, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_names_no_row_acknowledges_nothing() {
    let database = Database::migrated().await;
    send(&database, "before").await;
    database
        .owner()
        .execute("update notifications set sent_at = now()")
        .await;
    let bridge = Bridge::start_with(&database, &[SETTLES_LATE]).await;
    let mut page = bridge.connect_live("alice").await;
    let first = page.last_event_id().to_owned();
    assert!(first.starts_with("0-"), "{first}");
    send(&database, "after").await;
    let id = page.next_event().await.last_event_id;
    // The part after the row's own id is the position that covers the row.
    let position = id.split_once('-').expect("an id").1;
    drop(page);
    let mut bob = bridge.connect_live("bob").await;
    database
        .execute("select send_notification('bob', 'for bob')")
        .await;
    let bobs = bob.next_event().await.last_event_id;
    drop(bob);
    let _page = bridge.resume("alice", &format!("0-{position}")).await;
    // Acknowledgements are processed in the order in which clients return.
    let _bob = bridge.resume("bob", &bobs).await;
    let marked = database.until("select sent from notifications where user_id = 'bob'");
    timeout(MARKED, marked).await.expect("it is marked");
    assert_eq!(
        database
            .ids("select id from notifications where not sent")
            .await,
        [2]
    );
    let _page = bridge.resume("alice", &id).await;
    all_sent_within(&database, MARKED).await;
}
