//! The listener's connection, and what only it does: receive notifications, and control
//! whether writers send NOTIFY.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{error::Elapsed, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Statement, error::SqlState};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::poll_or_listen::PollMode;
use crate::{
    delivery::{
        feed::FeedPlace,
        page_reader::{self, BellState, TailStatements},
    },
    domain::history::{History, Incarnation, Since},
    fanout::{FeedKey, FeedKeys},
    postgres::{
        connect::{self, CONNECT_LIMIT, ConnectError},
        crash_sign::CrashSign,
        database::Database,
        queries::Sql,
        schema::SchemaName,
        visibility::{self, HiddenRows, Readers},
    },
    runtime::error_chain::ErrorChain,
};

/// A poll that takes longer than this ends the session: polls take milliseconds, so the
/// server or the network is gone.
pub const POLL_LIMIT: Duration = Duration::from_secs(10);

/// Tables without which no session starts. If others hide rows, the inspection of the
/// doorbell finds it.
const NEEDED: [&str; 2] = ["notifications", "tidings_incarnation"];

/// Why a session ended or could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An error of Postgres or of the network.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the database did not answer within {} s", POLL_LIMIT.as_secs())]
    TimedOut,
    #[error("the connection was lost")]
    Lost(#[source] Option<tokio_postgres::Error>),
    /// A hot standby doesn't support LISTEN.
    #[error("{0} is a standby, which can't LISTEN")]
    Standby(String),
    #[error("there is no table notifications in the schema {0}: run `tidings migrate`")]
    NoTable(SchemaName),
    /// The sequence that records whether writers send NOTIFY is missing.
    #[error(
        "there is no sequence tidings_bell in the schema {0}, which `tidings migrate` created: \
         restore it"
    )]
    NoBell(SchemaName),
    /// The role may not change that sequence.
    #[error(
        "{role} may not change the sequence {sequence}: `grant select, update on sequence {sequence} to {role}`"
    )]
    MayNotRing { sequence: String, role: String },
    /// The table that reveals crashes of the server is missing.
    #[error(
        "there is no table tidings_incarnation in the schema {0}, which `tidings migrate` created: \
         restore it"
    )]
    NoIncarnation(SchemaName),
    /// The role may not read that table, or not begin an incarnation in it.
    #[error(
        "{role} may not use the table {table}, which reveals crashes of Postgres: `grant select, \
         insert on table {table} to {role}`"
    )]
    MayNotNotice { table: String, role: String },
    #[error("{0}")]
    Hidden(HiddenRows),
    /// The table is not the one that the session listens for.
    #[error("the table notifications was recreated")]
    OtherTable,
    /// The server's incarnation is not the one in which the session was opened.
    #[error("the table tidings_incarnation was emptied, which is treated as a crash of Postgres")]
    OtherIncarnation,
}

impl From<Elapsed> for ListenError {
    fn from(_: Elapsed) -> Self {
        Self::TimedOut
    }
}

#[derive(Debug)]
pub struct Session {
    pub client: Client,
    driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    bell: Arc<Notify>,
    listens: bool,
    pub tail_page: TailStatements,
    pub membership_changes: Statement,
    pub doorbell: Statement,
    pub disconnections: Statement,
    fall_asleep: Statement,
    wake: Statement,
    feed_lock: Statement,
    feed_unlock: Statement,
    /// Not prepared: this role may not have the right to read the table.
    feed_keys: String,
    pub place: FeedPlace,
    pub table: u32,
    pub history: History,
    /// The backend's process id, as in `pg_stat_activity`.
    pub backend: i32,
    pub role: String,
}

impl Session {
    /// Connects and listens. LISTEN is executed before anything is read, so that no
    /// notification is lost in between.
    pub async fn open(database: &Database) -> Result<Self, ListenError> {
        timeout(CONNECT_LIMIT, Self::connect(database)).await?
    }

