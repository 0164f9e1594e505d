//! Millions of users are logged out, or millions of tickets removed, at once.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::Client;

use crate::bystander::Bystander;
use crate::support::{
    PATIENCE,
    bridge::Bridge,
    database::Database,
    event_source::{End, EventSource, get},
    process::Served,
    until,
};

/// Users who are logged out at once: a quarter of the number measured for the table in
/// `docs/security.md`.
const USERS: u32 = 1_000_000;

/// A bridge's memory may grow by this much.
const GROWTH: usize = 60 << 20;

/// A bridge must be ready within this time.
const START: Duration = Duration::from_secs(5);

/// A logout takes effect within this time.
const PROMISED: Duration = Duration::from_secs(2);

/// No row may be delayed by more than this.
const LATE: Duration = Duration::from_secs(2);

/// Rows whose delay is measured: a few may be delayed by the machine.
const SAMPLES: usize = 300;

/// How long the test's bridge, an unoptimized build, may take to read a page of 2,000
/// disconnections and to poll the table in between.
const PAGE: Duration = Duration::from_millis(100);

/// Logs out `user1` to `userN` in a transaction that the caller commits.
async fn log_out_many(database: &Database, users: u32) -> Client {
    let owner = database.owner().connect().await;
    let insert = format!(
        "begin; insert into tidings_disconnections (user_id) \
         select 'user' || n from generate_series(1, {users}) n"
    );
    owner.batch_execute(&insert).await.expect(&insert);
    owner
}

async fn commit(client: &Client) {
    client.batch_execute("commit").await.expect("a commit");
}

async fn ticket(database: &Database, user: &str) -> String {
    let client = database.connect().await;
    let make = "select create_stream_ticket($1)";
    let made = client.query_one(make, &[&user]).await;
    made.expect("a ticket").get(0)
}

async fn open(bridge: &Bridge, ticket: &str) -> EventSource {
    let path = format!("/stream?ticket={ticket}");
    let mut source = EventSource::open(bridge.address(), &path, &[]).await;
    until(&mut source, "tidings.caught-up").await;
    source
}

/// Creates tickets for these users, valid for an hour.
async fn make_tickets(database: &Database, from: u32, to: u32, user: &str) {
    let insert = format!(
        "insert into stream_tickets (hash, user_id, created_at, expires_at) \
         select sha256(convert_to({user} || ' ' || n, 'UTF8')), {user}, now(), now() + interval '1 hour' \
         from generate_series({from}, {to}) n"
    );
    database.owner().execute(&insert).await;
}

async fn is_open(database: &Database, source: &mut EventSource, user: &str) {
    let send = format!("select send_notification('{user}', 'still here')");
    database.execute(&send).await;
    assert_eq!(source.next_event().await.data, "still here");
}

/// Returns when the stream ended.
async fn ends(source: &mut EventSource) -> Instant {
    // Heartbeats keep the stream's own patience from running out.
    let rest = timeout(PATIENCE, source.rest()).await;
    assert_eq!(rest.expect("an end in time").1, End::Clean);
    Instant::now()
}

