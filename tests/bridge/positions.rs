//! Positions against a real server: a position selects exactly the rows that its snapshot had not
//! seen, whatever transactions do meanwhile.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{prelude::*, test_runner::TestRunner};
use tidings::{
    delivery::{
        batch::{Batch, End, Event},
        page_reader::{self, MOST_BEGUN, PageSize, Run, TailPage, TailStatements},
    },
    domain::{
        history::History,
        notification::{Addressee, Notification, UserId},
        position::{EventId, Position, Rest, TopicScope},
        snapshot::Snapshot,
    },
    postgres::{
        pool::{Pool, PoolMode},
        queries::Sql,
        schema::SchemaName,
    },
};
use tokio::runtime::Handle;
use tokio_postgres::Client;

use crate::support::database::Database;

/// Concurrently open transactions.
const WRITERS: usize = 4;

/// Small, so that pages keep ending in the middle of transactions.
const SMALL: PageSize = PageSize { rows: 2, bytes: 60 };

/// Beside a large transaction there is room for two rows of others.
const EIGHT: PageSize = PageSize {
    rows: 8,
    bytes: i64::MAX,
};

/// One step of a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Writer, and number of rows in one statement. Begins a transaction if none is open.
    Insert(usize, u8),
    /// The same, undone at once by a rollback to a savepoint.
    InsertAndUndo(usize),
    /// The same, in a savepoint that is kept.
    InsertInSavepoint(usize),
    Commit(usize),
    RollBack(usize),
    /// Takes a transaction id without writing a row.
    Unrelated(usize),
    /// Reads one page for the reader of all users.
    ReadTail,
    /// Reads one page for the reader of one user.
    ReadUser,
    /// The reader of one user disconnects and resumes from its last id.
    Break,
    /// The live reader disconnects after this number of rows of its next batch, resumes from its
    /// last id, and reads what it missed.
    BreakLive(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let writer = 0..WRITERS;
    prop_oneof![
        5 => (writer.clone(), 1..5u8).prop_map(|(writer, rows)| Step::Insert(writer, rows)),
        1 => writer.clone().prop_map(Step::InsertAndUndo),
        1 => writer.clone().prop_map(Step::InsertInSavepoint),
        3 => writer.clone().prop_map(Step::Commit),
        1 => writer.clone().prop_map(Step::RollBack),
        1 => writer.prop_map(Step::Unrelated),
        4 => Just(Step::ReadTail),
        4 => Just(Step::ReadUser),
        1 => Just(Step::Break),
        1 => (0..4usize).prop_map(Step::BreakLive),
    ]
}

struct Writer {
    client: Client,
    is_open: bool,
}

impl Writer {
    async fn run(&mut self, work: &str) {
        if !self.is_open {
            self.client.batch_execute("begin").await.expect("begin");
            self.is_open = true;
        }
        self.client.batch_execute(work).await.expect(work);
    }

    async fn end(&mut self, how: &str) {
        if self.is_open {
            self.client.batch_execute(how).await.expect(how);
            self.is_open = false;
        }
    }
}

/// A reader and the rows that it received, with the number of times.
struct Reader {
    position: Position,
    got: BTreeMap<i64, u32>,
}

impl Reader {
    /// As a stream does: advances past each new row among the first `count`.
    fn take(&mut self, batch: &Batch, count: usize) {
        for (index, event) in batch.events.iter().enumerate().take(count) {
            let key = event.notification().key;
            if self.position.is_new(key) {
                batch.advance(&mut self.position, index);
                *self.got.entry(key.id).or_default() += 1;
            }
        }
    }

    /// Resumes from its last id, in text form.
    fn come_back(&mut self) {
        let history = History::default();
        let id = EventId {
            scope: TopicScope::Whole,
            row: 1,
            history,
            position: Cow::Borrowed(&self.position),
            safe: self.position.floor(),
        };
        let id = EventId::parse(&id.to_string(), history).expect("an id of ours");
        self.position = id.position.into_owned();
    }
}

