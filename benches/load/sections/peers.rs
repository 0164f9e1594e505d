//! Tidings compared with the alternatives: the same load in one run, and how each of them
//! handles failures.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Write, stderr},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    Size, between,
    topics::{last_arrivals, subscribe_all, until_last},
};
use crate::{
    Result,
    audience::{Arrival, Audience},
    bridge::Bridge,
    clock::Moment,
    peer::{self, Peer, RunningPeer},
    report::{Counts, Figure, Unit, at, measure, median, subject},
    server::{Database, Server},
    subject::{Subject, Users},
    trials::{self, Contestant, Outcome, Trial},
    writers::{FOR_TOPICS, NOTIFICATIONS, Until, Writers, Written},
};

/// Streams under load, each of a different user.
const STREAMS: usize = 1_000;
/// Streams that are idle and then reconnect at once, for contenders that can handle so
/// many.
const MANY_STREAMS: usize = 10_000;
/// Rows per second.
const PACES: [f64; 2] = [100.0, 1_000.0];
/// What one message is sent to: a topic, or the channel of a user whom all readers share.
const TOPIC: Users = Users {
    name: "topic",
    count: 1,
};
/// Messages per second to all of its readers.
const MESSAGES: f64 = 4.0;
const FLOOD: u64 = 20_000;
const BATCH: u64 = 1_000;
const WRITERS: usize = 32;
/// Some deliver only hundreds of rows per second: their rows arrive late rather than
/// never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time for a server to settle after streams were opened.
const SETTLING: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Tidings,
    Peer(Peer),
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Tidings => subject::TIDINGS,
            Self::Peer(peer) => peer.name(),
        }
    }

    /// Streams that are idle and then reconnect at once. Django has a thread for each of
    /// its streams and opens only dozens per second.
    fn many(self) -> usize {
        match self {
            Self::Peer(Peer::EventStream) => STREAMS,
            _ => MANY_STREAMS,
        }
    }

    /// A database with its table.
    async fn database(self, server: &Server) -> Result<Database> {
        if self == Self::Tidings {
            return server.database().await;
        }
        let database = server.empty_database().await?;
        database.execute(peer::TABLE).await?;
        Ok(database)
    }

    async fn start(self, database: &Database) -> Result<Running> {
        let running = Running {
            contender: self,
            database: database.clone(),
            process: self.process(database).await?,
        };
        let client = database.connect().await?;
        trials::until_it_works(&running, &client).await?;
        Ok(running)
    }

    async fn process(self, database: &Database) -> Result<Process> {
        Ok(match self {
            Self::Tidings => Process::Bridge(Bridge::start(database).await?),
            Self::Peer(peer) => Process::Peer(peer.start(database)?),
        })
    }
}

enum Process {
    Bridge(Bridge),
    Peer(RunningPeer),
    Gone,
}

/// A running contender.
struct Running {
    contender: Contender,
    database: Database,
    process: Process,
}

impl Running {
    fn memory(&self) -> Result<f64> {
        let bytes = match &self.process {
            Process::Bridge(bridge) => bridge.process()?.memory()?,
            Process::Peer(peer) => peer.memory()?,
            Process::Gone => 0,
        };
        Ok(bytes as f64)
    }

    async fn stop(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.process, Process::Gone) {
            Process::Bridge(bridge) => bridge.stop().await,
            Process::Peer(peer) => peer.stop(),
            Process::Gone => Ok(()),
        }
    }
}

impl Contestant for Running {
    fn subject(&self) -> Result<Subject> {
        match &self.process {
            Process::Bridge(bridge) => bridge.subject(),
            Process::Peer(peer) => Ok(peer.subject()),
            Process::Gone => Err("the contender was stopped".into()),
        }
    }

    async fn restart(&mut self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        self.stop().await?;
        meanwhile.await?;
        self.process = self.contender.process(&self.database).await?;
        Ok(())
    }
}

/// All results of one contender.
#[derive(Debug, Serialize)]
pub struct Findings {
    pub contender: &'static str,
    pub figures: Vec<Figure>,
    pub trials: BTreeMap<Trial, Outcome>,
}

