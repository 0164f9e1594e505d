//! How far users are drained: before which transaction nothing of theirs is left
//! to deliver. Whoever looks for what is unsent begins there, and not at the
//! oldest row that is kept.
//!
//! It only saves reading. Whatever keeps it from being noted, looking takes
//! longer and finds the same.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_postgres::types::Type;
use tracing::{debug, warn};

use crate::{
    domain::{history::History, notification::UserId, snapshot::Xid},
    postgres::{
        pool::{self, Parameter, Pool, QueryError},
        queries::Sql,
        schema::SchemaName,
    },
};

/// How long noting may take.
const NOTE_LIMIT: Duration = Duration::from_secs(5);

/// How many are noted at once: one, so that streams and marks never wait for
/// connections. Who finds it busy leaves it to the user's next connection.
const AT_ONCE: usize = 1;

/// After noting one of them, so many times as long as that took none is noted: a
/// flood of rows is delivered, and noted later.
const LIVE_PAUSE: u32 = 20;

/// Rows that are passed over at once for somebody who is connected: some
/// milliseconds. The next time goes on from there.
const LIVE_ROWS: i64 = 10_000;

/// Whether this role may read and write what is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Granted,
    Missing,
}

/// What is noted in the database.
#[derive(Debug)]
pub struct Drained {
    pool: Pool,
    sql: Arc<Sql>,
    right: Right,
    turn: Arc<Semaphore>,
}

impl Drained {
    /// Finds out whether this role may use it. A role that was given its rights
    /// by hand, before there was such a table, may not, and serves all the same.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub async fn open(pool: Pool, sql: Arc<Sql>, schema: &SchemaName) -> Result<Self, QueryError> {
        let (drained, reopened) = (
            schema.qualified("tidings_drained"),
            schema.qualified("tidings_reopened"),
        );
        let tables: [Parameter<'_>; 2] = [(&drained, Type::TEXT), (&reopened, Type::TEXT)];
        let may = include_str!("../../sql/may_drain.sql");
        let rows = pool.query(NOTE_LIMIT, may, &tables).await?;
        let right = match pool::first_row(&rows).try_get(0)? {
            true => Right::Granted,
            false => Right::Missing,
        };
        if right == Right::Granted {
            let void = schema.fill(include_str!("../../sql/void_future_floors.sql"));
            pool.query(NOTE_LIMIT, &void, &[]).await?;
        }
        if right == Right::Missing {
            warn!(
                "this role may not note what has all been sent, so a new connection of a user \
                 reads all that is kept of the user; `tidings check` tells what to grant"
            );
        }
        Ok(Self {
            pool,
            sql,
            right,
            turn: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// The query of a first page, which begins there if it may.
    pub fn backlog_page(&self) -> &str {
        match self.right {
            Right::Granted => &self.sql.backlog_page,
            Right::Missing => &self.sql.backlog_page_without_drained,
        }
    }

    /// Notes that nothing of the user's is left to deliver before a transaction,
    /// as was seen in this history. Nobody waits for it.
    pub fn note(&self, user: &UserId, before: Xid, history: History) {
        if self.right == Right::Missing {
            return;
        }
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            return;
        };
        let (pool, sql, user) = (self.pool.clone(), Arc::clone(&self.sql), user.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let History {
                system_identifier,
                incarnation,
            } = history;
            let noted = pool
                .query(
                    NOTE_LIMIT,
                    &sql.drain,
                    &[
                        (&user.as_str(), Type::TEXT),
                        (&before, Type::XID8),
                        (&system_identifier, Type::INT8),
                        (&incarnation.timeline, Type::INT4),
                        (&incarnation.since, Type::TIMESTAMPTZ),
                    ],
                )
                .await;
            if let Err(error) = noted {
                debug!(%error, "could not note what has all been sent: {error}");
            }
        });
    }

    /// Notes how far nothing is left to deliver of a user who is connected, so
    /// that whoever looks for what is waiting need not pass over all that was sent
    /// since the first page. Returns when it is time to note the next one.
    pub async fn note_live(&self, user: &UserId) {
        if self.right == Right::Missing {
            return;
        }
        let began = {
            let Ok(_turn) = self.turn.acquire().await else {
                return;
            };
            let began = Instant::now();
            let noted = self
                .pool
                .query(
                    NOTE_LIMIT,
                    &self.sql.drain_live,
                    &[(&user.as_str(), Type::TEXT), (&LIVE_ROWS, Type::INT8)],
                )
                .await;
            if let Err(error) = noted {
                debug!(%error, "could not note what has all been sent: {error}");
            }
            began
        };
        sleep(began.elapsed() * LIVE_PAUSE).await;
    }

    /// The query for the rows that returning clients have received, if it may begin
    /// there.
    pub fn acknowledged(&self) -> Option<&str> {
        match self.right {
            Right::Granted => Some(&self.sql.acknowledged),
            Right::Missing => None,
        }
    }
}
