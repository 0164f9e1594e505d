//! Transactions of every kind that are open when the bridge would fall asleep, or that began while
//! it was asleep.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::SinkExt;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::{BELL_ALONE, bell::Bell};
use crate::support::{
    bridge::Bridge, database::Database, event_source::EventSource, no_repeats, rows,
};

/// Longer than a bridge stays awake when no rows arrive. Correctness doesn't depend on it: a bridge
/// that takes longer only makes the test easier to pass.
const WOULD_SLEEP: Duration = Duration::from_millis(60);

const INSERT: &str = "insert into notifications (user_id, text) values ('alice', 'kept');";
const UNDONE: &str = "insert into notifications (user_id, text) values ('alice', 'undone');";

/// The ways in which a transaction writes. Each leaves rows, at its end or before something that is
/// rolled back.
const WAYS: [(&str, &str); 15] = [
    ("a statement", "INSERT"),
    ("statements", "INSERT INSERT INSERT"),
    (
        "a savepoint that is released",
        "savepoint a; INSERT release a",
    ),
    ("a savepoint that is kept open", "savepoint a; INSERT"),
    (
        "rows before a rollback",
        "INSERT savepoint a; UNDONE rollback to a",
    ),
    (
        "rows after a rollback",
        "savepoint a; UNDONE rollback to a; INSERT",
    ),
    (
        "rows after a rollback of what was released",
        "savepoint a; savepoint b; UNDONE release b; rollback to a; INSERT",
    ),
    (
        "rows of a released savepoint before a rollback",
        "savepoint a; INSERT release a; savepoint b; UNDONE rollback to b",
    ),
    (
        "a block with a handler",
        "do $$ begin INSERT exception when others then null; end $$",
    ),
    (
        "rows before and after an exception",
        "do $$ begin INSERT begin UNDONE raise 'no'; exception when others then null; end; INSERT end $$",
    ),
    (
        "rows in the handler of an exception",
        "do $$ begin UNDONE raise 'no'; exception when others then INSERT end $$",
    ),
    (
        "a common table expression",
        "with written as (insert into notifications (user_id, text) \
         values ('alice', 'kept'), ('alice', 'kept') returning id) select count(*) from written",
    ),
    (
        "a cursor that calls what inserts, also in a savepoint that is undone",
        "declare c cursor for select send_notification('alice', 'row ' || n) \
         from generate_series(1, 4) n; fetch 1 from c; savepoint a; fetch 1 from c; \
         rollback to a; fetch 1 from c",
    ),
    (
        "a cursor that is first read in a savepoint that is undone",
        "declare c cursor for select send_notification('alice', 'row ' || n) \
         from generate_series(1, 4) n; savepoint a; fetch 1 from c; \
         rollback to a; fetch 1 from c",
    ),
    (
        "a cursor that inserts, opened in a savepoint that is released",
        "do $$ declare c refcursor := 'c'; one record; begin \
         begin open c for insert into notifications (user_id, text) \
         values ('alice', 'kept') returning id; exception when others then raise; end; \
         begin fetch c into one; exception when others then raise; end; end $$",
    ),
];

/// Opens a transaction that has written in one of these ways.
async fn write(database: &Database, how: &str) -> Client {
    let client = database.connect().await;
    let work = how.replace("INSERT", INSERT).replace("UNDONE", UNDONE);
    client.batch_execute("begin").await.expect("begin");
    client.batch_execute(&work).await.expect(&work);
    client
}

/// The same with COPY.
async fn copy(database: &Database) -> Client {
    let client = database.connect().await;
    client.batch_execute("begin").await.expect("begin");
    let copy = "copy notifications (user_id, text) from stdin";
    let mut lines = pin!(client.copy_in(copy).await.expect(copy));
    for n in 0..50 {
        let line = bytes::Bytes::from(format!("alice\trow {n}\n"));
        lines.send(line).await.expect("a line");
    }
    lines.finish().await.expect("the end of the copy");
    client
}

/// A client that must receive every row of alice exactly once.
struct Alice {
    database: Database,
    source: EventSource,
    has: BTreeSet<i64>,
}

impl Alice {
    async fn of(database: &Database, bridge: &Bridge) -> Self {
        Self {
            database: database.clone(),
            source: bridge.connect_live("alice").await,
            has: BTreeSet::new(),
        }
    }

    /// Waits for committed rows that have not arrived yet, at least one.
    async fn gets_the_rest(&mut self) {
        let query = "select id from notifications where user_id = 'alice'";
        let owed: BTreeSet<i64> = self.database.ids(query).await.into_iter().collect();
        let new = owed.len() - self.has.len();
        assert!(new > 0, "nothing was written");
        self.has
            .extend(no_repeats(&rows(&mut self.source, new).await));
        assert_eq!(self.has, owed);
    }
}

/// Runs each way, and COPY, once. `begin` starts the transaction.
async fn play(begin: impl AsyncFn(&Bell, Option<&str>, &Database) -> Client) {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut alice = Alice::of(&database, &bridge).await;
    let ways = WAYS.iter().map(|(_, how)| Some(*how));
    for way in ways.chain([None]) {
        let writer = begin(&bell, way, &database).await;
        sleep(WOULD_SLEEP).await;
        writer.batch_execute("commit").await.expect("commit");
        alice.gets_the_rest().await;
        // Nothing of it may keep the bridge awake.
        bell.until_rung().await;
    }
    bridge.stop().await;
}

async fn open(way: Option<&str>, database: &Database) -> Client {
    match way {
        Some(how) => write(database, how).await,
        None => copy(database).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_began_while_the_bridge_slept_is_rung_for() {
    play(async |bell, way, database| {
        bell.until_rung().await;
        open(way, database).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_began_while_the_bridge_was_awake_keeps_it_awake() {
    play(async |bell, way, database| {
        bell.keeps_awake().await;
        let writer = open(way, database).await;
        bell.lets_sleep().await;
        assert!(bell.is_written().await, "{way:?} gave the lock back early");
        writer
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_neither_sent_nor_in_the_way() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut alice = Alice::of(&database, &bridge).await;
    for _ in 0..5 {
        bell.keeps_awake().await;
        let writer = write(&database, "UNDONE UNDONE").await;
        bell.lets_sleep().await;
        sleep(WOULD_SLEEP).await;
        writer.batch_execute("rollback").await.expect("rollback");
        bell.until_rung().await;
        let writer = write(&database, "UNDONE").await;
        writer.batch_execute("rollback").await.expect("rollback");
        database.execute(INSERT).await;
        alice.gets_the_rest().await;
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sleeps_beside_a_transaction_that_left_the_bell_unrung() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut alice = Alice::of(&database, &bridge).await;
    for end in ["commit", "rollback"] {
        bell.keeps_awake().await;
        let old = write(&database, "INSERT").await;
        bell.lets_sleep().await;
        // Other sessions write at intervals shorter and longer than a bridge stays awake.
        for n in 0..20 {
            sleep(WOULD_SLEEP * (n % 4) / 3).await;
            database.execute(INSERT).await;
            alice.gets_the_rest().await;
            assert!(bell.is_written().await);
        }
        old.batch_execute(end).await.expect(end);
        if end == "commit" {
            alice.gets_the_rest().await;
        }
        bell.until_rung().await;
    }
    bridge.stop().await;
}
