//! Whether writers ring, as anybody can see and change it.

use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_postgres::Client;

use crate::support::{PATIENCE, database::Database};

/// How often it is looked at, to leave the processor to others.
const LOOKS_AGAIN: Duration = Duration::from_millis(2);

/// Rings, as any role can.
pub const RING: &str = "do $$ begin execute 'notify tidings_' || TABLE; end $$";

/// A session of somebody who sees whether writers ring, and may say so as bridges
/// do.
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

    /// That of the installation in this schema.
    pub async fn in_schema(database: &Database, schema: &'static str) -> Self {
        Self {
            client: database.superuser().connect().await,
            schema,
            table: format!("'{schema}.notifications'::regclass::oid"),
        }
    }

    /// Does anything. `KEY` stands for the lock of bridges that change whether
    /// writers ring, `BELL` for the sequence that says so, `TABLE` for the OID of
    /// what they write to.
    pub async fn does(&self, work: &str) {
        let work = work
            .replace("KEY", &format!("1953064041, {}::int", self.table))
            .replace("BELL", &format!("'{}.tidings_bell'", self.schema))
            .replace("TABLE", &self.table);
        self.client.batch_execute(&work).await.expect(&work);
    }

    /// Has writers leave the bell unrung and whoever sleeps wake, as a bridge that
    /// wakes does, and lets no bridge change that before
    /// [`lets_sleep`](Self::lets_sleep).
    pub async fn keeps_awake(&self) {
        self.does("select pg_advisory_lock(KEY)").await;
        self.unrung().await;
    }

    /// Whoever sleeps wakes, and may sleep again.
    pub async fn unrung(&self) {
        let next = format!("(select last_value + 1 from {}.tidings_bell)", self.schema);
        let unrung = format!("select setval(BELL, {next}, false); {RING}");
        self.does(&unrung).await;
    }

    /// Has writers ring, as a bridge that falls asleep does.
    pub async fn rung(&self) {
        let next = format!("(select last_value + 1 from {}.tidings_bell)", self.schema);
        self.does(&format!("select setval(BELL, {next})")).await;
    }

    pub async fn lets_sleep(&self) {
        self.does("select pg_advisory_unlock(KEY)").await;
    }

    /// Since which time writers ring, if they do.
    pub async fn since(&self) -> Option<i64> {
        let query = format!(
            "select pg_sequence_last_value('{}.tidings_bell')",
            self.schema
        );
        let row = self.client.query_one(&query, &[]).await;
        row.expect("the sequence").get(0)
    }

    /// Waits until writers ring, and tells since which time.
    pub async fn until_rung(&self) -> i64 {
        self.until_rung_since(|_| true).await
    }

    /// The same, and they did not in between.
    pub async fn until_rung_anew(&self, than: i64) -> i64 {
        self.until_rung_since(|since| since != than).await
    }

    async fn until_rung_since(&self, is_wanted: impl Fn(i64) -> bool) -> i64 {
        let looking = async {
            let mut pace = interval(LOOKS_AGAIN);
            loop {
                if let Some(since) = self.since().await.filter(|&since| is_wanted(since)) {
                    return since;
                }
                pace.tick().await;
            }
        };
        timeout(PATIENCE, looking).await.expect("writers ring")
    }

    /// Whether a writer is still at work: it holds the table's lock.
    pub async fn is_written(&self) -> bool {
        let query = format!(
            "select exists (select from pg_locks where relation = {} \
             and mode = 'RowExclusiveLock' and database = \
             (select oid from pg_database where datname = current_database()))",
            self.table
        );
        self.is(&query).await
    }

    /// Whether this holds.
    pub async fn is(&self, query: &str) -> bool {
        let row = self.client.query_one(query, &[]).await;
        row.expect(query).get(0)
    }

    /// Waits until this holds.
    pub async fn until(&self, query: &str) {
        let asking = async {
            let mut pace = interval(LOOKS_AGAIN);
            loop {
                if self.is(query).await {
                    return;
                }
                pace.tick().await;
            }
        };
        let outcome = timeout(PATIENCE, asking).await;
        outcome.unwrap_or_else(|_| panic!("never: {query}"));
    }

    /// Waits until writers ring, and no bridge has asked anything for a while:
    /// those that are awake ask every few milliseconds.
    pub async fn until_all_sleep(&self) {
        self.until_rung().await;
        self.until(
            "select bool_and(state = 'idle' and state_change < clock_timestamp() - interval '0.2 s') \
             from pg_stat_activity \
             where datname = current_database() and application_name = 'tidings'",
        )
        .await;
    }

    /// Ends the session by which a bridge looks, of several that of any of them.
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
