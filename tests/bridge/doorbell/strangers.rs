//! Other roles in the same database, and what they can do to the doorbell: it can cost speed, but
//! never a row.

use private_postgres::Cluster;
use tidings::postgres::schema::{self, SchemaName};
use tokio_postgres::{Client, error::SqlState};

use super::{BELL_ALONE, bell::Bell, witness::Witness};
use crate::support::{bridge::Bridge, database::Database, event_source::EventSource, row_id, rows};

const INSERT: &str = "insert into notifications (user_id, text) values ('alice', 'row')";

/// Inserts rows one by one and receives each.
async fn trickle(database: &Database, source: &mut EventSource) {
    for _ in 0..20 {
        database.execute(INSERT).await;
        rows(source, 1).await;
    }
}

/// While another session holds the lock that bridges take to change whether writers send NOTIFY, no
/// bridge can change it.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_lock_for_ever_costs_no_row() {
    for is_rung in [false, true] {
        let database = Database::migrated().await;
        let stranger = Bell::of(&database).await;
        stranger.keeps_awake().await;
        if is_rung {
            stranger.rung().await;
        }
        let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
        let mut source = bridge.connect_live("alice").await;
        trickle(&database, &mut source).await;
        assert_eq!(stranger.since().await.is_some(), is_rung);
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_nobody_need_ring_costs_no_row() {
    let database = Database::migrated().await;
    let stranger = Bell::of(&database).await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    for _ in 0..10 {
        let since = stranger.until_rung().await;
        stranger.unrung().await;
        trickle(&database, &mut source).await;
        stranger.until_rung_anew(since).await;
    }
    bridge.stop().await;
}

/// Any role that may insert can keep bridges awake.
#[tokio::test(flavor = "multi_thread")]
async fn who_never_ends_a_transaction_costs_no_row() {
    let database = Database::migrated().await;
    let writer: Client = database.connect().await;
    let begun = format!("begin; {INSERT}");
    writer.batch_execute(&begun).await.expect(&begun);
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    trickle(&database, &mut source).await;
    writer.batch_execute("commit").await.expect("commit");
    rows(&mut source, 1).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_in_one_database_have_a_bell_each() {
    let database = Database::empty().await;
    for schema in ["one", "two"] {
        database.prepare(schema).await;
        let name: SchemaName = schema.parse().expect("a name");
        let migrated = schema::migrate(&database.owner().url(), &name, schema::LOCK_LIMIT).await;
        migrated.expect("the migrations");
    }
    let (one, two) = (
        Bell::in_schema(&database, "one").await,
        Bell::in_schema(&database, "two").await,
    );
    let witness = Witness::of(&database, "one").await;
    // No bridge on the second schema can fall asleep.
    two.keeps_awake().await;
    let bridges = [
        Bridge::start_with(&database, &["--schema=one", BELL_ALONE]).await,
        Bridge::start_with(&database, &["--schema=two", BELL_ALONE]).await,
    ];
    let mut sources = [
        bridges[0].connect_live("alice").await,
        bridges[1].connect_live("alice").await,
    ];
    one.until_rung().await;
    assert_eq!(two.since().await, None);
    witness.received().await;
    for n in 1..=10 {
        let (first, second) = (
            "select one.send_notification('alice', 'one')",
            "select two.send_notification('alice', 'two')",
        );
        database.execute(second).await;
        assert_eq!(row_id(&sources[1].next_event().await), n);
        assert_eq!(witness.received().await, 0, "the other's rows ring no bell");
        database.execute(first).await;
        assert_eq!(row_id(&sources[0].next_event().await), n);
        witness.received().await;
    }
    // The same with the roles of the schemas reversed.
    two.lets_sleep().await;
    two.until_rung().await;
    let second = "select two.send_notification('alice', 'two')";
    database.execute(second).await;
    assert_eq!(sources[1].next_event().await.data, "two");
    assert_eq!(witness.received().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_can_be_prepared_if_it_has_not_rung() {
    let settings = [
        ("max_connections", "100"),
        ("max_prepared_transactions", "10"),
    ];
    let cluster = Cluster::temporary(&settings).await.expect("a PostgreSQL");
    let database = Database::migrated_in(&cluster).await;
    let bell = Bell::of(&database).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let writer = database.connect().await;
    bell.until_rung().await;

    let rung = format!("begin; {INSERT}; prepare transaction 'rung'");
    let refused = writer.batch_execute(&rung).await.expect_err("it has rung");
    assert_eq!(refused.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    writer.batch_execute("rollback").await.expect("rollback");

    let unrung =
        format!("begin; set local tidings.doorbell = off; {INSERT}; prepare transaction 'unrung'");
    writer.batch_execute(&unrung).await.expect(&unrung);
    let commit = "commit prepared 'unrung'";
    writer.batch_execute(commit).await.expect(commit);
    // The safety poll, once per second, finds it.
    rows(&mut source, 1).await;
    bridge.stop().await;

    // While the bridge is awake, writers send no NOTIFY. The lock keeps it awake at first, then the
    // prepared transaction until its end.
    bell.keeps_awake().await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    let quiet = format!("begin; {INSERT}; prepare transaction 'quiet'");
    writer.batch_execute(&quiet).await.expect(&quiet);
    bell.lets_sleep().await;
    trickle(&database, &mut source).await;
    assert!(
        bell.is_written().await,
        "by the transaction that is prepared"
    );
    let commit = "commit prepared 'quiet'";
    writer.batch_execute(commit).await.expect(commit);
    rows(&mut source, 1).await;
    bell.until_rung().await;
    bridge.stop().await;
    cluster.stop().await.expect("an end");
}
