//! The listener: polls the tail of the table, continuously or when the doorbell rings,
//! and passes new rows to the hub.
//!
//! A notification only means "check the table"; rows come from the table. A lost
//! notification or connection therefore delays rows, but never loses them.

mod disconnections;
mod fine_sleep;
mod inspection;
mod poll_or_listen;
mod publisher;
mod session;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, field, info, info_span, warn};

pub use self::session::ListenError;
use self::{
    disconnections::Progress,
    fine_sleep::Pause,
    inspection::Inspected,
    poll_or_listen::{Flow, PollMode},
    publisher::{Publisher, TailRead},
    session::{POLL_LIMIT, Session},
};
use crate::{
    delivery::{
        adopted_marks::AdoptedMarks,
        bridge_count::BridgeCount,
        counters::Counters,
        feed::{
            Feed,
            message::{FeedMessage, FeedRun},
            role::{FeedRole, Overdue, Sign},
        },
        health::{Health, Watching},
        hub::Hub,
        mailbox::Ending,
        memberships::MembershipChange,
        page_reader::{self, BellGeneration, Disconnections, PageSize, TailPage},
    },
    domain::{
        clock::Moment,
        durable_floor::Log,
        identity::Disconnection,
        log_point::LogPoint,
        position::{Position, ReadPoint, ReadStep, Rest},
    },
    postgres::database::Database,
    runtime::{backoff::Backoff, error_chain::ErrorChain, log_throttle::OutageLog},
};

/// While asleep, after a poll that found nothing, the next poll starts at least this much
/// after the previous one. Any role can send NOTIFY; this limits what a flood of forged
/// notifications costs.
const POLL_GAP: Duration = Duration::from_millis(2);

/// How long clearing the doorbell's sequence may take when the bridge stops. If it fails,
/// writers send NOTIFY for no listener until the next bridge starts.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The first and the longest wait before reconnecting.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(2);

/// The task that reads the tail.
#[derive(Debug)]
pub struct Listener {
    database: Database,
    hub: Arc<Hub>,
    health: Arc<Health>,
    activity: Arc<Counters>,
    adopted: Arc<AdoptedMarks>,
    bridges: Arc<BridgeCount>,
    publisher: Publisher,
    /// Shares what is read with other bridges, if that is configured.
    feed: Option<Feed>,
    full_page: PageSize,
    /// Smaller than `full_page` while the network is too slow for full pages.
    page_size: PageSize,
    disconnections: Progress,
    /// How often to poll while asleep. No NOTIFY is sent for rows that fire no trigger
    /// (for example, loaded with `session_replication_role = replica`), or if a bridge
    /// died while telling writers to stop sending it. The poll also proves that the
    /// connection is alive.
    safety_poll: Duration,
    session: Option<Session>,
}

impl Listener {
    /// Connects, listens, and determines the position at which the bridge starts to read.
    ///
    /// Call it before the first connection is accepted: rows that become visible from now
    /// on are delivered to that connection.
    pub async fn start(
        database: Database,
        hub: Arc<Hub>,
        health: Arc<Health>,
        activity: Arc<Counters>,
        safety_poll: Duration,
    ) -> Result<Self, ListenError> {
        let mut listener = Self {
            publisher: Publisher::new(Arc::clone(&hub), Arc::clone(&activity)),
            feed: None,
            database,
            hub,
            health,
            activity,
            adopted: Arc::default(),
            bridges: Arc::default(),
            full_page: PageSize::TAIL,
            page_size: PageSize::TAIL,
            disconnections: Progress::none(Instant::now()),
            safety_poll,
            session: None,
        };
        let session = Session::open(&listener.database).await?;
        listener.begin(&session).await?;
        listener.health.polled();
        listener.session = Some(session);
        Ok(listener)
    }

    /// Sets the number of rows in a page.
    pub fn with_page_rows(mut self, rows: usize) -> Self {
        self.full_page.rows = rows;
        self.page_size = self.full_page;
        self
    }