async fn disconnections(database: &Database) -> Vec<i64> {
    let all = "select count(*) from tidings_disconnections";
    database.ids(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_starts_in_time_after_millions_were_logged_out() {
    let database = Database::migrated().await;
    let before = Served::start(&database, &[]).await;
    before.until_ready_is(200).await;
    commit(&log_out_many(&database, USERS).await).await;
    // It starts after these disconnections: they concern none of its streams.
    let started = Instant::now();
    let bridge = Served::start(&database, &[]).await;
    bridge.until_ready_is(200).await;
    assert!(started.elapsed() < START, "{:?}", started.elapsed());
    let last = format!("user{USERS}");
    let mut again = bridge.connect(&last, None).await;
    until(&mut again, "tidings.caught-up").await;
    is_open(&database, &mut again, &last).await;
    let logout = Instant::now();
    database
        .execute(&format!("select disconnect_user('{last}')"))
        .await;
    let took = ends(&mut again).await - logout;
    assert!(took < PROMISED, "{took:?}");
    let (usual, peak) = (before.vitals().resident_bytes, bridge.vitals().peak_bytes);
    assert!(peak < usual + GROWTH, "{peak} bytes, usually {usual}");
}

#[tokio::test(flavor = "multi_thread")]
async fn millions_of_logouts_delay_no_row_and_take_no_memory() {
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    let mut quiet = bridge.connect("bystander", None).await;
    until(&mut quiet, "tidings.caught-up").await;
    let mut bystander = Bystander::watch(&database, "bystander", quiet).await;
    // The rows are read in this order, so its stream ends last.
    let last = format!("user{USERS}");
    let mut ending = bridge.connect(&last, None).await;
    until(&mut ending, "tidings.caught-up").await;
    let writer = log_out_many(&database, USERS).await;
    let undisturbed = bystander.receive(SAMPLES).await;
    let usual = bridge.vitals().resident_bytes;
    let committed = Instant::now();
    commit(&writer).await;
    let (ended, disturbed) = tokio::join!(ends(&mut ending), bystander.receive(SAMPLES));
    disturbed.assert_close_to(&undisturbed);
    assert!(disturbed.longest() < LATE, "{:?}", disturbed.longest());
    let pages = USERS / 2_000;
    let took = ended - committed;
    assert!(took < PROMISED + PAGE * pages, "{took:?}");
    let peak = bridge.vitals().peak_bytes;
    assert!(peak < usual + GROWTH, "{peak} bytes, before {usual}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_disconnects_everyone_on_every_bridge_in_time_also_behind_millions() {
    let database = Database::migrated().await;
    let (bridge, other_bridge) = (
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    );
    let alices = ticket(&database, "alice").await;
    let mut streams = [
        bridge.connect_live("alice").await,
        other_bridge.connect_live("bob").await,
        open(&bridge, &alices).await,
        open(&other_bridge, &alices).await,
    ];
    // The bridges would need longer than that to read all of these.
    commit(&log_out_many(&database, USERS).await).await;
    let called = Instant::now();
    database.execute("select disconnect_everyone()").await;
    for stream in &mut streams {
        let took = ends(stream).await - called;
        assert!(took < PROMISED, "{took:?}");
    }
    let everyones = "select id from tidings_disconnections where user_id is null";
    assert_eq!(database.ids(everyones).await.len(), 1);
    let tickets = "select count(*) from stream_tickets";
    assert_eq!(database.ids(tickets).await, [0]);
    assert_eq!(disconnections(&database).await, [i64::from(USERS) + 1]);
    // The tickets are removed; tokens remain valid until they expire.
    let path = format!("/stream?ticket={alices}");
    let refused = get(bridge.address(), &path, &[]).await.expect("an answer");
    assert_eq!(refused.status(), 401);
    let mut again = bridge.connect_live("alice").await;
    is_open(&database, &mut again, "alice").await;
    let logout = Instant::now();
    database.execute("select disconnect_user('alice')").await;
    let took = ends(&mut again).await - logout;
    assert!(took < PROMISED, "{took:?}");
}

/// The transaction commits after others that have already been read.
#[tokio::test(flavor = "multi_thread")]
async fn everyone_is_disconnected_by_a_long_transaction_too() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let slow = database.connect().await;
    let begin = "begin; select disconnect_everyone()";
    slow.batch_execute(begin).await.expect(begin);
    let (mut alice, mut bob) = (
        bridge.connect_live("alice").await,
        bridge.connect_live("bob").await,
    );
    database.execute("select disconnect_user('alice')").await;
    ends(&mut alice).await;
    is_open(&database, &mut bob, "bob").await;
    let committed = Instant::now();
    commit(&slow).await;
    let took = ends(&mut bob).await - committed;
    assert!(took < PROMISED, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_many_tickets_adds_few_rows_and_ends_only_streams_that_tickets_opened() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let owner = database.owner();
    let (alices, bobs) = (
        ticket(&database, "alice").await,
        ticket(&database, "bob").await,
    );
    let mut token = bridge.connect_live("alice").await;
    let (mut alice, mut bob) = (open(&bridge, &alices).await, open(&bridge, &bobs).await);

    // A thousand tickets, each recorded by its hash; their user has no stream.
    make_tickets(&database, 1, 1_000, "'carol'").await;
    let all_of = |user: &str| format!("delete from stream_tickets where user_id = '{user}'");
    owner.execute(&all_of("carol")).await;
    assert_eq!(disconnections(&database).await, [1_000]);

    // More tickets of one user: one row, and the streams of others remain.
    make_tickets(&database, 1, 1_000, "'alice'").await;
    owner.execute(&all_of("alice")).await;
    assert_eq!(disconnections(&database).await, [1_001]);
    ends(&mut alice).await;
    is_open(&database, &mut token, "alice").await;
    is_open(&database, &mut bob, "bob").await;

    // Tickets of more users: one row.
    make_tickets(&database, 1, 100_000, "'user' || n").await;
    owner
        .execute("delete from stream_tickets where user_id like 'user%'")
        .await;
    assert_eq!(disconnections(&database).await, [1_002]);
    ends(&mut bob).await;
    // The ticket is still valid.
    let mut bob = open(&bridge, &bobs).await;
    is_open(&database, &mut bob, "bob").await;

    make_tickets(&database, 1, 2_000, "'user' || n").await;
    let truncated = Instant::now();
    owner.execute("truncate stream_tickets").await;
    assert_eq!(disconnections(&database).await, [1_003]);
    let took = ends(&mut bob).await - truncated;
    assert!(took < PROMISED, "{took:?}");
    is_open(&database, &mut token, "alice").await;
    // There are no tickets left that could have opened a stream.
    owner.execute("truncate stream_tickets").await;
    assert_eq!(disconnections(&database).await, [1_003]);
}

/// Bridges remove rows older than a day; transactions that log users out or issue
/// tickets remove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_a_day_is_removed_however_much_it_is() {
    let database = Database::migrated().await;
    let age = |rows: u32| {
        format!(
            "insert into tidings_disconnections (user_id, created_at) \
             select 'old', now() - interval '25 hours' from generate_series(1, {rows})"
        )
    };
    database.owner().execute(&age(1_000)).await;
    let many = "select disconnect_user('user' || n) from generate_series(1, 5) n";
    database.execute(many).await;
    assert_eq!(disconnections(&database).await, [1_000 + 5]);
    // The removal of an expired ticket ends no stream.
    let expired = "insert into stream_tickets (hash, user_id, created_at, expires_at) \
                   select sha256(n::text::bytea), 'old', now() - interval '3 hours', \
                     now() - interval '2 hours' from generate_series(1, 1000) n";
    database.owner().execute(expired).await;
    let many = "select create_stream_ticket('user' || n) from generate_series(1, 5) n";
    database.execute(many).await;
    let tickets = "select count(*) from stream_tickets";
    assert_eq!(database.ids(tickets).await, [1_000 + 5]);

    database.owner().execute(&age(10_000)).await;
    let bridge = Bridge::start(&database).await;
    database
        .until("select count(*) < 1000 from tidings_disconnections")
        .await;
    database
        .until("select count(*) = 5 from stream_tickets")
        .await;
    bridge.stop().await;
    let kept = "select count(*) from tidings_disconnections where user_id like 'user%'";
    assert_eq!(database.ids(kept).await, [5]);
}

/// Earlier bridges read disconnections with this function. For rows that end everyone's
/// streams it returns null, which they can't mistake for a user.
#[tokio::test(flavor = "multi_thread")]
async fn earlier_bridges_skip_rows_without_a_user() {
    let database = Database::migrated().await;
    database.execute("select disconnect_user('alice')").await;
    database.execute("select disconnect_everyone()").await;
    let since = "select user_id, ticket from tidings_disconnections_since('1:1:') order by user_id";
    let bridge = database.bridge().connect().await;
    let rows = bridge.query(since, &[]).await.expect(since);
    let users: Vec<Option<String>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(users, [Some("alice".to_owned()), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_no_stream_can_have_end_nothing() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect_live("alice").await;
    database
        .execute("select disconnect_user(''), disconnect_user(repeat('x', 100000))")
        .await;
    assert_eq!(disconnections(&database).await, [0]);
    // As if they had been written before the check existed.
    database
        .owner()
        .execute(
            "insert into tidings_disconnections (user_id) \
             values (''), (repeat('é', 100000)), ('bob')",
        )
        .await;
    let mut bob = bridge.connect_live("bob").await;
    database.execute("select disconnect_user('bob')").await;
    ends(&mut bob).await;
    is_open(&database, &mut alice, "alice").await;
}
