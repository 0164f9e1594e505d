//! The sequence that stores whether writers send NOTIFY. Any role can see and change it.

use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_postgres::Client;

use crate::support::{PATIENCE, database::Database};

/// How often to poll. The pause leaves the CPU to other tests.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Sends NOTIFY, as any role can.
pub const RING: &str = "do $$ begin execute 'notify tidings_' || TABLE; end $$";

/// A session that sees whether writers send NOTIFY and can change that, as bridges do.
pub struct Bell {
    client: Client,
    schema: &'static str,
    /// The table's OID, as SQL.
    table: String,
}

impl Bell {
    pub async fn of(database: &Database) -> Self {
        Self::in_schema(database, "public").await
    }

    /// For the installation in this schema.
    pub async fn in_schema(database: &Database, schema: &'static str) -> Self {
        Self {
            client: database.superuser().connect().await,
            schema,
            table: format!("'{schema}.notifications'::regclass::oid"),
        }
    }

    /// Runs any statement. `KEY` stands for the lock that bridges hold while they change whether
    /// writers send NOTIFY, `BELL` for the sequence that stores it, and `TABLE` for the OID of the
    /// table that writers insert into.
    pub async fn does(&self, work: &str) {
        let work = work
            .replace("KEY", &format!("1953064041, {}::int", self.table))
            .replace("BELL", &format!("'{}.tidings_bell'", self.schema))
            .replace("TABLE", &self.table);
        self.client.batch_execute(&work).await.expect(&work);
    }

    /// Makes writers stop sending NOTIFY and wakes all bridges, as a bridge does when it wakes. No
    /// bridge can change that before [`lets_sleep`](Self::lets_sleep).
    pub async fn keeps_awake(&self) {
        self.does("select pg_advisory_lock(KEY)").await;
        self.unrung().await;
    }

    /// Makes writers stop sending NOTIFY and wakes all bridges, which may fall asleep again.
    pub async fn unrung(&self) {
        let next = format!("(select last_value + 1 from {}.tidings_bell)", self.schema);
        let unrung = format!("select setval(BELL, {next}, false); {RING}");
        self.does(&unrung).await;
    }

    /// Makes writers send NOTIFY, as a bridge does when it falls asleep.
    pub async fn rung(&self) {
        let next = format!("(select last_value + 1 from {}.tidings_bell)", self.schema);
        self.does(&format!("select setval(BELL, {next})")).await;
    }

    pub async fn lets_sleep(&self) {
        self.does("select pg_advisory_unlock(KEY)").await;
    }

    /// The value of the sequence if writers send NOTIFY. It changes each time they begin to.
    pub async fn since(&self) -> Option<i64> {
        let query = format!(
            "select pg_sequence_last_value('{}.tidings_bell')",
            self.schema
        );
        let row = self.client.query_one(&query, &[]).await;
        row.expect("the sequence").get(0)
    }

    /// Waits until writers send NOTIFY and returns the value of the sequence.
    pub async fn until_rung(&self) -> i64 {
        self.until_rung_since(|_| true).await
    }

    /// The same, but waits for a value other than `than`: writers must have stopped in between.
    pub async fn until_rung_anew(&self, than: i64) -> i64 {
        self.until_rung_since(|since| since != than).await
    }

    async fn until_rung_since(&self, is_wanted: impl Fn(i64) -> bool) -> i64 {
        let polling = async {
            let mut ticks = interval(POLL_INTERVAL);
            loop {
                if let Some(since) = self.since().await.filter(|&since| is_wanted(since)) {
                    return since;
                }
                ticks.tick().await;
            }
        };
        timeout(PATIENCE, polling).await.expect("writers ring")
    }

    /// Whether a writer's transaction is still open: it holds a lock on the table.
    pub async fn is_written(&self) -> bool {
        let query = format!(
            "select exists (select from pg_locks where relation = {} \
             and mode = 'RowExclusiveLock' and database = \
             (select oid from pg_database where datname = current_database()))",
            self.table
        );
        self.is(&query).await
    }

    /// Whether this query returns true.
    pub async fn is(&self, query: &str) -> bool {
        let row = self.client.query_one(query, &[]).await;
        row.expect(query).get(0)
    }

    /// Waits until this query returns true.
    pub async fn until(&self, query: &str) {
        let asking = async {
            let mut ticks = interval(POLL_INTERVAL);
            loop {
                if self.is(query).await {
                    return;
                }
                ticks.tick().await;
            }
        };
        let outcome = timeout(PATIENCE, asking).await;
        outcome.unwrap_or_else(|_| panic!("never: {query}"));
    }

    /// Waits until writers send NOTIFY and no bridge has run a query for 0.2 s. Bridges that are
    /// awake poll every few milliseconds.
    pub async fn until_all_sleep(&self) {
        self.until_rung().await;
        self.until(
            "select bool_and(state = 'idle' and state_change < clock_timestamp() - interval '0.2 s') \
             from pg_stat_activity \
             where datname = current_database() and application_name = 'tidings'",
        )
        .await;
    }

    /// Terminates the session in which a bridge polls; with several bridges, that of a random one.
    pub async fn end_session(&self) {
        self.until(
            "select coalesce(bool_or(pg_terminate_backend(pid)), false) from ( \
               select pid from pg_stat_activity \
               where datname = current_database() and application_name = 'tidings' \
               and query ~ 'first rows, of all users' order by random() limit 1) as one",
        )
        .await;
    }
}
