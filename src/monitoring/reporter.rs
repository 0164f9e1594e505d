//! Tells the database every ten seconds what this bridge is and does, for the
//! views `tidings_bridges`, `tidings_throughput` and `tidings_delay`. Nothing
//! rests on it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    delivery::{
        counters::{Activity, Listening, Totals},
        health::Health,
        hub::Hub,
    },
    domain::clock::Moment,
    postgres::{
        pool::{self, Pool, QueryError},
        queries::Sql,
        schema::SchemaName,
    },
    runtime::backoff::Backoff,
};

/// How often it tells. By the database's clock, so that a minute's last report
/// comes when it is over.
const EVERY: Duration = Duration::from_secs(10);

/// How soon after another report a change is told, such as of being awake or
/// asleep: a bridge that keeps changing tells once a second.
const SOON: Duration = Duration::from_secs(1);

/// How long telling may take. A connection that isn't answered in time is closed.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// How long the last report may keep the bridge from stopping.
const LAST_LIMIT: Duration = Duration::from_secs(1);

/// The first and the longest wait before it is asked again whether this role may
/// tell, while the database is away.
const ASK_FIRST: Duration = Duration::from_millis(200);
const ASK_LONGEST: Duration = Duration::from_secs(10);

/// Whether this role may tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Granted,
    Missing,
}

/// The task that tells.
#[derive(Debug)]
pub struct Reporter {
    bridge: String,
    address: String,
    started: Moment,
    activity: Arc<Activity>,
    hub: Arc<Hub>,
    health: Arc<Health>,
    pool: Pool,
    sql: Arc<Sql>,
    schema: SchemaName,
    minute: Minute,
    told: Option<Instant>,
}

/// What has been told of a minute.
#[derive(Debug, Default)]
struct Minute {
    begins: Moment,
    /// What had been told before it.
    before: Totals,
    /// What has been told by now.
    told: Totals,
}

impl Minute {
    /// What is to be told of this minute, if anything has happened since the last
    /// time: all that has been done in it.
    fn news(&mut self, minute: Moment, totals: &Totals) -> Option<Totals> {
        if self.begins != minute {
            self.begins = minute;
            self.before = self.told;
        }
        (*totals != self.told).then(|| totals.since(&self.before))
    }
}

impl Reporter {
    /// Of a bridge that serves at this address.
    pub fn new(
        address: String,
        activity: Arc<Activity>,
        hub: Arc<Hub>,
        health: Arc<Health>,
        pool: Pool,
        sql: Arc<Sql>,
        schema: SchemaName,
    ) -> Self {
        Self {
            bridge: format!("{:016x}", rand::random::<u64>()),
            address,
            started: activity.clock.now(),
            activity,
            hub,
            health,
            pool,
            sql,
            schema,
            minute: Minute::default(),
            told: None,
        }
    }

    /// Tells until `stop`, and what is left then. A role that was given its rights
    /// by hand, before there was anything to tell, may not: then it does nothing.
    pub async fn run(mut self, stop: CancellationToken) {
        match stop.run_until_cancelled(self.right()).await {
            Some(Right::Granted) => {}
            Some(Right::Missing) => {
                warn!(
                    "this role may not tell what the bridge does, so the views that show it leave \
                     it out; `tidings check` tells what to grant"
                );
                // Without a report it still is one of the bridge's tasks.
                return stop.cancelled().await;
            }
            None => return,
        }
        while !stop.is_cancelled() {
            let now = self.activity.clock.now();
            let minute = tokio::select! {
                // What is told then was done before.
                () = sleep(now.until_next(EVERY)) => {
                    Some(self.activity.clock.now().before(EVERY / 2).minute())
                }
                () = self.changed() => None,
                () = stop.cancelled() => break,
            };
            if let Err(error) = self.tell(minute).await {
                debug!(%error, "could not tell what the bridge does: {error}");
            }
        }
        let minute = self.activity.clock.now().minute();
        let told = timeout(LAST_LIMIT, self.tell(Some(minute))).await;
        debug!(?told, "told the last of what the bridge did");
    }

