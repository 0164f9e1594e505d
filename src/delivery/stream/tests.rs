//! The state machine without Postgres and without a socket, with paused time.

use std::fmt;

use futures_util::{StreamExt, task::noop_waker};
use tokio::{
    sync::{mpsc, oneshot},
    time::{advance, timeout},
};

use super::*;
use crate::{
    delivery::{
        catch_up::PageMemory,
        hub::{Reading as TailReading, Tail},
        page_reader::{FirstStart, UserPage},
    },
    domain::{
        history::{Incarnation, Since},
        membership::Membership,
        notification::{Addressee, Expiry, Notification, UserId},
        position::{self, RowKey},
        snapshot::Snapshot,
    },
};

const HEARTBEAT: Duration = Duration::from_secs(15);
const DRAIN: Duration = Duration::from_secs(20);
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// Bytes of text that wait for a connection at most.
const QUEUE_BYTES: usize = 100;

/// The server before and after a crash.
const BEFORE: History = history(1);
const AFTER: History = history(2);

const fn history(since: i64) -> History {
    History {
        system_identifier: 7,
        incarnation: Incarnation {
            timeline: 1,
            since: Since(since),
        },
    }
}

/// Hands the streams' requests for pages to the test.
struct Requests(mpsc::UnboundedSender<(Wanted, oneshot::Sender<PageOutcome>)>);

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}

impl PageSource for Requests {
    fn read(self: Arc<Self>, wanted: Wanted) -> PendingPage {
        let (reply, reading) = PendingPage::channel();
        self.0.send((wanted, reply)).expect("a test");
        reading
    }
}

/// A bridge without listener and database: the test reads pages and publishes rows.
struct Fixture {
    streams: Arc<Streams>,
    hub: Arc<Hub>,
    requests: mpsc::UnboundedReceiver<(Wanted, oneshot::Sender<PageOutcome>)>,
    memory: Arc<PageMemory>,
}

impl Fixture {
    fn new() -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let hub = Arc::new(Hub::new(QUEUE_BYTES));
        hub.start(tail(BEFORE, 1));
        let streams = Arc::new(Streams {
            hub: Arc::clone(&hub),
            marks: Arc::new(Marks::new(Duration::ZERO, Arc::default())),
            activity: Arc::default(),
            pages: Arc::new(Requests(sender)),
            cursors: Arc::new(Cursors::new(Duration::ZERO, Duration::MAX)),
            heartbeats: Heartbeats::every(HEARTBEAT),
            drain: DRAIN,
            max_age: MAX_AGE,
            ended: Ended::default(),
        });
        let memory = Arc::default();
        Self {
            streams,
            hub,
            requests,
            memory,
        }
    }

    fn open(&self, start: Start) -> EventStream {
        self.open_until(start, None)
    }

    fn open_until(&self, start: Start, expires: Option<Instant>) -> EventStream {
        let identity = Identity {
            expires,
            ..Identity::from(alice())
        };
        let noted = self.hub.note();
        EventStream::open(&self.streams, &identity, noted, &start, Format::Text)
    }

    /// A stream that has caught up, and received nothing.
    async fn live(&mut self) -> EventStream {
        let mut stream = self.open(Start::Backlog { replay: 0 });
        self.answer(&mut stream, &[], Rest::Nothing).await;
        let written = written(&mut stream);
        assert!(written.contains("tidings.caught-up"), "{written}");
        stream
    }

    /// The next request for a page, which the stream makes when it is polled.
    fn request(&mut self, stream: &mut EventStream) -> (Wanted, oneshot::Sender<PageOutcome>) {
        // What it writes before, such as its first bytes, is of no interest here.
        while poll(stream).is_ready() {}
        self.requests.try_recv().expect("a request for a page")
    }

    /// Answers the next request with these rows.
    async fn answer(&mut self, stream: &mut EventStream, rows: &[i64], rest: Rest) {
        let (wanted, reply) = self.request(stream);
        let page = self.page(&wanted, rows, rest).await;
        reply
            .send(PageOutcome::Page(Box::new(page)))
            .expect("a stream that waits");
    }

    async fn page(&self, wanted: &Wanted, rows: &[i64], rest: Rest) -> Page {
        let last = rows.iter().copied().max();
        let batch = Batch {
            events: rows
                .iter()
                .map(|&id| Arc::new(notification(id).into()))
                .collect(),
            snapshot: Arc::new(snapshot(last.unwrap_or(1))),
            unread: Arc::default(),
            last: last.map(key),
            end: match rest {
                Rest::More => End::MorePages,
                Rest::Nothing => End::CaughtUp { top: None },
            },
        };
        Page {
            start: wanted.position.is_none().then(|| FirstStart {
                position: Position::default(),
                reading: FirstReading {
                    opened: Arc::clone(&wanted.opened),
                    own: Xid::default(),
                    cursor: Cursor::Stored,
                    replayed: None,
                },
            }),
            size: PageSize::USER,
            page: UserPage {
                incarnation: wanted.history.incarnation,
                pruned: None,
                batch,
                topics: PageTopics::default(),
            },
            lease: Some(self.memory.reserve(1).await),
        }
    }

    /// The listener has read these rows of alice.
    fn publish(&self, rows: &[i64]) {
        let last = rows.iter().copied().max().expect("a row");
        let rows = rows
            .iter()
            .map(|&id| (Addressee::User(alice()), notification(id)));
        self.hub.publish(TailReading {
            changes: Vec::new(),
            notifications: rows.collect(),
            snapshot: Arc::new(snapshot(last)),
            unread: Arc::default(),
            tail: tail(BEFORE, last),
        });
    }

    /// How often a stream has ended for this reason.
    fn ended(&self, reason: EndReason) -> u64 {
        self.streams.ended.of(reason)
    }
}

