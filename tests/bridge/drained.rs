//! A drained floor never hides a row that is yet to be delivered, whatever transactions do
//! meanwhile and however late the floor is recorded.

use std::collections::BTreeSet;

use proptest::{prelude::*, test_runner::TestRunner};
use tidings::{
    delivery::page_reader::{self, Backlog, PageSize, SKIPPED_ROWS_BEFORE_NOTING},
    domain::{
        clock::Moment,
        history::Incarnation,
        notification::UserId,
        position::{Position, RowKey},
        snapshot::Xid,
    },
    postgres::{
        pool::{Parameter, Pool, PoolMode},
        queries::Sql,
        schema::SchemaName,
    },
};
use tokio::runtime::Handle;
use tokio_postgres::{Client, types::Type};

use crate::support::{
    PATIENCE,
    bridge::Bridge,
    database::{Database, start_cluster},
    row_id, until,
};

/// Concurrently open transactions.
const WRITERS: usize = 3;

const ALL: PageSize = PageSize {
    rows: 100_000,
    bytes: i64::MAX,
};

/// One step of a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(usize),
    /// Inserts copied rows with an old transaction id.
    InsertOld(usize),
    /// Inserts rows that expire soon or have expired.
    InsertExpired(usize),
    Commit(usize),
    RollBack(usize),
    /// In the writer's transaction, makes alice's newest sent row unsent again.
    Unmark(usize),
    /// Extends the lifetime of the newest expired row.
    PutOff(usize),
    /// Gives bob's newest row to alice.
    Move(usize),
    /// Alice opens a connection, whose first page is read later.
    Open,
    /// Alice connects without a position. All of the rows that she receives are marked, or the
    /// first half.
    Look {
        /// Use the connection that was opened before, or a new one.
        waiting: bool,
        marks_all: bool,
    },
    /// Records a floor that was computed long ago.
    Note(usize),
    /// Records how far everything was sent to alice while she is connected, examining at most this
    /// number of rows.
    NoteLive(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let writer = || 0..WRITERS;
    prop_oneof![
        6 => writer().prop_map(Step::Insert),
        2 => writer().prop_map(Step::InsertOld),
        1 => writer().prop_map(Step::InsertExpired),
        5 => writer().prop_map(Step::Commit),
        1 => writer().prop_map(Step::RollBack),
        2 => writer().prop_map(Step::Unmark),
        1 => writer().prop_map(Step::PutOff),
        1 => writer().prop_map(Step::Move),
        2 => Just(Step::Open),
        6 => any::<(bool, bool)>().prop_map(|(waiting, marks_all)| Step::Look { waiting, marks_all }),
        6 => any::<usize>().prop_map(Step::Note),
        3 => (1_i64..5).prop_map(Step::NoteLive),
    ]
}

struct Stage {
    writers: Vec<(Client, bool)>,
    owner: Client,
    bridge: Client,
    pool: Pool,
    sql: Sql,
    system_identifier: i64,
    incarnation: Incarnation,
    /// A connection that waits for its first page.
    opened: Option<Position>,
    /// Floors that were computed and can still be recorded.
    seen: Vec<Xid>,
}

