//! One connection's stream of events: the pages of its catch-up, then what is
//! live, without gap or repeat between them.
//!
//! The connection registers with the hub first, then pages from its position
//! until a page is short, then goes live. What is live passes the same test as
//! what was caught up: is it new to *this connection's* position?

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
        catch_up::{Lease, Outcome, Page, Pages, Reading, Wanted},
        chunk_rows::HandedOut,
        counters::Activity,
        heartbeat::{Alarm, Heartbeats},
        hub::{Connection, Hub},
        mailbox::{Ending, Letter, Recovery},
        marker::{Acknowledgement, Marks},
        page_reader::PageSize,
        recent_disconnections::Noted,
        sse::{self, Begins, Format, Gap},
        stream_end::{Ended, Ends, Reason, Warning},
    },
    domain::{
        history::History,
        identity::Identity,
        position::{EventId, Position},
        snapshot::Xid,
    },
    runtime::backoff::jittered,
};

/// Bytes after which a chunk goes to the socket: a burst of small events costs
/// one system call, and a slow reader holds little more than this.
const CHUNK_BYTES: usize = 16 << 10;

/// When a browser comes back by itself: half to all of this, so that a restart
/// of the bridge is not a stampede.
const RETRY: Duration = Duration::from_secs(3);

/// Heartbeats without data between two with data, while no other event carries an id.
///
/// Most heartbeats are an id alone, which costs a browser nothing, as it fires no event.
/// Firefox and many libraries ignore that id: the position of an idle tab would stay
/// where it was, until rows that it never missed are pruned and it is told of a gap.
/// With heartbeats of 15 s this is an event of 60 bytes every five minutes.
const QUIET_HEARTBEATS: u8 = 19;

/// What all streams share.
#[derive(Debug)]
pub struct Streams {
    /// Where they register.
    pub hub: Arc<Hub>,
    /// Where they report what they have written.
    pub marks: Arc<Marks>,
    /// Where it is counted.
    pub activity: Arc<Activity>,
    /// Where they read what they missed.
    pub pages: Arc<Pages>,
    /// When a stream that is silent gets one.
    pub heartbeats: Heartbeats,
    /// The span over which streams end when the bridge stops.
    pub drain: Duration,
    /// The longest that a stream lives.
    pub max_age: Duration,
    /// Those that were.
    pub ended: Ended,
}

/// What a stream holds for its caller as long as it lives.
type Place = Box<dyn Any + Send + Sync>;

/// The body of one response.
///
/// Each poll means that all earlier bytes are in the kernel's hands (`http::detached_stream`
/// sees to it, and in the server a write buffer of one byte; [`crate::tls::server_certificate`] tells
/// what HTTPS adds), so that is when rows count as sent.
pub struct EventStream {
    /// Its place among those that may be open. It is given back before the hub
    /// forgets the connection: whom the hub doesn't count takes no place.
    _place: Option<Place>,
    streams: Arc<Streams>,
    connection: Connection,
    format: Format,
    history: History,
    /// Transaction ids below this one are on disk; it goes into every id.
    safe: Xid,
    /// What the bridge had seen when the connection was opened. What is new to
    /// it concerns the connection, even if another one was sent it, and it is
    /// marked, before the first page is read.
    opened: Arc<Position>,
    /// What the connection has been sent; unknown until the first page, for one
    /// that came without.
    position: Option<Position>,
    /// How many of the user's last rows the first page begins with.
    replay: u32,
    /// The row that was last written to the client, on this connection or on an earlier
    /// one that it continues, or 0.
    row: i64,
    phase: Phase,
    /// What is being written, and how far. Boxed, as idle streams have none.
    current: Option<Box<Current>>,
    /// How large a page may be: smaller once one did not come in time.
    page_size: PageSize,
    /// The rows in the chunk that was last handed out.
    handed_out: HandedOut,
    catch_up: CatchUp,
    pruned: Pruned,
    ends: Ends,
    /// Heartbeats without data since the last event that carried an id.
    quiet_heartbeats: u8,
    /// Of the end of the client's identity; taken when it is given.
    warning: Option<Warning>,
    /// Rings for the heartbeat or the end, whichever comes first.
    alarm: Alarm,
    /// What its lines in the log have in common. Boxed, as there hardly ever is one,
    /// and thousands of streams that are idle.
    span: Option<Box<Span>>,
}

enum Phase {
    Opening(Opening),
    /// Between two pages, or waiting for one.
    CatchingUp(Option<Reading>),
    Live,
    /// Of a history that has ended; the bridge is about to end the stream.
    Outlived,
    Over,
}

