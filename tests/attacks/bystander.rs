//! A well-behaved client during an attack: the delay of its rows.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, types::ToSql};

use crate::support::{bridge::token, database::Database, event_source::EventSource, until};

/// An attack may delay other clients by this much at the 99th percentile. Promise 1
/// says milliseconds; the rest is a margin for a busy test machine.
const TOLERANCE: Duration = Duration::from_millis(100);

/// How many times it is measured whether an attack disturbs other clients.
const ROUNDS: usize = 3;

/// Measurements of different attacks must not disturb each other.
static MEASURING: Mutex<()> = Mutex::const_new(());

/// One user with one open stream, and an application that inserts rows for it. Only one
/// exists at a time.
pub struct Bystander {
    _measuring: MutexGuard<'static, ()>,
    user: String,
    application: Client,
    stream: EventSource,
}

/// The times from before the INSERT of a row until the client had received it, in
/// ascending order.
#[derive(Debug)]
pub struct Delays(Vec<Duration>);

impl Bystander {
    /// Watches a stream of `user` that is already live.
    pub async fn watch(database: &Database, user: &str, stream: EventSource) -> Self {
        Self {
            _measuring: MEASURING.lock().await,
            user: user.to_owned(),
            application: database.connect().await,
            stream,
        }
    }

    /// Inserts `count` rows one after the other, and measures each.
    pub async fn receive(&mut self, count: usize) -> Delays {
        let mut delays = Vec::with_capacity(count);
        for _ in 0..count {
            delays.push(self.receive_one().await);
        }
        delays.sort_unstable();
        Delays(delays)
    }

    /// Fails if rows take noticeably longer than `undisturbed` ones. Other tests keep
    /// the machine busy, so one good round out of a few is enough to show that the
    /// attack doesn't disturb.
    pub async fn expect_undisturbed(&mut self, undisturbed: &Delays) {
        let (rows, before) = (undisturbed.0.len(), undisturbed.p99());
        let mut during = Vec::new();
        while during.len() < ROUNDS {
            let p99 = self.receive(rows).await.p99();
            if p99 <= before + TOLERANCE {
                return;
            }
            during.push(p99);
        }
        panic!("p99 was {before:?} undisturbed and {during:?} during the attack");
    }

    /// Inserts one row, and measures how long it takes.
    pub async fn receive_one(&mut self) -> Duration {
        let insert = "insert into notifications (user_id, text) values ($1, 'bystander')";
        let start = Instant::now();
        let row: [&(dyn ToSql + Sync); 1] = [&self.user];
        let inserted = self.application.execute(insert, &row);
        let (inserted, event) = tokio::join!(inserted, self.stream.next_event());
        inserted.expect("a row");
        assert_eq!(event.data, "bystander");
        start.elapsed()
    }
}

impl Delays {
    pub fn p99(&self) -> Duration {
        self.0[self.0.len() * 99 / 100]
    }

    /// The longest delay: a single stall, however long, doesn't show in a percentile.
    pub fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    pub fn p50(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    /// Fails if rows took noticeably longer than `undisturbed` ones.
    pub fn assert_close_to(&self, undisturbed: &Self) {
        let (during, before) = (self.p99(), undisturbed.p99());
        assert!(
            during <= before + TOLERANCE,
            "p99 was {before:?} undisturbed and {during:?} during the attack"
        );
    }
}

/// Opens a new stream of a user who has one pending row, and measures the time from
/// before the connection until the row has arrived.
pub async fn time_to_first_row(
    address: std::net::SocketAddr,
    database: &Database,
    user: &str,
) -> Duration {
    database
        .execute(&format!("select send_notification('{user}', 'waiting')"))
        .await;
    let bearer = format!("Bearer {}", token(user));
    let start = Instant::now();
    let headers = [("Authorization", bearer.as_str())];
    let mut stream = EventSource::open(address, "/stream", &headers).await;
    assert_eq!(stream.next_event().await.data, "waiting");
    let took = start.elapsed();
    until(&mut stream, "tidings.caught-up").await;
    took
}

/// The best of a few [`time_to_first_row`], each for another user.
pub async fn best_time_to_first_row(
    address: std::net::SocketAddr,
    database: &Database,
    name: &str,
) -> Duration {
    let mut best = Duration::MAX;
    for round in 0..ROUNDS {
        let user = format!("{name}{round}");
        best = best.min(time_to_first_row(address, database, &user).await);
    }
    best
}
