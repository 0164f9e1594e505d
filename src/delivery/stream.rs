//! One connection's event stream: the pages of its catch-up, then live rows, without a
//! gap or repetition in between.
//!
//! The connection first registers with the hub, then reads pages from its position until
//! a page is not full, then goes live. Live rows pass the same test as those of a page:
//! is the row new to *this connection's* position?

mod start;

use std::{
    any::Any,
    borrow::Cow,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Stream};
use tokio::time::Instant;
use tracing::{Span, debug};

use self::start::Opening;
pub use self::start::Start;
use crate::{
    delivery::{
        batch::{Batch, End},
        catch_up::{HasTopics, Lease, Page, PageOutcome, PageSource, PendingPage, Wanted},
        chunk_rows::ChunkRows,
        counters::Counters,
        cursors::Cursors,
        heartbeat::{Alarm, Heartbeats},
        hub::{Connection, Hub},
        mailbox::{Ending, Letter, Recovery},
        marker::{Acknowledgement, Closed, Marks},
        memberships::{LateRows, MembershipChange, Memberships, Taken, TooManyEnded},
        page_reader::{Cursor, FirstReading, PageSize, PageTopics},
        recent_disconnections::DisconnectCursor,
        recently_published::Remembered,
        sse::{self, Begins, Format, Gap, TopicReport},
        stream_cursor::{LastChunk, StreamCursor},
        stream_end::{EndReason, Ended, StreamDeadline, Warning},
    },
    domain::{
        history::History,
        identity::Identity,
        notification::Notification,
        position::{EventId, Position, TopicScope},
        snapshot::Xid,
        topic::{Topic, TopicChoice},
    },
    runtime::backoff::jittered,
};

/// A chunk is written to the socket once it has this many bytes. A burst of small events
/// costs one system call, and a slow reader holds little more than this.
const CHUNK_BYTES: usize = 16 << 10;

/// A browser's reconnection delay: half to all of this, so that a restart of the bridge
/// doesn't cause a stampede.
const RETRY: Duration = Duration::from_secs(3);

/// How many heartbeats without data are sent between two with data, while no other event
/// carries an id.
///
/// Most heartbeats consist only of an id, which costs a browser nothing because no event
/// is dispatched. Firefox and many libraries ignore that id: the position of an idle tab
/// would not move until rows that it never missed are pruned, and the tab would receive a
/// gap event. With heartbeats every 15 s, this costs an event of 60 bytes every five
/// minutes.
const QUIET_HEARTBEATS: u8 = 19;

#[derive(Debug)]
pub struct Streams {
    pub hub: Arc<Hub>,
    pub marks: Arc<Marks>,
    pub activity: Arc<Counters>,
    pub pages: Arc<dyn PageSource>,
    pub cursors: Arc<Cursors>,
    pub heartbeats: Heartbeats,
    /// The time over which the ends of streams are spread when the bridge stops.
    pub drain: Duration,
    pub max_age: Duration,
    pub ended: Ended,
}

/// Held for the caller as long as the stream exists.
type Guard = Box<dyn Any + Send + Sync>;