    async fn connect(database: &Database) -> Result<Self, ListenError> {
        let Database {
            direct_url: url,
            schema,
            sql,
            ..
        } = database;
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        // Payload, channel and sender aren't trusted: any role can send NOTIFY.
        // Notifications that arrive together count once.
        let on_message = move |message| {
            if let AsyncMessage::Notification(_) = message {
                rung.notify_one();
            }
        };
        let (client, driver) = connect::connect(url, on_message).await?;
        let driver = AbortOnDropHandle::new(driver);
        connect::settle_listener(&client).await?;
        let table = schema.qualified("notifications");
        let sequence = schema.qualified("tidings_bell");
        let incarnation = schema.qualified("tidings_incarnation");
        let row = client
            .query_one(
                include_str!("../../../sql/session.sql"),
                &[&table, &sequence, &incarnation],
            )
            .await?;
        if row.try_get("standby")? {
            return Err(ListenError::Standby(url.to_string()));
        }
        let table: Option<u32> = row.try_get("table_oid")?;
        let table = table.ok_or_else(|| ListenError::NoTable(schema.clone()))?;
        let role: String = row.try_get("role")?;
        match row.try_get("may_ring")? {
            Some(true) => {}
            Some(false) => {
                return Err(ListenError::MayNotRing { sequence, role });
            }
            None => return Err(ListenError::NoBell(schema.clone())),
        }
        match row.try_get("may_notice")? {
            _ if sql.sign == CrashSign::Statistics => {}
            Some(true) => {}
            Some(false) => {
                let table = incarnation;
                return Err(ListenError::MayNotNotice { table, role });
            }
            None => return Err(ListenError::NoIncarnation(schema.clone())),
        }
        // Before the first statement that row-level security would fail or falsify.
        let hidden = visibility::examine(&client, schema, Readers::Session).await?;
        let is_needed = |hidden: &HiddenRows| {
            hidden.stops_delivery() && NEEDED.contains(&hidden.relation.as_str())
        };
        if let Some(hidden) = hidden.into_iter().find(is_needed) {
            return Err(ListenError::Hidden(hidden));
        }
        let system_identifier = row.try_get("system_identifier")?;
        let history = History {
            system_identifier,
            incarnation: begin_incarnation(&client, sql).await?,
        };
        let mut session = Self {
            listens: false,
            tail_page: TailStatements::prepare(&client, sql).await?,
            membership_changes: client.prepare(&sql.membership_changes).await?,
            doorbell: client.prepare(&sql.doorbell).await?,
            disconnections: client.prepare(&sql.disconnections).await?,
            fall_asleep: client.prepare(&sql.fall_asleep).await?,
            wake: client.prepare(&sql.wake).await?,
            feed_lock: client.prepare(&sql.feed_lock).await?,
            feed_unlock: client.prepare(&sql.feed_unlock).await?,
            feed_keys: sql.feed_keys.clone(),
            client,
            driver,
            bell,
            place: FeedPlace {
                system_identifier,
                database: row.try_get("database_oid")?,
                table,
            },
            table,
            history,
            backend: row.try_get("backend")?,
            role,
        };
        session.listen(PollMode::Awake).await?;
        Ok(session)
    }

    /// Listens, unless the bridge follows another one: then each NOTIFY would cost Postgres
    /// more than the rest of this session.
    ///
    /// Call it before a poll, so that no notification is lost in between.
    pub async fn listen(&mut self, watch: PollMode) -> Result<(), tokio_postgres::Error> {
        let listens = watch != PollMode::Following;
        if self.listens != listens {
            // The trigger names the channel after the table, so that two installations in
            // one database don't wake each other.
            let command = if listens { "listen" } else { "unlisten" };
            let table = self.place.table;
            let command = format!("{command} tidings_{table}");
            self.client.batch_execute(&command).await?;
            self.listens = listens;
        }
        Ok(())
    }

    /// Makes writers send NOTIFY. A poll sent after this sees every row whose writer did
    /// not send it, unless such a writer is still running (see [`BellState`]).
    pub async fn fall_asleep(&self) -> Result<BellState, tokio_postgres::Error> {
        page_reader::fall_asleep(&self.client, &self.fall_asleep, self.table).await
    }

