//! How quickly a flood of rows is delivered and marked.

use super::{PATIENCE, Size};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_all_marked,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    server::Server,
    subject::Users,
    usage::Usage,
    writers::{IN_BATCHES, NOTIFICATIONS, Until, Writers},
};

const STREAMS: usize = 1_000;
const USERS: Users = Users {
    name: "user",
    count: STREAMS as u64,
};
/// Connections that write single rows.
const WRITERS: usize = 32;
const BATCH: u64 = 1_000;

/// How the rows are inserted.
#[derive(Clone, Copy, Debug)]
enum Rows {
    /// One per INSERT.
    Single,
    /// Many per INSERT.
    Batches,
}

impl Rows {
    fn each(self) -> u64 {
        match self {
            Self::Single => 1,
            Self::Batches => BATCH,
        }
    }
}

/// The results of one flood, in rows per second.
struct Flood {
    inserted: f64,
    delivered: f64,
    marked: f64,
    usage: Usage,
    counts: Counts,
}

/// Each flood has its own database, bridge and streams.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let (rows, rounds) = size.choose((20_000, 1), (200_000, 3));
    let mut figures = Vec::new();
    for kind in [Rows::Single, Rows::Batches] {
        let mut floods = Vec::new();
        for _ in 0..rounds {
            floods.push(flood(server, kind, rows).await?);
        }
        figures.extend(summed_up(kind, &floods, rows));
    }
    Ok(Section {
        name: "flood",
        title: "A flood of rows".to_owned(),
        setting: format!(
            "{rows} rows at full speed, for {STREAMS} users with one stream each: single rows from \
             {WRITERS} connections, batches of {BATCH} from {IN_BATCHES}. Rows per second until \
             the last commit, until the last event arrived, and until the last row was marked as \
             sent; the median of {rounds} runs."
        ),
        figures,
    })
}

async fn flood(server: &Server, kind: Rows, rows: u64) -> Result<Flood> {
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let audience = Audience::open(bridge.subject()?, USERS, STREAMS).await?;
    let writers = Writers::new(&database, NOTIFICATIONS, USERS);
    server.settle().await?;
    let before = Usage::of(server, Some(&bridge))?;
    let written = match kind {
        Rows::Single => writers.flat_out(WRITERS, Until::Rows(rows)).await?,
        Rows::Batches => writers.in_batches(rows, BATCH).await?,
    };
    let counts = audience.until_arrived(rows, PATIENCE).await;
    let marked = until_all_marked(&database, PATIENCE).await?;
    let usage = Usage::of(server, Some(&bridge))?.since(before);
    let last = audience.take_arrivals().iter().map(|event| event.at).max();
    let rate = |moment: Moment| rows as f64 / moment.since(written.begin).as_secs_f64();
    drop(audience);
    bridge.stop().await?;
    Ok(Flood {
        inserted: written.rate(),
        delivered: last.map_or(f64::NAN, rate),
        marked: rate(marked),
        usage,
        counts,
    })
}

fn summed_up(kind: Rows, floods: &[Flood], rows: u64) -> Vec<Figure> {
    let counts = floods.iter().map(|flood| flood.counts);
    let counts = counts.fold(Counts::default(), Counts::and);
    let usage = floods.iter().map(|flood| flood.usage);
    let usage = usage.fold(Usage::default(), Usage::and);
    let figure = |measure: &str, rate: fn(&Flood) -> f64| {
        let rates: Vec<f64> = floods.iter().map(rate).collect();
        Figure::new(subject::TIDINGS, measure, median(&rates), Unit::PerSecond)
            .at(at::BATCH, kind.each() as f64)
            .counts(counts)
    };
    let rates = [
        figure(measure::INSERTED, |flood| flood.inserted),
        figure(measure::DELIVERED, |flood| flood.delivered),
        figure(measure::MARKED, |flood| flood.marked),
    ];
    let usage = usage.per_row(subject::TIDINGS, rows as usize * floods.len());
    let usage = usage
        .into_iter()
        .map(|figure| figure.at(at::BATCH, kind.each() as f64));
    rates.into_iter().chain(usage).collect()
}
