//! Reads the pages that a connection has missed, one at a time, retrying failed reads.

mod failing;
mod memory;
mod metrics;
mod turns;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use self::failing::Extent;
pub use self::{
    failing::FailingSubscribers,
    memory::{Lease, PAGE_MEMORY, PageMemory},
    metrics::Reads,
    turns::{Turn, Turns},
};
use crate::{
    delivery::{
        cursors::Cursors,
        delivered_watermark::DeliveredWatermark,
        health::Health,
        hub::Hub,
        memberships::LateWanted,
        page_reader::{
            self, FirstPage, FirstReading, FirstStart, FirstWanted, PageSize, PageTopics,
            TopicPage, UserPage,
        },
        replicas::Replicas,
    },
    domain::{
        history::History,
        identity::Subscriber,
        log_point::LogPoint,
        position::Position,
        snapshot::{Snapshot, Xid},
        topic::TopicChoice,
    },
    postgres::{
        pool::{Pool, QueryError},
        queries::Sql,
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain},
};

/// The first and the longest wait before a page read is retried.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// How long a page of recent rows waits for the next poll of the tail: longer than the
/// longest time between two polls. After that the listener is busy or has lost its session,
/// and the page is read.
const FRESH_WITHIN: Duration = Duration::from_millis(250);

/// How long a page from a replica waits until what the tail has is on disk, which normally is
/// as soon as a commit is acknowledged, and how long until the log is flushed for it.
const DURABLE_WITHIN: Duration = Duration::from_millis(50);
const DURABLE_POLL: Duration = Duration::from_millis(5);

/// Reads pages for all connections.
#[derive(Debug)]
pub struct Pages {
    /// Knows which history the bridge is in.
    pub hub: Arc<Hub>,
    pub pool: Pool,
    pub sql: Arc<Sql>,
    /// Watermarks, which save reading rows again.
    pub drained: Arc<DeliveredWatermark>,
    /// Where users without an id continue in the topics, if that is not stored yet.
    pub cursors: Arc<Cursors>,
    pub health: Arc<Health>,
    /// Limits how many pages are read at once and decides whose is next, so that ten
    /// thousand clients that reconnect together form a queue, not a stampede.
    pub turns: Arc<Turns>,
    /// Keeps subscribers whose memberships can't be read from delaying others.
    pub failing: FailingSubscribers,
    /// Where missed rows are read if they can be, instead of the pool.
    pub replicas: Arc<Replicas>,
    /// The same as `turns` for pages from replicas.
    pub replica_turns: Arc<Turns>,
    /// Limits the memory that all pages take.
    pub memory: Arc<PageMemory>,
    /// Where pages are read: a client that doesn't read must not hold a query, a database
    /// connection or a turn.
    pub runtime: Handle,
    /// The history in which the pool's sessions were opened.
    pub history: Mutex<History>,
    pub reads: Reads,
}

#[derive(Debug)]
pub struct Wanted {
    pub subscriber: Subscriber,
    /// The history that the positions belong to.
    pub history: History,
    /// What the connection has been sent. `None` before its first page.
    pub position: Option<Position>,
    /// What the bridge had seen when the connection was opened.
    pub opened: Arc<Position>,
    /// How many of the user's last rows the first page begins with.
    pub replay: u32,
    /// Where late rows begin: rows that the position counts as seen, of memberships that
    /// this doesn't. If there are any, the page has only those, and ends with [`End::Late`].
    /// If it says where to continue, the page has no other rows either.
    ///
    /// [`End::Late`]: crate::delivery::batch::End::Late
    pub late: LateWanted,
    pub has_topics: HasTopics,
    /// The topics that the client asked for and those that its credentials grant.
    pub topics: Arc<TopicChoice>,
    /// For a connection that was opened without an id, what the bridge had seen then. Rows of
    /// granted topics begin there.
    pub granted_since: Option<Arc<Snapshot>>,
    /// What the pages of a first reading have in common, from its second page on.
    pub first: Option<Arc<FirstReading>>,
    pub size: PageSize,
}

impl Wanted {
    /// Whether the page has only rows for the user alone, as far as is known.
    fn is_of_own_rows(&self) -> bool {
        self.first.is_none()
            && self.topics.granted.is_empty()
            && self.late.begun.is_none()
            && self.has_topics == HasTopics::Unknown
    }
}

/// Whether the user had topics when the last page was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HasTopics {
    Yes,
    Unknown,
}

