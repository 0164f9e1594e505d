//! Whether the cost increases with the size of the table, the number of users, and the
//! number of streams.

use super::{
    PATIENCE, Size,
    returning::{HEAVY, HEAVY_ROWS, Returning, waits},
    storm::storm,
};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_marked_after,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    retained::Retained,
    server::{Database, Server},
    subject::Users,
    table::whole,
    usage::Usage,
    writers::{NOTIFICATIONS, Until, Writers},
};

/// Rows per second, at a fixed rate.
const RATE: f64 = 500.0;
const BY_THE_CLOCK: u64 = 2_000;
const WRITERS: usize = 32;
const FLAT_OUT: u64 = 10_000;
const FLOOD: u64 = 20_000;
const BATCH: u64 = 1_000;

/// The values of the sizes that don't vary.
const STREAMS: u64 = 1_000;
const ROWS: u64 = 1_000_000;
const AWAY: u64 = 1_000;
/// The users of the rows that were sent long ago, who include the streams' users.
const USERS: Users = Users {
    name: "user",
    count: 10_000,
};

/// A size, and what is measured there alternately with the others.
#[derive(Clone, Copy, Debug)]
struct Scene {
    along: &'static str,
    size: u64,
    rows: u64,
    away: u64,
    streams: u64,
}

impl Scene {
    fn rows(rows: u64) -> Self {
        Self {
            along: at::ROWS,
            size: rows,
            rows,
            away: AWAY,
            streams: STREAMS,
        }
    }

    fn away(rows: u64, away: u64) -> Self {
        Self {
            along: at::AWAY,
            size: away,
            away,
            ..Self::rows(rows)
        }
    }

    fn streams(rows: u64, streams: u64) -> Self {
        Self {
            along: at::STREAMS,
            size: streams,
            streams,
            ..Self::rows(rows)
        }
    }
}

/// A scene that is ready to be measured.
struct Stand {
    scene: Scene,
    database: Database,
    bridge: Bridge,
    audience: Audience,
    writers: Writers,
    /// The last row that existed before.
    last_id: i64,
    counted: Counts,
    rounds: Vec<Round>,
    usage: Usage,
}

struct Round {
    p50: f64,
    cpu: f64,
    inserted: f64,
    marked: f64,
    caught_up: f64,
}

impl Stand {
    async fn new(server: &Server, scene: Scene) -> Result<Self> {
        let database = server.database().await?;
        let retained = Retained {
            rows: scene.rows,
            users: USERS,
            heavy: (scene.rows > 2 * HEAVY_ROWS).then_some((HEAVY, HEAVY_ROWS)),
            away: scene.away,
        };
        let last_id = retained.fill(&database).await?;
        let bridge = Bridge::start(&database).await?;
        let users = Users {
            count: scene.streams,
            ..USERS
        };
        let streams = usize::try_from(scene.streams)?;
        let audience = Audience::open(bridge.subject()?, users, streams).await?;
        Ok(Self {
            scene,
            writers: Writers::new(&database, NOTIFICATIONS, users),
            database,
            bridge,
            audience,
            last_id,
            counted: Counts::default(),
            rounds: Vec::new(),
            usage: Usage::default(),
        })
    }

    /// Waits until everything that was written has arrived and is marked.
    async fn until_through(&mut self) -> Result<Moment> {
        let counts = self.audience.until_arrived(self.writers.rows(), PATIENCE);
        self.counted = counts.await;
        until_marked_after(&self.database, self.last_id, PATIENCE).await
    }

    async fn round(&mut self, server: &Server) -> Result<()> {
        server.settle().await?;
        let before = Usage::of(server, Some(&self.bridge))?;
        let written = self.writers.by_the_clock(RATE, BY_THE_CLOCK).await?;
        self.until_through().await?;
        let usage = Usage::of(server, Some(&self.bridge))?.since(before);
        self.usage = self.usage.and(usage);
        let busy = usage.bridge + usage.postgres;
        let waits = waits(&written, &self.audience.take_arrivals());

        let streams = self.scene.streams;
        let Self {
            database,
            bridge,
            audience,
            writers,
            ..
        } = self;
        let returned = storm(database, bridge, audience, writers, streams).await?;
        self.until_through().await?;

        let single = self
            .writers
            .flat_out(WRITERS, Until::Rows(FLAT_OUT))
            .await?;
        self.until_through().await?;

        let flood = self.writers.in_batches(FLOOD, BATCH).await?;
        let flooded = self.until_through().await?.since(flood.begin);
        self.rounds.push(Round {
            p50: median(&waits) * 1e3,
            cpu: busy.as_secs_f64() * 1e6 / BY_THE_CLOCK as f64,
            inserted: single.rate(),
            marked: FLOOD as f64 / flooded.as_secs_f64(),
            caught_up: returned.caught_up.as_secs_f64(),
        });
        // The next round must find the table as large as this one did.
        let last_id = self.last_id;
        let shrink = format!("delete from notifications where id > {last_id}");
        self.database.execute(&shrink).await?;
        self.database.vacuum("notifications").await
    }