/// Everything that a history uses.
struct Stage {
    writers: Vec<Writer>,
    client: Client,
    owner: Client,
    tail_query: TailStatements,
    sql: Sql,
    pool: Pool,
    tail: Reader,
    user: Reader,
    /// The same user as a live stream, which receives what the reader of all users reads.
    live: Reader,
    /// The number of rows after which it disconnects.
    live_breaks_after: Option<usize>,
}

impl Stage {
    async fn open(database: &Database) -> Self {
        let sql = Sql::new(&SchemaName::public());
        // The owner sees all rows; the bridge's queries run as the bridge.
        let owner = database.owner().connect().await;
        owner
            .batch_execute("truncate notifications")
            .await
            .expect("an empty table");
        let client = database.bridge().connect().await;
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            writers.push(Writer {
                client: database.connect().await,
                is_open: false,
            });
        }
        let start = page_reader::tail_start(&client, &sql.tail_start).await;
        let start = start.expect("a start").position;
        Self {
            writers,
            tail_query: TailStatements::prepare(&client, &sql)
                .await
                .expect("statements"),
            pool: Pool::new(&database.url(), PoolMode::Session, 1, Handle::current())
                .expect("a pool"),
            sql,
            client,
            owner,
            tail: Reader {
                position: start.clone(),
                got: BTreeMap::new(),
            },
            user: Reader {
                position: start.clone(),
                got: BTreeMap::new(),
            },
            live: Reader {
                position: start,
                got: BTreeMap::new(),
            },
            live_breaks_after: None,
        }
    }

    async fn play(&mut self, step: Step) {
        match step {
            Step::Insert(writer, rows) => self.writers[writer].run(&insert(rows)).await,
            Step::InsertAndUndo(writer) => {
                let work = format!("savepoint s; {}; rollback to savepoint s", insert(2));
                self.writers[writer].run(&work).await;
            }
            Step::InsertInSavepoint(writer) => {
                let work = format!("savepoint s; {}; release savepoint s", insert(2));
                self.writers[writer].run(&work).await;
            }
            Step::Commit(writer) => self.writers[writer].end("commit").await,
            Step::RollBack(writer) => self.writers[writer].end("rollback").await,
            Step::Unrelated(writer) => {
                self.writers[writer]
                    .run("select pg_current_xact_id()")
                    .await;
            }
            Step::ReadTail => {
                self.read_tail_page(SMALL).await;
            }
            Step::ReadUser => {
                self.read_user_page(SMALL).await;
            }
            Step::Break => self.user.come_back(),
            Step::BreakLive(rows) => self.live_breaks_after = Some(rows),
        }
    }

    async fn read_tail_page(&mut self, size: PageSize) -> TailPage {
        let position = &mut self.tail.position;
        let page = page_reader::tail_page(
            &self.client,
            &self.tail_query,
            position,
            &Snapshot::default(),
            size,
        )
        .await
        .expect("a page");
        let alice = Addressee::User(UserId::parse("alice").expect("a user"));
        // As the listener does.
        for run in &page.runs {
            let unread = Arc::new(run.pass(&mut self.tail.position, &page.snapshot));
            for (_, notification) in &run.notifications {
                *self.tail.got.entry(notification.key.id).or_default() += 1;
            }
            let of_alice = run.notifications.iter();
            let of_alice = of_alice.filter(|(whose, _)| *whose == alice);
            let batch = Batch {
                events: of_alice
                    .map(|(_, notification)| Arc::new(Event::from(notification.clone())))
                    .collect(),
                snapshot: Arc::clone(&page.snapshot),
                unread,
                last: None,
                end: End::Live(Arc::new(self.tail.position.clone())),
            };
            // As the hub does: a stream without rows in a batch doesn't receive it.
            if !batch.events.is_empty() {
                self.take_live(&batch).await;
            }
        }
        assert!(self.tail.position.begun().len() <= MOST_BEGUN);
        page
    }

    /// As a live stream does, which may disconnect in the middle.
    async fn take_live(&mut self, batch: &Batch) {
        let breaks_after = self.live_breaks_after.take();
        let count = breaks_after.unwrap_or(usize::MAX).min(batch.events.len());
        self.live.take(batch, count);
        if breaks_after.is_none() {
            batch.finish(&mut self.live.position);
            return;
        }
        self.live.come_back();
        loop {
            let page = self.page_after(&self.live.position, SMALL).await;
            self.live.take(&page, page.events.len());
            page.finish(&mut self.live.position);
            if matches!(page.end, End::CaughtUp { .. }) {
                return;
            }
        }
    }

    async fn read_user_page(&mut self, size: PageSize) -> Batch {
        let batch = self.page_after(&self.user.position, size).await;
        for event in &batch.events {
            let (key, position) = (event.notification().key, &self.user.position);
            assert!(
                position.is_new(key),
                "{key:?} was selected, and is not new to {position:?}"
            );
        }
        self.user.take(&batch, batch.events.len());
        batch.finish(&mut self.user.position);
        batch
    }

    async fn page_after(&self, position: &Position, size: PageSize) -> Batch {
        let alice = UserId::parse("alice").expect("a user");
        let page = page_reader::user_page(&self.pool, &self.sql, Some(&alice), position, size);
        page.await.expect("a page").page.batch
    }

    /// Reads to the end and returns the snapshots of the last pages.
    async fn read_all(&mut self) -> (Snapshot, Snapshot) {
        let tail = loop {
            let page = self.read_tail_page(SMALL).await;
            if page.rest() == Rest::Nothing {
                break Snapshot::clone(&page.snapshot);
            }
        };
        let user = loop {
            let batch = self.read_user_page(SMALL).await;
            if matches!(batch.end, End::CaughtUp { .. }) {
                break Snapshot::clone(&batch.snapshot);
            }
        };
        (tail, user)
    }

    async fn ids(&self, query: &str) -> BTreeSet<i64> {
        let rows = self.owner.query(query, &[]).await.expect(query);
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The ids of the existing rows that a snapshot had not seen, according to Postgres.
    async fn unseen(&self, snapshot: &Snapshot, condition: &str) -> BTreeSet<i64> {
        let query = format!(
            "select id from notifications \
             where not pg_visible_in_snapshot(xid, '{snapshot}'::pg_snapshot) and {condition}"
        );
        self.ids(&query).await
    }
}