/// Whether the table has more rows than a page.
#[derive(Clone, Copy)]
enum Rest {
    More,
    Nothing,
}

fn alice() -> UserId {
    UserId::parse("alice").expect("a user")
}

/// Each row is a transaction of its own, with the row's id as its xid.
fn key(id: i64) -> RowKey {
    RowKey {
        xid: Xid(id.unsigned_abs()),
        id,
    }
}

fn notification(id: i64) -> Notification {
    Notification {
        key: key(id),
        event: None,
        text: format!("row {id}"),
        created_at: None,
        expires: Expiry::Never,
        reference: None,
        topic: None,
    }
}

/// In which transactions up to this one have ended.
fn snapshot(last: i64) -> Snapshot {
    Snapshot::new(key(last).xid.next(), Vec::new())
}

fn tail(history: History, last: i64) -> Tail {
    Tail {
        history,
        position: Arc::new(Position::after(Some(key(last).xid), &snapshot(last))),
        safe: key(last).xid.next(),
    }
}

fn poll(stream: &mut EventStream) -> Poll<Option<Result<Bytes, Infallible>>> {
    stream.poll_next_unpin(&mut Context::from_waker(&noop_waker()))
}

/// What the stream writes without waiting.
fn written(stream: &mut EventStream) -> String {
    let mut written = String::new();
    while let Poll::Ready(Some(Ok(chunk))) = poll(stream) {
        written += std::str::from_utf8(&chunk).expect("text");
    }
    written
}

/// What it writes next, and how much time passes until then. `None` is its end.
async fn next(stream: &mut EventStream) -> (Option<String>, Duration) {
    let begin = Instant::now();
    let chunk = timeout(2 * MAX_AGE, stream.next()).await;
    let chunk = chunk.expect("it is not stuck").map(|chunk| {
        let chunk = chunk.expect("bytes");
        std::str::from_utf8(&chunk).expect("text").to_owned()
    });
    (chunk, begin.elapsed())
}

/// The ids of the rows in a piece of the stream, in their order.
fn rows(written: &str) -> Vec<i64> {
    let texts = written
        .lines()
        .filter_map(|line| line.strip_prefix("data: row "));
    texts.map(|id| id.parse().expect("a number")).collect()
}

