//! Random load around the moment at which a bridge falls asleep.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_postgres::Client;

use super::{BELL_ALONE, bell::Bell};
use crate::support::{
    PATIENCE, bridge::Bridge, database::Database, event_source::EventSource, no_repeats, rows,
};

/// The maximum pause without writes: twice as long as a bridge stays awake.
const QUIET_MICROS: u64 = 60_000;

/// This many rows in quick succession wake a bridge.
const FLOW_ROWS: usize = 60;

const WRITERS: usize = 3;

const INSERT: &str = "insert into notifications (user_id, text) \
                      select 'alice', 'row' from generate_series(1, $1::int) returning id";

/// What a writer does in a round.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Nothing,
    Row,
    /// A transaction that is open for this long.
    Slow(Duration),
    /// The same, but it is rolled back.
    Undone(Duration),
    /// A savepoint is rolled back between two rows.
    Savepoint(Duration),
    /// Inserts as fast as possible.
    Flow,
}

fn up_to(micros: u64) -> Duration {
    Duration::from_micros(rand::random_range(0..micros))
}

impl Turn {
    fn any() -> Self {
        match rand::random_range(0..20) {
            0..4 => Self::Nothing,
            4..12 => Self::Row,
            12..15 => Self::Slow(up_to(QUIET_MICROS)),
            15..17 => Self::Undone(up_to(QUIET_MICROS)),
            17..19 => Self::Savepoint(up_to(QUIET_MICROS)),
            _ => Self::Flow,
        }
    }

    /// Runs the turn and returns the ids of the committed rows.
    async fn take(self, client: &Client) -> Vec<i64> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Row => insert(client, rand::random_range(1..4)).await,
            Self::Slow(open) => {
                does(client, "begin").await;
                let ids = insert(client, 1).await;
                sleep(open).await;
                does(client, "commit").await;
                ids
            }
            Self::Undone(open) => {
                does(client, "begin").await;
                insert(client, 1).await;
                sleep(open).await;
                does(client, "rollback").await;
                Vec::new()
            }
            Self::Savepoint(open) => {
                does(client, "begin; savepoint a").await;
                insert(client, 1).await;
                sleep(open / 2).await;
                does(client, "rollback to a").await;
                sleep(open / 2).await;
                let ids = insert(client, 1).await;
                does(client, "commit").await;
                ids
            }
            Self::Flow => {
                let mut ids = Vec::new();
                for _ in 0..FLOW_ROWS {
                    ids.extend(insert(client, 1).await);
                }
                ids
            }
        }
    }
}

async fn does(client: &Client, work: &str) {
    client.batch_execute(work).await.expect(work);
}

async fn insert(client: &Client, count: i32) -> Vec<i64> {
    let inserted = client.query(INSERT, &[&count]).await.expect("rows");
    inserted.iter().map(|row| row.get(0)).collect()
}

/// Runs rounds in sequence. Each begins once every client has received all rows of the previous
/// one, so that a later NOTIFY can't hide a missed row.
async fn flap(bridges: usize, rounds: usize) -> usize {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let mut serving = Vec::new();
    let mut sources: Vec<EventSource> = Vec::new();
    for _ in 0..bridges {
        let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
        sources.push(bridge.connect_live("alice").await);
        serving.push(bridge);
    }
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(database.connect().await);
    }
    let mut written = 0;
    for round in 0..rounds {
        sleep(up_to(QUIET_MICROS)).await;
        if round % 8 == 0 {
            // Whatever the bridges do, the next row finds one asleep, or nearly so.
            bell.until_rung().await;
        }
        let turn = async |client| {
            sleep(up_to(2_000)).await;
            Turn::any().take(client).await
        };
        let turns = tokio::join!(turn(&clients[0]), turn(&clients[1]), turn(&clients[2]));
        let owed = no_repeats(&[turns.0, turns.1, turns.2].concat());
        written += owed.len();
        for source in &mut sources {
            assert_eq!(no_repeats(&rows(source, owed.len()).await), owed);
        }
    }
    for bridge in serving {
        bridge.stop().await;
    }
    written
}

/// Runs several at once, since each of them is waiting most of the time.
async fn flap_each(lanes: &[(usize, usize)]) {
    let lanes = lanes.iter().map(|&(bridges, rounds)| flap(bridges, rounds));
    let written: usize = join_all(lanes).await.into_iter().sum();
    assert!(written > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_flaps_between_asleep_and_awake_misses_no_row() {
    flap_each(&[(1, 100), (1, 100), (1, 100)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_that_sleep_by_what_one_of_them_said_miss_no_row() {
    flap_each(&[(2, 100), (3, 100)]).await;
}

/// No writer waits for a client or for another writer here, so writers and bridges meet at any
/// moment.
#[tokio::test(flavor = "multi_thread")]
async fn writers_that_wait_for_nobody_lose_no_row() {
    const ROWS: usize = 150;
    let database = Database::migrated().await;
    let bridges = [
        Bridge::start_with(&database, &[BELL_ALONE]).await,
        Bridge::start_with(&database, &[BELL_ALONE]).await,
    ];
    let mut sources = [
        bridges[0].connect_live("alice").await,
        bridges[1].connect_live("alice").await,
    ];
    let mut writing = JoinSet::new();
    for _ in 0..WRITERS {
        let client = database.connect().await;
        writing.spawn(async move {
            let mut ids = Vec::new();
            while ids.len() < ROWS {
                // A writer pauses for longer when its number of rows is a multiple of 25, so that
                // at times all of them are silent at once.
                let quiet = if ids.len() % 25 == 0 { 4 } else { 1 };
                sleep(up_to(QUIET_MICROS) * quiet / 2).await;
                ids.extend(Turn::any().take(&client).await);
            }
            ids
        });
    }
    let written = writing.join_all().await.concat();
    let owed = no_repeats(&written);
    for source in &mut sources {
        let got = timeout(PATIENCE, rows(source, owed.len())).await;
        assert_eq!(no_repeats(&got.expect("all rows")), owed);
    }
}
