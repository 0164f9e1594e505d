//! The writers: connections that INSERT, either as fast as they can or at a fixed rate.
//!
//! They run on threads of their own. Like an application's, each INSERT is a transaction
//! of its own and a prepared statement.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{runtime::Builder, sync::oneshot};
use tokio_postgres::{Client, Statement};

use crate::{
    Result,
    clock::Moment,
    server::Database,
    subject::{Users, text},
};

/// Connections that write at a fixed rate: a row is late only if this many commits take
/// longer than they should.
const BY_THE_CLOCK: usize = 16;

/// Connections that write batches: while one waits for the disk, others write.
pub const IN_BATCHES: usize = 4;

/// After five executions, PostgreSQL settles on a plan for a prepared statement.
const UNTIL_PLANNED: usize = 6;

/// Where rows are inserted, which users they are for, and how many there are already. Row
/// numbers continue over all runs, so that no text occurs twice.
#[derive(Clone)]
pub struct Writers {
    database: Database,
    /// Inserts one row, or one for each element of two arrays.
    insert: Insert,
    users: Users,
    next: Arc<AtomicU64>,
}

/// The INSERT statements.
#[derive(Clone, Copy, Debug)]
pub struct Insert {
    /// `$1` is the user, `$2` the text.
    pub row: &'static str,
    /// `$1` are the users, `$2` the texts.
    pub batch: &'static str,
}

/// Into the table of Tidings, or one of the same form.
pub const NOTIFICATIONS: Insert = Insert {
    row: "insert into notifications (user_id, text) values ($1, $2)",
    batch: "insert into notifications (user_id, text) \
            select * from unnest($1::text[], $2::text[])",
};

/// The same for topics.
pub const FOR_TOPICS: Insert = Insert {
    row: "insert into notifications (topic, text) values ($1, $2)",
    batch: "insert into notifications (topic, text) \
            select * from unnest($1::text[], $2::text[])",
};

#[derive(Clone, Copy, Debug)]
pub struct Inserted {
    pub row: u64,
    /// When it was issued; at a fixed rate: when it was due, whatever delayed it.
    pub issued: Moment,
    /// When its commit was acknowledged.
    pub committed: Moment,
}

/// What was written in one run.
#[derive(Debug)]
pub struct Written {
    /// When the first INSERT was issued.
    pub begin: Moment,
    /// When the last commit was acknowledged.
    pub end: Moment,
    /// The rows, in no order.
    pub rows: Vec<Inserted>,
}

impl Written {
    /// Rows per second.
    pub fn rate(&self) -> f64 {
        self.rows.len() as f64 / self.end.since(self.begin).as_secs_f64()
    }
}

/// How long to write at full speed.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Until this much time has passed.
    Passed(Duration),
    /// Until this run has inserted this many rows.
    Rows(u64),
}

impl Writers {
    /// Writers for an empty table.
    pub fn new(database: &Database, insert: Insert, users: Users) -> Self {
        Self {
            database: database.clone(),
            insert,
            users,
            next: Arc::default(),
        }
    }