#[derive(Debug)]
pub enum PageOutcome {
    Page(Box<Page>),
    /// The history to which the positions belong has ended.
    Over,
    /// The task that read the page is gone, which is a bug.
    Failed,
}

/// A page that is being read. Dropping it ends the wait; a query that is already running
/// is completed.
#[derive(Debug)]
pub struct PendingPage(oneshot::Receiver<PageOutcome>);

impl PendingPage {
    /// A page that is delivered through the sender.
    pub fn channel() -> (oneshot::Sender<PageOutcome>, Self) {
        let (reply, reading) = oneshot::channel();
        (reply, Self(reading))
    }
}

impl Future for PendingPage {
    type Output = PageOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PageOutcome> {
        let outcome = Pin::new(&mut self.0).poll(cx);
        outcome.map(|outcome| outcome.unwrap_or(PageOutcome::Failed))
    }
}

/// A page, and its starting position if that was unknown.
#[derive(Debug)]
pub struct Page {
    /// Where the connection starts, if it had no position.
    pub start: Option<FirstStart>,
    /// The page size to use from now on. Smaller if a read timed out.
    pub size: PageSize,
    pub page: UserPage,
    /// The memory that the rows take until they are written. `None` if the bridge has them
    /// anyway.
    pub lease: Option<Lease>,
}

/// Where a stream gets its pages from.
pub trait PageSource: fmt::Debug + Send + Sync {
    /// Reads the first page that was not yet delivered. Dropping the [`PendingPage`] abandons it.
    fn read(self: Arc<Self>, wanted: Wanted) -> PendingPage;
}

/// A page that has been read, with the user's new watermark if there is one.
struct Read {
    start: Option<FirstStart>,
    page: UserPage,
    /// Nothing is left to deliver before this transaction.
    drained: Option<Xid>,
}

/// What is needed to read a page from a replica.
struct ReplicaRead {
    point: Arc<LogPoint>,
    turn: Turn,
    size: PageSize,
    lease: Lease,
}

impl PageSource for Pages {
    /// Reads the page in a task of the bridge. While the database is unreachable, the read
    /// is retried.
    fn read(self: Arc<Self>, wanted: Wanted) -> PendingPage {
        let (reply, reading) = PendingPage::channel();
        // Boxed, because a task stores more than once what it is passed.
        let wanted = Box::new(wanted);
        let runtime = self.runtime.clone();
        runtime.spawn(self.answer(wanted, reply));
        reading
    }
}

impl Pages {
    /// The page of a stream that misses only rows of the last minute, if no topics are
    /// used: the user's memberships are only in the database. It has what was committed
    /// before it was requested, like one that is read.
    async fn recent_page(&self, wanted: &Wanted) -> Option<Box<Page>> {
        let (user, position) = (wanted.subscriber.user()?, wanted.position.as_ref()?);
        if wanted.first.is_some()
            || !wanted.topics.granted.is_empty()
            || wanted.has_topics != HasTopics::Unknown
            // Until a row or a change comes, nothing tells of those of an application.
            || !self.sql.memberships.is_built_in()
            || !self.hub.has_recent(wanted.history, position)
        {
            return None;
        }
        let fresh = timeout(FRESH_WITHIN, self.hub.fresh().after_now());
        fresh.await.ok()?;
        let batch = self.hub.recent_page(user, wanted.history, position)?;
        Some(Box::new(Page {
            start: None,
            size: wanted.size,
            page: UserPage {
                incarnation: wanted.history.incarnation,
                // No row was removed that the position isn't past.
                pruned: None,
                batch,
                topics: PageTopics::default(),
            },
            lease: None,
        }))
    }

    /// A point of the tail that has what was committed before now and is on disk. `None` if
    /// that takes too long.
    async fn durable_point(&self, history: History) -> Option<Arc<LogPoint>> {
        let wanted = self.hub.fresh().ask();
        let asking = async {
            let _asker = self.hub.durable().become_asker().await;
            loop {
                sleep(DURABLE_POLL).await;
                self.replicas.flush(&self.pool, &self.runtime);
                self.hub.fresh().ask();
            }
        };
        let point = async {
            tokio::select! {
                point = self.hub.durable().since(wanted) => point,
                () = asking => None,
            }
        };
        let point = timeout(DURABLE_WITHIN, point).await.ok()??;
        (point.history == history).then_some(point)
    }