    /// Lets writers stop sending NOTIFY, as far as this bridge is concerned.
    ///
    /// If the server's notification queue is full, sleeping bridges aren't notified of
    /// this. They find the change within a second.
    pub async fn wake(&self) -> Result<(), tokio_postgres::Error> {
        match self.client.query(&self.wake, &[&self.table]).await {
            Err(error) if !connect::is_queue_full(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the lock of the bridge that reads for the others. Returns whether it was free.
    pub async fn try_to_feed(&self) -> Result<bool, tokio_postgres::Error> {
        let table = &self.place.table;
        let row = self.client.query_one(&self.feed_lock, &[table]).await?;
        row.try_get("taken")
    }

    /// Lets another bridge read for the others.
    pub async fn stop_feeding(&self) -> Result<(), tokio_postgres::Error> {
        let table = &self.place.table;
        self.client.query(&self.feed_unlock, &[table]).await?;
        Ok(())
    }

    /// The keys that seal messages between bridges. `None` if this role may not read them,
    /// or there are none.
    pub async fn feed_keys(&self) -> Result<Option<FeedKeys>, ListenError> {
        let rows = match self.client.query_typed(&self.feed_keys, &[]).await {
            Ok(rows) => rows,
            Err(error) if is_missing(&error) => {
                let error = ErrorChain(&error);
                debug!(%error, "can't read the keys of messages: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut keys = rows.iter().map(|row| {
            let (id, key): (i32, &[u8]) = (row.try_get("id")?, row.try_get("key")?);
            Ok::<_, tokio_postgres::Error>(FeedKey::new(id.cast_unsigned(), key).ok())
        });
        let (current, previous) = (keys.next().transpose()?, keys.next().transpose()?);
        let previous = previous.flatten();
        Ok(current.flatten().map(|key| FeedKeys::new(key, previous)))
    }

    /// Waits for the doorbell, or, while awake or following, only for the end of the
    /// connection.
    pub async fn rung(&mut self, watch: PollMode) -> Result<(), ListenError> {
        tokio::select! {
            () = self.bell.notified(), if matches!(watch, PollMode::Asleep(_)) => Ok(()),
            end = &mut self.driver => Err(ListenError::Lost(end.ok().flatten())),
        }
    }

    /// Why a query failed. How the connection ended says more than the query's error.
    pub async fn failed(self, error: ListenError, schema: &SchemaName) -> ListenError {
        match error {
            ListenError::Postgres(error) if connect::is_row_security(&error) => {
                match self.hidden(schema).await {
                    Some(hidden) => ListenError::Hidden(hidden),
                    None => ListenError::Postgres(error),
                }
            }
            ListenError::Postgres(_) if self.client.is_closed() => {
                ListenError::Lost(self.driver.await.ok().flatten())
            }
            ListenError::Postgres(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                ListenError::NoTable(schema.clone())
            }
            error => error,
        }
    }
}

impl Session {
    /// Finds out what hides rows from this bridge, as far as possible.
    async fn hidden(&self, schema: &SchemaName) -> Option<HiddenRows> {
        let examining = visibility::examine(&self.client, schema, Readers::Session);
        let hidden = timeout(POLL_LIMIT, examining).await.ok()?.ok()?;
        hidden.into_iter().find(HiddenRows::stops_delivery)
    }
}

/// Whether a table is missing, or may not be read.
fn is_missing(error: &tokio_postgres::Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INSUFFICIENT_PRIVILEGE];
    error.code().is_some_and(|code| missing.contains(code))
}

/// Returns the server's incarnation. Begins one if a crash ended the previous one.
async fn begin_incarnation(
    client: &Client,
    sql: &Sql,
) -> Result<Incarnation, tokio_postgres::Error> {
    let known = page_reader::read_incarnation(&client.query_one(&sql.incarnation, &[]).await?)?;
    if known.since != Since::NONE {
        return Ok(known);
    }
    client.execute(&sql.begin_incarnation, &[]).await?;
    page_reader::read_incarnation(&client.query_one(&sql.incarnation, &[]).await?)
}