    /// The number of rows of all runs.
    pub fn rows(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Inserts one row after the other on each of `connections` connections.
    pub async fn flat_out(&self, connections: usize, until: Until) -> Result<Written> {
        let this = self.clone();
        on_thread(move || async move {
            let connecting = (0..connections).map(|_| this.connect());
            let connections = try_join_all(connecting).await?;
            let begin = Moment::now();
            let (last, over) = match until {
                Until::Passed(time) => (u64::MAX, begin.plus(time)),
                Until::Rows(rows) => (this.rows() + rows, begin.plus(Duration::MAX / 2)),
            };
            let writing = connections
                .iter()
                .map(|connection| this.write(connection, last, over));
            let rows = try_join_all(writing).await?;
            this.next.fetch_min(last, Ordering::Relaxed);
            Ok(written(begin, rows))
        })
        .await
    }

    async fn write(
        &self,
        connection: &Connection,
        last: u64,
        over: Moment,
    ) -> Result<Vec<Inserted>> {
        let mut rows = Vec::new();
        let mut issued = Moment::now();
        while issued < over {
            let row = self.next.fetch_add(1, Ordering::Relaxed);
            if row >= last {
                break;
            }
            self.insert(connection, row).await?;
            let committed = Moment::now();
            rows.push(Inserted {
                row,
                issued,
                committed,
            });
            issued = committed;
        }
        Ok(rows)
    }

    /// Inserts `rows` rows in batches, over a few connections.
    pub async fn in_batches(&self, rows: u64, batch: u64) -> Result<Written> {
        let this = self.clone();
        on_thread(move || async move {
            let connecting = (0..IN_BATCHES).map(|_| this.prepare(this.insert.batch));
            let connections = try_join_all(connecting).await?;
            let (begin, last) = (Moment::now(), this.rows() + rows);
            let writing = connections
                .iter()
                .map(|connection| this.write_batches(connection, last, batch));
            let rows = try_join_all(writing).await?;
            this.next.fetch_min(last, Ordering::Relaxed);
            Ok(written(begin, rows))
        })
        .await
    }

    async fn write_batches(
        &self,
        connection: &Connection,
        last: u64,
        batch: u64,
    ) -> Result<Vec<Inserted>> {
        let mut inserted = Vec::new();
        loop {
            let first = self.next.fetch_add(batch, Ordering::Relaxed);
            if first >= last {
                return Ok(inserted);
            }
            let numbers = first..last.min(first + batch);
            let issued = Moment::now();
            self.insert_batch(connection, numbers.clone()).await?;
            let committed = Moment::now();
            inserted.extend(numbers.map(|row| Inserted {
                row,
                issued,
                committed,
            }));
        }
    }

    /// Inserts `rows` rows, each when it is due at this rate, regardless of the earlier
    /// ones. Each connection has a thread, which takes the next row.
    pub async fn by_the_clock(&self, rate: f64, rows: u64) -> Result<Written> {
        self.batches_by_the_clock(rate, rows, 1).await
    }

    /// The same with several rows in each transaction.
    pub async fn batches_by_the_clock(
        &self,
        rate: f64,
        transactions: u64,
        batch: u64,
    ) -> Result<Written> {
        let rows = transactions * batch;
        let first = self.next.fetch_add(rows, Ordering::Relaxed);
        let begin = Arc::new(std::sync::OnceLock::new());
        let ready = Arc::new(tokio::sync::Barrier::new(BY_THE_CLOCK));
        let taken = Arc::new(AtomicU64::new(0));
        let writing = (0..BY_THE_CLOCK).map(|_| {
            let (this, begin) = (self.clone(), Arc::clone(&begin));
            let (ready, taken) = (Arc::clone(&ready), Arc::clone(&taken));
            on_thread(move || async move {
                let connection = match batch {
                    1 => this.connect().await?,
                    _ => this.prepare(this.insert.batch).await?,
                };
                ready.wait().await;
                let begin = *begin.get_or_init(Moment::now);
                let mut inserted = Vec::new();
                loop {
                    let number = taken.fetch_add(1, Ordering::Relaxed);
                    if number >= transactions {
                        return Ok(inserted);
                    }
                    let issued = begin.plus(Duration::from_secs_f64(number as f64 / rate));
                    issued.wait();
                    let row = first + number * batch;
                    match batch {
                        1 => this.insert(&connection, row).await?,
                        _ => this.insert_batch(&connection, row..row + batch).await?,
                    }
                    let committed = Moment::now();
                    inserted.extend((row..row + batch).map(|row| Inserted {
                        row,
                        issued,
                        committed,
                    }));
                }
            })
        });
        let rows = try_join_all(writing).await?;
        let begin = begin.get().copied().unwrap_or_else(Moment::now);
        Ok(written(begin, rows))
    }

    /// A connection that has inserted before, as those of a pool have: the first
    /// statements of a session read the catalog, compile the trigger and choose a plan.
    /// What it inserted is rolled back.
    async fn connect(&self) -> Result<Connection> {
        let connection = self.prepare(self.insert.row).await?;
        connection.client.batch_execute("begin").await?;
        for _ in 0..UNTIL_PLANNED {
            self.insert(&connection, 0).await?;
        }
        connection.client.batch_execute("rollback").await?;
        Ok(connection)
    }

    async fn prepare(&self, statement: &str) -> Result<Connection> {
        let client = self.database.connect().await?;
        let statement = client.prepare(statement).await?;
        Ok(Connection { client, statement })
    }

    async fn insert_batch(&self, connection: &Connection, rows: Range<u64>) -> Result<()> {
        let user = |row| self.users.name(self.users.of(row));
        let users: Vec<_> = rows.clone().map(user).collect();
        let texts: Vec<_> = rows.map(text).collect();
        let Connection { client, statement } = connection;
        client.execute(statement, &[&users, &texts]).await?;
        Ok(())
    }

    async fn insert(&self, connection: &Connection, row: u64) -> Result<()> {
        let user = self.users.name(self.users.of(row));
        let Connection { client, statement } = connection;
        client.execute(statement, &[&user, &text(row)]).await?;
        Ok(())
    }
}

struct Connection {
    client: Client,
    statement: Statement,
}

fn written(begin: Moment, rows: Vec<Vec<Inserted>>) -> Written {
    let rows = rows.concat();
    let end = rows.iter().map(|row| row.committed).max();
    Written {
        begin,
        end: end.unwrap_or(begin),
        rows,
    }
}

/// Runs this on a thread of its own, whose runtime does nothing else.
async fn on_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let outcome = match runtime {
            Ok(runtime) => runtime.block_on(work()),
            Err(error) => Err(error.into()),
        };
        // The receiver may be gone.
        let _ = sender.send(outcome);
    })?;
    receiver.await?
}
