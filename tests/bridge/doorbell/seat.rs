//! The lock by which a bridge sleeps, as anybody can see, share or hold it.

use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_postgres::Client;

use crate::support::{PATIENCE, database::Database};

/// How often it is looked at, to leave the processor to others.
const LOOKS_AGAIN: Duration = Duration::from_millis(2);

/// A session of somebody who sees the lock, and may hold it.
pub struct Seat {
    client: Client,
    /// The two numbers of the lock, as SQL.
    key: String,
    /// Who has it, as SQL.
    holders: String,
}

impl Seat {
    pub async fn of(database: &Database) -> Self {
        Self::in_schema(database, "public").await
    }

    /// The lock of the installation in this schema.
    pub async fn in_schema(database: &Database, schema: &str) -> Self {
        let table = format!("'{schema}.notifications'::regclass::oid");
        Self {
            client: database.superuser().connect().await,
            key: format!("1953064041, {table}::int"),
            holders: format!(
                "pg_locks where locktype = 'advisory' and classid = 1953064041 and granted \
                 and objid = {table} and database = \
                 (select oid from pg_database where datname = current_database())"
            ),
        }
    }

    /// Runs what holds or returns the lock, or anything.
    pub async fn does(&self, work: &str) {
        let work = work.replace("KEY", &self.key);
        self.client.batch_execute(&work).await.expect("it is done");
    }

    /// Keeps bridges that are awake from sleeping, until
    /// [`lets_sleep`](Self::lets_sleep).
    pub async fn keeps_awake(&self) {
        self.does("select pg_advisory_lock_shared(KEY)").await;
    }

    /// Wakes the bridge that sleeps, and keeps it awake: its session ends, and
    /// its next one finds the lock shared.
    pub async fn wakes(&self, other: &Self) {
        self.is_next_when_it_ends(other, "select pg_advisory_lock_shared(KEY)")
            .await;
    }

    /// Waits for the lock in this way, and gets it as the session ends that
    /// sleeps by it.
    pub async fn is_next_when_it_ends(&self, other: &Self, takes: &str) {
        other.until_taken().await;
        tokio::join!(self.does(takes), other.end_holder());
    }

    pub async fn lets_sleep(&self) {
        self.does("select pg_advisory_unlock_shared(KEY)").await;
    }

    /// The session that sleeps by the lock.
    pub async fn holder(&self) -> Option<i32> {
        let query = format!(
            "select pid from {} and mode = 'ExclusiveLock'",
            self.holders
        );
        let row = self.client.query_opt(&query, &[]).await.expect("the lock");
        row.map(|row| row.get(0))
    }

    /// Waits until a bridge sleeps by the lock, and tells which session.
    pub async fn until_taken(&self) -> i32 {
        self.until_taken_by(|_| true).await
    }

    /// The same, and it is another than this one.
    pub async fn until_taken_by_another(&self, than: i32) -> i32 {
        self.until_taken_by(|holder| holder != than).await
    }

    async fn until_taken_by(&self, is_wanted: impl Fn(i32) -> bool) -> i32 {
        let looking = async {
            let mut pace = interval(LOOKS_AGAIN);
            loop {
                if let Some(holder) = self.holder().await.filter(|&holder| is_wanted(holder)) {
                    return holder;
                }
                pace.tick().await;
            }
        };
        timeout(PATIENCE, looking).await.expect("a bridge sleeps")
    }

    /// Whether a writer that left the bell unrung is still at work.
    pub async fn is_shared(&self) -> bool {
        let query = format!(
            "select exists (select from {} and mode = 'ShareLock')",
            self.holders
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

    /// Waits until no bridge has asked anything for a while: those that are
    /// awake ask every few milliseconds.
    pub async fn until_all_sleep(&self) {
        self.until(
            "select bool_and(state = 'idle' and state_change < clock_timestamp() - interval '0.2 s') \
             from pg_stat_activity \
             where datname = current_database() and application_name = 'tidings'",
        )
        .await;
    }

    /// Ends the session that sleeps by the lock. Whoever waits for the lock
    /// gets it then.
    pub async fn end_holder(&self) {
        let holder = self.until_taken().await;
        let ended = self
            .client
            .query_one("select pg_terminate_backend($1)", &[&holder])
            .await;
        assert!(ended.expect("an answer").get::<_, bool>(0));
    }
}