/// The last id that a client has after a piece of the stream.
fn last_id(written: &str) -> String {
    let mut ids = written.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.next_back().expect("an id").to_owned()
}

#[tokio::test(start_paused = true)]
async fn rows_published_during_the_catch_up_follow_its_pages_without_gap_or_repeat() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    let (wanted, reply) = fixture.request(&mut stream);
    assert!(wanted.position.is_none());
    fixture.publish(&[3, 4]);
    let page = fixture.page(&wanted, &[2, 3], Rest::More).await;
    reply
        .send(PageOutcome::Page(Box::new(page)))
        .expect("a stream");
    assert_eq!(rows(&written(&mut stream)), [2, 3]);
    // The page that is missing has one of the rows that wait in the mailbox.
    let (wanted, reply) = fixture.requests.try_recv().expect("the next request");
    assert!(!wanted.position.as_ref().expect("a position").is_new(key(3)));
    fixture.publish(&[5]);
    let page = fixture.page(&wanted, &[4], Rest::Nothing).await;
    reply
        .send(PageOutcome::Page(Box::new(page)))
        .expect("a stream");
    let written = written(&mut stream);
    assert_eq!(rows(&written), [4, 5]);
    let caught_up = written.find("tidings.caught-up").expect("it is live");
    assert!(caught_up < written.find("row 5").expect("a live row"));
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_makes_a_live_stream_read_pages_again() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    for id in 2..40 {
        fixture.publish(&[id]);
    }
    assert_eq!(fixture.hub.audience().overflows, 1);
    fixture
        .answer(&mut stream, &(2..40).collect::<Vec<_>>(), Rest::Nothing)
        .await;
    let written = written(&mut stream);
    assert_eq!(rows(&written), (2..40).collect::<Vec<_>>());
    assert!(!written.contains("caught-up"), "it is reported once");
    fixture.publish(&[40]);
    assert_eq!(rows(&self::written(&mut stream)), [40]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_returns_continues_after_its_id() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    fixture.publish(&[2]);
    let id = last_id(&written(&mut stream));
    drop(stream);
    let mut stream = fixture.open(Start::Resume(id));
    let (first, _) = next(&mut stream).await;
    let first = first.expect("its first bytes");
    assert!(first.contains(r#"{"resumed":true}"#), "{first}");
    let (wanted, _reply) = fixture.requests.try_recv().expect("a request");
    let position = wanted.position.expect("a position");
    assert!(!position.is_new(key(2)) && position.is_new(key(3)));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_cannot_be_used_is_answered_with_a_gap_and_the_backlog() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Resume("nonsense".to_owned()));
    let (first, _) = next(&mut stream).await;
    let first = first.expect("its first bytes");
    assert!(first.contains(r#"{"reason":"malformed"}"#), "{first}");
    let (wanted, _reply) = fixture.requests.try_recv().expect("a request");
    assert!(wanted.position.is_none());
}

#[tokio::test(start_paused = true)]
async fn rows_that_were_removed_unseen_are_reported_as_a_gap() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    let id = last_id(&{
        fixture.publish(&[2]);
        written(&mut stream)
    });
    for (pruned, expected) in [(2, false), (3, true)] {
        let mut stream = fixture.open(Start::Resume(id.clone()));
        let (wanted, reply) = fixture.request(&mut stream);
        let mut page = fixture.page(&wanted, &[9], Rest::Nothing).await;
        page.page.pruned = Some(key(pruned).xid);
        reply
            .send(PageOutcome::Page(Box::new(page)))
            .expect("a stream");
        let written = written(&mut stream);
        assert_eq!(
            written.contains(r#"{"reason":"pruned"}"#),
            expected,
            "{written}"
        );
        assert_eq!(rows(&written), [9]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_sends_heartbeats_and_some_of_them_as_events() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    // The bridge has read rows of other users since.
    fixture.hub.start(tail(BEFORE, 50));
    let mut as_events = Vec::new();
    let begin = Instant::now();
    for number in 1..=2 * (u32::from(QUIET_HEARTBEATS) + 1) {
        let (heartbeat, silence) = next(&mut stream).await;
        let heartbeat = heartbeat.expect("a heartbeat");
        assert!(silence <= HEARTBEAT + HEARTBEAT / 50, "{silence:?}");
        assert!(last_id(&heartbeat).len() > 3, "{heartbeat}");
        if heartbeat.contains("tidings.heartbeat") {
            as_events.push(number);
        }
        if number == 1 {
            let mut returned = fixture.open(Start::Resume(last_id(&heartbeat)));
            let (wanted, _reply) = fixture.request(&mut returned);
            let position = wanted.position.expect("a position");
            assert!(!position.is_new(key(50)), "it moves with the bridge's");
        }
    }
    assert_eq!(as_events, [20, 40]);
    let average = begin.elapsed() / 40;
    assert!(average >= HEARTBEAT - HEARTBEAT / 50, "{average:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_warns_before_its_credentials_expire_and_ends_with_them() {
    let mut fixture = Fixture::new();
    let expires = Instant::now() + Duration::from_secs(600);
    let mut stream = fixture.open_until(Start::Backlog { replay: 0 }, Some(expires));
    fixture.answer(&mut stream, &[], Rest::Nothing).await;
    let mut warned = None;
    loop {
        match next(&mut stream).await.0 {
            Some(text) if text.contains("tidings.expiring") => {
                assert_eq!(warned.replace(Instant::now()), None, "once");
            }
            Some(text) if text.starts_with("retry: ") => {
                assert!(Instant::now() >= expires);
            }
            Some(_) => {}
            None => break,
        }
    }
    let warned = warned.expect("a warning");
    assert!(warned < expires - Duration::from_secs(5));
    assert!(Instant::now() < expires + Duration::from_secs(1));
    drop(stream);
    assert_eq!(fixture.ended(EndReason::Expired), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_maximum_age_and_says_when_to_reconnect() {
    let mut fixture = Fixture::new();
    let begin = Instant::now();
    let mut stream = fixture.live().await;
    let mut last = String::new();
    while let (Some(text), _) = next(&mut stream).await {
        last = text;
    }
    assert!(last.starts_with("retry: "), "{last}");
    let age = begin.elapsed();
    assert!(
        age >= MAX_AGE.mul_f64(0.74) && age <= MAX_AGE + HEARTBEAT,
        "{age:?}"
    );
    drop(stream);
    assert_eq!(fixture.ended(EndReason::Age), 1);
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_drains_ends_a_stream_within_the_drain_time_and_delivers_until_then() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    let begin = Instant::now();
    fixture.hub.end_all(Ending::Draining);
    fixture.publish(&[2]);
    let mut all = String::new();
    while let (Some(text), _) = next(&mut stream).await {
        all += &text;
    }
    assert!(begin.elapsed() <= DRAIN, "{:?}", begin.elapsed());
    assert_eq!(rows(&all), [2]);
    assert!(all.contains("retry: "), "{all}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_client_reads_nothing_ends_in_time_without_being_written_to() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    fixture.hub.end_all(Ending::Disconnected);
    let cut_off = std::future::poll_fn(|cx| stream.poll_cut_off(cx));
    timeout(Duration::from_secs(1), cut_off)
        .await
        .expect("its end");
    assert!(matches!(poll(&mut stream), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_rows_that_reuse_ids_are_delivered() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    fixture.publish(&[2, 3]);
    assert_eq!(rows(&written(&mut stream)), [2, 3]);
    // Of these two only the first was on disk.
    let recovery = Recovery {
        history: AFTER,
        safe: key(3).xid,
        published: Arc::default(),
    };
    fixture.hub.recover(recovery, tail(AFTER, 2));
    let mut reading = TailReading {
        changes: Vec::new(),
        notifications: vec![(Addressee::User(alice()), notification(3))],
        snapshot: Arc::new(snapshot(3)),
        unread: Arc::default(),
        tail: tail(AFTER, 3),
    };
    reading.notifications[0].1.text = "row 3".to_owned();
    fixture.hub.publish(reading);
    assert_eq!(rows(&written(&mut stream)), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_history_that_has_ended_waits_for_the_end_of_the_stream() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    let (_, reply) = fixture.request(&mut stream);
    reply.send(PageOutcome::Over).expect("a stream");
    assert!(written(&mut stream).is_empty());
    fixture.hub.end_all(Ending::AnotherHistory);
    let begin = Instant::now();
    while next(&mut stream).await.0.is_some() {}
    assert!(begin.elapsed() <= DRAIN, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_ends_before_the_crash_is_announced_is_read_again() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    let (_, reply) = fixture.request(&mut stream);
    reply.send(PageOutcome::Over).expect("a stream");
    assert!(written(&mut stream).is_empty());
    let recovery = Recovery {
        history: AFTER,
        safe: key(1).xid,
        published: Arc::default(),
    };
    fixture.hub.recover(recovery, tail(AFTER, 1));
    let (wanted, _) = fixture.request(&mut stream);
    assert_eq!(wanted.history, AFTER);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_for_good_ends_the_stream_at_once() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    let (_, reply) = fixture.request(&mut stream);
    drop(reply);
    advance(Duration::from_millis(1)).await;
    let begin = Instant::now();
    while next(&mut stream).await.0.is_some() {}
    assert!(begin.elapsed() < Duration::from_secs(1));
    drop(stream);
    assert_eq!(fixture.ended(EndReason::Failed), 1);
}

#[tokio::test(start_paused = true)]
async fn rows_count_as_written_when_the_stream_is_polled_after_them_and_not_before() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    fixture.publish(&[2, 3]);
    let Poll::Ready(Some(Ok(chunk))) = poll(&mut stream) else {
        panic!("a chunk");
    };
    assert_eq!(rows(std::str::from_utf8(&chunk).expect("text")), [2, 3]);
    assert_eq!(fixture.streams.marks.counts().delivered, 0);
    assert!(poll(&mut stream).is_pending());
    assert_eq!(fixture.streams.marks.counts().delivered, 2);
}

fn team() -> Topic {
    Topic::parse("team").expect("a topic")
}

/// Of a user who joined in this transaction, after all earlier ones.
fn joined(xid: u64) -> Membership {
    Membership {
        xid: Some(Xid(xid)),
        since: Some(Arc::new(Snapshot::new(Xid(xid), Vec::new()))),
    }
}

fn team_row(id: i64) -> Notification {
    Notification {
        topic: Some(team()),
        ..notification(id)
    }
}

impl Fixture {
    /// Answers the next request with rows of the team, and alice's membership.
    async fn answer_team(
        &mut self,
        stream: &mut EventStream,
        membership: Option<Membership>,
        rows: &[i64],
        end: End,
    ) -> Wanted {
        let (wanted, reply) = self.request(stream);
        let mut page = self.page(&wanted, rows, Rest::Nothing).await;
        let events = rows.iter().map(|&id| Arc::new(team_row(id).into()));
        page.page.batch.events = events.collect();
        page.page.batch.end = end;
        page.page.topics = PageTopics {
            memberships: membership.into_iter().map(|one| (team(), one)).collect(),
            is_truncated: false,
        };
        let sent = reply.send(PageOutcome::Page(Box::new(page)));
        sent.expect("a stream that waits");
        wanted
    }

    /// A stream of alice, who is in the team, that is live.
    async fn live_in_team(&mut self) -> EventStream {
        let mut stream = self.open(Start::Backlog { replay: 0 });
        let end = End::CaughtUp { top: None };
        self.answer_team(&mut stream, Some(joined(1)), &[], end)
            .await;
        let written = written(&mut stream);
        assert!(written.contains("tidings.caught-up"), "{written}");
        stream
    }

    /// The listener has read rows of the team, and that alice's membership has changed.
    fn publish_team(&self, rows: &[i64], changed: Option<(u64, Option<Membership>)>) {
        let change = changed.map(|(xid, now)| {
            Arc::new(MembershipChange::One {
                user: alice(),
                topic: team(),
                xid: Xid(xid),
                now,
            })
        });
        let last = rows.iter().copied().max().unwrap_or(4);
        let rows = rows
            .iter()
            .map(|&id| (Addressee::Topic(team()), team_row(id)));
        self.hub.publish(TailReading {
            changes: change.into_iter().collect(),
            notifications: rows.collect(),
            snapshot: Arc::new(snapshot(last)),
            unread: Arc::default(),
            tail: tail(BEFORE, last),
        });
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_left_a_topic_is_written_none_of_its_rows_not_even_those_that_wait() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live_in_team().await;
    fixture.publish_team(&[2], None);
    assert_eq!(rows(&written(&mut stream)), [2]);
    fixture.publish_team(&[3], None);
    fixture.publish_team(&[], Some((4, None)));
    fixture.publish(&[5]);
    fixture.publish_team(&[6], None);
    assert_eq!(rows(&written(&mut stream)), [5]);
    assert_eq!(fixture.hub.audience().topics, 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_tail_reads_before_a_topic_is_routed_is_in_another_page() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    fixture.publish_team(&[2], None);
    for rows in [&[][..], &[2]] {
        let end = End::CaughtUp { top: None };
        fixture
            .answer_team(&mut stream, Some(joined(1)), rows, end)
            .await;
    }
    fixture.publish_team(&[3], None);
    let written = written(&mut stream);
    assert_eq!(rows(&written), [2, 3]);
    assert!(written.contains("tidings.caught-up"), "{written}");
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_reads_late_rows_whose_ids_keep_the_position() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.live().await;
    fixture.publish(&[4]);
    let before = last_id(&written(&mut stream));
    // The transaction 2 joined before 3 wrote its row, and was committed after.
    fixture.publish_team(&[], Some((2, Some(joined(2)))));
    let wanted = fixture
        .answer_team(
            &mut stream,
            Some(joined(2)),
            &[3],
            End::Late(position::Rest::Nothing),
        )
        .await;
    assert!(wanted.late.begun.is_none());
    let late = written(&mut stream);
    assert_eq!(rows(&late), [3]);
    let position = |id: &str| id.split_once('-').map(|(_, position)| position.to_owned());
    assert_eq!(position(&last_id(&late)), position(&before));
    let end = End::CaughtUp { top: None };
    let wanted = fixture
        .answer_team(&mut stream, Some(joined(2)), &[], end)
        .await;
    assert!(wanted.late.handled.shows(Xid(2)));
    fixture.publish_team(&[5], None);
    assert_eq!(rows(&written(&mut stream)), [5]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_topic_is_reported_before_the_first_row() {
    let mut fixture = Fixture::new();
    let other = Topic::parse("Team").expect("a topic");
    let stream = fixture.open(Start::Backlog { replay: 0 });
    let mut stream = stream.narrowed_to(Some([team(), other].into()));
    let end = End::CaughtUp { top: None };
    let wanted = fixture
        .answer_team(&mut stream, Some(joined(1)), &[2], end)
        .await;
    assert!(wanted.topics.asked.is_some());
    let written = written(&mut stream);
    let report = r#"event: tidings.topics
data: {"topics":1,"refused":["Team"]}
"#;
    let reported = written.find(report).expect(&written);
    assert!(reported < written.find("row 2").expect("a row"));
}

#[tokio::test(start_paused = true)]
async fn rows_of_a_page_move_the_cursor_although_the_tail_has_had_none_yet() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Start::Backlog { replay: 0 });
    let end = End::CaughtUp { top: None };
    fixture
        .answer_team(&mut stream, Some(joined(1)), &[2], end)
        .await;
    assert!(written(&mut stream).contains("tidings.caught-up"));
    assert!(!fixture.hub.has_topics());
    drop(stream);
    let cursor = fixture.streams.cursors.waiting(&alice(), BEFORE);
    assert!(cursor.expect("a cursor").is_past(Xid(2)));
}
