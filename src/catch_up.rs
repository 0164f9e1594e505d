//! Reads what a connection has missed, a page at a time and as often as it
//! takes.

mod reads;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::sleep};
use tracing::debug;

pub use self::reads::Reads;
use crate::{
    backoff::Backoff,
    drained::Drained,
    health::Health,
    history::History,
    hub::Hub,
    notification::UserId,
    pool::{Pool, QueryError},
    position::Position,
    reader::{self, Backlog, BacklogPage, PageSize, READ_IN_VAIN, UserPage},
    snapshot::Xid,
    sql::Sql,
};

/// The first and the longest wait before a page is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// Where the pages of all connections come from.
#[derive(Debug)]
pub struct Pages {
    /// Tells which history the bridge is in.
    pub hub: Arc<Hub>,
    /// The connections that they are read with.
    pub pool: Pool,
    /// What to run.
    pub sql: Arc<Sql>,
    /// Where it is noted what need not be read again.
    pub drained: Drained,
    /// Where it is told that they can't be read.
    pub health: Arc<Health>,
    /// How many are read at once: ten thousand clients that come back together
    /// are a queue, not a stampede.
    pub permits: Semaphore,
    /// The history that the pool's sessions were opened in.
    pub history: Mutex<History>,
    /// What that costs.
    pub reads: Reads,
}

/// Which page is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// Whose.
    pub user: UserId,
    /// The history that the positions belong to.
    pub history: History,
    /// What the connection has been sent; none before its first page.
    pub position: Option<Position>,
    /// What the bridge had seen when the connection was opened.
    pub opened: Arc<Position>,
    /// How many of the user's last rows the first page begins with.
    pub replay: u32,
    /// Its size at most.
    pub size: PageSize,
}

/// What became of the wish.
#[derive(Debug)]
pub enum Turn {
    /// Here it is.
    Page(Page),
    /// The server's incarnation has ended that the positions belong to.
    Over,
}

/// A page, and where it starts if that was not known before.
#[derive(Debug)]
pub struct Page {
    /// Known from now on.
    pub start: Option<Position>,
    /// What could be read in time.
    pub size: PageSize,
    /// The rows.
    pub page: UserPage,
    /// Worth noting: nothing is left to deliver before this transaction.
    pub drained: Option<Xid>,
}

impl Pages {
    /// Reads the page that is wanted; while the database is away, tries again.
    pub async fn read(&self, mut wanted: Wanted) -> Turn {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let wait = self.reads.begin();
        loop {
            self.follow_history();
            match self.try_read(&wanted).await {
                Ok(page) if page.page.incarnation == wanted.history.incarnation => {
                    self.health.page_read();
                    wait.end(page.page.batch.events.len());
                    if let Some(before) = page.drained {
                        self.drained.note(&wanted.user, before, wanted.history);
                    }
                    return Turn::Page(page);
                }
                // Read in another incarnation of the server, or on another
                // server, than the listener knows of: in a session that was in
                // use when the others were renewed. An old primary may keep its
                // sessions for ever.
                Ok(_) => {
                    debug!("read a page in another incarnation of the server");
                    self.pool.renew();
                }
                Err(error) => {
                    debug!(%error, "could not read a page, trying again: {error}");
                    self.health.page_failed(error.to_string());
                    self.reads.failures.inc();
                    if let QueryError::TimedOut(_) = error {
                        wanted.size = wanted.size.halved();
                    }
                }
            }
            // Whoever waits for a database that was away need not wait longer.
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = self.health.heard_again() => {}
            }
            if self.hub.tail().history != wanted.history {
                return Turn::Over;
            }
        }
    }

    /// After a failover idle sessions lead to a server that is gone, or worse:
    /// one that is frozen and never answers.
    fn follow_history(&self) {
        let now = self.hub.tail().history;
        let mut known = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != now {
            *known = now;
            self.pool.renew();
        }
    }

    async fn try_read(&self, wanted: &Wanted) -> Result<Page, QueryError> {
        let Wanted {
            user, replay, size, ..
        } = wanted;
        let (pool, sql) = (&self.pool, &self.sql);
        // Never closed, so there always is a permit in the end.
        let _permit = self.permits.acquire().await;
        let (start, page, drained) = match &wanted.position {
            Some(position) => {
                let page = reader::user_page(pool, sql, user, position, *size).await?;
                (None, page, None)
            }
            None => {
                let backlog = Backlog {
                    query: self.drained.backlog_page(),
                    user,
                    replay: *replay,
                    opened: &wanted.opened,
                    system_identifier: wanted.history.system_identifier,
                    in_vain: READ_IN_VAIN,
                };
                let BacklogPage {
                    start,
                    page,
                    drained,
                } = reader::backlog_page(pool, backlog, *size).await?;
                (Some(start), page, drained)
            }
        };
        Ok(Page {
            start,
            size: *size,
            page,
            drained,
        })
    }
}
