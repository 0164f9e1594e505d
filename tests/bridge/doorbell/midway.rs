//! Moments that are too short to hit by chance, made long: a poll that is held up after it has
//! taken its snapshot and before the bridge can take the next step.
//!
//! The poll first waits for a lock on the table until the bridge's process is frozen. Then it reads
//! a row that is larger than a socket's buffers, so the server blocks while it sends the result,
//! and statements sent after the poll don't run yet.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::{process::Child, time::sleep};
use tokio_postgres::Client;

use super::{
    BELL_ALONE,
    bell::{Bell, RING},
};
use crate::support::{
    bridge::token,
    database::Database,
    event_source::EventSource,
    process::{serve, signal},
    row_id, until,
};

const ROUNDS: usize = 3;

/// Longer than a bridge stays awake when no rows arrive. Correctness doesn't depend on it: a bridge
/// that takes longer only makes the test easier to pass.
const WOULD_SLEEP: Duration = Duration::from_millis(60);

/// No NOTIFY is sent for this row, and its user has no connection.
const LARGE: &str = "set local tidings.doorbell = off; \
    insert into notifications (user_id, text) values ('nobody', repeat('x', 1048576))";

const CLOSE: &str = "begin; lock table notifications in access exclusive mode";

/// The sessions that wait to read the table.
const WAITS: &str = "select from pg_locks join pg_stat_activity using (pid) where not granted \
    and relation = 'notifications'::regclass and mode = 'AccessShareLock'";

/// A bridge in its own process, and a client of it.
struct Midway {
    database: Database,
    bell: Bell,
    bridge: Child,
    source: EventSource,
}

impl Midway {
    async fn start() -> Self {
        let database = Database::migrated().await;
        let bell = Bell::of(&database).await;
        let (bridge, address) = serve(&database, &[BELL_ALONE]).await;
        let bearer = format!("Bearer {}", token("alice"));
        let headers = [("Authorization", bearer.as_str())];
        let mut source = EventSource::open(address, "/stream", &headers).await;
        until(&mut source, "tidings.caught-up").await;
        Self {
            database,
            bell,
            bridge,
            source,
        }
    }

    /// Locks the table against all other sessions.
    async fn close_the_table(&self) -> Client {
        // A pending mark would wait for the lock before the poll does.
        let sent = "select coalesce(bool_and(sent), true) from notifications \
                    where user_id = 'alice'";
        self.bell.until(sent).await;
        let client = self.database.owner().connect().await;
        client.batch_execute(CLOSE).await.expect(CLOSE);
        client
    }

    /// Once a poll waits for the table, holds it up after its snapshot.
    async fn hold_up(&self, table: Client) {
        let waits = format!("select exists ({WAITS})");
        let looks = format!("select exists ({WAITS} and query ~ 'first rows, of all users')");
        loop {
            self.bell.until(&waits).await;
            if self.bell.is(&looks).await {
                break;
            }
            // Sometimes the bridge runs another query on the table.
            table.batch_execute("rollback").await.expect("rollback");
            table.batch_execute(CLOSE).await.expect(CLOSE);
        }
        table.batch_execute(LARGE).await.expect(LARGE);
        signal(&self.bridge, Signal::SIGSTOP);
        table.batch_execute("commit").await.expect("commit");
        self.bell
            .until(
                "select exists (select from pg_stat_activity where wait_event = 'ClientWrite' \
                 and datname = current_database() and application_name = 'tidings')",
            )
            .await;
    }

    /// Another session commits a row.
    async fn insert(&self) -> i64 {
        let client = self.database.connect().await;
        let insert = "insert into notifications (user_id, text) \
                      values ('alice', 'midway') returning id";
        let row = client.query_one(insert, &[]).await;
        row.expect("a row").get(0)
    }

    /// Resumes the bridge and checks that the row is delivered.
    async fn go_on(&mut self, row: i64) {
        signal(&self.bridge, Signal::SIGCONT);
        assert_eq!(row_id(&self.source.next_event().await), row);
    }
}

/// A bridge must make writers send NOTIFY before it polls, not afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_between_the_poll_and_the_request_to_ring_is_seen() {
    let mut midway = Midway::start().await;
    for _ in 0..ROUNDS {
        midway.bell.keeps_awake().await;
        sleep(WOULD_SLEEP).await;
        let table = midway.close_the_table().await;
        midway.hold_up(table).await;
        let row = midway.insert().await;
        midway.bell.lets_sleep().await;
        midway.go_on(row).await;
        midway.bell.until_rung().await;
    }
}

/// A bridge must discard a received NOTIFY before the poll that it triggers, not afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_rings_during_a_poll_is_seen() {
    let mut midway = Midway::start().await;
    for _ in 0..ROUNDS {
        midway.bell.until_all_sleep().await;
        let table = midway.close_the_table().await;
        midway.bell.does(RING).await;
        midway.hold_up(table).await;
        let row = midway.insert().await;
        midway.go_on(row).await;
    }
}

/// A bridge may stay asleep only if writers have sent NOTIFY the whole time. It is not enough that
/// they do so now.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_time_in_which_nobody_rang_is_seen() {
    let mut midway = Midway::start().await;
    for _ in 0..ROUNDS {
        midway.bell.until_all_sleep().await;
        let since = midway.bell.until_rung().await;
        signal(&midway.bridge, Signal::SIGSTOP);
        midway.bell.unrung().await;
        let writer = midway.database.connect().await;
        let begun = "begin; insert into notifications (user_id, text) values ('alice', 'midway')";
        writer.batch_execute(begun).await.expect(begun);
        // Another bridge falls asleep, or tries to.
        midway.bell.rung().await;
        signal(&midway.bridge, Signal::SIGCONT);
        sleep(WOULD_SLEEP).await;
        assert_ne!(midway.bell.until_rung().await, since);
        writer.batch_execute("commit").await.expect("commit");
        midway.source.next_event().await;
    }
}