/// What is being written.
struct Current {
    batch: Arc<Batch>,
    /// The event that is next, or is being written.
    index: usize,
    /// Where its text goes on, once it has begun.
    begun: Option<usize>,
    /// The memory that a page takes. Of live rows all connections of a user have
    /// the same.
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

/// Whether the client has been told that it is up to date, which it is once.
enum CatchUp {
    Counting(u64),
    Told,
}

/// Whether rows that the client had not been sent may have been removed for
/// good.
enum Pruned {
    /// Not known before the first page.
    Unknown,
    /// The client has been told, or there was nothing to tell.
    Settled,
}

impl EventStream {
    /// Opens the stream of somebody who was identified after `noted`. Dropping
    /// it takes it out of the hub.
    pub fn open(
        streams: &Arc<Streams>,
        identity: &Identity,
        noted: Noted,
        start: &Start,
        format: Format,
    ) -> Self {
        let (connection, tail) = streams.hub.register(identity, noted);
        let history = tail.history;
        let ends = Ends::of_age(streams.max_age).or_expiry(identity.expires);
        Self {
            _place: None,
            connection,
            format,
            history,
            safe: tail.safe,
            opened: Arc::clone(&tail.position),
            position: None,
            replay: 0,
            row: 0,
            phase: Phase::Opening(Opening::read(start, history)),
            current: None,
            page_size: PageSize::USER,
            handed_out: HandedOut::since(streams.activity.clock.now()),
            catch_up: CatchUp::Counting(0),
            pruned: Pruned::Unknown,
            ends,
            quiet_heartbeats: 0,
            warning: identity.expires.map(Warning::before),
            // It may have to end before it is ever polled for its first bytes.
            alarm: Alarm::at(streams.heartbeats.next().min(ends.at())),
            span: None,
            streams: Arc::clone(streams),
        }
    }

    /// Drops `place` with the stream: its place among those that may be open.
    pub fn holding(mut self, place: impl Send + Sync + 'static) -> Self {
        self._place = Some(Box::new(place));
        self
    }

    /// By which the log knows it.
    pub fn number(&self) -> u64 {
        self.connection.number()
    }

    /// The log is told of what it does in this span.
    pub fn within(mut self, span: Span) -> Self {
        self.span = (!span.is_disabled()).then(|| Box::new(span));
        self
    }

    /// Resolves once the stream must end although its client takes nothing: its
    /// time has come, or the bridge ends it. To be polled while earlier bytes
    /// wait for the client; nothing more can be said to it then.
    pub fn poll_cut_off(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Poll::Ready(ending) = self.connection.poll_ending(cx) {
                self.end_for(ending);
            }
            if let Some(lease) = self.current.as_ref().and_then(|it| it.lease.as_ref())
                && lease.poll_cut_off(cx).is_ready()
            {
                self.ends = self.ends.or(Ends::after(Duration::ZERO, Reason::Stalled));
            }
            if self.ends.has_come() {
                self.phase = Phase::Over;
                return Poll::Ready(());
            }
            ready!(self.alarm.poll(cx));
            // It rang for a heartbeat or a warning, which have to wait.
            let heartbeat = self.streams.heartbeats.next();
            self.alarm.set(heartbeat.min(self.ends.at()));
        }
    }

    /// The client takes nothing any more.
    pub fn fall_silent(&mut self) {
        self.ends = self.ends.or(Ends::after(Duration::ZERO, Reason::Silent));
        self.phase = Phase::Over;
    }

