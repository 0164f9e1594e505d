//! Reads the tail of the table whenever the doorbell rings, and hands it to the
//! hub.
//!
//! A notification only says "look"; the rows come from the table. A lost
//! notification or connection therefore delays an event and never loses it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, sleep, sleep_until, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Statement};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::{
    backoff::Backoff,
    database::{self, ConnectError, DatabaseUrl, describe},
    health::Health,
    history::History,
    hub::{Ending, Hub, Reading, Tail},
    position::Position,
    reader::{self, PageSize, Rest},
    schema::SchemaName,
    sql::Sql,
};

/// The bell can stay silent for rows that fire no trigger (loaded with
/// `session_replication_role = replica`, say): look without it this often. It
/// also is the proof that the connection is alive.
const SAFETY_LOOK: Duration = Duration::from_secs(1);

/// A look that takes longer than this costs the connection: it is a matter of
/// milliseconds, so the server or the network is gone.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// After a look that found nothing, the next one waits until this much later:
/// any role may ring the bell, and a flood of forged rings costs no more than
/// this rate.
const LOOK_GAP: Duration = Duration::from_millis(2);

/// The first and the longest wait before connecting again.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(5);

/// The one task that reads the tail.
#[derive(Debug)]
pub struct Listener {
    url: DatabaseUrl,
    schema: SchemaName,
    sql: Arc<Sql>,
    hub: Arc<Hub>,
    health: Arc<Health>,
    history: History,
    position: Position,
    session: Option<Session>,
}

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
    #[error("{0} is a standby, which can't LISTEN: point DATABASE_URL at the primary")]
    Standby(String),
    /// The table went away.
    #[error("there is no table notifications in the schema {0}: run `tidings migrate`")]
    NoTable(SchemaName),
}

/// A connection that listens.
#[derive(Debug)]
struct Session {
    client: Client,
    driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    bell: Arc<Notify>,
    tail_page: Statement,
    history: History,
}

impl Listener {
    /// Connects, listens, and fixes where the bridge begins to read.
    ///
    /// To be called before the first connection is taken: what becomes visible
    /// from now on will be delivered to it.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub async fn start(
        url: DatabaseUrl,
        schema: SchemaName,
        sql: Arc<Sql>,
        hub: Arc<Hub>,
        health: Arc<Health>,
    ) -> Result<Self, ListenError> {
        let mut listener = Self {
            url,
            schema,
            sql,
            hub,
            health,
            history: History::default(),
            position: Position::default(),
            session: None,
        };
        let session = listener.open().await?;
        listener.begin(&session).await?;
        listener.health.looked();
        listener.session = Some(session);
        Ok(listener)
    }

    /// Listens for ever, and connects again whenever the connection is lost.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST);
        loop {
            let Err(error) = self.listen(&mut backoff).await;
            let delay = backoff.next_delay();
            warn!(
                %error, delay_ms = delay.as_millis() as u64,
                "the listener lost the database, connecting again in {delay:?}: {error}"
            );
            self.health.lost(error.to_string());
            sleep(delay).await;
        }
    }

    /// One session, to its end.
    async fn listen(&mut self, backoff: &mut Backoff) -> Result<Infallible, ListenError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.reopen().await?,
        };
        // Only now: a server that accepts and then refuses would otherwise be
        // tried without a pause.
        backoff.reset();
        let Session {
            client,
            mut driver,
            bell,
            tail_page,
            ..
        } = session;
        loop {
            // Look before the first wait: rows may have come in the meantime.
            let looked_at = Instant::now();
            let found = match timeout(LOOK_LIMIT, self.look(&client, &tail_page)).await? {
                Ok(found) => found,
                Err(_) if client.is_closed() => {
                    return Err(ListenError::Lost(ending(driver).await));
                }
                Err(error) => return Err(error.into()),
            };
            self.health.looked();
            if found == Look::Found {
                continue;
            }
            sleep_until(looked_at + LOOK_GAP).await;
            tokio::select! {
                () = bell.notified() => {}
                () = sleep_until(looked_at + SAFETY_LOOK) => {}
                end = &mut driver => return Err(ListenError::Lost(end.ok().flatten())),
            }
        }
    }

    /// Reads one page and hands it on.
    async fn look(
        &mut self,
        client: &Client,
        query: &Statement,
    ) -> Result<Look, tokio_postgres::Error> {
        let page = reader::tail_page(client, query, &self.position, PageSize::TAIL).await?;
        // The rows are in order, so moving past the last moves past them all.
        if let Some((_, last)) = page.notifications.last() {
            self.position
                .advance(last.key, &page.snapshot, page.follows());
        }
        if page.rest == Rest::Nothing {
            self.position.finish(None, &page.snapshot);
        }
        let found = if page.notifications.is_empty() {
            Look::Nothing
        } else {
            Look::Found
        };
        debug!(rows = page.notifications.len(), "looked at the table");
        self.hub.publish(Reading {
            cut_off: page.cut_off(),
            notifications: page.notifications,
            snapshot: page.snapshot,
            tail: self.tail(),
        });
        Ok(found)
    }

    /// Opens a session that continues where the last one ended.
    async fn reopen(&mut self) -> Result<Session, ListenError> {
        let session = self.open().await?;
        if session.history == self.history {
            info!("the listener hears the database again");
        } else {
            warn!("the database continues as another history, all streams begin anew");
            self.begin(&session).await?;
            self.hub.end_all(Ending::AnotherHistory);
        }
        Ok(session)
    }

    fn tail(&self) -> Tail {
        Tail {
            history: self.history,
            position: Arc::new(self.position.clone()),
        }
    }

    /// Begins to read at what is visible now.
    async fn begin(&mut self, session: &Session) -> Result<(), ListenError> {
        let start = reader::tail_start(&session.client, &self.sql.tail_start);
        self.position = timeout(LOOK_LIMIT, start).await??;
        self.history = session.history;
        self.hub.start(self.tail());
        Ok(())
    }

    /// Connects and listens. The bell is hung up before anything is read, so
    /// that no ring falls between the two.
    async fn open(&self) -> Result<Session, ListenError> {
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        // The payload, the channel, the sender: none is trusted, any role can
        // ring. Rings that come together are one.
        let on_message = move |message| {
            if let AsyncMessage::Notification(_) = message {
                rung.notify_one();
            }
        };
        let (client, driver) = database::connect(&self.url, on_message).await?;
        let driver = AbortOnDropHandle::new(driver);
        timeout(LOOK_LIMIT, async {
            let table = self.schema.qualified("notifications");
            let row = client
                .query_one(include_str!("../sql/session.sql"), &[&table])
                .await?;
            if row.try_get("standby")? {
                return Err(ListenError::Standby(self.url.to_string()));
            }
            let table: Option<u32> = row.try_get("table_oid")?;
            let table = table.ok_or_else(|| ListenError::NoTable(self.schema.clone()))?;
            let history = History {
                system_identifier: row.try_get("system_identifier")?,
                timeline: row.try_get("timeline")?,
            };
            // The trigger names the channel after the table, so that two
            // installations in one database don't hear each other.
            client
                .batch_execute(&format!("listen tidings_{table}"))
                .await?;
            let tail_page = client.prepare(&self.sql.tail_page).await?;
            Ok(Session {
                client,
                driver,
                bell,
                tail_page,
                history,
            })
        })
        .await?
    }
}

/// What a look at the table brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Found,
    Nothing,
}

/// The error that ended a connection, if its driver tells one.
async fn ending(
    driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
) -> Option<tokio_postgres::Error> {
    driver.await.ok().flatten()
}