impl Stage {
    async fn open(database: &Database) -> Self {
        let owner = database.owner().connect().await;
        owner
            .batch_execute("truncate notifications, tidings_drained, tidings_reopened")
            .await
            .expect("empty tables");
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let writer = database.owner().connect().await;
            // Two writers may change the same row: the second one fails after 1 ms.
            let patience = "set lock_timeout = '1ms'";
            writer.batch_execute(patience).await.expect(patience);
            writers.push((writer, false));
        }
        let pool =
            Pool::new(&database.url(), PoolMode::Session, 1, Handle::current()).expect("a pool");
        let system = "select system_identifier from pg_control_system()";
        let system = owner.query_one(system, &[]).await.expect(system);
        let sql = Sql::new(&SchemaName::public());
        Self {
            writers,
            owner,
            bridge: database.bridge().connect().await,
            incarnation: page_reader::incarnation(&pool, &sql)
                .await
                .expect("an incarnation"),
            pool,
            sql,
            system_identifier: system.get(0),
            opened: None,
            seen: Vec::new(),
        }
    }

    async fn write(&mut self, writer: usize, work: &str) {
        let (client, is_open) = &mut self.writers[writer];
        let begin = if *is_open { "" } else { "begin;" };
        let done = client.batch_execute(&format!("{begin} {work}")).await;
        *is_open = true;
        if done.is_err() {
            client.batch_execute("rollback").await.expect("rollback");
            *is_open = false;
        }
    }

    async fn end(&mut self, writer: usize, how: &str) {
        let (client, is_open) = &mut self.writers[writer];
        client.batch_execute(how).await.expect(how);
        *is_open = false;
    }

    async fn play(&mut self, step: Step) {
        let one = |condition: &str| {
            format!("where id = (select max(id) from notifications where {condition})")
        };
        match step {
            Step::Insert(writer) => {
                let insert = "insert into notifications (user_id, text) \
                              select unnest(array['alice', 'alice', 'bob']), 'x'";
                self.write(writer, insert).await;
            }
            Step::InsertOld(writer) => {
                let insert = "insert into notifications (user_id, text, xid) \
                              select u, 'x', coalesce((select min(xid) from notifications), '5') \
                              from unnest(array['alice', 'alice', 'bob']) as u";
                self.write(writer, insert).await;
            }
            Step::InsertExpired(writer) => {
                let insert = "insert into notifications (user_id, text, expires_at) \
                              values ('alice', 'x', now() - interval '1 second')";
                self.write(writer, insert).await;
            }
            Step::Commit(writer) => self.end(writer, "commit").await,
            Step::RollBack(writer) => self.end(writer, "rollback").await,
            Step::Unmark(writer) => {
                let row = one("user_id = 'alice' and sent");
                let unmark = format!("update notifications set sent_at = null {row}");
                self.write(writer, &unmark).await;
            }
            Step::PutOff(writer) => {
                let row = one("expires_at < now()");
                let later = if writer == 0 { "null" } else { "'infinity'" };
                let put_off = format!("update notifications set expires_at = {later} {row}");
                self.write(writer, &put_off).await;
            }
            Step::Move(writer) => {
                let row = one("user_id = 'bob'");
                let give = format!("update notifications set user_id = 'alice' {row}");
                self.write(writer, &give).await;
            }
            Step::Open => self.opened = Some(self.tail_start().await),
            Step::Look { waiting, marks_all } => {
                let opened = if waiting { self.opened.take() } else { None };
                self.look(opened, marks_all).await;
            }
            Step::Note(which) => {
                if !self.seen.is_empty() {
                    let before = self.seen[which % self.seen.len()];
                    self.note(before).await;
                }
            }
            Step::NoteLive(rows) => {
                let noting: [Parameter<'_>; 2] = [(&"alice", Type::TEXT), (&rows, Type::INT8)];
                let noting = self.pool.query(PATIENCE, &self.sql.drain_live, &noting);
                noting.await.expect("noted");
            }
        }
    }

    async fn tail_start(&self) -> Position {
        let start = page_reader::tail_start(&self.bridge, &self.sql.tail_start).await;
        start.expect("a start").position
    }

    /// Checks that alice receives all undelivered rows and the rows that are new since she
    /// connected, and nothing else.
    async fn look(&mut self, opened: Option<Position>, marks_all: bool) {
        let alice = UserId::parse("alice").expect("a user");
        let opened = match opened {
            Some(opened) => opened,
            None => self.tail_start().await,
        };
        let backlog = Backlog {
            query: &self.sql.backlog_page,
            user: Some(&alice),
            opened: &opened,
            system_identifier: self.system_identifier,
            skipped_rows: 0,
        };
        let page = page_reader::backlog_page(&self.pool, backlog, ALL).await;
        let page = page.expect("a page");
        let events = page.page.batch.events.iter();
        let got: Vec<i64> = events.map(|event| event.notification().key.id).collect();
        let rows = "select xid, id, not sent and (expires_at is null or expires_at > now()) \
                    from notifications where user_id = 'alice' order by xid, id";
        let rows = self.owner.query(rows, &[]).await.expect(rows);
        let owed = rows.iter().filter(|row| {
            let (xid, id) = (row.get(0), row.get(1));
            row.get(2) || opened.is_new(RowKey { xid, id })
        });
        let owed: Vec<i64> = owed.map(|row| row.get(1)).collect();
        assert_eq!(got, owed);
        self.seen.extend(page.drained);
        let marked = &got[..if marks_all { got.len() } else { got.len() / 2 }];
        let incarnation = self.incarnation;
        let written = vec![Moment::here(); marked.len()];
        let marking: [Parameter<'_>; 4] = [
            (&marked, Type::INT8_ARRAY),
            (&incarnation.timeline, Type::INT4),
            (&incarnation.since, Type::TIMESTAMPTZ),
            (&written, Type::TIMESTAMPTZ_ARRAY),
        ];
        let marking = self.pool.query(PATIENCE, &self.sql.mark_sent, &marking);
        marking.await.expect("marks");
    }

    async fn note(&self, before: Xid) {
        note(
            &self.pool,
            &self.sql,
            before,
            self.system_identifier,
            self.incarnation,
        )
        .await;
    }
}

