//! The delay for readers: the time from INSERT to event, compared with that to a bare
//! LISTEN.

use std::{collections::HashMap, time::Duration};

use hdrhistogram::Histogram;

use super::{PATIENCE, Size, between};
use crate::{
    Result,
    audience::{Arrival, Audience},
    bridge::Bridge,
    floor::{self, Listener},
    marks::until_all_marked,
    report::{Counts, Figure, Section, Unit, at, measure, subject},
    server::{Database, Server},
    subject::Users,
    usage::Usage,
    writers::{Inserted, NOTIFICATIONS, Writers},
};

/// Rows per second, and how long to measure: the lower the rate, the longer, so that
/// there are enough rows. Measured briefly and alternately, so that other load on the
/// machine affects both.
const RATES: [(f64, Duration); 4] = [
    (10.0, Duration::from_secs(5)),
    (100.0, Duration::from_secs(5)),
    (1_000.0, Duration::from_secs(3)),
    (5_000.0, Duration::from_secs(2)),
];
const QUICK: Duration = Duration::from_secs(2);

const STREAMS: usize = 1_000;
const USERS: Users = Users {
    name: "user",
    count: STREAMS as u64,
};

/// Longer than the wait for missing rows.
const LONGEST: Duration = Duration::from_secs(600);
/// Significant digits of each time, which is in nanoseconds.
const DIGITS: u8 = 3;

const QUANTILES: [(&str, f64); 3] = [
    (measure::P50, 0.5),
    (measure::P99, 0.99),
    (measure::P999, 0.999),
];

/// Times of one kind, at one rate.
struct Times(Histogram<u64>);

impl Times {
    fn new() -> Result<Self> {
        let longest = u64::try_from(LONGEST.as_nanos())?;
        Ok(Self(Histogram::new_with_max(longest, DIGITS)?))
    }

    fn note(&mut self, time: Duration) {
        self.0
            .saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn figures(
        &self,
        of: &str,
        (prefix, quantiles): (&str, &[(&str, f64)]),
        rate: f64,
        counts: Counts,
    ) -> Vec<Figure> {
        let figure = |(name, quantile): (&str, f64)| {
            let milliseconds = self.0.value_at_quantile(quantile) as f64 / 1e6;
            Figure::new(
                of,
                &format!("{prefix}{name}"),
                milliseconds,
                Unit::Milliseconds,
            )
            .at(at::RATE, rate)
            .counts(counts)
        };
        quantiles.iter().copied().map(figure).collect()
    }
}

/// All times at one rate.
struct Rate {
    /// From the moment at which the INSERT was due.
    to_event: Times,
    /// From the acknowledgement of the commit. Zero if the event was first.
    after_commit: Times,
    to_commit: Times,
    counts: Counts,
    usage: Usage,
    rows: usize,
}

impl Rate {
    fn new() -> Result<Self> {
        Ok(Self {
            to_event: Times::new()?,
            after_commit: Times::new()?,
            to_commit: Times::new()?,
            counts: Counts::default(),
            usage: Usage::default(),
            rows: 0,
        })
    }

    fn note(&mut self, inserted: &[Inserted], arrivals: &[Arrival]) {
        let rows: HashMap<u64, &Inserted> = inserted.iter().map(|row| (row.row, row)).collect();
        for arrival in arrivals {
            if let Some(row) = rows.get(&arrival.row) {
                self.to_event.note(arrival.at.since(row.issued));
                self.after_commit.note(arrival.at.since(row.committed));
            }
        }
        for row in inserted {
            self.to_commit.note(row.committed.since(row.issued));
        }
        self.rows += inserted.len();
    }

    fn figures(&self, of: &str, rate: f64) -> Vec<Figure> {
        let times = [
            (&self.to_event, "", &QUANTILES[..]),
            (&self.after_commit, "after commit, ", &QUANTILES[..2]),
            (&self.to_commit, "INSERT alone, ", &QUANTILES[..2]),
        ];
        let times = times.into_iter().flat_map(|(times, prefix, quantiles)| {
            times.figures(of, (prefix, quantiles), rate, self.counts)
        });
        let usage = self.usage.per_row(of, self.rows);
        let usage = usage.into_iter().map(|figure| figure.at(at::RATE, rate));
        times.chain(usage).collect()
    }
}

enum Ear {
    Listener(Listener),
    Streams(Bridge, Audience),
}

impl Ear {
    fn bridge(&self) -> Option<&Bridge> {
        match self {
            Self::Listener(_) => None,
            Self::Streams(bridge, _) => Some(bridge),
        }
    }

