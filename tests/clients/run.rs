//! Tests one client with cuts, restarts, deferrals, expired tokens, and a second tab.

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_postgres::Client as Postgres;

use crate::{
    adapter::{Adapter, frame},
    control::{SHORT_SECONDS, Tokens},
    cutter::{Bridges, Cutter, Trouble},
    roster::Client,
    support::{
        PATIENCE,
        database::Database,
        event_source::EventSource,
        process::{OTHER_PROGRAM, Served},
    },
    text,
};

/// How much is done to each client.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub streams: usize,
    /// Cuts per stream.
    pub cuts: usize,
    pub seed: u64,
}

/// Rows inserted before a user's first connection.
const BACKLOG: usize = 5;

/// How often rows are inserted for streams whose connections are still to be cut.
const WRITES_EVERY: Duration = Duration::from_millis(40);

/// A client that is this many rows behind gets no more of them: its speed is not what
/// is tested.
const BEHIND: usize = 40;

/// Limit for all cuts; a client that waits for seconds before it reconnects takes
/// twenty times as long as others.
const CUTTING: Duration = Duration::from_secs(600);

/// If nothing arrives for this long at the end, missing rows count as lost.
const SILENCE: Duration = Duration::from_secs(20);

/// Settings of every bridge.
const SETTINGS: [&str; 2] = ["--come-back=1s", "--drain=500ms"];

/// Longer than any proxy takes to forward what a bridge has written, however busy the
/// machine is: a client that has no id yet is not owed rows that have settled. An
/// earlier release doesn't have the setting.
const SETTLE: &str = "--settle=30s";

/// What one stream received.
#[derive(Debug, Default)]
pub struct Received {
    /// How often each row arrived.
    rows: HashMap<i64, usize>,
    /// Rows whose text was different.
    changed: Vec<(i64, String)>,
    /// Rows whose id doesn't identify a row.
    unknown: usize,
    gave_up: Vec<String>,
    errors: Vec<String>,
    gaps: Vec<String>,
    control: HashMap<String, usize>,
}

/// The counts of one client.
#[derive(Debug, Default)]
pub struct Outcome {
    pub inserted: usize,
    pub received: usize,
    /// Rows that never arrived, and how many of those a proxy had forwarded.
    pub lost: usize,
    pub lost_but_forwarded: usize,
    /// Rows that were cut between the line of their id and the empty line, and how many
    /// of those were lost.
    pub unended: usize,
    pub lost_unended: usize,
    /// Rows that arrived twice on one connection.
    pub repeats: usize,
    /// Rows that a bridge sent twice on one connection.
    pub sent_twice: usize,
    /// Rows that arrived again after a disconnect.
    pub again: usize,
    pub changed: usize,
    pub unknown: usize,
    pub gave_up: HashMap<String, usize>,
    pub errors: usize,
    pub gaps: usize,
    pub cuts: usize,
    pub requests: usize,
    pub deferrals: usize,
    pub refusals: HashMap<u16, usize>,
    pub took: Duration,
    /// Details of a failure, for a person.
    pub details: Vec<String>,
}

/// A run in progress.
struct Run<'a> {
    client: &'a Client,
    effort: Effort,
    users: Vec<String>,
    application: Postgres,
    /// The rows of each stream's user, and their texts.
    inserted: Vec<HashMap<i64, Arc<str>>>,
    received: Vec<Received>,
    cutters: Vec<Cutter>,
    bridges: Arc<Bridges>,
    settings: &'a [&'a str],
    serving: Vec<Option<Served>>,
    random: StdRng,
    /// When a row last arrived.
    heard: Instant,
    /// Notified when a stream's client has a position to reconnect with.
    positions: Vec<Arc<Notify>>,
}