    /// Fills `chunk` until it is large enough, or there is nothing to add now.
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
                    Poll::Ready(Outcome::Page(page)) => self.take_page(page, chunk),
                    Poll::Ready(Outcome::Over) => match self.connection.skip_to_recovery() {
                        Some(recovery) => {
                            self.phase = Phase::CatchingUp(None);
                            self.recover(recovery);
                        }
                        None => self.phase = Phase::Outlived,
                    },
                    Poll::Ready(Outcome::Failed) => {
                        self.ends = self.ends.or(Ends::after(Duration::ZERO, Reason::Failed));
                    }
                    Poll::Pending => return self.poll_alarm(cx, chunk),
                },
                Phase::Live => match self.connection.poll_letter(cx) {
                    Poll::Ready(Letter::Batch(batch)) => {
                        self.current = Some(Current::new(batch, None));
                    }
                    Poll::Ready(Letter::Recovered(recovery)) => self.recover(recovery),
                    Poll::Ready(Letter::Overflowed) => self.phase = Phase::CatchingUp(None),
                    Poll::Pending => return self.poll_alarm(cx, chunk),
                },
                Phase::Outlived => return self.poll_alarm(cx, chunk),
                Phase::Over => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    /// The first bytes, which go out before the database is asked.
    fn begin(&mut self, opening: Opening, chunk: &mut BytesMut) {
        let retry = jittered(RETRY);
        match opening {
            Opening::Backlog { replay } => {
                self.replay = replay;
                sse::put_retry(chunk, retry);
            }
            Opening::Resume(id) => {
                let acknowledged = Acknowledgement::of(self.connection.user(), &id);
                if let Some(acknowledged) = acknowledged {
                    self.streams.marks.acknowledge(acknowledged);
                }
                self.row = id.row;
                self.position = Some(id.position.into_owned());
                sse::put_retry_line(chunk, retry);
                self.put_open(Begins::Resumed, chunk);
            }
            Opening::Gap(reason) => {
                // Of what it missed there is nothing to be known.
                self.pruned = Pruned::Settled;
                debug!(?reason, "the client's last id can't be used");
                sse::put_retry(chunk, retry);
                sse::put_gap(chunk, reason.into());
            }
        }
    }

    /// Postgres has crashed: what was not on disk may be something else now.
    fn recover(&mut self, recovery: Recovery) {
        self.history = recovery.history;
        self.safe = recovery.safe;
        Arc::make_mut(&mut self.opened).fall_to(recovery.safe);
        if let Some(position) = &mut self.position {
            position.fall_to(recovery.safe);
        }
        // Another row may bear the id of one that is gone.
        self.handed_out.forget(&self.streams.marks);
    }

    /// Asks for the page after the position, or for the first one.
    fn next_page(&self) -> Reading {
        // What is dropped from now on is not in this page.
        self.connection.reopen();
        self.streams.pages.read(Wanted {
            user: self.connection.user().clone(),
            history: self.history,
            position: self.position.clone(),
            opened: Arc::clone(&self.opened),
            replay: self.replay,
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
        if let (Pruned::Unknown, Some(position)) = (&self.pruned, &self.position)
            && let Some(pruned) = page.pruned
            && position.may_miss(pruned, &page.batch.snapshot)
        {
            sse::put_gap(chunk, Gap::Pruned);
        }
        self.pruned = Pruned::Settled;
        self.current = Some(Current::new(Arc::new(page.batch), Some(lease)));
        if let Some(start) = start {
            // A client whose connection breaks before its first row returns with an
            // id: rows that another connection has settled would be lost to it
            // otherwise.
            self.position = Some(start);
            self.put_open(Begins::Anew, chunk);
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
        let position = self.position.get_or_insert_default();
        while let Some(event) = batch.events.get(current.index) {
            if chunk.len() >= CHUNK_BYTES {
                self.current = Some(current);
                return;
            }
            let notification = event.notification();
            let from = match current.begun {
                Some(from) => from,
                None if position.is_new(notification.key) => {
                    batch.advance(position, current.index);
                    if notification.expires.has_passed() {
                        current.index += 1;
                        continue;
                    }
                    self.row = notification.key.id;
                    0
                }
                None => {
                    current.index += 1;
                    continue;
                }
            };
            current.begun = event.put(chunk, self.format, batch.sharing(), from, CHUNK_BYTES);
            if current.begun.is_some() {
                // The chunk is full in the middle of the event.
                continue;
            }
            let id = EventId {
                row: self.row,
                history: self.history,
                position: Cow::Borrowed(position),
                safe: self.safe,
            };
            sse::put_id(chunk, &id);
            self.quiet_heartbeats = 0;
            current.index += 1;
            self.handed_out.add(event);
            if let CatchUp::Counting(rows) = &mut self.catch_up {
                *rows += 1;
            }
        }
        batch.finish(position);
        if let End::CaughtUp { .. } = batch.end {
            self.go_live(chunk);
        }
    }

    /// What comes next is in the mailbox; if that has overflowed meanwhile, it
    /// says so.
    fn go_live(&mut self, chunk: &mut BytesMut) {
        self.phase = Phase::Live;
        if let CatchUp::Counting(rows) = self.catch_up {
            self.catch_up = CatchUp::Told;
            sse::put_caught_up(chunk, &self.id(), rows);
        }
    }

    /// Adds a heartbeat or the end of the stream to an otherwise empty chunk,
    /// when it is time.
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
        self.handed_out.rest();
        if let (Phase::Live, Some(position)) = (&self.phase, &mut self.position) {
            self.connection.join_tail(position);
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

    /// The bridge wants it to end: at once, or spread over the drain time, so
    /// that not all come back in the same moment.
    fn end_for(&mut self, reason: Ending) {
        let delay = match reason {
            Ending::Disconnected => Duration::ZERO,
            Ending::Draining | Ending::AnotherHistory => {
                self.streams.drain.mul_f64(rand::random_range(0.0..1.0))
            }
        };
        self.ends = self.ends.or(Ends::after(delay, Reason::Told(reason)));
        self.set_alarm();
    }

    /// Tells the client that its identity expires, when it is time.
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

    /// An event of which only a part was written is never completed: its client drops
    /// it, as there is no blank line, and gets it again.
    fn end(&mut self, chunk: &mut BytesMut) {
        if !self.is_within_event() {
            sse::put_retry(chunk, jittered(RETRY));
        }
        self.phase = Phase::Over;
    }

    /// Whether an event is written in part. Nothing else may be written then: it would
    /// become a part of that event.
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
        }
    }

    /// What was handed out last has been written by now.
    fn report(&mut self) {
        let (user, of) = (self.connection.user(), self.history.incarnation);
        let to = &self.streams;
        self.handed_out.report(user, of, &to.marks, &to.activity);
    }

    /// Takes over how far the log has been flushed meanwhile.
    fn refresh_safe(&mut self) {
        if let Some(safe) = self.streams.hub.safe(self.history) {
            self.safe = safe;
        }
    }

    /// Silence begins now.
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
            _ => Reason::Left,
        };
        self.handed_out.close(reason.closed(), &self.streams.marks);
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