/// The body of one response.
///
/// A poll means that all earlier bytes are in the kernel
/// (`http::detached_stream` and the server's write buffer of one byte ensure
/// this; [`crate::tls::server_certificate`] describes what HTTPS adds). So this is when
/// rows count as written.
pub struct EventStream {
    /// The stream's place in the limit of open streams. It is declared before
    /// `connection`, so it is returned before the hub forgets the connection: a
    /// connection that the hub no longer counts takes no place.
    _place: Option<Guard>,
    streams: Arc<Streams>,
    connection: Connection,
    format: Format,
    history: History,
    /// The durable floor, below which transaction ids are on disk. It is part of every
    /// id.
    safe: Xid,
    /// What the bridge had seen when the connection was opened. A row that is new to it
    /// must be delivered to this connection, even if another connection receives it and
    /// it is marked before the first page is read.
    opened: Arc<Position>,
    /// What the connection has been sent. `None` before the first page if the client
    /// presented no id.
    position: Option<Position>,
    /// The topics whose rows it is sent, without everyone's.
    memberships: Memberships,
    /// What the client asked for and its credentials grant.
    topics: Arc<TopicChoice>,
    /// What was sent before a crash and may be read again. `None` once pages have been read.
    before_crash: Option<Box<BeforeCrash>>,
    /// Whether the client was told its topics.
    are_topics_told: bool,
    /// Whether the client presented no id that can be used. Then rows of granted topics begin
    /// at `opened`.
    is_anew: bool,
    /// What the pages of the first reading have in common. `None` for a client that presented
    /// an id, and once the stream is live.
    first: Option<Arc<FirstReading>>,
    /// Where the user continues in the topics without an id.
    cursor: StreamCursor,
    /// Whether the last chunk has rows of topics.
    chunk_has_topics: bool,
    /// How many of the user's last rows the first page begins with.
    replay: u32,
    /// The row that was last written to the client, on this connection or on an earlier
    /// one that it continues. 0 if none.
    row: i64,
    phase: Phase,
    /// The batch that is being written. Boxed, because idle streams have none.
    current: Option<Box<Current>>,
    /// The page size. Smaller after a read that timed out.
    page_size: PageSize,
    /// The rows in the last chunk.
    chunk_rows: ChunkRows,
    catch_up: CatchUp,
    pruned: GapCheck,
    ends: StreamDeadline,
    /// Heartbeats without data since the last event that carried an id.
    quiet_heartbeats: u8,
    /// The warning before the credentials expire. `None` once it has been sent.
    warning: Option<Warning>,
    /// Wakes the stream for the next heartbeat, warning or end, whichever comes first.
    alarm: Alarm,
    /// The span of the stream's log lines. Boxed, because there is hardly ever one, and
    /// there are thousands of idle streams.
    span: Option<Box<Span>>,
}

/// What a stream that reads pages after a crash had sent before: rows that are not new to
/// the position of that time, if they are still the same.
struct BeforeCrash {
    position: Position,
    published: Arc<Remembered>,
}

enum Phase {
    Opening(Opening),
    /// Between two pages, or waiting for one.
    CatchingUp(Option<PendingPage>),
    Live,
    /// The history has ended. The bridge is about to say that Postgres has recovered from a
    /// crash, or to end the stream.
    Outlived,
    Over,
}

/// The batch that is being written.
struct Current {
    batch: Arc<Batch>,
    /// The event that is written next or is written in part.
    index: usize,
    /// Where to continue in the event's text, if it is written in part.
    begun: Option<usize>,
    /// The memory of a page. Live rows have none: all connections of a user share them.
    lease: Option<Lease>,
}

impl Current {
    fn new(batch: Arc<Batch>, lease: Option<Lease>) -> Box<Self> {
        Box::new(Self {
            batch,
            index: 0,
            begun: None,
            lease,
        })
    }
}

/// What to do with a row of a batch.
enum Pass {
    Write,
    Skip,
    /// The memberships have to be read first, and the row with them.
    ReadAgain,
}

/// Whether the client has been sent `tidings.caught-up`, which is sent once.
enum CatchUp {
    Counting(u64),
    Announced,
}

/// The check for rows that were deleted before the client received them.
enum GapCheck {
    /// The first page hasn't been read.
    Unknown,
    /// Checked. The client was sent `tidings.gap` if necessary.
    Settled,
}

impl EventStream {
    /// Opens the stream of a client whose authentication began after `noted`. Dropping it
    /// removes it from the hub.
    pub fn open(
        streams: &Arc<Streams>,
        identity: &Identity,
        noted: DisconnectCursor,
        start: &Start,
        format: Format,
    ) -> Self {
        let (connection, tail) = streams.hub.register(identity, noted);
        let topics = match &identity.topics {
            none if none.is_empty() => TopicChoice::all(),
            granted => Arc::new(TopicChoice {
                granted: Arc::clone(granted),
                asked: None,
            }),
        };
        let history = tail.history;
        let ends = StreamDeadline::of_age(streams.max_age).or_expiry(identity.expires);
        Self {
            _place: None,
            connection,
            format,
            history,
            safe: tail.safe,
            opened: Arc::clone(&tail.position),
            position: None,
            memberships: Memberships::default(),
            topics,
            before_crash: None,
            are_topics_told: false,
            is_anew: false,
            first: None,
            cursor: StreamCursor::Untouched(Cursor::Unknown),
            chunk_has_topics: false,
            replay: 0,
            row: 0,
            phase: Phase::Opening(Opening::read(start, history)),
            current: None,
            page_size: PageSize::USER,
            chunk_rows: ChunkRows::since(streams.activity.clock.now()),
            catch_up: CatchUp::Counting(0),
            pruned: GapCheck::Unknown,
            ends,
            quiet_heartbeats: 0,
            warning: identity.expires.map(Warning::before),
            // The stream may have to end before it is first polled.
            alarm: Alarm::at(streams.heartbeats.next().min(ends.at())),
            span: None,
            streams: Arc::clone(streams),
        }
    }