    async fn until_arrived(&self, rows: u64) -> (Counts, Vec<Arrival>) {
        match self {
            Self::Listener(listener) => {
                let counts = listener.until_arrived(rows, PATIENCE).await;
                (counts, listener.take_arrivals())
            }
            Self::Streams(_, audience) => {
                let counts = audience.until_arrived(rows, PATIENCE).await;
                (counts, audience.take_arrivals())
            }
        }
    }
}

/// One of the two that are compared.
struct Stand {
    subject: &'static str,
    database: Database,
    ear: Ear,
    writers: Writers,
    counted: Counts,
    rates: Vec<Rate>,
}

impl Stand {
    async fn new(subject: &'static str, database: Database, ear: Ear) -> Result<Self> {
        database.vacuum("notifications").await?;
        Ok(Self {
            subject,
            writers: Writers::new(&database, NOTIFICATIONS, USERS),
            database,
            ear,
            counted: Counts::default(),
            rates: RATES.iter().map(|_| Rate::new()).collect::<Result<_>>()?,
        })
    }

    async fn round(&mut self, server: &Server, number: usize, time: Duration) -> Result<()> {
        let Some((&(rate, _), noted)) = RATES.get(number).zip(self.rates.get_mut(number)) else {
            return Ok(());
        };
        let bridge = self.ear.bridge();
        let before = Usage::of(server, bridge)?;
        let rows = (rate * time.as_secs_f64()) as u64;
        let written = self.writers.by_the_clock(rate, rows).await?;
        let all = self.writers.rows();
        let (counts, arrivals) = self.ear.until_arrived(all).await;
        if bridge.is_some() {
            until_all_marked(&self.database, PATIENCE).await?;
        }
        noted.usage = noted.usage.and(Usage::of(server, bridge)?.since(before));
        noted.note(&written.rows, &arrivals);
        noted.counts = noted.counts.and(between(self.counted, counts));
        self.counted = counts;
        Ok(())
    }
}

/// Both alternately, several times, on one server.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let rounds = size.choose(1, 6);
    let plain = server.database().await?;
    floor::notify_plainly(&plain).await?;
    let listener = Listener::start(&plain).await?;
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let audience = Audience::open(bridge.subject()?, USERS, STREAMS).await?;
    let mut stands = [
        Stand::new(subject::TIDINGS, database, Ear::Streams(bridge, audience)).await?,
        Stand::new(subject::FLOOR, plain, Ear::Listener(listener)).await?,
    ];
    server.settle().await?;
    for (number, &(_, time)) in RATES.iter().enumerate() {
        for _ in 0..rounds {
            for stand in &mut stands {
                stand
                    .round(server, number, size.choose(QUICK, time))
                    .await?;
            }
        }
    }
    let mut figures = Vec::new();
    for (number, &(rate, _)) in RATES.iter().enumerate() {
        let measured = stands
            .iter()
            .filter_map(|stand| Some((stand, stand.rates.get(number)?)));
        figures.extend(measured.flat_map(|(stand, noted)| noted.figures(stand.subject, rate)));
    }
    for stand in stands {
        if let Ear::Streams(bridge, audience) = stand.ear {
            drop(audience);
            bridge.stop().await?;
        }
    }
    Ok(Section {
        name: "latency",
        title: "From INSERT to event".to_owned(),
        setting: format!(
            "Rows at a fixed rate, even if earlier ones are late, to {STREAMS} users with one \
             stream each; the time is measured from when an INSERT was due. “{}”: the same with a \
             plain NOTIFY trigger, until a connection that only LISTENs receives it. Both \
             alternate on the same server, {rounds} times {} s or less each.",
            subject::FLOOR,
            size.choose(QUICK, RATES[0].1).as_secs()
        ),
        figures,
    })
}