    /// What is needed to read the page of a stream that has missed rows of its user from a
    /// replica. The page has what was committed before it was requested, like one of the
    /// primary.
    ///
    /// First pages are read from the primary, which knows which rows are sent, and so are
    /// those of topics, whose memberships must be as of the same moment as the rows.
    async fn admit_to_replica(&self, wanted: &Wanted) -> Option<ReplicaRead> {
        wanted.position.as_ref()?;
        wanted.subscriber.user()?;
        if !wanted.is_of_own_rows() || !self.replicas.is_any_fit() {
            return None;
        }
        let point = self.durable_point(wanted.history).await?;
        let turn = self.replica_turns.take(&wanted.subscriber).await;
        let size = self.size(wanted.size);
        let lease = self.memory.reserve(size.most_bytes()).await;
        Some(ReplicaRead {
            point,
            turn,
            size,
            lease,
        })
    }

    /// `None` if the page has to be read from the primary.
    async fn replica_page(
        &self,
        wanted: &mut Wanted,
        point: &LogPoint,
        size: PageSize,
        lease: Lease,
    ) -> Option<Box<Page>> {
        let (user, position) = (wanted.subscriber.user()?, wanted.position.as_ref()?);
        let own = self.replicas.page(point, user, position, size).await?;
        if own.has_topics {
            // So the primary isn't asked again whether there are any.
            wanted.has_topics = HasTopics::Yes;
            return None;
        }
        lease.hand_over(own.page.batch.memory());
        Some(Box::new(Page {
            start: None,
            size: wanted.size,
            page: own.page,
            lease: Some(lease),
        }))
    }

