//! Reads what a connection has missed, a page at a time and as often as it
//! takes.

mod memory;
mod metrics;
mod turns;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::debug;

pub use self::{
    memory::{Lease, PAGE_MEMORY, PageMemory},
    metrics::Reads,
    turns::Turns,
};
use crate::{
    delivery::{
        delivered_watermark::Drained,
        health::Health,
        hub::Hub,
        page_reader::{self, Backlog, BacklogPage, PageSize, READ_IN_VAIN, UserPage},
    },
    domain::{history::History, notification::UserId, position::Position, snapshot::Xid},
    postgres::{
        pool::{Pool, QueryError},
        queries::Sql,
    },
    runtime::backoff::Backoff,
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
    pub drained: Arc<Drained>,
    /// Where it is told that they can't be read.
    pub health: Arc<Health>,
    /// How many are read at once, and whose is next: ten thousand clients that
    /// come back together are a queue, not a stampede.
    pub turns: Arc<Turns>,
    /// What they may take together.
    pub memory: Arc<PageMemory>,
    /// Where they are read: a client that takes nothing must not keep a query, a
    /// connection or a turn.
    pub runtime: Handle,
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

/// What a request for a page ended with.
#[derive(Debug)]
pub enum Outcome {
    /// Here it is.
    Page(Page),
    /// The history has ended that the positions belong to.
    Over,
    /// The task that read it is gone, which is a bug.
    Failed,
}

/// A page that is being read. Dropping it gives up the wait, and lets a query
/// that runs come to its end.
#[derive(Debug)]
pub struct Reading(oneshot::Receiver<Outcome>);

impl Future for Reading {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = Pin::new(&mut self.0).poll(cx);
        outcome.map(|outcome| outcome.unwrap_or(Outcome::Failed))
    }
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
    /// What they take, until they are written.
    pub lease: Lease,
}

/// A page that has been read, and what is worth noting of it.
struct Read {
    start: Option<Position>,
    page: UserPage,
    /// Nothing is left to deliver before this transaction.
    drained: Option<Xid>,
}

impl Pages {
    /// Reads the page that is wanted, in a task of the bridge; while the database
    /// is away, tries again.
    pub fn read(self: &Arc<Self>, wanted: Wanted) -> Reading {
        let (reply, reading) = oneshot::channel();
        let pages = Arc::clone(self);
        self.runtime
            .spawn(async move { pages.answer(wanted, reply).await });
        Reading(reading)
    }

    /// Every wait ends when the stream is gone; a query never does.
    async fn answer(&self, mut wanted: Wanted, mut reply: oneshot::Sender<Outcome>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let wait = self.reads.begin();
        // A history that has ended has no more pages, and a pool that was renewed
        // for the next one is not to be renewed again.
        while self.hub.tail().history == wanted.history {
            self.follow_history();
            let admission = async {
                let turn = self.turns.take(&wanted.user).await;
                let size = self.size(wanted.size);
                let lease = self.memory.reserve(size.most_bytes()).await;
                (turn, size, lease)
            };
            let (turn, size, lease) = tokio::select! {
                biased;
                () = reply.closed() => return,
                admission = admission => admission,
            };
            let begin = Instant::now();
            // Boxed, so that those who wait for their turn have no room for a query.
            let read = Box::pin(self.try_read(&wanted, size)).await;
            let took = begin.elapsed();
            match read {
                Ok(read) if read.page.incarnation == wanted.history.incarnation => {
                    self.health.page_read();
                    wait.end(read.page.batch.events.len());
                    if let Some(before) = read.drained {
                        self.drained.note(&wanted.user, before, wanted.history);
                    }
                    lease.hand_over(read.page.batch.memory());
                    let page = Page {
                        start: read.start,
                        size: wanted.size,
                        page: read.page,
                        lease,
                    };
                    // If the stream has gone, nothing wants the page.
                    let _ = reply.send(Outcome::Page(page));
                    turn.end(took).await;
                    return;
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
            drop((turn, lease));
            // Once the database is back, there is no reason to wait longer.
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = self.health.heard_again() => {}
                () = reply.closed() => return,
            }
        }
        let _ = reply.send(Outcome::Over);
    }

    /// A page's size, by what may be taken of the memory.
    fn size(&self, wanted: PageSize) -> PageSize {
        let most = usize::try_from(wanted.bytes).unwrap_or(usize::MAX);
        let bytes = self.memory.page_bytes(most);
        PageSize {
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            ..wanted
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

    async fn try_read(&self, wanted: &Wanted, size: PageSize) -> Result<Read, QueryError> {
        let Wanted { user, replay, .. } = wanted;
        let (pool, sql) = (&self.pool, &self.sql);
        if let Some(position) = &wanted.position {
            return Ok(Read {
                start: None,
                page: page_reader::user_page(pool, sql, user, position, size).await?,
                drained: None,
            });
        }
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
        } = page_reader::backlog_page(pool, backlog, size).await?;
        Ok(Read {
            start: Some(start),
            page,
            drained,
        })
    }
}
