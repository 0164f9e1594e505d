//! Reconnecting to a large table: all clients at once, a user whose rows were nearly all
//! sent, and the bridge's own sessions.

use std::{collections::HashMap, time::Duration};

use tokio::time::sleep;

use super::{
    PATIENCE, Size,
    storm::{storm, until_left},
};
use crate::{
    Result,
    audience::{Arrival, Audience},
    bridge::Bridge,
    clock::Moment,
    marks::until_marked_after,
    report::{Counts, Figure, Unit, at, measure, median, subject},
    server::{Database, Server},
    subject::Users,
    table::whole,
    usage::Usage,
    writers::{NOTIFICATIONS, Writers, Written},
};

/// A user who owns a good part of the rows of the largest table.
pub const HEAVY: Users = Users {
    name: "heavy",
    count: 1,
};
/// The user's sent rows.
pub const HEAVY_ROWS: u64 = 500_000;
/// A user who never had any rows.
const NEWCOMER: Users = Users {
    name: "newcomer",
    count: 1,
};
/// Unsent rows when either of them connects.
const UNSENT: u64 = 3;
/// The axis along which the two differ.
const SENT: &str = "sent rows of this user";

/// Streams that are connected when the bridge's sessions end.
const STREAMS: u64 = 10_000;
/// Rows per second of all users during that time.
const RATE: f64 = 500.0;
const ROWS: u64 = 2_000;
/// When the sessions are ended, after the first row.
const ENDS_AFTER: Duration = Duration::from_secs(2);

/// A filled table, and a bridge without connections.
pub struct Returning<'a> {
    pub database: &'a Database,
    pub bridge: &'a Bridge,
    /// The number of rows in the table.
    pub rows: u64,
    /// The last row that existed before.
    pub last_id: i64,
}

