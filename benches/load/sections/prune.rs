//! Whether readers wait longer while old rows are removed.

use std::{collections::HashMap, process::Stdio, time::Duration};

use hdrhistogram::Histogram;
use tokio::process::{Child, Command};

use super::{PATIENCE, Size, between};
use crate::{
    Result,
    audience::{Arrival, Audience},
    bridge::Bridge,
    clock::Moment,
    marks::until_marked_after,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    retained::Retained,
    server::{Database, Server},
    subject::Users,
    table::whole,
    writers::{Inserted, NOTIFICATIONS, Writers},
};

/// Rows per second, each for one stream.
const RATE: f64 = 1_000.0;
const STREAMS: usize = 1_000;
const USERS: Users = Users {
    name: "user",
    count: STREAMS as u64,
};

/// Duration of one measurement. Both are measured alternately, so that other load on the
/// machine affects both.
const TIME: Duration = Duration::from_secs(4);
const QUICK: Duration = Duration::from_secs(2);

/// More than are removed during the measurement.
const ROWS: u64 = 2_000_000;
const FEW: u64 = 400_000;

/// Longer than the wait for missing rows.
const LONGEST: Duration = Duration::from_secs(600);
const DIGITS: u8 = 3;

const QUANTILES: [(&str, f64); 3] = [
    (measure::P50, 0.5),
    (measure::P99, 0.99),
    (measure::P999, 0.999),
];

/// Times from INSERT to event, for one kind of round.
struct Times {
    all: Histogram<u64>,
    /// Of each round, in milliseconds, in the order of the quantiles.
    rounds: Vec<[f64; 3]>,
    counts: Counts,
}

impl Times {
    fn new() -> Result<Self> {
        let longest = u64::try_from(LONGEST.as_nanos())?;
        Ok(Self {
            all: Histogram::new_with_max(longest, DIGITS)?,
            rounds: Vec::new(),
            counts: Counts::default(),
        })
    }

    fn note(&mut self, inserted: &[Inserted], arrivals: &[Arrival], counts: Counts) -> Result<()> {
        let rows: HashMap<u64, &Inserted> = inserted.iter().map(|row| (row.row, row)).collect();
        let mut round = Histogram::<u64>::new_with_max(self.all.high(), DIGITS)?;
        for arrival in arrivals {
            if let Some(row) = rows.get(&arrival.row) {
                let time = arrival.at.since(row.issued).as_nanos();
                round.saturating_record(u64::try_from(time).unwrap_or(u64::MAX));
            }
        }
        let quantiles = QUANTILES.map(|(_, quantile)| milliseconds(&round, quantile));
        self.rounds.push(quantiles);
        self.all.add(&round)?;
        self.counts = self.counts.and(counts);
        Ok(())
    }

    fn figures(&self, of: &str) -> Vec<Figure> {
        let figure = |(place, (name, quantile)): (usize, (&str, f64))| {
            let rounds = self.rounds.iter().filter_map(|round| round.get(place));
            Figure::new(
                of,
                name,
                milliseconds(&self.all, quantile),
                Unit::Milliseconds,
            )
            .at(at::RATE, RATE)
            .counts(self.counts)
            .rounds(rounds.copied().collect())
        };
        QUANTILES.into_iter().enumerate().map(figure).collect()
    }
}

fn milliseconds(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1e6
}

struct Stand {
    database: Database,
    audience: Audience,
    writers: Writers,
    /// The last row that existed before.
    last_id: i64,
    counted: Counts,
}

impl Stand {
    async fn measure(&mut self, time: Duration, times: &mut Times) -> Result<()> {
        let rows = (RATE * time.as_secs_f64()) as u64;
        let written = self.writers.by_the_clock(RATE, rows).await?;
        let counts = self.audience.until_arrived(self.writers.rows(), PATIENCE);
        let counts = counts.await;
        let arrivals = self.audience.take_arrivals();
        until_marked_after(&self.database, self.last_id, PATIENCE).await?;
        times.note(&written.rows, &arrivals, between(self.counted, counts))?;
        self.counted = counts;
        Ok(())
    }

    async fn old_rows(&self) -> Result<u64> {
        let count = "select count(*) from notifications where id <= $1";
        let client = self.database.connect().await?;
        let rows: i64 = client.query_one(count, &[&self.last_id]).await?.get(0);
        Ok(u64::try_from(rows)?)
    }
}

/// Runs `tidings prune` until it is done or this is dropped.
fn prune(database: &Database) -> Result<Child> {
    Ok(Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["prune", "--sent-before=30d"])
        .env_clear()
        .env("DATABASE_URL", database.url())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?)
}

/// Measures with and without rows being removed, alternately, on one table.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let rounds = size.choose(2, 5);
    let (rows, time) = size.choose((FEW, QUICK), (ROWS, TIME));
    let database = server.database().await?;
    let retained = Retained {
        rows,
        users: USERS,
        heavy: None,
        away: 0,
    };
    let last_id = retained.fill(&database).await?;
    // Makes all of them old.
    database
        .execute(
            "update notifications set \
               created_at = now() - interval '61 days', sent_at = now() - interval '60 days'",
        )
        .await?;
    database.vacuum("notifications").await?;
    let bridge = Bridge::start(&database).await?;
    let audience = Audience::open(bridge.subject()?, USERS, STREAMS).await?;
    let mut stand = Stand {
        writers: Writers::new(&database, NOTIFICATIONS, USERS),
        database,
        audience,
        last_id,
        counted: Counts::default(),
    };
    server.settle().await?;
    let (mut without, mut with) = (Times::new()?, Times::new()?);
    let mut rates = Vec::new();
    // A first run that isn't counted.
    stand.measure(time, &mut Times::new()?).await?;
    for _ in 0..rounds {
        stand.measure(time, &mut without).await?;
        let before = stand.old_rows().await?;
        let mut pruning = prune(&stand.database)?;
        let begin = Moment::now();
        stand.measure(time, &mut with).await?;
        let took = Moment::now().since(begin).as_secs_f64();
        if pruning.try_wait()?.is_some() {
            return Err("all old rows were gone before the measurement was over".into());
        }
        pruning.kill().await?;
        rates.push((before - stand.old_rows().await?) as f64 / took);
    }
    drop(stand.audience);
    bridge.stop().await?;
    let removed = Figure::new(
        subject::PRUNING,
        measure::REMOVED,
        median(&rates),
        Unit::PerSecond,
    )
    .at(at::RATE, RATE)
    .rounds(rates);
    let mut figures = without.figures(subject::TIDINGS);
    figures.extend(with.figures(subject::PRUNING));
    figures.push(removed);
    Ok(Section {
        name: "prune",
        title: "While old rows are removed".to_owned(),
        setting: format!(
            "A table of {} rows that were sent 60 days ago, and {} rows per second to {STREAMS} \
             users with one stream each. Time from INSERT to event, with and without `tidings \
             prune` removing the old rows; alternating, {rounds} times {} s each.",
            whole(rows as f64),
            whole(RATE),
            time.as_secs(),
        ),
        figures,
    })
}