pub async fn run(client: &Client, effort: Effort) -> Outcome {
    let begun = Instant::now();
    let database = Database::migrated().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let control = format!("http://{}", listener.local_addr().expect("an address"));
    let origins = format!("--cors-origins={control}");
    let mut settings = SETTINGS.to_vec();
    if client.is_elsewhere {
        settings.push(&origins);
    }
    if env::var_os(OTHER_PROGRAM).is_none() {
        settings.push(SETTLE);
    }
    let mut serving = Vec::new();
    for _ in 0..2 {
        serving.push(Some(Served::start(&database, &settings).await));
    }
    let full = [&settings[..], &["--max-connections=1"]].concat();
    let full = Served::start(&database, &full).await;
    let _who_fills_it = full.connect_live("somebody").await;
    let addresses = serving.iter().flatten().map(Served::address);
    let bridges = Arc::new(Bridges {
        serving: addresses.map(Mutex::new).collect(),
        full: full.address(),
    });

    let users: Vec<String> = (0..effort.streams).map(|n| format!("user-{n}")).collect();
    let expired: Vec<_> = users.iter().map(|_| Arc::new(OnceLock::new())).collect();
    let page = client.is_page().then(|| frame(&control));
    let mut cutters = Vec::new();
    for (n, expired) in expired.iter().enumerate() {
        let trouble = Trouble::of(n);
        let random = StdRng::seed_from_u64(effort.seed.wrapping_add(n as u64));
        let away = (trouble == Trouble::ExpiredAway).then(|| Arc::clone(expired));
        let (bridges, page) = (Arc::clone(&bridges), page.clone());
        let cutter = Cutter::start(trouble, bridges, page, random, effort.cuts, away).await;
        cutters.push(cutter);
    }
    let tokens = Tokens {
        users: users.clone(),
        database: database.connect().await,
        given: users.iter().map(|_| Mutex::default()).collect(),
        expired,
    };
    let mut run = Run {
        client,
        effort,
        inserted: users.iter().map(|_| HashMap::new()).collect(),
        received: users.iter().map(|_| Received::default()).collect(),
        users,
        application: database.connect().await,
        cutters,
        bridges,
        settings: &settings,
        serving,
        random: StdRng::seed_from_u64(effort.seed ^ 0x7ab5),
        heard: Instant::now(),
        positions: (0..effort.streams).map(|_| Arc::default()).collect(),
    };
    run.backlog().await;
    let mut adapter = client.open(listener, tokens, &run.cutters).await;
    let tabs = run.second_tabs().await;
    run.cut(&mut adapter, &database).await;
    run.finish(&mut adapter).await;
    adapter.stop().await;
    drop(tabs);
    let mut outcome = run.outcome();
    outcome.took = begun.elapsed();
    outcome
}

