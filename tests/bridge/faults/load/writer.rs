//! An application that writes rows.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{RwLock, watch},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::{Ledger, USERS};
use crate::support::database::Database;

/// Interval between a writer's transactions: short enough that rows are always in flight, and long
/// enough for other tests to run at the same time.
const PACE: Duration = Duration::from_millis(40);

/// How many such intervals a transaction of the slow writer stays open.
const SLOW_TURNS: usize = 5;

const INSERT: &str = "insert into notifications (user_id, text) \
                      select $1, $2 from generate_series(1, $3::int) returning id";
const FIND: &str = "select id from notifications where user_id = $1 and text = $2";

pub struct Writer {
    /// Writer 0 is slow: its rows become visible after those of later transactions.
    pub number: usize,
    pub text_bytes: usize,
    pub database: Database,
    pub ledger: Arc<watch::Sender<Ledger>>,
    pub calm: Arc<RwLock<()>>,
    pub stop: CancellationToken,
}

impl Writer {
    pub async fn run(self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client = self.database.connect().await;
        for turn in 0_usize.. {
            pace.tick().await;
            if self.stop.is_cancelled() {
                return;
            }
            let _writing = self.calm.read().await;
            let user = USERS[(self.number + turn) % USERS.len()];
            // A text that no other transaction writes.
            let text = format!("writer {}, turn {turn}", self.number);
            let text = format!("{text:.<width$}", width = self.text_bytes);
            let rows = 1 + (turn % 5) as i32;
            let ids = match self.insert(&client, user, &text, rows, &mut pace).await {
                Ok(ids) => ids,
                Err(error) => {
                    // Accept only errors of a server that went away.
                    let code = error.code().map_or("57P", |code| code.code());
                    assert!(code.starts_with("57P"), "{error:?}");
                    client = reconnect(&self.database, &mut pace).await;
                    let owner = reconnect(&self.database.owner(), &mut pace).await;
                    self.find(&owner, user, &text).await
                }
            };
            self.ledger.send_modify(|ledger| ledger.enter(user, ids));
        }
    }

    async fn insert(
        &self,
        client: &Client,
        user: &str,
        text: &str,
        rows: i32,
        pace: &mut Interval,
    ) -> Result<Vec<i64>, Error> {
        let is_slow = self.number == 0;
        if is_slow {
            client.batch_execute("begin").await?;
        }
        let inserted = client.query(INSERT, &[&user, &text, &rows]).await?;
        if is_slow {
            for _ in 0..SLOW_TURNS {
                pace.tick().await;
            }
            client.batch_execute("commit").await?;
        }
        Ok(inserted.iter().map(|row| row.get(0)).collect())
    }

    /// Returns the rows of a transaction if it was committed although its response was lost.
    async fn find(&self, owner: &Client, user: &str, text: &str) -> Vec<i64> {
        let found = owner.query(FIND, &[&user, &text]).await;
        let found = found.expect("a server that came back");
        found.iter().map(|row| row.get(0)).collect()
    }
}

async fn reconnect(database: &Database, pace: &mut Interval) -> Client {
    loop {
        pace.tick().await;
        if let Ok(client) = database.try_connect().await {
            return client;
        }
    }
}