/// Measures all of them, one after the other.
pub async fn run(server: &Server, size: Size) -> Result<Vec<Findings>> {
    Peer::install()?;
    let peers = Peer::ALL.map(Contender::Peer);
    let mut all = Vec::new();
    for contender in [Contender::Tidings].into_iter().chain(peers) {
        let trials = on_trial(server, contender).await?;
        let mut figures = under_load(server, contender, size).await?;
        figures.push(one_message(server, contender, size).await?);
        figures.extend(with_many_streams(server, contender).await?);
        let found = Findings {
            contender: contender.name(),
            figures,
            trials,
        };
        // The whole run takes long enough that intermediate results are useful.
        writeln!(stderr(), "{}", serde_json::to_string(&found)?)?;
        all.push(found);
    }
    Ok(all)
}

async fn on_trial(server: &Server, contender: Contender) -> Result<BTreeMap<Trial, Outcome>> {
    let database = contender.database(server).await?;
    let mut running = contender.start(&database).await?;
    let (client, other) = (database.connect().await?, database.connect().await?);
    let outcomes = trials::run(&mut running, &client, &other).await?;
    running.stop().await?;
    Ok(outcomes)
}

async fn under_load(server: &Server, contender: Contender, size: Size) -> Result<Vec<Figure>> {
    let users = Users {
        name: "user",
        count: STREAMS as u64,
    };
    let name = contender.name();
    let database = contender.database(server).await?;
    let mut figures =
        vec![inserted(server, &database, contender, Trigger::Off, users, size).await?];

    let mut running = contender.start(&database).await?;
    let writers = Writers::new(&database, NOTIFICATIONS, users);
    let audience = Audience::open(running.subject()?, users, STREAMS).await?;
    sleep(SETTLING).await;
    let mut counted = Counts::default();
    let seconds = size.choose(2.0, 10.0);
    for rate in PACES {
        let rows = (rate * seconds) as u64;
        let written = writers.by_the_clock(rate, rows).await?;
        let all = arrived(&audience, &written).await;
        let counts = between(std::mem::replace(&mut counted, all), all);
        let times = times(&written, &audience.take_arrivals())?;
        for (measure, quantile) in [(measure::P50, 0.5), (measure::P99, 0.99)] {
            let milliseconds = times.value_at_quantile(quantile) as f64 / 1e6;
            let figure = Figure::new(name, measure, milliseconds, Unit::Milliseconds);
            figures.push(figure.at(at::RATE, rate).counts(counts));
        }
    }

    server.settle().await?;
    let written = writers.in_batches(FLOOD, BATCH).await?;
    let counts = between(counted, arrived(&audience, &written).await);
    let last = audience
        .take_arrivals()
        .iter()
        .map(|arrival| arrival.at)
        .max();
    let took = last.map_or(Duration::ZERO, |last| last.since(written.begin));
    let rate = (counts.expected - counts.missing) as f64 / took.as_secs_f64();
    let delivered = Figure::new(name, measure::DELIVERED, rate, Unit::PerSecond);
    figures.push(delivered.counts(counts));

    figures.push(inserted(server, &database, contender, Trigger::On, users, size).await?);
    drop(audience);
    running.stop().await?;
    Ok(figures)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    On,
    Off,
}

/// The name of the same table without a trigger.
pub fn without_trigger(contender: &str) -> String {
    format!("{contender}, {}", subject::NO_TRIGGER)
}

/// The INSERT rate with and without the contender's notifications.
async fn inserted(
    server: &Server,
    database: &Database,
    contender: Contender,
    trigger: Trigger,
    users: Users,
    size: Size,
) -> Result<Figure> {
    let work = match trigger {
        Trigger::On => "alter table notifications enable trigger user",
        Trigger::Off => "alter table notifications disable trigger user",
    };
    database.execute(work).await?;
    server.settle().await?;
    let writers = Writers::new(database, NOTIFICATIONS, users);
    let time = size.choose(Duration::from_secs(2), Duration::from_secs(6));
    let written = writers.flat_out(WRITERS, Until::Passed(time)).await?;
    let subject = match trigger {
        Trigger::On => contender.name().to_owned(),
        Trigger::Off => without_trigger(contender.name()),
    };
    database
        .execute("alter table notifications enable trigger user; truncate notifications")
        .await?;
    let figure = Figure::new(&subject, measure::INSERTED, written.rate(), Unit::PerSecond);
    Ok(figure.at(at::WRITERS, WRITERS as f64))
}

