//! Reports to the database every ten seconds what this bridge is and does, for the views
//! `tidings_bridges`, `tidings_throughput` and `tidings_delay`. Delivery doesn't depend
//! on it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    delivery::{
        counters::{Counters, Listening, Totals},
        health::Health,
        hub::Hub,
    },
    domain::clock::Moment,
    postgres::{
        database::Database,
        pool::{self, QueryError},
        schema::Privilege,
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain},
};

/// Interval of the reports, by the database's clock, so that a minute's last report is
/// sent when the minute is over.
const EVERY: Duration = Duration::from_secs(10);

/// Minimum time between a report and the next one about a change, such as falling asleep:
/// a bridge that keeps changing reports once a second.
const SOON: Duration = Duration::from_secs(1);

/// Time limit of a report. A connection that isn't answered in time is closed.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// How long the last report may delay the shutdown.
const LAST_LIMIT: Duration = Duration::from_secs(1);

/// First and longest wait before asking again, while the database can't be reached,
/// whether this role may report.
const ASK_FIRST: Duration = Duration::from_millis(200);
const ASK_LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Reporter {
    bridge: String,
    address: String,
    started: Moment,
    activity: Arc<Counters>,
    hub: Arc<Hub>,
    health: Arc<Health>,
    database: Database,
    minute: Minute,
    reported_at: Option<Instant>,
}

/// What has been reported about a minute.
#[derive(Debug, Default)]
struct Minute {
    begins: Moment,
    /// Totals that were reported before this minute.
    before: Totals,
    /// Totals that have been reported so far.
    reported: Totals,
}

impl Minute {
    /// Everything that was done in this minute, if anything has happened since the last
    /// report.
    fn news(&mut self, minute: Moment, totals: &Totals) -> Option<Totals> {
        if self.begins != minute {
            self.begins = minute;
            self.before = self.reported;
        }
        (*totals != self.reported).then(|| totals.since(&self.before))
    }
}

impl Reporter {
    /// `address` is where the bridge serves streams.
    pub fn new(
        address: String,
        activity: Arc<Counters>,
        hub: Arc<Hub>,
        health: Arc<Health>,
        database: Database,
    ) -> Self {
        Self {
            bridge: format!("{:016x}", rand::random::<u64>()),
            address,
            started: activity.clock.now(),
            activity,
            hub,
            health,
            database,
            minute: Minute::default(),
            reported_at: None,
        }
    }

    /// Reports until `stop`, and the rest then. A role whose privileges were granted by
    /// hand, before there were reports, may lack this one: then the reporter does
    /// nothing.
    pub async fn run(mut self, stop: CancellationToken) {
        match stop.run_until_cancelled(self.right()).await {
            Some(Privilege::Granted) => {}
            Some(Privilege::Missing) => {
                warn!(
                    "this role may not report the bridge's activity, so the views don't show this \
                     bridge; `tidings check` prints the missing GRANT"
                );
                // Even without reporting it is one of the bridge's tasks, which must not
                // end on their own.
                return stop.cancelled().await;
            }
            None => return,
        }
        while !stop.is_cancelled() {
            let now = self.activity.clock.now();
            let minute = tokio::select! {
                // What is reported now was done before, so it belongs to the minute of
                // half an interval ago.
                () = sleep(now.until_next(EVERY)) => {
                    Some(self.activity.clock.now().before(EVERY / 2).minute())
                }
                () = self.changed() => None,
                () = stop.cancelled() => break,
            };
            if let Err(error) = self.report(minute).await {
                let error = ErrorChain(&error);
                debug!(%error, "could not report the bridge's activity: {error}");
            }
        }
        let minute = self.activity.clock.now().minute();
        let reported = timeout(LAST_LIMIT, self.report(Some(minute))).await;
        debug!(?reported, "sent the last report");
    }

    /// Whether this role may report. Asks until the database answers.
    async fn right(&self) -> Privilege {
        let mut backoff = Backoff::new(ASK_FIRST, ASK_LONGEST);
        loop {
            match self.ask_for_right().await {
                Ok(right) => return right,
                Err(error) => {
                    let error = ErrorChain(&error);
                    debug!(
                        %error,
                        "could not check whether this role may report the bridge's activity: {error}"
                    );
                }
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn ask_for_right(&self) -> Result<Privilege, QueryError> {
        let may = include_str!("../../sql/may_report.sql");
        let parameters = [(&self.database.schema.name() as _, Type::TEXT)];
        let rows = self
            .database
            .pool
            .query(REPORT_LIMIT, may, &parameters)
            .await?;
        Ok(match pool::first_row(&rows).try_get(0)? {
            Some(true) => Privilege::Granted,
            Some(false) | None => Privilege::Missing,
        })
    }

    async fn changed(&self) {
        self.activity.changed().await;
        if let Some(at) = self.reported_at {
            sleep_until(at + SOON).await;
        }
    }

    /// Reports the state of the bridge, and what it did in this minute.
    async fn report(&mut self, minute: Option<Moment>) -> Result<(), QueryError> {
        self.reported_at = Some(Instant::now());
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
        self.database
            .pool
            .query(
                REPORT_LIMIT,
                &self.database.sql.report,
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
            self.minute.reported = totals;
        }
        Ok(())
    }
}

/// Converts to the database's type.
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
        minute.reported = seen(3);
        assert_eq!(minute.news(first, &seen(3)), None);
        assert_eq!(minute.news(first, &seen(5)), Some(seen(5)));
        // The rows that were not reported count for the next minute.
        assert_eq!(minute.news(second, &seen(6)), Some(seen(3)));
        minute.reported = seen(6);
        assert_eq!(minute.news(second, &seen(6)), None);
    }
}
