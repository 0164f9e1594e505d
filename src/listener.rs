//! Reads the tail of the table whenever the doorbell rings, and hands it to the
//! hub.
//!
//! A notification only says "look"; the rows come from the table. A lost
//! notification or connection therefore delays an event and never loses it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, sleep, sleep_until, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Statement, error::SqlState};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::{
    backoff::Backoff,
    database::{self, CONNECT_LIMIT, ConnectError, DatabaseUrl, describe},
    health::{Doorbell, Health},
    history::{History, Incarnation},
    hub::{Hub, Reading, Tail},
    mailbox::{Ending, Recovery},
    notification::Notification,
    position::{Position, RowKey},
    reader::{self, PageSize, Rest},
    safe_floor::SafeFloor,
    schema::SchemaName,
    snapshot::Xid,
    sql::Sql,
};

/// The trigger that rings the bell.
const TRIGGER: &str = "tidings_ring_doorbell";

/// The bell can stay silent for rows that fire no trigger (loaded with
/// `session_replication_role = replica`, say): look without it this often. It
/// also is the proof that the connection is alive.
const SAFETY_LOOK: Duration = Duration::from_secs(1);

/// How often the bell itself is looked after.
const DOORBELL_LOOK: Duration = Duration::from_secs(5);

/// How often it is read which streams are to end: a logout takes effect within
/// seconds.
const DISCONNECTIONS_LOOK: Duration = Duration::from_secs(1);

/// What every stream was to end for is kept for a day. A bridge that has not
/// read it for so long ends all.
const DISCONNECTIONS_MISSED: Duration = Duration::from_secs(12 * 60 * 60);

/// The snapshot that has seen nothing.
const NOTHING_SEEN: &str = "1:1:";

/// A look that takes longer than this costs the connection: it is a matter of
/// milliseconds, so the server or the network is gone.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Rows that are remembered because a crash may have them read again: 4 MB.
/// Those beyond come twice to open connections then.
const REMEMBERED_ROWS: usize = 1 << 16;

/// After a look that found nothing, the next one waits until this much later:
/// any role may ring the bell, and a flood of forged rings costs no more than
/// this rate.
const LOOK_GAP: Duration = Duration::from_millis(2);

/// The first and the longest wait before connecting again.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(2);

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
    safe: SafeFloor,
    remembered: Remembered,
    /// Smaller while the network carries no more in time.
    page_size: PageSize,
    disconnections: DisconnectionsRead,
    session: Option<Session>,
}

/// How far it has been read which streams are to end.
#[derive(Debug)]
struct DisconnectionsRead {
    /// The snapshot of the last reading.
    snapshot: String,
    at: Instant,
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
    #[error("{0} is a standby, which can't LISTEN")]
    Standby(String),
    /// The table went away.
    #[error("there is no table notifications in the schema {0}: run `tidings migrate`")]
    NoTable(SchemaName),
    /// The table is not the one that the session listens for.
    #[error("the table notifications was made anew")]
    OtherTable,
    /// The session outlived what it was opened in.
    #[error("the server's statistics were reset, which is taken for a crash")]
    OtherIncarnation,
}

