//! The delivered watermark of each user: the transaction before which nothing is left to
//! deliver. Queries for unsent rows start there, and not at the oldest row of the user.
//!
//! It only saves time. Without an up-to-date watermark, queries take longer and find the
//! same rows.

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
        schema::{Privilege, SchemaName},
    },
    runtime::error_chain::ErrorChain,
};

/// The timeout of a query that moves a watermark.
const NOTE_LIMIT: Duration = Duration::from_secs(5);

/// How many watermarks are moved at once: one, so that streams and marks never wait for
/// database connections. A first page that finds it busy leaves it to the user's next
/// connection.
const AT_ONCE: usize = 1;

/// After a watermark was moved for a connected user, no other is moved for this many
/// times as long as that took: when many rows are delivered, rows come first and
/// watermarks follow later.
const LIVE_PAUSE: u32 = 20;

/// Rows of a connected user that one statement passes over: some milliseconds. The next
/// statement continues from there.
const LIVE_ROWS: i64 = 10_000;

/// The watermarks in the database.
#[derive(Debug)]
pub struct DeliveredWatermark {
    pool: Pool,
    sql: Arc<Sql>,
    right: Privilege,
    turn: Arc<Semaphore>,
}

impl DeliveredWatermark {
    /// Checks whether this role may use watermarks. A role whose privileges were granted
    /// manually before the tables existed may not; the bridge works nevertheless.
    pub async fn open(pool: Pool, sql: Arc<Sql>, schema: &SchemaName) -> Result<Self, QueryError> {
        let (drained, reopened) = (
            schema.qualified("tidings_drained"),
            schema.qualified("tidings_reopened"),
        );
        let tables: [Parameter<'_>; 2] = [(&drained, Type::TEXT), (&reopened, Type::TEXT)];
        let may = include_str!("../../sql/may_drain.sql");
        let rows = pool.query(NOTE_LIMIT, may, &tables).await?;
        let right = match pool::first_row(&rows).try_get(0)? {
            true => Privilege::Granted,
            false => Privilege::Missing,
        };
        if right == Privilege::Granted {
            let void = schema.fill(include_str!("../../sql/void_future_floors.sql"));
            pool.query(NOTE_LIMIT, &void, &[]).await?;
        }
        if right == Privilege::Missing {
            warn!(
                "this role may not store delivery watermarks, so each new connection reads all \
                 rows kept for its user; `tidings check` shows what to grant"
            );
        }
        Ok(Self {
            pool,
            sql,
            right,
            turn: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// The query for a first page. It starts at the watermark if the role may read it.
    pub fn backlog_page(&self) -> &str {
        match self.right {
            Privilege::Granted => &self.sql.backlog_page,
            Privilege::Missing => &self.sql.backlog_page_without_drained,
        }
    }

    /// Moves a user's watermark to `before`, as seen in this history, in a background
    /// task.
    pub fn note(&self, user: &UserId, before: Xid, history: History) {
        if self.right == Privilege::Missing {
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
                let error = ErrorChain(&error);
                debug!(%error, "could not store a delivery watermark: {error}");
            }
        });
    }

    /// Moves the watermark of a user who is connected, so that queries for unsent rows
    /// need not pass over everything that was sent since the first page. Returns when the
    /// next user's may be moved.
    pub async fn note_live(&self, user: &UserId) {
        if self.right == Privilege::Missing {
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
                let error = ErrorChain(&error);
                debug!(%error, "could not store a delivery watermark: {error}");
            }
            began
        };
        sleep(began.elapsed() * LIVE_PAUSE).await;
    }

    /// The query for rows that returning clients have received, unless the role may not
    /// read watermarks.
    pub fn acknowledged(&self) -> Option<&str> {
        match self.right {
            Privilege::Granted => Some(&self.sql.acknowledged),
            Privilege::Missing => None,
        }
    }
}