    /// Whether its role may tell. Asks until the database answers.
    async fn right(&self) -> Right {
        let mut backoff = Backoff::new(ASK_FIRST, ASK_LONGEST);
        loop {
            match self.ask_for_right().await {
                Ok(right) => return right,
                Err(error) => {
                    debug!(%error, "could not ask whether this role may tell what the bridge does: {error}");
                }
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn ask_for_right(&self) -> Result<Right, QueryError> {
        let may = include_str!("../../sql/may_report.sql");
        let parameters = [(&self.schema.name() as _, Type::TEXT)];
        let rows = self.pool.query(REPORT_LIMIT, may, &parameters).await?;
        Ok(match pool::first_row(&rows).try_get(0)? {
            Some(true) => Right::Granted,
            Some(false) | None => Right::Missing,
        })
    }

    async fn changed(&self) {
        self.activity.changed().await;
        if let Some(told) = self.told {
            sleep_until(told + SOON).await;
        }
    }

    /// How the bridge is, and what it did in this minute.
    async fn tell(&mut self, minute: Option<Moment>) -> Result<(), QueryError> {
        self.told = Some(Instant::now());
        let totals = self.activity.totals();
        let news = minute.and_then(|minute| self.minute.news(minute, &totals));
        let Some(Listening {
            pid,
            role,
            watching,
            since,
        }) = self.activity.listening()
        else {
            return Ok(());
        };
        let connections = count(self.hub.connections() as u64);
        let done = news.as_ref().map(|news| {
            let delays: Vec<i64> = news.delays.iter().map(|&rows| count(rows)).collect();
            (
                self.minute.begins,
                count(news.seen),
                count(news.sent),
                delays,
            )
        });
        let (begins, seen, sent, delays) = match done {
            Some((begins, seen, sent, delays)) => (Some(begins), seen, sent, delays),
            None => (None, 0, 0, Vec::new()),
        };
        let readiness = self.health.readiness();
        self.pool
            .query(
                REPORT_LIMIT,
                &self.sql.report,
                &[
                    (&self.bridge, Type::TEXT),
                    (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                    (&role, Type::TEXT),
                    (&self.address, Type::TEXT),
                    (&self.started, Type::TIMESTAMPTZ),
                    (&pid, Type::INT4),
                    (&watching.name(), Type::TEXT),
                    (&since, Type::TIMESTAMPTZ),
                    (&connections, Type::INT8),
                    (&self.activity.clock.ahead(), Type::INT8),
                    (&begins, Type::TIMESTAMPTZ),
                    (&seen, Type::INT8),
                    (&sent, Type::INT8),
                    (&delays, Type::INT8_ARRAY),
                    (&readiness.status.name(), Type::TEXT),
                    (&readiness.reason, Type::TEXT),
                ],
            )
            .await?;
        if news.is_some() {
            self.minute.told = totals;
        }
        Ok(())
    }
}

/// As the database counts.
fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(seen: u64) -> Totals {
        Totals {
            seen,
            ..Totals::default()
        }
    }

    #[test]
    fn of_a_minute_all_is_told_and_nothing_twice() {
        let mut minute = Minute::default();
        let (first, second) = (Moment(60_000_000), Moment(120_000_000));
        assert_eq!(minute.news(first, &seen(0)), None);
        assert_eq!(minute.news(first, &seen(3)), Some(seen(3)));
        minute.told = seen(3);
        assert_eq!(minute.news(first, &seen(3)), None);
        assert_eq!(minute.news(first, &seen(5)), Some(seen(5)));
        // That was not told, so it is told of the next minute.
        assert_eq!(minute.news(second, &seen(6)), Some(seen(3)));
        minute.told = seen(6);
        assert_eq!(minute.news(second, &seen(6)), None);
    }
}