/// A connection that listens.
#[derive(Debug)]
struct Session {
    client: Client,
    driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    bell: Arc<Notify>,
    tail_page: Statement,
    doorbell: Statement,
    disconnections: Statement,
    table: u32,
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
            safe: SafeFloor::new(Xid::default()),
            remembered: Remembered::default(),
            page_size: PageSize::TAIL,
            disconnections: DisconnectionsRead {
                snapshot: NOTHING_SEEN.to_owned(),
                at: Instant::now(),
            },
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
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.reopen().await?,
        };
        let mut inspect_at = Instant::now();
        loop {
            // Look before the first wait: rows may have come in the meantime.
            let looked_at = Instant::now();
            let looking = async {
                let found = self.look(&session).await?;
                if self.disconnections.at + DISCONNECTIONS_LOOK <= looked_at {
                    self.disconnect(&session).await?;
                }
                if inspect_at <= looked_at {
                    inspect_at = looked_at + self.inspect_doorbell(&session).await?;
                }
                Ok(found)
            };
            let found = match timeout(LOOK_LIMIT, looking).await {
                Ok(found) => found,
                Err(elapsed) => {
                    self.page_size = self.page_size.halved();
                    return Err(elapsed.into());
                }
            };
            let found = match found {
                Ok(found) => found,
                Err(ListenError::Postgres(_)) if session.client.is_closed() => {
                    return Err(ListenError::Lost(ending(session.driver).await));
                }
                Err(ListenError::Postgres(error))
                    if error.code() == Some(&SqlState::UNDEFINED_TABLE) =>
                {
                    return Err(ListenError::NoTable(self.schema.clone()));
                }
                Err(error) => return Err(error),
            };
            // Only now: a server that accepts and then refuses would otherwise be
            // tried without a pause.
            backoff.reset();
            self.health.looked();
            if found == Look::Found {
                continue;
            }
            sleep_until(looked_at + LOOK_GAP).await;
            tokio::select! {
                () = session.bell.notified() => {}
                () = sleep_until(looked_at + SAFETY_LOOK) => {}
                end = &mut session.driver => return Err(ListenError::Lost(end.ok().flatten())),
            }
        }
    }

    /// Reads one page and hands it on.
    async fn look(&mut self, session: &Session) -> Result<Look, ListenError> {
        let (client, query) = (&session.client, &session.tail_page);
        let mut page = reader::tail_page(client, query, &self.position, self.page_size).await?;
        if page.incarnation != session.history.incarnation {
            return Err(ListenError::OtherIncarnation);
        }
        let (cut_off, follows) = (page.cut_off(), page.follows());
        // The rows are in order, so moving past the last moves past them all.
        if let Some((_, last)) = page.notifications.last() {
            self.position.advance(last.key, &page.snapshot, follows);
        }
        if page.rest == Rest::Nothing {
            self.position.finish(None, &page.snapshot);
            self.page_size = PageSize::TAIL;
        }
        let found = if page.notifications.is_empty() {
            Look::Nothing
        } else {
            Look::Found
        };
        debug!(rows = page.notifications.len(), "looked at the table");
        self.safe.read_up_to(self.position.floor(), page.log);
        let remembered = &mut self.remembered;
        page.notifications
            .retain(|(_, notification)| remembered.is_news(notification));
        remembered.forget_below(self.safe.xid());
        self.hub.publish(Reading {
            cut_off,
            notifications: page.notifications,
            snapshot: page.snapshot,
            tail: self.tail(),
        });
        Ok(found)
    }

    /// Reads which streams are to end since the last time, and ends them.
    async fn disconnect(&mut self, session: &Session) -> Result<(), ListenError> {
        let (client, query) = (&session.client, &session.disconnections);
        let seen = &self.disconnections.snapshot;
        let (snapshot, found) = reader::disconnections(client, query, seen).await?;
        let at = Instant::now();
        self.disconnections = DisconnectionsRead { snapshot, at };
        self.hub.disconnect(&found);
        Ok(())
    }

    /// Whether what rings the bell is in order; returns after how long to look
    /// again. Rows that were restored from another cluster meanwhile are taken
    /// over, some at a time.
    async fn inspect_doorbell(&self, session: &Session) -> Result<Duration, ListenError> {
        let table = self.schema.qualified("notifications");
        let client = &session.client;
        let row = client
            .query_one(&session.doorbell, &[&table, &TRIGGER])
            .await?;
        let found: Option<u32> = row.try_get("table_oid")?;
        if found != Some(session.table) {
            return Err(ListenError::OtherTable);
        }
        let fires: Option<i8> = row.try_get("trigger")?;
        let subscription: Option<String> = row.try_get("subscription")?;
        let mut doorbell = match fires.map(|fires| fires as u8) {
            _ if subscription.is_some() => Doorbell::Bypassed {
                subscription: subscription.unwrap_or_default(),
            },
            None => Doorbell::Missing(self.schema.clone()),
            Some(b'O' | b'A') => Doorbell::Hung,
            Some(_) => Doorbell::Disabled(self.schema.clone()),
        };
        let mut again = DOORBELL_LOOK;
        if row.try_get("restored")? {
            match client.execute(&self.sql.restamp_restored_rows, &[]).await {
                Ok(rows) => {
                    info!(rows, "took over {rows} rows of another cluster");
                    again = Duration::ZERO;
                }
                Err(error) => {
                    debug!(%error, "could not take over rows of another cluster: {error}");
                    doorbell = Doorbell::Restored;
                }
            }
        }
        self.health.inspected(doorbell);
        Ok(again)
    }

    /// Opens a session that continues where the last one ended.
    async fn reopen(&mut self) -> Result<Session, ListenError> {
        let session = self.open().await?;
        let (now, before) = (session.history, self.history);
        if self.disconnections.at.elapsed() > DISCONNECTIONS_MISSED {
            warn!("too long without the database to know who was logged out, ending all streams");
            self.hub.end_all(Ending::Disconnected);
        }
        if now == before {
            info!("the listener hears the database again");
        } else if now.epoch() == before.epoch() {
            self.recover(now);
        } else {
            warn!("the database continues as another history, all streams begin anew");
            self.begin(&session).await?;
            self.hub.end_all(Ending::AnotherHistory);
        }
        Ok(session)
    }

    /// Postgres has crashed. All that was read has been handed out; what was
    /// not on disk is read again, and what of it is as it was is remembered.
    fn recover(&mut self, history: History) {
        let safe = self.safe.xid();
        warn!(
            safe = safe.0,
            "Postgres has recovered from a crash, reading again what was not on disk before it"
        );
        self.safe.crashed();
        self.position.fall_to(safe);
        self.history = history;
        // Transaction ids are handed out again, so what is left is read anew: a
        // stream that ends once more comes back.
        self.disconnections.snapshot = NOTHING_SEEN.to_owned();
        self.hub.recover(Recovery { history, safe }, self.tail());
    }

    fn tail(&self) -> Tail {
        Tail {
            history: self.history,
            position: Arc::new(self.position.clone()),
            safe: self.safe.xid(),
        }
    }

    /// Begins to read at what is visible now.
    async fn begin(&mut self, session: &Session) -> Result<(), ListenError> {
        let start = reader::tail_start(&session.client, &self.sql.tail_start);
        let (position, checkpointed) = timeout(LOOK_LIMIT, start).await??;
        self.position = position;
        self.safe = SafeFloor::new(checkpointed);
        self.remembered = Remembered::default();
        self.history = session.history;
        // Nobody is connected yet, or everybody is about to be sent back.
        self.disconnections.snapshot = NOTHING_SEEN.to_owned();
        let reading = self.disconnect(session);
        timeout(LOOK_LIMIT, reading).await??;
        self.hub.start(self.tail());
        Ok(())
    }

    /// Connects and listens. The bell is hung up before anything is read, so
    /// that no ring falls between the two.
    async fn open(&self) -> Result<Session, ListenError> {
        timeout(CONNECT_LIMIT, self.connect()).await?
    }

    async fn connect(&self) -> Result<Session, ListenError> {
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
        database::settle_listener(&client).await?;
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
            incarnation: Incarnation {
                timeline: row.try_get("timeline")?,
                since: row.try_get("since")?,
            },
        };
        // The trigger names the channel after the table, so that two
        // installations in one database don't hear each other.
        client
            .batch_execute(&format!("listen tidings_{table}"))
            .await?;
        Ok(Session {
            tail_page: client.prepare(&self.sql.tail_page).await?,
            doorbell: client.prepare(&self.sql.doorbell).await?,
            disconnections: client.prepare(&self.sql.disconnections).await?,
            client,
            driver,
            bell,
            table,
            history,
        })
    }
}

/// Rows that were handed out and may not be on disk yet: after a crash they are
/// read again, and open connections have been sent them.
#[derive(Debug, Default)]
struct Remembered(BTreeMap<RowKey, u64>);

impl Remembered {
    /// Whether it was not handed out before. Ids are handed out again after a
    /// crash, so the time is looked at too.
    fn is_news(&mut self, notification: &Notification) -> bool {
        let mut hasher = DefaultHasher::new();
        notification.created_at.hash(&mut hasher);
        let created_at = hasher.finish();
        let known = self.0.get(&notification.key);
        if known == Some(&created_at) {
            return false;
        }
        if known.is_some() || self.0.len() < REMEMBERED_ROWS {
            self.0.insert(notification.key, created_at);
        }
        true
    }

    fn forget_below(&mut self, safe: Xid) {
        self.0 = self.0.split_off(&RowKey { xid: safe, id: 0 });
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