/// One message at a time to many readers.
async fn one_message(server: &Server, contender: Contender, size: Size) -> Result<Figure> {
    let messages = size.choose(8, 80);
    let database = contender.database(server).await?;
    let insert = match contender {
        Contender::Tidings => {
            subscribe_all(&database, TOPIC, STREAMS).await?;
            FOR_TOPICS
        }
        Contender::Peer(_) => NOTIFICATIONS,
    };
    let mut running = contender.start(&database).await?;
    let writers = Writers::new(&database, insert, TOPIC);
    let subject = running.subject()?;
    let audience = match contender {
        Contender::Tidings => Audience::subscribed(subject, TOPIC, STREAMS).await?,
        Contender::Peer(_) => Audience::open(subject, TOPIC, STREAMS).await?,
    };
    sleep(SETTLING).await;
    let written = writers.by_the_clock(MESSAGES, messages).await?;
    let counts = arrived(&audience, &written).await;
    let waits = until_last(&last_arrivals(&audience), &written.rows, |row| row.issued);
    drop(audience);
    running.stop().await?;
    let (name, unit) = (contender.name(), Unit::Milliseconds);
    let figure = Figure::new(name, measure::LAST, median(&waits), unit);
    Ok(figure.at(at::CONNECTIONS, STREAMS as f64).counts(counts))
}

async fn with_many_streams(server: &Server, contender: Contender) -> Result<Vec<Figure>> {
    let users = Users {
        name: "user",
        count: contender.many() as u64,
    };
    let streams = contender.many();
    let name = contender.name();
    let database = contender.database(server).await?;
    let mut running = contender.start(&database).await?;
    sleep(SETTLING).await;
    let before = running.memory()?;
    let mut audience = Audience::open(running.subject()?, users, streams).await?;
    sleep(SETTLING).await;
    let each = (running.memory()? - before) / streams as f64;
    let idle = Figure::new(name, measure::IDLE_STREAM, each, Unit::Bytes);
    let mut figures = vec![idle.at(at::STREAMS, streams as f64)];

    // A client that has received no event yet has no id to reconnect with.
    let writers = Writers::new(&database, NOTIFICATIONS, users);
    let first = writers.in_batches(users.count, BATCH).await?;
    let counted = arrived(&audience, &first).await;
    audience.leave().await;
    let missed = writers.in_batches(users.count, BATCH).await?;
    // New rows arrive once all earlier ones have.
    let client = database.connect().await?;
    trials::until_it_works(&running, &client).await?;
    sleep(SETTLING).await;
    audience.take_arrivals();
    let begin = Moment::now();
    audience.come();
    let counts = between(counted, arrived(&audience, &missed).await);
    let last = audience
        .take_arrivals()
        .iter()
        .map(|arrival| arrival.at)
        .max();
    let took = last.map_or(Duration::ZERO, |last| last.since(begin));
    let caught_up = Figure::new(name, measure::CAUGHT_UP, took.as_secs_f64(), Unit::Seconds);
    let caught_up = caught_up.at(at::STREAMS, streams as f64);
    figures.push(caught_up.counts(counts));
    drop(audience);
    running.stop().await?;
    Ok(figures)
}

/// The counts for all rows so far.
async fn arrived(audience: &Audience, written: &Written) -> Counts {
    let last = written.rows.iter().map(|inserted| inserted.row).max();
    let rows = last.map_or(0, |last| last + 1);
    audience.until_arrived(rows, PATIENCE).await
}

/// From when an INSERT was due until its event arrived, in nanoseconds.
fn times(written: &Written, arrivals: &[Arrival]) -> Result<Histogram<u64>> {
    let issued = written
        .rows
        .iter()
        .map(|inserted| (inserted.row, inserted.issued));
    let issued: HashMap<u64, Moment> = issued.collect();
    let mut times = Histogram::new(3)?;
    for Arrival { row, at } in arrivals {
        if let Some(issued) = issued.get(row) {
            times.record(u64::try_from(at.since(*issued).as_nanos())?)?;
        }
    }
    Ok(times)
}