async fn note(
    pool: &Pool,
    sql: &Sql,
    before: Xid,
    system_identifier: i64,
    incarnation: Incarnation,
) {
    let noting: [Parameter<'_>; 5] = [
        (&"alice", Type::TEXT),
        (&before, Type::XID8),
        (&system_identifier, Type::INT8),
        (&incarnation.timeline, Type::INT4),
        (&incarnation.since, Type::TIMESTAMPTZ),
    ];
    let noting = pool.query(PATIENCE, &sql.drain, &noting);
    noting.await.expect("noted");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_history_a_new_connection_gets_exactly_what_is_unsent() {
    let database = Database::migrated().await;
    let handle = Handle::current();
    let config = ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..Default::default()
    };
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(config);
        let outcome = runner.run(&prop::collection::vec(step(), 1..80), |history| {
            handle.block_on(async {
                let mut stage = Stage::open(&database).await;
                for step in history {
                    stage.play(step).await;
                }
                for writer in 0..WRITERS {
                    stage.end(writer, "commit").await;
                }
                stage.look(None, true).await;
            });
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

/// Inserts sent rows, more than a query may skip before a floor is recorded.
async fn insert_sent(client: &Client) {
    let insert = format!(
        "insert into notifications (user_id, text, sent_at) \
         select 'alice', 'sent', now() from generate_series(1, {})",
        2 * SKIPPED_ROWS_BEFORE_NOTING
    );
    client.batch_execute(&insert).await.expect("sent rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_all_sent_is_noted_up_to_the_first_open_transaction() {
    // A cluster of its own, because transactions of other databases count too.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let owner = database.owner().connect().await;
    insert_sent(&owner).await;
    let writer = database.connect().await;
    let slow = "begin; insert into notifications (user_id, text) values ('alice', 'slow')";
    writer.batch_execute(slow).await.expect(slow);
    insert_sent(&owner).await;
    let bridges = [
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    ];
    let alices = async |bridge: &Bridge| {
        let mut source = bridge.connect("alice").await;
        let events = until(&mut source, "tidings.caught-up").await;
        events
            .into_iter()
            .map(|event| event.data)
            .collect::<Vec<_>>()
    };
    assert_eq!(alices(&bridges[0]).await, [""; 0]);
    database
        .until(
            "select exists (select from tidings_drained where xid > \
             (select xid from notifications order by xid limit 1))",
        )
        .await;
    let before =
        "select count(*) from notifications as n, tidings_drained as d where n.xid < d.xid";
    assert_eq!(
        database.ids(before).await,
        [i64::from(2 * SKIPPED_ROWS_BEFORE_NOTING)]
    );

    // The first connection receives it, later ones don't.
    writer.batch_execute("commit").await.expect("commit");
    assert_eq!(alices(&bridges[1]).await, ["slow"]);
    database
        .until("select bool_and(sent) from notifications")
        .await;
    assert_eq!(alices(&bridges[0]).await, [""; 0]);
    database
        .until(
            "select exists (select from tidings_drained where xid > \
             (select xid from notifications order by xid desc limit 1))",
        )
        .await;
    assert_eq!(alices(&bridges[1]).await, [""; 0]);
    // `replay` delivers rows below the floor too.
    let mut source = bridges[1].connect_with("alice", "?replay=300", &[]).await;
    let replayed = until(&mut source, "tidings.caught-up").await;
    let replayed: BTreeSet<i64> = replayed.iter().map(row_id).collect();
    assert_eq!(replayed.len(), 300);
    // Marking rows did not count as reopening them.
    let reopened = "select count(*) from tidings_reopened";
    assert_eq!(database.ids(reopened).await, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_before_a_crash_or_in_another_cluster_is_not_noted_and_does_not_count() {
    let database = Database::migrated().await;
    let owner = database.owner().connect().await;
    let mut stage = Stage::open(&database).await;
    stage.system_identifier = 7;
    stage
        .write(
            0,
            "insert into notifications (user_id, text) values ('alice', 'x')",
        )
        .await;
    stage.end(0, "commit").await;
    let noted = async || {
        let noted = "select count(*) from tidings_drained";
        owner
            .query_one(noted, &[])
            .await
            .expect(noted)
            .get::<_, i64>(0)
    };
    let now = stage.incarnation;
    let (pool, sql) = (&stage.pool, &stage.sql);
    let mut other = now;
    other.since.0 -= 1;
    note(pool, sql, Xid(1 << 40), 7, other).await;
    other = now;
    other.timeline -= 1;
    note(pool, sql, Xid(1 << 40), 7, other).await;
    assert_eq!(noted().await, 0);
    // A floor of another cluster hides nothing here and gets overwritten.
    note(pool, sql, Xid(1 << 40), 8, now).await;
    assert_eq!(noted().await, 1);
    stage.look(None, false).await;
    note(&stage.pool, &stage.sql, Xid(5), 7, now).await;
    let ours = "select xid::text::bigint from tidings_drained where system_identifier = 7";
    assert_eq!(database.ids(ours).await, [5]);
    // An older floor doesn't replace it.
    note(&stage.pool, &stage.sql, Xid(4), 7, now).await;
    assert_eq!(database.ids(ours).await, [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_tab_got_and_was_noted_comes_to_one_that_was_open_before() {
    // A cluster of its own, because transactions of other databases count too.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let mut stage = Stage::open(&database).await;
    // The older transaction is still running when the connection is opened.
    stage.play(Step::Insert(0)).await;
    stage.play(Step::Insert(1)).await;
    stage.play(Step::Commit(1)).await;
    let opened = stage.tail_start().await;
    stage.play(Step::Commit(0)).await;
    for _ in 0..2 {
        stage.look(None, true).await;
    }
    let before = stage.seen.pop().expect("something was read in vain");
    stage.note(before).await;
    stage.look(Some(opened), true).await;
}
