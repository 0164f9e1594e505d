//! All clients reconnect at once.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use super::{PATIENCE, Size};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_all_marked,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    server::{Database, Server},
    subject::Users,
    table::whole,
    writers::{NOTIFICATIONS, Writers},
};

/// Limit for reconnecting. If more clients connect than the kernel's accept queue holds,
/// it makes the rest retry after 1, 2, 4, 8, 16 and 32 s.
const RETURN_LIMIT: Duration = Duration::from_secs(90);

const STREAMS: u64 = 10_000;
/// Rows per INSERT.
const BATCH: u64 = 1_000;

/// How often memory and sessions are sampled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// More than the number of files that the bridge has open when there are no streams.
const FILES: usize = 100;

/// The bridge's sessions.
const SESSIONS: &str = "select count(*) from pg_stat_activity \
                        where datname = current_database() and application_name = 'tidings'";

/// Several storms of the same streams, one after the other.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let (streams, rounds) = size.choose((1_000, 1), (STREAMS, 5));
    let users = Users {
        name: "user",
        count: streams,
    };
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let mut audience = Audience::open(bridge.subject()?, users, usize::try_from(streams)?).await?;
    let writers = Writers::new(&database, NOTIFICATIONS, users);
    let mut storms = Vec::new();
    for _ in 0..rounds {
        server.settle().await?;
        storms.push(storm(&database, &bridge, &mut audience, &writers, streams).await?);
        until_all_marked(&database, PATIENCE).await?;
    }
    drop(audience);
    bridge.stop().await?;
    Ok(Section {
        name: "storm",
        title: "All clients reconnect at once".to_owned(),
        setting: format!(
            "{} streams, one per user, disconnect and reconnect at once, each with its last id and \
             one missed row: the time from the first connection until every stream is caught up. \
             {rounds} runs; the median, and the highest peaks.",
            whole(streams as f64)
        ),
        figures: figures(&storms, streams),
    })
}

/// The results of one storm.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// From the first connection until every stream was live and had its row.
    pub caught_up: Duration,
    /// For all rows since the writers began.
    pub counts: Counts,
    peaks: Peaks,
}

/// The maxima of the samples.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    sessions: i64,
    memory: u64,
}

/// One storm of all these streams, while a number of rows is being inserted.
pub async fn storm(
    database: &Database,
    bridge: &Bridge,
    audience: &mut Audience,
    writers: &Writers,
    missed: u64,
) -> Result<Storm> {
    audience.leave().await;
    until_left(bridge).await?;
    writers.in_batches(missed, BATCH).await?;
    audience.take_arrivals();
    let mut peaks = Peaks::default();
    let begin = Moment::now();
    audience.come();
    let (live, counts) = tokio::select! {
        returned = until_back(audience, writers) => returned?,
        failed = peaks.watch(database, bridge) => match failed? {},
    };
    let last = audience.take_arrivals().iter().map(|event| event.at).max();
    Ok(Storm {
        caught_up: last.map_or(live, |last| last.max(live)).since(begin),
        counts,
        peaks,
    })
}

async fn until_back(audience: &Audience, writers: &Writers) -> Result<(Moment, Counts)> {
    let live = audience.until_live(RETURN_LIMIT).await?;
    let counts = audience.until_arrived(writers.rows(), PATIENCE).await;
    Ok((live, counts))
}

/// Waits until the bridge has noticed that all clients have disconnected.
pub async fn until_left(bridge: &Bridge) -> Result<()> {
    let begin = Moment::now();
    while bridge.process()?.files()? > FILES {
        if Moment::now().since(begin) > PATIENCE {
            return Err("the bridge still has streams that were closed".into());
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

impl Peaks {
    /// Samples forever.
    async fn watch(&mut self, database: &Database, bridge: &Bridge) -> Result<Infallible> {
        let watcher = database.connect().await?;
        let sessions = watcher.prepare(SESSIONS).await?;
        let process = bridge.process()?;
        loop {
            let count = watcher.query_one(&sessions, &[]).await?.get(0);
            self.sessions = self.sessions.max(count);
            self.memory = self.memory.max(process.memory()?);
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// The figures of several storms of this many streams.
pub fn figures(storms: &[Storm], streams: u64) -> Vec<Figure> {
    let times: Vec<f64> = storms
        .iter()
        .map(|one| one.caught_up.as_secs_f64())
        .collect();
    let most = |peak: fn(&Peaks) -> f64| {
        let peaks = storms.iter().map(|one| peak(&one.peaks));
        peaks.fold(0.0, f64::max)
    };
    let sessions = most(|peaks| peaks.sessions as f64);
    let memory = most(|peaks| peaks.memory as f64);
    // The counts continue from storm to storm.
    let counts = storms.last().map(|one| one.counts).unwrap_or_default();
    [
        (measure::CAUGHT_UP, median(&times), Unit::Seconds),
        (measure::PEAK_CONNECTIONS, sessions, Unit::Count),
        (measure::PEAK_MEMORY, memory, Unit::Bytes),
    ]
    .into_iter()
    .map(|(what, value, unit)| {
        Figure::new(subject::TIDINGS, what, value, unit)
            .at(at::STREAMS, streams as f64)
            .counts(counts)
    })
    .collect()
}