    /// Keeps `place` until the stream is dropped: its place in the limit of open streams.
    pub fn holding(mut self, place: impl Send + Sync + 'static) -> Self {
        self._place = Some(Box::new(place));
        self
    }

    /// Of the user's and the granted topics, sends only rows of those that the client asked
    /// for. Call it before the first poll.
    pub fn narrowed_to(mut self, asked: Option<Arc<[Topic]>>) -> Self {
        if asked.is_some() {
            Arc::make_mut(&mut self.topics).asked = asked;
        }
        self
    }

    /// The connection's number in the log.
    pub fn number(&self) -> u64 {
        self.connection.number()
    }

    /// Logs what the stream does in this span.
    pub fn within(mut self, span: Span) -> Self {
        self.span = (!span.is_disabled()).then(|| Box::new(span));
        self
    }

    /// Resolves once the stream must end although its client doesn't read: its time is
    /// up, or the bridge ends it. To be polled while earlier bytes are waiting for the
    /// client; nothing more can be written then.
    pub fn poll_cut_off(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Poll::Ready(ending) = self.connection.poll_ending(cx) {
                self.end_for(ending);
            }
            if let Some(lease) = self.current.as_ref().and_then(|it| it.lease.as_ref())
                && lease.poll_cut_off(cx).is_ready()
            {
                self.ends = self
                    .ends
                    .or(StreamDeadline::after(Duration::ZERO, EndReason::Stalled));
            }
            if self.ends.has_come() {
                self.phase = Phase::Over;
                return Poll::Ready(());
            }
            ready!(self.alarm.poll(cx));
            // The alarm was for a heartbeat or a warning, which have to wait.
            let heartbeat = self.streams.heartbeats.next();
            self.alarm.set(heartbeat.min(self.ends.at()));
        }
    }

    /// Ends the stream because its client has stopped reading.
    pub fn time_out(&mut self) {
        self.ends = self
            .ends
            .or(StreamDeadline::after(Duration::ZERO, EndReason::Silent));
        self.phase = Phase::Over;
    }

    /// Fills `chunk` until it is large enough or nothing more is available.
    fn poll_fill(&mut self, cx: &mut Context<'_>, chunk: &mut BytesMut) -> Poll<()> {
        while chunk.len() < CHUNK_BYTES {
            if let Poll::Ready(ending) = self.connection.poll_ending(cx) {
                self.end_for(ending);
            }
            if self.ends.has_come() {
                self.end(chunk);
                return Poll::Ready(());
            }
            if self.current.is_some() {
                self.write_events(chunk);
                continue;
            }
            match &mut self.phase {
                Phase::Opening(_) => {
                    let opening = std::mem::replace(&mut self.phase, Phase::CatchingUp(None));
                    if let Phase::Opening(opening) = opening {
                        self.begin(opening, chunk);
                    }
                }
                Phase::CatchingUp(None) => {
                    self.phase = Phase::CatchingUp(Some(self.next_page()));
                }
                Phase::CatchingUp(Some(reading)) => match reading.poll_unpin(cx) {
                    Poll::Ready(PageOutcome::Page(page)) => self.take_page(*page, chunk),
                    Poll::Ready(PageOutcome::Over) => self.phase = Phase::Outlived,
                    Poll::Ready(PageOutcome::Failed) => {
                        self.ends = self
                            .ends
                            .or(StreamDeadline::after(Duration::ZERO, EndReason::Failed));
                    }
                    Poll::Pending => return self.poll_alarm(cx, chunk),
                },
                Phase::Live => match self.connection.poll_letter(cx) {
                    Poll::Ready(Letter::Batch(batch)) => {
                        self.current = Some(Current::new(batch, None));
                    }
                    Poll::Ready(Letter::Membership(change)) => self.change(&change),
                    Poll::Ready(Letter::Recovered(recovery)) => self.recover(*recovery),
                    Poll::Ready(Letter::Overflowed) => self.phase = Phase::CatchingUp(None),
                    Poll::Pending => return self.poll_alarm(cx, chunk),
                },
                Phase::Outlived => match self.connection.skip_to_recovery() {
                    Some(recovery) => {
                        self.phase = Phase::CatchingUp(None);
                        self.recover(recovery);
                    }
                    None => return self.poll_alarm(cx, chunk),
                },
                Phase::Over => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    /// Writes the first bytes, before the database is queried.
    fn begin(&mut self, opening: Opening, chunk: &mut BytesMut) {
        let retry = jittered(RETRY);
        // It passes over rows that the user's other streams are owed. One that has more topics
        // than the user doesn't: cursors count for the user's own.
        if self.topics.asked.is_some() {
            self.cursor = StreamCursor::Never;
        }
        self.is_anew = !matches!(opening, Opening::Resume(_));
        let granted: Arc<[_]> = self.topics.granted().cloned().collect();
        if !granted.is_empty() {
            let began = self.is_anew.then(|| Arc::clone(&self.opened));
            self.memberships = Memberships::with_granted(granted, began);
        }
        match opening {
            Opening::Backlog { replay } => {
                self.replay = replay;
                sse::put_retry(chunk, retry);
            }
            Opening::Resume(id) => {
                let user = self.connection.subscriber().user();
                if let Some(acknowledged) = user.and_then(|user| Acknowledgement::of(user, &id)) {
                    self.streams.marks.acknowledge(acknowledged);
                }
                if id.scope == TopicScope::Narrowed {
                    self.cursor = StreamCursor::Never;
                }
                self.row = id.row;
                self.position = Some(id.position.into_owned());
                sse::put_retry_line(chunk, retry);
                self.put_open(Begins::Resumed, chunk);
            }
            Opening::Gap(reason) => {
                // Without a valid id, it can't be known what the client missed.
                self.pruned = GapCheck::Settled;
                debug!(?reason, "the client's last id can't be used");
                sse::put_retry(chunk, retry);
                sse::put_gap(chunk, reason.into());
            }
        }
    }

    /// Handles a crash of Postgres: ids that were not on disk may be reused.
    fn recover(&mut self, recovery: Recovery) {
        self.history = recovery.history;
        self.safe = recovery.safe;
        Arc::make_mut(&mut self.opened).fall_to(recovery.safe);
        if let Some(first) = &mut self.first {
            let first = Arc::make_mut(first);
            first.opened = Arc::clone(&self.opened);
            first.own = first.own.min(recovery.safe);
        }
        self.cursor.fall_to(recovery.safe);
        if self.memberships.topics().len() > 0 {
            // Memberships that were not on disk are gone. A page shows what is left.
            self.phase = Phase::CatchingUp(None);
        }
        let recovered = self
            .memberships
            .recover(self.position.as_ref(), recovery.safe);
        self.end_if(recovered);
        if let Some(position) = &mut self.position {
            // A live stream is sent only what the tail has not published before.
            if let Phase::CatchingUp(_) = self.phase {
                let mut before = position.clone();
                if let Some(earlier) = self.before_crash.take() {
                    before.join(&earlier.position);
                }
                self.before_crash = Some(Box::new(BeforeCrash {
                    position: before,
                    published: recovery.published,
                }));
            }
            position.fall_to(recovery.safe);
        }
        // Another row may have the id of one that is gone.
        self.chunk_rows.forget(&self.streams.marks);
    }

    /// Requests the page after the position, or the first page.
    fn next_page(&mut self) -> PendingPage {
        // Accept batches first: whatever is published from now on may not be in this
        // page.
        self.connection.reopen();
        let late = self.memberships.request(self.position.as_ref());
        Arc::clone(&self.streams.pages).read(Wanted {
            subscriber: self.connection.subscriber().clone(),
            history: self.history,
            position: self.position.clone(),
            opened: Arc::clone(&self.opened),
            replay: self.replay,
            late,
            has_topics: match self.memberships.topics().len() {
                0 => HasTopics::Unknown,
                _ => HasTopics::Yes,
            },
            topics: Arc::clone(&self.topics),
            granted_since: self.is_anew.then(|| Arc::new(self.opened.as_snapshot())),
            first: self.first.clone(),
            size: self.page_size,
        })
    }

    fn take_page(&mut self, page: Page, chunk: &mut BytesMut) {
        self.phase = Phase::CatchingUp(None);
        let Page {
            start,
            size,
            page,
            lease,
        } = page;
        self.page_size = size;
        if let (GapCheck::Unknown, Some(position)) = (&self.pruned, &self.position)
            && let Some(pruned) = page.pruned
            && position.may_miss(pruned, &page.batch.snapshot)
        {
            sse::put_gap(chunk, Gap::Pruned);
        }
        self.pruned = GapCheck::Settled;
        let topics = page.topics;
        let batch = Arc::new(page.batch);
        if let Some(start) = start {
            // Send the client an id before its first row. If the connection breaks before
            // that row, the client returns with the id. Without one, rows that another
            // connection has settled would be lost to it.
            self.memberships.start(&start.position);
            self.position = Some(start.position);
            if let StreamCursor::Untouched(cursor) = &mut self.cursor {
                *cursor = start.reading.cursor;
            }
            self.first = Some(Arc::new(start.reading));
            self.put_open(Begins::Anew, chunk);
            if page.pruned.is_some() {
                sse::put_gap(chunk, Gap::Pruned);
            }
        }
        if self.take_topics(topics, &batch, chunk) == Taken::Write {
            self.current = Some(Current::new(batch, lease));
        }
    }

    /// Takes over the memberships that a page shows.
    fn take_topics(&mut self, topics: PageTopics, batch: &Batch, chunk: &mut BytesMut) -> Taken {
        // Changes that were read since the page was requested, which it may not show.
        self.take_changes();
        let late = match batch.end {
            End::Late(rest) => LateRows::Left(rest),
            _ => LateRows::None,
        };
        let position = self.position.get_or_insert_default();
        let found = topics.memberships;
        let taken = self
            .memberships
            .take(position, &batch.snapshot, found, late);
        if !self.are_topics_told {
            self.are_topics_told = true;
            let report = TopicReport {
                topics: self.memberships.topics().len(),
                refused: self.topics.refused(|topic| self.memberships.have(topic)),
                is_truncated: topics.is_truncated,
            };
            if self.topics.asked.is_some() || report.topics > 0 {
                sse::put_topics(chunk, &report);
            }
        }
        taken.unwrap_or_else(|too_many| {
            self.end_if(Err(too_many));
            Taken::ReadAgain
        })
    }

    /// Applies what is known of changes, before a row of a topic is written.
    fn take_changes(&mut self) {
        while let Some(change) = self.connection.take_change() {
            self.change(&change);
        }
    }

    fn change(&mut self, change: &Arc<MembershipChange>) {
        // Before the first page there is no membership that could end.
        let nowhere = Position::default();
        let position = self.position.as_ref().unwrap_or(&nowhere);
        let told = self.memberships.told(position, change);
        if let MembershipChange::One {
            topic, now: None, ..
        } = &**change
            && !self.memberships.have(topic)
        {
            self.connection.remove_route(topic);
        }
        self.end_if(told);
    }

    fn end_if(&mut self, changed: Result<(), TooManyEnded>) {
        if changed.is_err() {
            self.end_for(Ending::TooManyChanges);
        }
    }

    /// Whether to write this row, which is new to the position or late.
    fn wants(&mut self, notification: &Notification) -> bool {
        let before = self.before_crash.as_ref();
        let is_same = before.is_some_and(|before| before.published.has(notification));
        let was_sent =
            is_same && before.is_some_and(|before| !before.position.is_new(notification.key));
        match &notification.topic {
            None => !was_sent,
            Some(topic) if topic.is_everyone() => !was_sent && self.topics.wants(topic),
            Some(topic) => {
                self.take_changes();
                self.memberships.want(topic, notification.key, is_same)
            }
        }
    }

    /// Writes from the current batch until the chunk is large enough.
    fn write_events(&mut self, chunk: &mut BytesMut) {
        let Some(mut current) = self.current.take() else {
            return;
        };
        if let Some(lease) = &current.lease {
            lease.progress();
        }
        let batch = Arc::clone(&current.batch);
        while let Some(event) = batch.events.get(current.index) {
            if chunk.len() >= CHUNK_BYTES {
                self.current = Some(current);
                return;
            }
            let notification = event.notification();
            let from = match current.begun {
                Some(from) => from,
                None => match self.pass(&batch, current.index) {
                    Pass::Write => {
                        self.row = notification.key.id;
                        0
                    }
                    Pass::Skip => {
                        current.index += 1;
                        continue;
                    }
                    Pass::ReadAgain => {
                        self.phase = Phase::CatchingUp(None);
                        return;
                    }
                },
            };
            current.begun = event.put(chunk, self.format, batch.sharing(), from, CHUNK_BYTES);
            if current.begun.is_some() {
                // The chunk is full, and the event is not complete.
                continue;
            }
            sse::put_id(chunk, &self.id());
            self.quiet_heartbeats = 0;
            current.index += 1;
            self.chunk_rows.add(event);
            self.chunk_has_topics |= notification.topic.is_some();
            if let CatchUp::Counting(rows) = &mut self.catch_up {
                *rows += 1;
            }
        }
        if let End::Late(rest) = batch.end {
            self.memberships.finish_late(rest);
        }
        let position = self.position.get_or_insert_default();
        batch.finish(position);
        if let End::CaughtUp { .. } | End::Recent(_) = batch.end {
            // The position is past the memberships too, or else they would stay new to it.
            if let Some(top) = self.memberships.top() {
                position.finish(Some(top), &batch.snapshot, &batch.unread);
            }
            // Rows of topics that were not passed to this connection may have been dropped
            // since the page was read. Another page has them.
            let topics = self.memberships.topics();
            if !self.connection.add_routes(topics, &batch.snapshot) {
                self.go_live(chunk);
            }
        }
    }

    /// Moves past a row of a batch, unless its topic can't be decided on.
    fn pass(&mut self, batch: &Batch, index: usize) -> Pass {
        let notification = batch.events[index].notification();
        let position = self.position.get_or_insert_default();
        if !batch.is_late() && !position.is_new(notification.key) {
            return Pass::Skip;
        }
        // Before the position moves: what a change ends was sent up to here.
        let wants = self.wants(notification);
        if notification.topic.is_some() && self.memberships.is_outdated() {
            return Pass::ReadAgain;
        }
        if batch.is_late() {
            self.memberships.pass_late(notification.key);
        } else {
            let position = self.position.get_or_insert_default();
            batch.advance(position, index);
        }
        match wants && !notification.expires.has_passed() {
            true => Pass::Write,
            false => Pass::Skip,
        }
    }

    /// Continues with the mailbox, which reports if it has overflowed meanwhile.
    fn go_live(&mut self, chunk: &mut BytesMut) {
        self.phase = Phase::Live;
        self.memberships.go_live();
        self.before_crash = None;
        self.first = None;
        if let CatchUp::Counting(rows) = self.catch_up {
            self.catch_up = CatchUp::Announced;
            sse::put_caught_up(chunk, &self.id(), rows);
        }
    }

    /// Adds a heartbeat, a warning or the end of the stream when it is due. A chunk that
    /// isn't empty is returned without one.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, chunk: &mut BytesMut) -> Poll<()> {
        if !chunk.is_empty() {
            return Poll::Ready(());
        }
        ready!(self.alarm.poll(cx));
        if self.ends.has_come() {
            self.end(chunk);
        } else if !self.warn(chunk) {
            self.heartbeat(chunk);
        }
        Poll::Ready(())
    }

    fn heartbeat(&mut self, chunk: &mut BytesMut) {
        self.chunk_rows.rest();
        if let (Phase::Live, Some(position)) = (&self.phase, &mut self.position) {
            self.connection.join_tail(position);
        }
        let (settle, every) = (self.streams.cursors.settle(), self.streams.cursors.every());
        if let Some(position) = &self.position
            && let Some(cursor) = self.cursor.due(position, settle, every)
        {
            self.put_cursor(cursor);
        }
        if self.position.is_none() {
            sse::put_comment(chunk);
        } else if self.quiet_heartbeats < QUIET_HEARTBEATS {
            self.quiet_heartbeats += 1;
            sse::put_id(chunk, &self.id());
        } else {
            self.quiet_heartbeats = 0;
            sse::put_heartbeat(chunk, &self.id());
        }
    }

    /// The bridge ends the stream: at once, or at a random time within the drain time, so
    /// that clients don't all reconnect at the same moment.
    fn end_for(&mut self, reason: Ending) {
        let delay = match reason {
            Ending::Disconnected | Ending::TooManyChanges => Duration::ZERO,
            Ending::Draining | Ending::AnotherHistory => {
                self.streams.drain.mul_f64(rand::random_range(0.0..1.0))
            }
        };
        self.ends = self
            .ends
            .or(StreamDeadline::after(delay, EndReason::Requested(reason)));
        self.set_alarm();
    }

    /// Warns the client that its credentials expire, when it is time.
    fn warn(&mut self, chunk: &mut BytesMut) -> bool {
        if self.is_within_event() {
            return false;
        }
        let now = Instant::now();
        let Some(warning) = self.warning.take_if(|warning| warning.at() <= now) else {
            return false;
        };
        sse::put_expiring(chunk, warning.left());
        true
    }

    /// Ends the stream. An event that was written in part is never completed: without the
    /// blank line the client discards it, and receives it again when it reconnects.
    fn end(&mut self, chunk: &mut BytesMut) {
        if !self.is_within_event() {
            sse::put_retry(chunk, jittered(RETRY));
        }
        self.phase = Phase::Over;
    }

    /// Whether an event has been written in part. Nothing else may be written then: it
    /// would become part of that event.
    fn is_within_event(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.begun.is_some())
    }

    fn put_open(&self, begins: Begins, chunk: &mut BytesMut) {
        sse::put_open(chunk, begins, &self.id());
    }

    fn id(&self) -> EventId<'_> {
        let position = match &self.position {
            Some(position) => Cow::Borrowed(position),
            None => Cow::default(),
        };
        EventId {
            row: self.row,
            history: self.history,
            position,
            safe: self.safe,
            scope: self.cursor.scope(),
        }
    }

    /// The previous chunk has been written: reports its rows.
    fn report(&mut self) {
        let (user, of) = (
            self.connection.subscriber().user(),
            self.history.incarnation,
        );
        let to = &self.streams;
        self.chunk_rows.report(user, of, &to.marks, &to.activity);
        if std::mem::take(&mut self.chunk_has_topics)
            && let Some(position) = &self.position
        {
            self.cursor.write(position, to.cursors.settle());
        }
    }

    /// The stream has ended: stores where the user continues in the topics.
    fn put_last_cursor(&mut self, how: Closed) {
        let Some(position) = &self.position else {
            return;
        };
        // Until anyone uses topics, nothing has to be stored. A page may have a row of a
        // topic before the tail has.
        if matches!(self.cursor, StreamCursor::Untouched(_)) && !self.streams.hub.has_topics() {
            return;
        }
        let last_chunk = match self.chunk_has_topics {
            true => LastChunk::HasTopics,
            false => LastChunk::Written,
        };
        let settle = self.streams.cursors.settle();
        if let Some(cursor) = self.cursor.last(position, last_chunk, how, settle) {
            self.put_cursor(cursor);
        }
    }

    fn put_cursor(&self, cursor: Position) {
        if let Some(user) = self.connection.subscriber().user() {
            self.streams.cursors.put(user, self.history, cursor);
        }
    }

    /// Updates the durable floor, which moves as the log is flushed.
    fn refresh_safe(&mut self) {
        if let Some(safe) = self.streams.hub.safe(self.history) {
            self.safe = safe;
        }
    }

    /// Schedules the next wake-up, given that something was just written.
    fn set_alarm(&mut self) {
        let heartbeat = self.streams.heartbeats.next();
        let warning = self.warning.map_or(heartbeat, Warning::at);
        self.alarm.set(heartbeat.min(warning).min(self.ends.at()));
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let reason = match self.phase {
            Phase::Over => self.ends.reason(),
            _ => EndReason::Left,
        };
        self.chunk_rows.close(reason.closed(), &self.streams.marks);
        self.put_last_cursor(reason.closed());
        self.streams.ended.count(reason);
        let _entered = self.span.as_deref().map(Span::enter);
        let reason = reason.name();
        debug!(reason, "a stream has ended: {reason}");
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        let span = stream.span.as_deref().cloned();
        let _entered = span.map(Span::entered);
        stream.report();
        if let Phase::Over = stream.phase {
            return Poll::Ready(None);
        }
        stream.refresh_safe();
        let mut chunk = BytesMut::new();
        stream.warn(&mut chunk);
        if stream.poll_fill(cx, &mut chunk).is_pending() {
            return Poll::Pending;
        }
        stream.set_alarm();
        Poll::Ready(Some(Ok(chunk.freeze())))
    }
}

#[cfg(test)]
mod tests;