    /// Discards the measurements so far, but not the counts of arrivals.
    fn forget(&mut self) {
        self.rounds.clear();
        self.usage = Usage::default();
    }

    fn figures(&self) -> Vec<Figure> {
        let middle = |value: fn(&Round) -> f64| {
            let values: Vec<f64> = self.rounds.iter().map(value).collect();
            median(&values)
        };
        let rates = [
            (
                subject::BOTH,
                measure::CPU_PER_ROW,
                middle(|round| round.cpu),
                Unit::Microseconds,
            ),
            (
                subject::TIDINGS,
                measure::P50,
                middle(|round| round.p50),
                Unit::Milliseconds,
            ),
            (
                subject::TIDINGS,
                measure::INSERTED,
                middle(|round| round.inserted),
                Unit::PerSecond,
            ),
            (
                subject::TIDINGS,
                measure::MARKED,
                middle(|round| round.marked),
                Unit::PerSecond,
            ),
            (
                subject::TIDINGS,
                measure::CAUGHT_UP,
                middle(|round| round.caught_up),
                Unit::Seconds,
            ),
        ];
        let rates = rates
            .into_iter()
            .map(|(whom, what, value, unit)| Figure::new(whom, what, value, unit));
        let rows = BY_THE_CLOCK as usize * self.rounds.len();
        let usage = self.usage.per_row(subject::TIDINGS, rows);
        let figures = rates.map(|figure| figure.counts(self.counted)).chain(usage);
        let (along, size) = (self.scene.along, self.scene.size as f64);
        figures.map(|figure| figure.at(along, size)).collect()
    }
}

/// Sizes of one kind are measured alternately, several times, so that other load on the
/// machine affects all of them.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    // The first measurement would include one-time costs.
    let (warm_up, rounds) = size.choose((0, 1), (1, 3));
    let rows: &[u64] = size.choose(&[10_000, 100_000], &[10_000, 100_000, ROWS, 5_000_000]);
    let (middle, away, streams): (_, &[u64], &[u64]) = size.choose(
        (10_000, &[100, 1_000], &[100, 1_000]),
        (ROWS, &[100, 10_000, 500_000], &[100, 1_000, 10_000]),
    );
    let mut figures = Vec::new();
    let scenes = [
        rows.iter()
            .map(|&rows| Scene::rows(rows))
            .collect::<Vec<_>>(),
        away.iter().map(|&away| Scene::away(middle, away)).collect(),
        streams
            .iter()
            .map(|&streams| Scene::streams(middle, streams))
            .collect(),
    ];
    for scenes in scenes {
        let mut stands = Vec::new();
        for scene in scenes {
            stands.push(Stand::new(server, scene).await?);
        }
        for round in 0..warm_up + rounds {
            for stand in &mut stands {
                stand.round(server).await?;
                if round < warm_up {
                    stand.forget();
                }
            }
        }
        figures.extend(stands.iter().flat_map(Stand::figures));
        let largest = stands.len().saturating_sub(1);
        for (number, stand) in stands.into_iter().enumerate() {
            drop(stand.audience);
            if stand.scene.along == at::ROWS && [0, largest].contains(&number) {
                let returning = Returning {
                    database: &stand.database,
                    bridge: &stand.bridge,
                    rows: stand.scene.rows,
                    last_id: stand.last_id,
                };
                figures.extend(returning.run(server, size).await?);
            }
            stand.bridge.stop().await?;
        }
    }
    Ok(Section {
        name: "growth",
        title: "Cost as tables, users and streams grow".to_owned(),
        setting: format!(
            "Tables of sent rows of {} users. Unless varied: {STREAMS} streams, {AWAY} offline \
             users with one unsent row each, {} rows. At each size: {BY_THE_CLOCK} rows at \
             {RATE} per second (p50, CPU time), a reconnect of all streams at once, {FLAT_OUT} \
             single rows by {WRITERS} connections, {FLOOD} in batches of {BATCH}. The sizes \
             alternate; the median of {rounds} rounds, after {warm_up} to warm up. Added rows are \
             removed after each round.",
            whole(USERS.count as f64),
            whole(middle as f64),
        ),
        figures,
    })
}