impl Returning<'_> {
    /// Runs all measurements.
    pub async fn run(&self, server: &Server, size: Size) -> Result<Vec<Figure>> {
        let streams = size.choose(1_000, STREAMS);
        let mut figures = self.everybody(server, streams, size.choose(1, 3)).await?;
        figures.extend(self.sessions(server, streams).await?);
        if self.rows > 2 * HEAVY_ROWS {
            figures.extend(self.user(NEWCOMER, 0).await?);
            figures.extend(self.user(HEAVY, HEAVY_ROWS).await?);
        }
        let rows = |figure: Figure| figure.at(at::ROWS, self.rows as f64);
        Ok(figures.into_iter().map(rows).collect())
    }

    async fn open(&self, streams: u64) -> Result<(Audience, Writers)> {
        let users = Users {
            name: "user",
            count: streams,
        };
        let subject = self.bridge.subject()?;
        let audience = Audience::open(subject, users, usize::try_from(streams)?).await?;
        Ok((audience, Writers::new(self.database, NOTIFICATIONS, users)))
    }

    async fn until_marked(&self) -> Result<()> {
        until_marked_after(self.database, self.last_id, PATIENCE).await?;
        Ok(())
    }

    async fn everybody(&self, server: &Server, streams: u64, rounds: u32) -> Result<Vec<Figure>> {
        let (mut audience, writers) = self.open(streams).await?;
        let (mut times, mut counts) = (Vec::new(), Counts::default());
        for _ in 0..rounds {
            server.settle().await?;
            let one = storm(self.database, self.bridge, &mut audience, &writers, streams).await?;
            times.push(one.caught_up.as_secs_f64());
            // The counts continue from storm to storm.
            counts = one.counts;
            self.until_marked().await?;
        }
        let what = format!("{}, {} streams", measure::CAUGHT_UP, whole(streams as f64));
        let figure = Figure::new(subject::TIDINGS, &what, median(&times), Unit::Seconds);
        drop(audience);
        until_left(self.bridge).await?;
        Ok(vec![figure.counts(counts)])
    }

    /// All sessions of the bridge are ended while rows are being inserted: the longest
    /// delay of a row, and the cost of recovering.
    async fn sessions(&self, server: &Server, streams: u64) -> Result<Vec<Figure>> {
        let (audience, writers) = self.open(streams).await?;
        let mut busy = Vec::new();
        let mut longest = Duration::ZERO;
        for ends in [false, true] {
            let before = Usage::of(server, Some(self.bridge))?;
            let ending = async {
                sleep(ENDS_AFTER).await;
                match ends {
                    true => self.end_sessions().await,
                    false => Ok(()),
                }
            };
            let (written, ended) = tokio::join!(writers.by_the_clock(RATE, ROWS), ending);
            let (written, ()) = (written?, ended?);
            audience.until_arrived(writers.rows(), PATIENCE).await;
            self.until_marked().await?;
            let used = Usage::of(server, Some(self.bridge))?.since(before);
            busy.push((used.bridge + used.postgres).as_secs_f64());
            let waits = waits(&written, &audience.take_arrivals());
            longest = Duration::from_secs_f64(waits.into_iter().fold(0.0, f64::max));
        }
        let counts = audience.counts(writers.rows());
        drop(audience);
        until_left(self.bridge).await?;
        let more = match busy.as_slice() {
            [quiet, broken] => (broken - quiet).max(0.0) * 1e3,
            _ => f64::NAN,
        };
        Ok(vec![
            Figure::new(
                subject::TIDINGS,
                "longest delay when all its sessions are terminated",
                longest.as_secs_f64() * 1e3,
                Unit::Milliseconds,
            )
            .at(at::STREAMS, streams as f64)
            .counts(counts),
            Figure::new(
                subject::BOTH,
                "CPU time to recover from that",
                more,
                Unit::Milliseconds,
            )
            .at(at::STREAMS, streams as f64)
            .counts(counts),
        ])
    }

    async fn end_sessions(&self) -> Result<()> {
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and application_name = 'tidings'";
        self.database.execute(end).await
    }

    /// A user with some unsent rows connects without an id.
    async fn user(&self, user: Users, sent: u64) -> Result<Vec<Figure>> {
        let rounds = 6;
        let (mut times, mut counts) = (Vec::new(), Counts::default());
        for _ in 0..rounds {
            // Rows are numbered from the first: each audience sees only its own.
            let writers = Writers::new(self.database, NOTIFICATIONS, user);
            writers.in_batches(UNSENT, UNSENT).await?;
            let subject = self.bridge.subject()?;
            let begin = Moment::now();
            let audience = Audience::open(subject, user, 1).await?;
            let live = audience.until_live(PATIENCE).await?;
            counts = counts.and(audience.until_arrived(UNSENT, PATIENCE).await);
            let last = audience.take_arrivals().iter().map(|event| event.at).max();
            let ready = last.map_or(live, |last| last.max(live));
            times.push(ready.since(begin).as_secs_f64() * 1e3);
            self.until_marked().await?;
            drop(audience);
            until_left(self.bridge).await?;
        }
        let (first, later) = times.split_at(1);
        let figure = |what: &str, time| {
            let what = format!("{what} connection without an id, {UNSENT} unsent rows");
            Figure::new(subject::TIDINGS, &what, time, Unit::Milliseconds)
                .at(SENT, sent as f64)
                .counts(counts)
        };
        Ok(vec![
            figure("first", median(first)),
            figure("later", median(later)),
        ])
    }
}

/// From the INSERT to the event, in seconds.
pub fn waits(written: &Written, arrivals: &[Arrival]) -> Vec<f64> {
    let issued: HashMap<u64, Moment> = written
        .rows
        .iter()
        .map(|row| (row.row, row.issued))
        .collect();
    let wait = |arrival: &Arrival| Some(arrival.at.since(*issued.get(&arrival.row)?));
    let waits = arrivals.iter().filter_map(wait);
    waits.map(|wait| wait.as_secs_f64()).collect()
}