    /// Keeps these informed about tables whose rows are marked.
    pub fn with_adopted_marks(mut self, adopted: Arc<AdoptedMarks>) -> Self {
        self.adopted = adopted;
        self
    }

    /// Keeps this informed about the number of bridges, and polls accordingly.
    pub fn with_bridge_count(mut self, bridges: Arc<BridgeCount>) -> Self {
        self.bridges = bridges;
        self
    }

    /// Shares what is read with other bridges.
    pub fn with_feed(mut self, feed: Option<Feed>) -> Self {
        self.feed = feed;
        self
    }

    /// Listens until `stop`, and reconnects whenever the connection is lost.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST);
        let mut failing = OutageLog::default();
        for session in 1_u64.. {
            let span = info_span!("listener", session, backend = field::Empty);
            let listening = self.listen(&mut backoff, &mut failing, &stop);
            let Err(error) = listening.instrument(span.clone()).await else {
                return;
            };
            let (delay, reason) = (backoff.next_delay(), ErrorChain(&error).to_string());
            span.in_scope(|| log_loss(&reason, delay, &mut failing));
            // The lock is gone with the session.
            if let Some(feed) = &mut self.feed {
                feed.be_alone();
            }
            self.health.lost(reason);
            if stop.run_until_cancelled(sleep(delay)).await.is_none() {
                return;
            }
        }
    }

    /// Runs one session until it fails or `stop` is cancelled.
    async fn listen(
        &mut self,
        backoff: &mut Backoff,
        failing: &mut OutageLog,
        stop: &CancellationToken,
    ) -> Result<(), ListenError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.reopen().await?,
        };
        Span::current().record("backend", session.backend);
        self.begin_feed(&session).await?;
        let pause = Pause::new();
        let mut watch = PollMode::Awake;
        self.health.watches(watch.into());
        let mut flow = Flow::begins(Instant::now());
        let mut inspect_at = Instant::now();
        while !stop.is_cancelled() {
            // Before the poll: what is committed after it rings.
            timeout(POLL_LIMIT, session.listen(watch)).await??;
            // Poll before the first wait: rows may have arrived in the meantime.
            let polled_at = Instant::now();
            let polling = self.poll_in_time(&session, watch, &mut flow, &mut inspect_at);
            let (kept, polled) = match polling.await {
                Ok(polled) => polled,
                Err(error) => return Err(session.failed(error, &self.database.schema).await),
            };
            if kept != watch {
                debug!(?watch, now = ?kept, "the listener's mode has changed");
                watch = kept;
            }
            self.report_poll(&session, watch);
            // Only now: otherwise a server that accepts connections and then fails would
            // be retried without a pause.
            backoff.reset();
            failing.is_over();
            if polled == Polled::More || self.disconnections.is_due(Instant::now()) {
                continue;
            }
            let shared_gap = self.shared_gap();
            let gap = match (watch, polled) {
                (PollMode::Awake, _) => flow.gap(Instant::now(), polled.rows(), shared_gap),
                (PollMode::Asleep(_) | PollMode::Following, Polled::Nothing) => {
                    POLL_GAP.max(shared_gap)
                }
                (PollMode::Asleep(_) | PollMode::Following, _) => shared_gap,
            };
            let next = match watch {
                PollMode::Awake => gap,
                PollMode::Asleep(_) | PollMode::Following => self.safety_poll,
            };
            let wait = PollWait {
                earliest: polled_at + gap,
                latest: polled_at + next,
            };
            let was_following = watch == PollMode::Following;
            self.wait(&mut session, &mut watch, wait, &pause, stop)
                .await?;
            if was_following && watch == PollMode::Awake {
                flow = Flow::begins(Instant::now());
            }
        }
        self.leave_feed(&session).await;
        let left = timeout(LEAVE_LIMIT, session.wake()).await;
        debug!(
            ?left,
            "stopping, writers need not send NOTIFY for this bridge"
        );
        Ok(())
    }

    /// Waits until the next poll is due, and applies the feeder's messages until then.
    async fn wait(
        &mut self,
        session: &mut Session,
        watch: &mut PollMode,
        PollWait {
            earliest,
            mut latest,
        }: PollWait,
        pause: &Pause,
        stop: &CancellationToken,
    ) -> Result<(), ListenError> {
        let mut is_wanted = false;
        loop {
            let now = Instant::now();
            let until = if is_wanted { earliest } else { latest };
            if until <= now {
                return Ok(());
            }
            let alarm = self.feed.as_mut().and_then(|feed| feed.watch().alarm());
            let clock = &self.activity.clock;
            tokio::select! {
                rung = session.rung(*watch), if !is_wanted => {
                    rung?;
                    self.health.rung();
                    is_wanted = true;
                }
                () = self.hub.fresh().asked(), if !is_wanted && *watch != PollMode::Awake => {
                    is_wanted = true;
                }
                () = pause.wait(until - now) => return Ok(()),
                () = stop.cancelled() => return Ok(()),
                message = received(self.feed.as_mut(), || clock.now()) => {
                    is_wanted |= self.take(message);
                }
                () = overdue(alarm) => is_wanted |= self.overdue(session).await?,
            }
            let role = self.feed.as_ref().map(Feed::role);
            match role {
                Some(FeedRole::Following) if *watch != PollMode::Following => {
                    *watch = PollMode::Following;
                    latest = now + self.safety_poll;
                }
                Some(FeedRole::Alone | FeedRole::Feeding) if *watch == PollMode::Following => {
                    *watch = PollMode::Awake;
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// Publishes what is new in a message. Returns whether to poll.
    fn take(&mut self, message: FeedMessage) -> bool {
        let (sign, received) = (message.sign, self.publisher.receive(message));
        let feed = self.feed.as_mut();
        feed.is_some_and(|feed| feed.received(sign, received, Instant::now()))
    }

    /// Something that was expected of the feeder did not happen in time. Returns whether
    /// to poll.
    async fn overdue(&mut self, session: &Session) -> Result<bool, ListenError> {
        let Some(feed) = &mut self.feed else {
            return Ok(false);
        };
        match feed.watch().overdue(Instant::now()) {
            Some(Overdue::Tick) => {
                self.tick(Sign::Feeds);
                Ok(false)
            }
            Some(Overdue::Feeder) => Ok(true),
            Some(Overdue::Echo) => {
                feed.resign();
                timeout(POLL_LIMIT, session.stop_feeding()).await??;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The minimum time between two polls. A feeder polls for all.
    fn shared_gap(&self) -> Duration {
        match self.feed.as_ref().map(Feed::role) {
            Some(FeedRole::Feeding) => Duration::ZERO,
            _ => self.bridges.poll_gap(),
        }
    }

    /// A session begins: this bridge doesn't feed.
    async fn begin_feed(&mut self, session: &Session) -> Result<(), ListenError> {
        let Some(feed) = &mut self.feed else {
            return Ok(());
        };
        feed.begin(session.place);
        feed.set_keys(timeout(POLL_LIMIT, session.feed_keys()).await??);
        Ok(())
    }

    /// Becomes the feeder if there is none, or ceases to be it if it can't send.
    async fn elect_feeder(&mut self, session: &Session) -> Result<(), ListenError> {
        let Some(feed) = &mut self.feed else {
            return Ok(());
        };
        if feed.must_resign() {
            feed.resign();
            session.stop_feeding().await?;
        } else if feed.tries_to_feed(Instant::now()) && session.try_to_feed().await? {
            feed.feed_from(self.publisher.point());
        }
        Ok(())
    }

    /// Lets another bridge feed, and tells the others to poll until then.
    async fn leave_feed(&mut self, session: &Session) {
        let is_feeding = |feed: &Feed| feed.role() == FeedRole::Feeding;
        if !self.feed.as_ref().is_some_and(is_feeding) {
            return;
        }
        // The lock first: followers try to take it as soon as they receive the message.
        let left = timeout(LEAVE_LIMIT, session.stop_feeding()).await;
        debug!(?left, "stopping, another bridge may feed");
        self.tick(Sign::Leaves);
        if let Some(feed) = &mut self.feed {
            feed.be_alone();
        }
    }

    /// Tells the others that nothing has happened.
    fn tick(&mut self, sign: Sign) {
        let after = self.publisher.point();
        if let Some(log) = self.publisher.log() {
            self.feed(after, log, sign, Vec::new(), Vec::new());
        }
    }

    /// Sends what was read since the last message. Returns it.
    fn feed(
        &mut self,
        after: ReadPoint,
        log: Log,
        sign: Sign,
        changes: Vec<Arc<MembershipChange>>,
        runs: Vec<FeedRun>,
    ) -> (Vec<Arc<MembershipChange>>, Vec<FeedRun>) {
        let Some(feed) = &mut self.feed else {
            return (changes, runs);
        };
        let message = FeedMessage {
            history: self.publisher.history(),
            step: ReadStep {
                before: feed.sent_through().clone(),
                after,
            },
            log,
            sign,
            sent: self.activity.clock.now(),
            changes,
            runs,
        };
        feed.send(&message, Instant::now());
        (message.changes, message.runs)
    }

    /// Polls the table and does what else is due, within [`POLL_LIMIT`]. If it takes
    /// longer, the next page is smaller.
    async fn poll_in_time(
        &mut self,
        session: &Session,
        watch: PollMode,
        flow: &mut Flow,
        inspect_at: &mut Instant,
    ) -> Result<(PollMode, Polled), ListenError> {
        let now = Instant::now();
        let polling = async {
            self.elect_feeder(session).await?;
            let polled = self.keep_watch(session, watch, flow).await?;
            if self.disconnections.is_due(now) {
                self.disconnect(session).await?;
            }
            if *inspect_at <= now {
                let inspected = Inspected {
                    health: &self.health,
                    adopted: &self.adopted,
                    bridges: &self.bridges,
                };
                let inspecting = inspection::inspect(session, &self.database, inspected);
                *inspect_at = now + inspecting.await?;
                if let Some(feed) = &mut self.feed {
                    feed.set_keys(session.feed_keys().await?);
                }
            }
            Ok(polled)
        };
        let polled = timeout(POLL_LIMIT, polling).await;
        polled.unwrap_or_else(|elapsed| {
            self.page_size = self.page_size.halved();
            Err(elapsed.into())
        })
    }

    fn report_poll(&self, session: &Session, watch: PollMode) {
        self.health.watches(watch.into());
        let watching = if self.feeds() {
            Watching::Feeding
        } else {
            watch.into()
        };
        self.activity
            .listens(session.backend, &session.role, watching);
        self.health.polled();
    }

    /// Polls the table, and decides from the result whether to sleep or wake.
    async fn keep_watch(
        &mut self,
        session: &Session,
        watch: PollMode,
        flow: &mut Flow,
    ) -> Result<(PollMode, Polled), ListenError> {
        if watch == PollMode::Following {
            // The feeder takes part in the doorbell.
            let (polled, _) = self.poll(session, flow).await?;
            return Ok((watch, polled));
        }
        if watch == PollMode::Awake && flow.tries_to_sleep(Instant::now()) {
            // The server executes statements in the order in which they are sent.
            let (bell, polled) =
                tokio::join!(biased; session.fall_asleep(), self.poll(session, flow));
            let (bell, (polled, rings)) = (bell?, polled?);
            return Ok((PollMode::by(bell, rings), polled));
        }
        let (polled, rings) = self.poll(session, flow).await?;
        let mut kept = watch.after(rings);
        if rings.is_some() && flow.wakes() {
            session.wake().await?;
            kept = PollMode::Awake;
        } else if kept != watch {
            // Another bridge woke because rows are flowing.
            *flow = Flow::begins(Instant::now());
        }
        Ok((kept, polled))
    }

    /// Whether this bridge polls for others.
    fn feeds(&self) -> bool {
        let is_feeding = |feed: &Feed| feed.role() == FeedRole::Feeding;
        self.feed.as_ref().is_some_and(is_feeding)
    }

    /// Reads one page and publishes it. Also returns whether writers send NOTIFY.
    async fn poll(
        &mut self,
        session: &Session,
        flow: &mut Flow,
    ) -> Result<(Polled, Option<BellGeneration>), ListenError> {
        let number = self.hub.fresh().begin();
        let mut page = self.read_tail(session).await?;
        let mut changes = Vec::new();
        if page.has_changes {
            (changes, page) = self.read_with_changes(session).await?;
        }
        let found = match (page.rest(), page.rows()) {
            (Rest::More, _) => Polled::More,
            (Rest::Nothing, 0) => Polled::Nothing,
            (Rest::Nothing, rows) => Polled::Found(rows),
        };
        match found {
            Polled::Nothing => flow.found_nothing(Instant::now()),
            Polled::Found(_) | Polled::More => {
                flow.found(Instant::now(), page.snapshot.running(), self.shared_gap())
            }
        }
        if page.rest() == Rest::Nothing {
            self.page_size = self.full_page;
        }
        debug!(
            rows = page.rows(),
            changes = changes.len(),
            "polled the table"
        );
        let mut position = self.publisher.position().clone();
        let mut runs = Vec::with_capacity(page.runs.len());
        for run in page.runs {
            let unread = run.pass(&mut position, &page.snapshot);
            self.publisher.warn_of(run.unusable);
            runs.push(FeedRun {
                rows: run.notifications,
                after: position.clone(),
                unread,
            });
        }
        let is_news = !changes.is_empty() || runs.iter().any(|run| !run.rows.is_empty());
        if self.feeds() && is_news {
            // Before it is published here: the others are as near to their users.
            let after = ReadPoint {
                position: Arc::new(position),
                snapshot: Arc::clone(&page.snapshot),
            };
            (changes, runs) = self.feed(after, page.log, Sign::Feeds, changes, runs);
        }
        self.publisher.publish(TailRead {
            changes,
            runs,
            snapshot: Arc::clone(&page.snapshot),
            log: page.log,
        });
        if found != Polled::More {
            let point = LogPoint {
                history: self.publisher.history(),
                snapshot: page.snapshot,
                inserted: page.log.inserted,
            };
            self.hub.complete(number, point, page.log.flushed);
        }
        Ok((found, page.rings))
    }

    async fn read_tail(&self, session: &Session) -> Result<TailPage, tokio_postgres::Error> {
        page_reader::tail_page(
            &session.client,
            &session.tail_page,
            self.publisher.position(),
            self.publisher.known(),
            self.page_size,
        )
        .await
    }

    /// Reads the changes of memberships, and the tail in the same snapshot. Rows that were
    /// delivered with memberships of an earlier snapshot could be lost to a user who has
    /// joined: the position would be past both.
    ///
    /// If this fails, the session ends, and with it the transaction.
    async fn read_with_changes(
        &self,
        session: &Session,
    ) -> Result<(Vec<Arc<MembershipChange>>, TailPage), tokio_postgres::Error> {
        let client = &session.client;
        let query = &session.membership_changes;
        // The server executes statements in the order in which they are sent.
        let (begun, changes, page, ended) = tokio::join!(
            biased;
            client.batch_execute("begin isolation level repeatable read, read only"),
            page_reader::membership_changes(client, query, self.publisher.known()),
            self.read_tail(session),
            client.batch_execute("commit"),
        );
        begun?;
        let (changes, page) = (changes?, page?);
        ended?;
        Ok((changes, page))
    }

    /// Reads the next page of disconnections, and ends the matching streams.
    async fn disconnect(&mut self, session: &Session) -> Result<(), ListenError> {
        let position = Some(self.disconnections.position());
        let page = self.disconnections_page(session, position).await?;
        self.disconnections.read(&page, Instant::now());
        // They are rows of this cluster, like those of the table.
        let floor = self.disconnections.position().floor();
        self.publisher.read_up_to(floor, page.log);
        self.hub.disconnect(&page.found);
        Ok(())
    }

    async fn disconnections_page(
        &self,
        session: &Session,
        position: Option<&Position>,
    ) -> Result<Disconnections, ListenError> {
        let (client, query) = (&session.client, &session.disconnections);
        let asked = Moment::here();
        let page = page_reader::disconnections(client, query, position).await?;
        let clock = &self.activity.clock;
        clock.compare(asked, page.clock, Moment::here());
        if page.incarnation != session.history.incarnation {
            return Err(ListenError::OtherIncarnation);
        }
        Ok(page)
    }

    /// The present: disconnections up to here concern no stream that is opened from now
    /// on.
    async fn present(&self, session: &Session) -> Result<Progress, ListenError> {
        let page = self.disconnections_page(session, None);
        let page = timeout(POLL_LIMIT, page).await??;
        Ok(Progress::begins(&page, Instant::now()))
    }

    /// Opens a session that continues where the last one ended.
    async fn reopen(&mut self) -> Result<Session, ListenError> {
        let session = Session::open(&self.database).await?;
        let (now, before) = (session.history, self.publisher.history());
        if self.disconnections.may_have_missed(Instant::now()) {
            self.disconnections = self.present(&session).await?;
            warn!(
                "the database was unreachable for too long to know who was logged out, ending \
                 all streams"
            );
            self.hub.disconnect(&[Disconnection::Everyone]);
        }
        if now == before {
            info!("the listener has reconnected to the database");
        } else if now.epoch() == before.epoch() {
            let safe = self.publisher.recover(now);
            self.disconnections.fall_to(safe, Instant::now());
        } else {
            warn!("the database's history has changed, all streams start over");
            self.begin(&session).await?;
            self.hub.end_all(Ending::AnotherHistory);
        }
        Ok(session)
    }

    /// Starts to read from what is visible now.
    async fn begin(&mut self, session: &Session) -> Result<(), ListenError> {
        let start = page_reader::tail_start(&session.client, &self.database.sql.tail_start);
        let start = timeout(POLL_LIMIT, start).await??;
        let disconnections = self.present(session).await?;
        // From here on nothing fails. If this function is interrupted earlier, the next
        // session repeats it, because the history is still the old one.
        //
        // No stream is open yet, or all are about to end. Clients that are being
        // authenticated have none, but may be among those that were to be disconnected.
        self.disconnections = disconnections;
        self.hub.skip_disconnections();
        self.publisher.begin(session.history, start);
        Ok(())
    }
}

/// When the next poll may begin, and when it must.
struct PollWait {
    earliest: Instant,
    latest: Instant,
}

/// The next message of the feeder.
async fn received(feed: Option<&mut Feed>, clock: impl Fn() -> Moment) -> FeedMessage {
    match feed {
        Some(feed) => feed.receive(clock).await,
        None => std::future::pending().await,
    }
}

async fn overdue(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => std::future::pending().await,
    }
}

/// Warns that the session has ended, throttled.
fn log_loss(error: &str, delay: Duration, failing: &mut OutageLog) {
    let delay_ms = delay.as_millis() as u64;
    if failing.is_news(error, Instant::now().into_std()) {
        warn!(
            error,
            delay_ms, "the listener lost the database, reconnecting in {delay:?}: {error}"
        );
    } else {
        debug!(
            error,
            delay_ms, "the listener still can't reach the database: {error}"
        );
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polled {
    Nothing,
    /// The number of rows.
    Found(usize),
    /// A full page, and more rows remain.
    More,
}

impl Polled {
    /// The number of rows, if the poll found all that was new.
    fn rows(self) -> usize {
        match self {
            Self::Found(rows) => rows,
            Self::Nothing | Self::More => 0,
        }
    }
}