    /// Every wait ends when the stream is gone, but a running query is never cancelled.
    ///
    /// Ten thousand tasks may wait for their turn at once, and the memory of the process
    /// stays as large as it was then. So what a task needs later is boxed.
    async fn answer(
        self: Arc<Self>,
        mut wanted: Box<Wanted>,
        mut reply: oneshot::Sender<PageOutcome>,
    ) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let wait = self.reads.begin();
        let recent = tokio::select! {
            biased;
            () = reply.closed() => return,
            recent = Box::pin(self.recent_page(&wanted)) => recent,
        };
        if let Some(page) = recent {
            self.reads.recent.inc();
            let _ = reply.send(PageOutcome::Page(page));
            return;
        }
        let admission = tokio::select! {
            biased;
            () = reply.closed() => return,
            admission = Box::pin(self.admit_to_replica(&wanted)) => admission,
        };
        if let Some(read) = admission {
            let begin = Instant::now();
            let (point, size, lease) = (&read.point, read.size, read.lease);
            let page = Box::pin(self.replica_page(&mut wanted, point, size, lease)).await;
            let took = begin.elapsed();
            if let Some(page) = page {
                wait.end(page.page.batch.events.len());
                let _ = reply.send(PageOutcome::Page(page));
                Box::pin(read.turn.end(took)).await;
                return;
            }
            // The primary's page must not wait until the user may read another one there.
            self.runtime.spawn(read.turn.end(took));
        }
        // Stop when the history has ended: it has no more pages, and a pool that was
        // renewed for the next one must not be renewed again.
        while self.hub.tail().history == wanted.history {
            self.follow_history();
            let admission = async {
                let permit = self.failing.admit(&wanted.subscriber).await;
                let turn = self.turns.take(&wanted.subscriber).await;
                let size = self.size(wanted.size);
                let lease = Box::pin(self.memory.reserve(size.most_bytes())).await;
                (permit, turn, size, lease)
            };
            let (permit, turn, size, lease) = tokio::select! {
                biased;
                () = reply.closed() => return,
                admission = admission => admission,
            };
            let begin = Instant::now();
            let read = Box::pin(self.try_read(&wanted, size)).await;
            let took = begin.elapsed();
            match read {
                Ok(read) if read.page.incarnation == wanted.history.incarnation => {
                    drop(permit);
                    self.health.page_read();
                    self.failing.succeed(&wanted.subscriber, &self.reads);
                    wait.end(read.page.batch.events.len());
                    if let (Some(user), Some(before)) = (wanted.subscriber.user(), read.drained) {
                        self.drained.note(user, before, wanted.history);
                    }
                    lease.hand_over(read.page.batch.memory());
                    let page = Page {
                        start: read.start,
                        size: wanted.size,
                        page: read.page,
                        lease: Some(lease),
                    };
                    // Fails if the stream is gone. Then the page isn't needed.
                    let _ = reply.send(PageOutcome::Page(Box::new(page)));
                    Box::pin(turn.end(took)).await;
                    return;
                }
                // The page was read in another incarnation of the server, or on another
                // server, than the one the listener knows: in a session that was in use
                // when the others were renewed. An old primary may keep its sessions
                // forever.
                Ok(_) => {
                    debug!("read a page in another incarnation of the server");
                    self.pool.renew();
                }
                Err(error) => {
                    let reason = ErrorChain(&error).to_string();
                    debug!(error = reason, "could not read a page, retrying: {reason}");
                    self.fail(&wanted.subscriber, &error, reason);
                    if let QueryError::TimedOut(_) = error {
                        wanted.size = wanted.size.halved();
                    }
                }
            }
            drop((permit, turn, lease));
            // Once the database is back, there is no reason to wait longer.
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = self.health.reconnected() => {}
                () = reply.closed() => return,
            }
        }
        let _ = reply.send(PageOutcome::Over);
    }

    /// Counts a failed page. If the application's relation may have failed for this
    /// subscriber alone, the bridge is still ready for all others.
    fn fail(&self, subscriber: &Subscriber, error: &QueryError, reason: String) {
        self.reads.failures.inc();
        let may_be_own = !self.sql.memberships.is_built_in() && error.is_of_data();
        let extent = if may_be_own {
            let connected = self.hub.subscribers();
            self.failing
                .fail(subscriber, connected, &reason, &self.reads)
        } else {
            Extent::Everyone
        };
        if extent == Extent::Everyone {
            self.health.page_failed(reason);
        }
    }

    /// Limits a page's size according to the memory that is free.
    fn size(&self, wanted: PageSize) -> PageSize {
        let most = usize::try_from(wanted.bytes).unwrap_or(usize::MAX);
        let bytes = self.memory.page_bytes(most);
        PageSize {
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            ..wanted
        }
    }

    /// Renews the pool after a failover: its idle sessions lead to a server that is gone
    /// or, worse, frozen and never answers.
    fn follow_history(&self) {
        let now = self.hub.tail().history;
        let mut known = self.history.lock();
        if *known != now {
            *known = now;
            self.pool.renew();
        }
    }

    async fn try_read(&self, wanted: &Wanted, size: PageSize) -> Result<Box<Read>, QueryError> {
        let mut read = match &wanted.position {
            Some(position) => Read {
                start: None,
                page: self.next_page(wanted, position, size).await?,
                drained: None,
            },
            None => self.first_page(wanted, size).await?,
        };
        let memberships = &mut read.page.topics.memberships;
        self.hub.share_names(memberships.topics_mut());
        Ok(Box::new(read))
    }

    /// Most users have no topics: their pages cost what they would cost without them.
    async fn next_page(
        &self,
        wanted: &Wanted,
        position: &Position,
        size: PageSize,
    ) -> Result<UserPage, QueryError> {
        if wanted.is_of_own_rows() {
            let own = page_reader::user_page(
                &self.pool,
                &self.sql,
                wanted.subscriber.user(),
                position,
                size,
            );
            let own = own.await?;
            if !own.has_topics {
                return Ok(own.page);
            }
        }
        let first = wanted.first.as_deref();
        self.topic_page(wanted, position, &wanted.late, first, size)
            .await
    }

    async fn topic_page(
        &self,
        wanted: &Wanted,
        position: &Position,
        late: &LateWanted,
        first: Option<&FirstReading>,
        size: PageSize,
    ) -> Result<UserPage, QueryError> {
        let page = TopicPage {
            query: &self.sql.topic_page,
            user: wanted.subscriber.user(),
            position,
            late,
            topics: &wanted.topics,
            granted_since: wanted.granted_since.as_deref(),
            first,
        };
        page_reader::topic_page(&self.pool, page, size).await
    }

    async fn first_page(&self, wanted: &Wanted, size: PageSize) -> Result<Read, QueryError> {
        let user = wanted.subscriber.user();
        let first = FirstWanted {
            backlog: self.drained.backlog_page(),
            user,
            replay: wanted.replay,
            opened: &wanted.opened,
            system_identifier: wanted.history.system_identifier,
            topics: &wanted.topics,
            granted_since: wanted.granted_since.as_deref(),
        };
        // A cursor that is being written counts, or the page that follows a form would
        // receive again what the one before it has settled.
        let waiting = || user.and_then(|user| self.cursors.waiting(user, wanted.history));
        let FirstPage {
            start,
            page,
            drained,
        } = page_reader::first_page(&self.pool, &self.sql, first, waiting, size).await?;
        Ok(Read {
            start: Some(start),
            page,
            drained,
        })
    }
}
