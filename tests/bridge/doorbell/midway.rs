//! The moments that are too short to hit, made long: a look that is held up
//! after it has taken its snapshot and before the bridge can do what follows.
//!
//! It waits for the table first, until the bridge's process is frozen. Then it
//! sees a row that is larger than what a socket holds, so the server gets stuck
//! in its answer, and whatever was sent after it is not run yet.

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

/// Longer than a bridge stays awake when nothing comes. Nothing rests on it: a
/// bridge that needs more is only given an easier task.
const WOULD_SLEEP: Duration = Duration::from_millis(60);

/// Nobody rings for this row, and nobody is connected who would get it.
const LARGE: &str = "set local tidings.doorbell = off; \
    insert into notifications (user_id, text) values ('nobody', repeat('x', 1048576))";

const CLOSE: &str = "begin; lock table notifications in access exclusive mode";

/// Who waits to read the table.
const WAITS: &str = "select from pg_locks join pg_stat_activity using (pid) where not granted \
    and relation = 'notifications'::regclass and mode = 'AccessShareLock'";

/// A bridge of its own process, and a client of it.
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

    /// Keeps everybody from the table.
    async fn close_the_table(&self) -> Client {
        // A mark would wait before the look does.
        let sent = "select coalesce(bool_and(sent), true) from notifications \
                    where user_id = 'alice'";
        self.bell.until(sent).await;
        let client = self.database.owner().connect().await;
        client.batch_execute(CLOSE).await.expect(CLOSE);
        client
    }

    /// Once a look waits for the table, holds it up behind its snapshot.
    async fn hold_up(&self, table: Client) {
        let waits = format!("select exists ({WAITS})");
        let looks = format!("select exists ({WAITS} and query ~ 'first rows, of all users')");
        loop {
            self.bell.until(&waits).await;
            if self.bell.is(&looks).await {
                break;
            }
            // Now and then the bridge asks the table something else.
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

    /// Another one commits a row.
    async fn insert(&self) -> i64 {
        let client = self.database.connect().await;
        let insert = "insert into notifications (user_id, text) \
                      values ('alice', 'midway') returning id";
        let row = client.query_one(insert, &[]).await;
        row.expect("a row").get(0)
    }

    /// The bridge goes on, and the row comes.
    async fn go_on(&mut self, row: i64) {
        signal(&self.bridge, Signal::SIGCONT);
        assert_eq!(row_id(&self.source.next_event().await), row);
    }
}

/// Writers must be told to ring before the look, not after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_between_the_look_and_the_word_to_ring_is_seen() {
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

/// A ring must be forgotten before the look that it leads to, not after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_rung_for_during_a_look_is_seen() {
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

/// That writers ring is not enough for whoever sleeps: they must have done so all
/// the time.
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
        // Another bridge sleeps, or tries to.
        midway.bell.rung().await;
        signal(&midway.bridge, Signal::SIGCONT);
        sleep(WOULD_SLEEP).await;
        assert_ne!(midway.bell.until_rung().await, since);
        writer.batch_execute("commit").await.expect("commit");
        midway.source.next_event().await;
    }
}