impl Run<'_> {
    /// Inserts rows for these streams' users, in one transaction.
    async fn insert(&mut self, streams: &[usize]) {
        let users: Vec<&str> = streams.iter().map(|&n| self.users[n].as_str()).collect();
        let texts: Vec<String> = streams
            .iter()
            .map(|_| text::any(&mut self.random))
            .collect();
        let events: Vec<Option<&str>> = streams
            .iter()
            .map(|_| self.random.random_bool(0.3).then_some("note"))
            .collect();
        let insert = "insert into notifications (user_id, text, event) \
            select * from unnest($1::text[], $2::text[], $3::text[]) returning id";
        let rows = self
            .application
            .query(insert, &[&users, &texts, &events])
            .await;
        for ((row, text), &stream) in rows.expect("rows").iter().zip(texts).zip(streams) {
            self.inserted[stream].insert(row.get(0), text.into());
        }
    }

    async fn backlog(&mut self) {
        for _ in 0..BACKLOG {
            let all: Vec<usize> = (0..self.users.len()).collect();
            self.insert(&all).await;
        }
        // Once is enough: it must arrive as a whole.
        let huge = text::huge();
        let insert = "insert into notifications (user_id, text) values ($1, $2) returning id";
        let row = self
            .application
            .query_one(insert, &[&self.users[0], &huge])
            .await;
        self.inserted[0].insert(row.expect("a row").get(0), huge.into());
    }

    /// Other tabs of some of the users, which are sent the rows as well. They connect
    /// after the client, because rows sent before its first connection would reach only
    /// them. They reconnect when the bridges are restarted.
    async fn second_tabs(&self) -> JoinSet<()> {
        let mut tabs = JoinSet::new();
        for (n, user) in self.users.iter().enumerate() {
            if Trouble::of(n) == Trouble::SecondTab {
                let (bridges, user) = (Arc::clone(&self.bridges), user.clone());
                let position = Arc::clone(&self.positions[n]);
                tabs.spawn(async move {
                    position.notified().await;
                    let bearer = format!("Bearer {}", crate::support::bridge::token(&user));
                    loop {
                        let bridge = *bridges.serving[0].lock().expect("an address");
                        let headers = [
                            ("Authorization", bearer.as_str()),
                            ("Accept", "text/event-stream"),
                        ];
                        let answer =
                            crate::support::event_source::get(bridge, "/stream", &headers).await;
                        if let Ok(answer) = answer
                            && answer.status() == 200
                        {
                            let mut source: EventSource = answer.into_events().await;
                            while source.next_item().await.is_ok() {}
                        }
                        tokio::time::sleep(WRITES_EVERY).await;
                    }
                });
            }
        }
        tabs
    }

    /// Inserts rows while the proxies cut connections, and restarts bridges in between.
    async fn cut(&mut self, adapter: &mut Adapter, database: &Database) {
        let begun = Instant::now();
        let wanted = self.effort.cuts * self.effort.streams;
        let mut restarts = [
            (wanted / 4, Signal::SIGTERM),
            (wanted / 2, Signal::SIGKILL),
            (wanted * 3 / 4, Signal::SIGTERM),
        ]
        .into_iter()
        .peekable();
        // Long enough that tokens expire.
        let least = Duration::from_secs(2 * SHORT_SECONDS);
        let mut writes = interval(WRITES_EVERY);
        writes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = adapter.lines.recv() => self.hear(&line.expect("the client runs")),
                _ = writes.tick() => {
                    let cuts: usize = self.cutters.iter().map(|cutter| cutter.record().cuts).sum();
                    if let Some((_, signal)) = restarts.next_if(|(from, _)| *from <= cuts) {
                        self.restart(signal, database).await;
                    }
                    let is_done = self.cutters.iter().all(Cutter::is_done);
                    let elapsed = begun.elapsed();
                    if is_done && elapsed > least || elapsed > CUTTING {
                        return;
                    }
                    let streams = self.streams_to_write();
                    if !streams.is_empty() {
                        self.insert(&streams).await;
                    }
                }
            }
        }
    }

    /// Some of the streams whose connections are still to be cut, some of them more
    /// than once.
    fn streams_to_write(&mut self) -> Vec<usize> {
        let mut streams = Vec::new();
        for (n, cutter) in self.cutters.iter().enumerate() {
            // The others get a row now and then too: otherwise it is only known that
            // they are open.
            let most = if cutter.is_done() { 50 } else { 4 };
            let behind = self.inserted[n].len() - self.received[n].rows.len();
            if behind < BEHIND && self.random.random_range(0..most) == 0 {
                let count = self.random.random_range(1..=3);
                streams.extend(std::iter::repeat_n(n, count));
            }
        }
        streams
    }

    /// Stops the bridges and starts others: with SIGTERM one after the other, as in a
    /// deployment; with SIGKILL both at once.
    async fn restart(&mut self, signal: Signal, database: &Database) {
        let count = self.serving.len();
        if signal == Signal::SIGKILL {
            for bridge in self.serving.iter_mut() {
                let mut bridge = bridge.take().expect("a bridge");
                bridge.signal(signal);
                bridge.ended().await;
            }
        }
        for index in 0..count {
            if let Some(mut bridge) = self.serving[index].take() {
                bridge.signal(signal);
                bridge.ended().await;
            }
            let next = Served::start(database, self.settings).await;
            *self.bridges.serving[index].lock().expect("an address") = next.address();
            self.serving[index] = Some(next);
        }
    }

    /// Inserts a last row for each user, then waits for all rows.
    async fn finish(&mut self, adapter: &mut Adapter) {
        let all: Vec<usize> = (0..self.users.len()).collect();
        self.insert(&all).await;
        self.heard = Instant::now();
        while self.missing() > 0 && self.heard.elapsed() < SILENCE {
            if let Ok(Some(line)) = timeout(Duration::from_secs(1), adapter.lines.recv()).await {
                self.hear(&line);
            }
        }
        // A duplicate would arrive now.
        while let Ok(Some(line)) = timeout(WRITES_EVERY, adapter.lines.recv()).await {
            self.hear(&line);
        }
        // The proxies record what they forwarded once their connections end.
        let ends = async {
            while self.cutters.iter().any(|cutter| cutter.record().open > 0) {
                for bridge in self.serving.iter().flatten() {
                    bridge.signal(Signal::SIGKILL);
                }
                tokio::time::sleep(WRITES_EVERY).await;
            }
        };
        let _ = timeout(PATIENCE / 10, ends).await;
    }

    fn missing(&self) -> usize {
        let streams = self.inserted.iter().zip(&self.received);
        streams
            .map(|(inserted, received)| {
                inserted
                    .keys()
                    .filter(|row| !received.rows.contains_key(row))
                    .count()
            })
            .sum()
    }

    /// Processes a line of the adapter's output.
    fn hear(&mut self, line: &str) {
        let said: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let Some(stream) = said["n"].as_u64() else {
            panic!("{}: {line}", self.client.title);
        };
        let stream = stream as usize;
        let received = &mut self.received[stream];
        if !said["error"].is_null() {
            received.errors.push(text("error"));
        } else if !said["gave_up"].is_null() {
            received.gave_up.push(text("gave_up"));
            self.cutters[stream]
                .record()
                .log
                .push(format!("gave up: {line}"));
        } else {
            if !text("id").is_empty() {
                self.positions[stream].notify_one();
            }
            let (name, data) = (text("event"), text("data"));
            if name == "tidings.gap" {
                received.gaps.push(data);
                return;
            }
            if name.starts_with("tidings.") {
                *received.control.entry(name).or_default() += 1;
                return;
            }
            let row = match self.client.is_json {
                true => serde_json::from_str(&data)
                    .ok()
                    .and_then(|data: Value| data["id"].as_i64()),
                false => text("id")
                    .split('-')
                    .next()
                    .and_then(|row| row.parse().ok()),
            };
            let known = row.and_then(|row| Some((row, self.inserted[stream].get(&row)?)));
            let Some((row, inserted)) = known else {
                received.unknown += 1;
                self.cutters[stream]
                    .record()
                    .log
                    .push(format!("unknown: {line:.200}"));
                return;
            };
            let is_same = match self.client.is_json {
                true => {
                    serde_json::from_str(&data).is_ok_and(|data: Value| data["text"] == **inserted)
                }
                false => data == text::as_sse_has_it(inserted),
            };
            if !is_same {
                received
                    .changed
                    .push((row, format!("{data:.100?}, not {inserted:.100?}")));
            }
            let times = received.rows.entry(row).or_default();
            *times += 1;
            // Only progress counts: a client may repeat itself forever.
            if *times == 1 {
                self.heard = Instant::now();
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for (n, cutter) in self.cutters.iter().enumerate() {
            let (record, received) = (cutter.record(), &self.received[n]);
            let before = (
                outcome.lost,
                outcome.repeats,
                outcome.changed,
                outcome.unknown,
            );
            outcome.inserted += self.inserted[n].len();
            outcome.received += received.rows.len();
            outcome.unended += record.unended.len();
            for row in self.inserted[n].keys() {
                let forwarded = record.forwarded.get(row).copied().unwrap_or(0);
                let times = received.rows.get(row).copied().unwrap_or(0);
                if times == 0 {
                    outcome.lost += 1;
                    outcome.lost_but_forwarded += usize::from(forwarded > 0);
                    outcome.lost_unended += usize::from(record.unended.contains(row));
                    outcome.details.push(format!(
                        "stream {n} lost {row}, forwarded {forwarded} times"
                    ));
                }
                if times > forwarded {
                    outcome.repeats += times - forwarded;
                    outcome.details.push(format!(
                        "stream {n} {row} came {times} times, forwarded {forwarded} times"
                    ));
                }
                outcome.again += times.saturating_sub(1).min(forwarded.saturating_sub(1));
            }
            outcome.sent_twice += record.repeats.len();
            outcome.changed += received.changed.len();
            outcome.unknown += received.unknown;
            outcome.errors += received.errors.len();
            outcome.gaps += received.gaps.len();
            outcome.cuts += record.cuts;
            outcome.requests += record.requests;
            outcome.deferrals += record.deferrals;
            for why in &received.gave_up {
                *outcome.gave_up.entry(why.clone()).or_default() += 1;
            }
            for (&status, &times) in &record.refusals {
                *outcome.refusals.entry(status).or_default() += times;
            }
            let after = (
                outcome.lost,
                outcome.repeats,
                outcome.changed,
                outcome.unknown,
            );
            if before != after
                || !received.errors.is_empty()
                || !received.gaps.is_empty()
                || record.cuts < self.effort.cuts
            {
                outcome.details.push(format!(
                    "stream {n} ({:?}), {} cuts, {} open, errors {:?}, gaps {:?}, changed {:?}, control {:?}\n    {}",
                    Trouble::of(n),
                    record.cuts,
                    record.open,
                    received.errors,
                    received.gaps,
                    received.changed,
                    received.control,
                    record.log.join("\n    ")
                ));
            }
        }
        outcome
    }
}