fn insert(rows: u8) -> String {
    format!(
        "insert into notifications (user_id, text) \
         select case n % 3 when 0 then 'bob' else 'alice' end, repeat('x', n * 17) \
         from generate_series(1, {rows}) n"
    )
}

/// Runs random histories, with `check` at the end of each.
async fn play_histories(cases: u32, check: impl AsyncFn(&mut Stage)) {
    let database = Database::migrated().await;
    let handle = Handle::current();
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..Default::default()
    };
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(config);
        let outcome = runner.run(&prop::collection::vec(step(), 1..60), |history| {
            handle.block_on(async {
                let mut stage = Stage::open(&database).await;
                for step in history {
                    stage.play(step).await;
                }
                check(&mut stage).await;
            });
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_selects_exactly_what_its_snapshot_had_not_seen() {
    play_histories(60, async |stage| {
        let (tail_saw, user_saw) = stage.read_all().await;
        // It lists exactly the transactions that are still running, so it doesn't grow.
        for (position, saw) in [
            (&stage.tail.position, &tail_saw),
            (&stage.user.position, &user_saw),
        ] {
            let running: Vec<_> = saw.running_below(position.floor()).collect();
            assert_eq!(position.open_xids(), running);
        }
        // Transactions that were running continue, and end in different ways.
        for (index, writer) in stage.writers.iter_mut().enumerate() {
            writer.run(&insert(3)).await;
            match index % 3 {
                0 => {}
                1 => writer.end("rollback").await,
                _ => writer.end("commit").await,
            }
        }
        let all = PageSize {
            rows: 10_000,
            bytes: i64::MAX,
        };
        let expected_tail = stage.unseen(&tail_saw, "true").await;
        let page = stage.read_tail_page(all).await;
        let selected: BTreeSet<i64> = notifications(&page).map(|row| row.key.id).collect();
        assert_eq!(selected, expected_tail, "the tail's position");

        let expected_user = stage.unseen(&user_saw, "user_id = 'alice'").await;
        let batch = stage.read_user_page(all).await;
        let selected: BTreeSet<i64> = batch
            .events
            .iter()
            .map(|event| event.notification().key.id)
            .collect();
        assert_eq!(selected, expected_user, "the user's position");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_history_each_row_is_read_once() {
    play_histories(60, async |stage| {
        for writer in &mut stage.writers {
            writer.end("commit").await;
        }
        stage.read_all().await;
        let once = |ids: BTreeSet<i64>| {
            ids.into_iter()
                .map(|id| (id, 1))
                .collect::<BTreeMap<_, _>>()
        };
        let all = once(stage.ids("select id from notifications").await);
        assert_eq!(stage.tail.got, all, "the tail");
        let alices = once(
            stage
                .ids("select id from notifications where user_id = 'alice'")
                .await,
        );
        assert_eq!(stage.user.got, alices, "the user");
        assert_eq!(stage.live.got, alices, "the live stream");
    })
    .await;
}

fn notifications(page: &TailPage) -> impl Iterator<Item = &Notification> {
    let rows = page.runs.iter().flat_map(|run| &run.notifications);
    rows.map(|(_, notification)| notification)
}

/// The texts of a run, without repeats and in order.
fn texts(run: &Run) -> Vec<&str> {
    let mut texts: Vec<_> = run.notifications.iter().map(|(_, n)| &*n.text).collect();
    texts.dedup();
    texts
}

/// Inserts rows with this text, in a transaction of their own.
async fn insert_all(stage: &Stage, text: &str, rows: usize) {
    let insert = format!(
        "insert into notifications (user_id, text) \
         select 'alice', '{text}' from generate_series(1, {rows})"
    );
    stage.owner.batch_execute(&insert).await.expect("rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_large_transaction_is_read_later_ones_overtake_it_and_are_not_cut() {
    let database = Database::migrated().await;
    let mut stage = Stage::open(&database).await;
    stage.writers[0].run(&insert(1)).await;
    insert_all(&stage, "large", 100).await;
    for (text, rows) in [("one", 1), ("two", 2), ("three", 3), ("last", 1)] {
        insert_all(&stage, text, rows).await;
    }
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!((page.rows(), texts(&page.runs[0])), (8, vec!["large"]));
    // The large transaction continues at full size. Transaction two would be split, so it waits.
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!(
        (texts(&page.runs[0]), page.runs[0].rows),
        (vec!["large"], 8)
    );
    assert_eq!(texts(&page.runs[1]), ["one"]);
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!((texts(&page.runs[1]), page.runs[1].rows), (vec!["two"], 2));
    // A transaction that was running when others were read doesn't queue behind the large one
    // either.
    stage.writers[0].end("commit").await;
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!(texts(&page.runs[1]), ["x".repeat(17)]);
    // Transaction three is too large to fit, so it becomes a second one that is read in pieces: its
    // rest is in the next page.
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!(
        (texts(&page.runs[1]), page.runs[1].rows),
        (vec!["three"], 2)
    );
    let page = stage.read_tail_page(EIGHT).await;
    assert_eq!(
        (texts(&page.runs[0]), page.runs[0].rows),
        (vec!["large", "three"], 5)
    );
    assert_eq!(texts(&page.runs[1]), ["last"]);
    stage.read_all().await;
    let all = stage.ids("select id from notifications").await;
    assert_eq!(stage.live.got, all.into_iter().map(|id| (id, 1)).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_so_many_transactions_are_read_in_pieces_at_once() {
    let database = Database::migrated().await;
    let mut stage = Stage::open(&database).await;
    for _ in 0..2 * MOST_BEGUN {
        insert_all(&stage, "large", 30).await;
    }
    let mut most = 0;
    while stage.read_tail_page(EIGHT).await.rest() == Rest::More {
        most = most.max(stage.tail.position.begun().len());
    }
    assert_eq!(most, MOST_BEGUN);
    let all = stage.ids("select id from notifications").await;
    assert_eq!(stage.live.got, all.into_iter().map(|id| (id, 1)).collect());
}
