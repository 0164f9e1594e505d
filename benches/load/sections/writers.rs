//! The cost for writers: INSERTs per second, compared with those into a bare table.

use std::{collections::BTreeMap, time::Duration};

use super::{PATIENCE, Size, between};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    floor::{self, Listener},
    marks::until_all_marked,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    server::{Database, Server},
    subject::Users,
    usage::Usage,
    writers::{NOTIFICATIONS, Until, Writers},
};

const WRITERS: [usize; 3] = [1, 8, 32];
const STREAMS: usize = 1_000;
const USERS: Users = Users {
    name: "user",
    count: STREAMS as u64,
};

/// The receiver of the notifications of one database.
enum Receiver {
    Absent,
    /// A connection that LISTENs to a plain trigger.
    Listener(Listener),
    /// A bridge without connected users.
    Bridge(Bridge),
    Streams(Bridge, Audience),
}

/// One of those that are compared.
struct Stand {
    subject: &'static str,
    database: Database,
    receiver: Receiver,
    writers: Writers,
    counted: Counts,
    /// By the number of writers.
    rounds: BTreeMap<usize, Rounds>,
}

#[derive(Default)]
struct Rounds {
    rates: Vec<f64>,
    rows: usize,
    usage: Usage,
    counts: Counts,
}

impl Stand {
    async fn new(subject: &'static str, database: Database, receiver: Receiver) -> Result<Self> {
        database.vacuum("notifications").await?;
        Ok(Self {
            subject,
            writers: Writers::new(&database, NOTIFICATIONS, USERS),
            database,
            receiver,
            counted: Counts::default(),
            rounds: BTreeMap::new(),
        })
    }

    fn bridge(&self) -> Option<&Bridge> {
        match &self.receiver {
            Receiver::Absent | Receiver::Listener(_) => None,
            Receiver::Bridge(bridge) | Receiver::Streams(bridge, _) => Some(bridge),
        }
    }

    /// Writes for this long, and waits until everything has been delivered.
    async fn round(&mut self, server: &Server, writers: usize, time: Duration) -> Result<()> {
        let before = Usage::of(server, self.bridge())?;
        let written = self.writers.flat_out(writers, Until::Passed(time)).await?;
        let counts = self.settle().await?;
        let usage = Usage::of(server, self.bridge())?.since(before);
        let round = self.rounds.entry(writers).or_default();
        round.rates.push(written.rate());
        round.rows += written.rows.len();
        round.usage = round.usage.and(usage);
        round.counts = round.counts.and(between(self.counted, counts));
        self.counted = counts;
        Ok(())
    }

    async fn settle(&self) -> Result<Counts> {
        let rows = self.writers.rows();
        Ok(match &self.receiver {
            Receiver::Absent | Receiver::Bridge(_) => Counts::default(),
            Receiver::Listener(listener) => listener.until_arrived(rows, PATIENCE).await,
            Receiver::Streams(_, audience) => {
                let counts = audience.until_arrived(rows, PATIENCE).await;
                until_all_marked(&self.database, PATIENCE).await?;
                counts
            }
        })
    }

    fn figures(&self, writers: usize) -> Vec<Figure> {
        let Some(rounds) = self.rounds.get(&writers) else {
            return Vec::new();
        };
        let sized = |figure: Figure| {
            let figure = figure.at(at::WRITERS, writers as f64);
            match self.receiver {
                Receiver::Streams(..) => figure.at(at::STREAMS, STREAMS as f64),
                _ => figure,
            }
        };
        let rate = median(&rounds.rates);
        let mut inserted = sized(Figure::new(
            self.subject,
            measure::INSERTED,
            rate,
            Unit::PerSecond,
        ))
        .rounds(rounds.rates.clone());
        if rounds.counts.expected > 0 {
            inserted = inserted.counts(rounds.counts);
        }
        let usage = rounds.usage.per_row(self.subject, rounds.rows);
        [inserted]
            .into_iter()
            .chain(usage.into_iter().map(sized))
            .collect()
    }
}

/// Each is measured alternately, several times, so that other load on the machine affects
/// all of them.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let (rounds, time) = size.choose((3, Duration::from_secs(1)), (15, Duration::from_secs(1)));
    let mut stands = stands(server).await?;
    server.settle().await?;
    for writers in WRITERS {
        for _ in 0..rounds {
            for stand in &mut stands {
                stand.round(server, writers, time).await?;
            }
        }
    }
    let figures = WRITERS
        .iter()
        .flat_map(|&writers| stands.iter().flat_map(move |stand| stand.figures(writers)))
        .collect();
    for stand in stands {
        match stand.receiver {
            Receiver::Absent | Receiver::Listener(_) => {}
            Receiver::Bridge(bridge) => bridge.stop().await?,
            Receiver::Streams(bridge, audience) => {
                drop(audience);
                bridge.stop().await?;
            }
        }
    }
    Ok(Section {
        name: "writers",
        title: "Cost for writers".to_owned(),
        setting: format!(
            "Each connection INSERTs one row per transaction, one after the other, for {} s; the \
             variants alternate, {rounds} rounds; figures and ratios are medians. The rows of \
             “{}” are for {STREAMS} users with one stream each, those of “{}” for offline \
             users.",
            time.as_secs(),
            subject::TIDINGS,
            subject::IDLE,
        ),
        figures,
    })
}

async fn stands(server: &Server) -> Result<[Stand; 4]> {
    let bare = server.database().await?;
    floor::silence(&bare).await?;
    let plain = server.database().await?;
    floor::notify_plainly(&plain).await?;
    let listener = Listener::start(&plain).await?;
    let idle = server.database().await?;
    let unused = Bridge::start(&idle).await?;
    let busy = server.database().await?;
    let bridge = Bridge::start(&busy).await?;
    let audience = Audience::open(bridge.subject()?, USERS, STREAMS).await?;
    Ok([
        Stand::new(subject::NO_TRIGGER, bare, Receiver::Absent).await?,
        Stand::new(subject::NOTIFY, plain, Receiver::Listener(listener)).await?,
        Stand::new(subject::IDLE, idle, Receiver::Bridge(unused)).await?,
        Stand::new(subject::TIDINGS, busy, Receiver::Streams(bridge, audience)).await?,
    ])
}
