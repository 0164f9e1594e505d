//! The connection that listens, and what is done with it alone: hearing the bell,
//! and saying whether it is to be rung.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{error::Elapsed, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Statement, error::SqlState};
use tokio_util::task::AbortOnDropHandle;

use super::poll_or_listen::Watch;
use crate::{
    delivery::page_reader::{self, Ringing},
    domain::history::{History, Incarnation, Since},
    postgres::{
        connect::{self, CONNECT_LIMIT, ConnectError, DatabaseUrl, describe},
        crash_sign::CrashSign,
        queries::Sql,
        schema::SchemaName,
        visibility::{self, Hidden, Readers},
    },
};

/// A look that takes longer than this costs the connection: it is a matter of
/// milliseconds, so the server or the network is gone.
pub const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Tables without which no session begins. What hides rows of others is found by the
/// look after the doorbell.
const NEEDED: [&str; 2] = ["notifications", "tidings_incarnation"];

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// Postgres or the network refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Nothing answered.
    #[error("the database did not answer within {} s", LOOK_LIMIT.as_secs())]
    TimedOut(#[from] Elapsed),
    /// The connection is gone.
    #[error("the connection was lost{}", .0.as_ref().map(|error| format!(": {}", describe(error))).unwrap_or_default())]
    Lost(Option<tokio_postgres::Error>),
    /// A hot standby takes no LISTEN.
    #[error("{0} is a standby, which can't LISTEN")]
    Standby(String),
    /// The table went away.
    #[error("there is no table notifications in the schema {0}: run `tidings migrate`")]
    NoTable(SchemaName),
    /// What says whether writers ring went away.
    #[error(
        "there is no sequence tidings_bell in the schema {0}, which `tidings migrate` made: restore it"
    )]
    NoBell(SchemaName),
    /// It is not for this role to say.
    #[error(
        "{role} may not change the sequence {sequence}: `grant select, update on sequence {sequence} to {role}`"
    )]
    MayNotRing {
        /// The sequence.
        sequence: String,
        /// Who is connected.
        role: String,
    },
    /// Nothing tells that the server has crashed.
    #[error(
        "there is no table tidings_incarnation in the schema {0}, which `tidings migrate` made: \
         restore it"
    )]
    NoIncarnation(SchemaName),
    /// This role may not read it, or not begin an incarnation.
    #[error(
        "{role} may not use the table {table}, which tells that Postgres has crashed: `grant \
         select, insert on table {table} to {role}`"
    )]
    MayNotNotice {
        /// The table.
        table: String,
        /// Who is connected.
        role: String,
    },
    /// Rows of a table are hidden from the bridge.
    #[error("{0}")]
    Hidden(Hidden),
    /// The table is not the one that the session listens for.
    #[error("the table notifications was made anew")]
    OtherTable,
    /// The session outlived what it was opened in.
    #[error("the table tidings_incarnation was emptied, which is taken for a crash of Postgres")]
    OtherIncarnation,
}

/// A connection that listens.
#[derive(Debug)]
pub struct Session {
    pub client: Client,
    driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    bell: Arc<Notify>,
    pub tail_page: Statement,
    pub doorbell: Statement,
    pub disconnections: Statement,
    fall_asleep: Statement,
    wake: Statement,
    pub table: u32,
    pub history: History,
    /// Its process in the server, by which `pg_stat_activity` knows it.
    pub backend: i32,
    /// Whose it is.
    pub role: String,
}

impl Session {
    /// Connects and listens. The bell is hung up before anything is read, so
    /// that no ring falls between the two.
    pub async fn open(
        url: &DatabaseUrl,
        schema: &SchemaName,
        sql: &Sql,
    ) -> Result<Self, ListenError> {
        timeout(CONNECT_LIMIT, Self::connect(url, schema, sql)).await?
    }

    async fn connect(
        url: &DatabaseUrl,
        schema: &SchemaName,
        sql: &Sql,
    ) -> Result<Self, ListenError> {
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        // The payload, the channel, the sender: none is trusted, any role can
        // ring. Rings that come together are one.
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
        // Before the first statement that it would fail or deceive.
        let hidden = visibility::examine(&client, schema, Readers::Session).await?;
        let is_needed =
            |hidden: &Hidden| hidden.stops_delivery() && NEEDED.contains(&hidden.relation.as_str());
        if let Some(hidden) = hidden.into_iter().find(is_needed) {
            return Err(ListenError::Hidden(hidden));
        }
        let history = History {
            system_identifier: row.try_get("system_identifier")?,
            incarnation: begin_incarnation(&client, sql).await?,
        };
        // The trigger names the channel after the table, so that two
        // installations in one database don't hear each other.
        client
            .batch_execute(&format!("listen tidings_{table}"))
            .await?;
        Ok(Self {
            tail_page: client.prepare(&sql.tail_page).await?,
            doorbell: client.prepare(&sql.doorbell).await?,
            disconnections: client.prepare(&sql.disconnections).await?,
            fall_asleep: client.prepare(&sql.fall_asleep).await?,
            wake: client.prepare(&sql.wake).await?,
            client,
            driver,
            bell,
            table,
            history,
            backend: row.try_get("backend")?,
            role,
        })
    }

    /// Has writers ring. What is looked for after it was sent sees every row whose
    /// writer has not, unless one is still at work.
    pub async fn fall_asleep(&self) -> Result<Ringing, tokio_postgres::Error> {
        page_reader::fall_asleep(&self.client, &self.fall_asleep, self.table).await
    }

    /// Has writers leave the bell unrung, as far as this bridge is concerned.
    ///
    /// If the server's notification queue is full, the bridges that sleep are not
    /// rung for: they find what has changed within a second.
    pub async fn wake(&self) -> Result<(), tokio_postgres::Error> {
        match self.client.query(&self.wake, &[&self.table]).await {
            Err(error) if !connect::is_queue_full(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the bell. Who is awake needs none.
    pub async fn rung(&mut self, watch: Watch) -> Result<(), ListenError> {
        tokio::select! {
            () = self.bell.notified(), if watch != Watch::Awake => Ok(()),
            end = &mut self.driver => Err(ListenError::Lost(end.ok().flatten())),
        }
    }

    /// What a failed query means: the connection's end tells more than the
    /// query's.
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
    /// What keeps this bridge from seeing all rows, as far as that can be found out.
    async fn hidden(&self, schema: &SchemaName) -> Option<Hidden> {
        let examining = visibility::examine(&self.client, schema, Readers::Session);
        let hidden = timeout(LOOK_LIMIT, examining).await.ok()?.ok()?;
        hidden.into_iter().find(Hidden::stops_delivery)
    }
}

/// The incarnation of the server; begins one, if a crash has ended the one before.
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
