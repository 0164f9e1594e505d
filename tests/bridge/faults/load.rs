//! The load under which faults are injected: applications that write rows continuously, and clients
//! that hold streams and reconnect as browsers do.

mod reader;
mod writer;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{RwLock, RwLockWriteGuard, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    reader::{Reader, Returns, Seen},
    writer::Writer,
};
use crate::support::{PATIENCE, account::Account, database::Database};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const WRITERS: usize = 3;
const CLIENTS_PER_USER: usize = 2;
const TEXT_BYTES: usize = 100;

/// The rows that the applications know to be committed.
#[derive(Debug, Default)]
struct Ledger {
    rows: HashMap<String, Vec<i64>>,
    count: usize,
}

impl Ledger {
    fn enter(&mut self, user: &str, ids: Vec<i64>) {
        self.count += ids.len();
        self.rows.entry(user.to_owned()).or_default().extend(ids);
    }
}

/// Running writers and clients.
pub struct Load {
    database: Database,
    ledger: Arc<watch::Sender<Ledger>>,
    servers: watch::Sender<Vec<SocketAddr>>,
    readers: Vec<Reader>,
    writers: JoinSet<()>,
    /// Writers hold it for reading while they write.
    calm: Arc<RwLock<()>>,
    stop: CancellationToken,
}

impl Load {
    /// Each user's clients start on different servers, as far as there are enough. All are live
    /// before the first row is written, so each is owed every row of its user.
    pub async fn start(database: &Database, servers: &[SocketAddr]) -> Self {
        Self::start_with_texts(database, servers, TEXT_BYTES).await
    }

    /// Starts a load with texts of `bytes` bytes.
    pub async fn start_with_texts(
        database: &Database,
        servers: &[SocketAddr],
        bytes: usize,
    ) -> Self {
        Self::begin(database, servers, bytes, CLIENTS_PER_USER, Returns::AtOnce).await
    }

    /// Starts `clients_per_user` clients for each user, which reconnect after the `retry:` that
    /// they were sent.
    pub async fn start_with_browsers(
        database: &Database,
        servers: &[SocketAddr],
        clients_per_user: usize,
    ) -> Self {
        let returns = Returns::WhenTold;
        Self::begin(database, servers, TEXT_BYTES, clients_per_user, returns).await
    }

    async fn begin(
        database: &Database,
        servers: &[SocketAddr],
        bytes: usize,
        clients_per_user: usize,
        returns: Returns,
    ) -> Self {
        let (servers, known) = watch::channel(servers.to_owned());
        let mut load = Self {
            database: database.clone(),
            ledger: Arc::default(),
            servers,
            readers: Vec::new(),
            writers: JoinSet::new(),
            calm: Arc::default(),
            stop: CancellationToken::new(),
        };
        for (number, user) in USERS.into_iter().enumerate() {
            for client in 0..clients_per_user {
                let reader = Reader::start(user, number + client, known.clone(), returns);
                load.readers.push(reader);
            }
        }
        load.until_all(|_, seen| seen.live).await;
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                text_bytes: bytes,
                database: database.clone(),
                ledger: Arc::clone(&load.ledger),
                calm: Arc::clone(&load.calm),
                stop: load.stop.clone(),
            };
            load.writers.spawn(writer.run());
        }
        load
    }

    /// Waits until rows committed now have reached every client, and returns how long that took.
    pub async fn flows(&self) -> Duration {
        let start = Instant::now();
        let client = self.database.owner().connect().await;
        let insert = "insert into notifications (user_id, text) \
                      select unnest($1::text[]), 'does it flow?' returning user_id, id";
        let rows = client.query(insert, &[&USERS.as_slice()]).await;
        let rows = rows.expect("a row for each user");
        let probes: HashMap<String, i64> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        self.ledger.send_modify(|ledger| {
            for (user, id) in &probes {
                ledger.enter(user, vec![*id]);
            }
        });
        self.until_all(|user, seen| seen.distinct.contains(&probes[user]))
            .await;
        start.elapsed()
    }

    /// Waits until `more` further rows are committed.
    pub async fn writes(&self, more: usize) {
        let wanted = self.ledger.borrow().count + more;
        let mut ledger = self.ledger.subscribe();
        let writing = ledger.wait_for(|ledger| ledger.count >= wanted);
        let outcome = timeout(PATIENCE, writing).await;
        outcome.expect("the writers write").expect("a ledger");
    }

    /// Stops the writers from writing until the returned guard is dropped.
    pub async fn calm(&self) -> RwLockWriteGuard<'_, ()> {
        self.calm.write().await
    }

    /// How often clients have lost their connections, in total.
    pub fn breaks(&self) -> usize {
        self.readers
            .iter()
            .map(|reader| reader.seen.borrow().breaks)
            .sum()
    }

    /// Calls `by` and waits until each client has since lost its connection `more` times.
    pub async fn all_break(&self, more: usize, by: impl FnOnce()) {
        let wanted: Vec<usize> = self
            .readers
            .iter()
            .map(|reader| reader.seen.borrow().breaks + more)
            .collect();
        by();
        for (reader, wanted) in self.readers.iter().zip(wanted) {
            reader.until(|seen| seen.breaks >= wanted).await;
        }
    }

    /// Waits until every client has a stream, and returns the times of all reconnections after
    /// `since`.
    pub async fn all_return(&self, since: Instant) -> Vec<Instant> {
        self.until_all(|_, seen| seen.connected).await;
        let mut returned = Vec::new();
        for reader in &self.readers {
            returned.extend(
                reader
                    .seen
                    .borrow()
                    .returned
                    .iter()
                    .filter(|at| **at > since),
            );
        }
        returned.sort_unstable();
        returned
    }

    /// Sets the servers that clients know. A client that is connected to any other server gives up
    /// on it.
    pub fn serve_from(&self, servers: &[SocketAddr]) {
        self.servers.send_replace(servers.to_owned());
    }

    /// Stops the writers, waits until every client has received what it is owed, and enters the
    /// result in the account.
    pub async fn end(mut self, account: &mut Account) {
        self.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer that ended well");
        }
        // Any duplicates arrive before the rows of this call.
        self.flows().await;
        let ledger = self.ledger.borrow();
        for reader in &self.readers {
            let owed = &ledger.rows[reader.user];
            reader.until(|seen| seen.distinct.len() >= owed.len()).await;
            account.client(owed.iter().copied(), &reader.seen.borrow().ids);
        }
    }

    /// Waits until this holds for every client.
    async fn until_all(&self, holds: impl Fn(&str, &Seen) -> bool) {
        for reader in &self.readers {
            reader.until(|seen| holds(reader.user, seen)).await;
        }
    }
}
