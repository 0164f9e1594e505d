//! Promise 7: NOTIFY is sent where it is needed, and not while rows are flowing.

use std::time::{Duration, Instant};

use tokio::{task::JoinSet, time::sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    BELL_ALONE,
    bell::{Bell, RING},
    witness::Witness,
};
use crate::support::{PATIENCE, bridge::Bridge, database::Database, rows};

const WRITERS: usize = 2;

/// The number of flows. How each one ends is up to chance.
const FLOWS: usize = 6;

/// Other load can slow a bridge down so much that a flow doesn't wake it.
const FLOWS_LIMIT: Duration = Duration::from_secs(12);

/// Rows this far apart wake no bridge, even while transactions of other databases look like queuing
/// writers.
const TRICKLE: Duration = Duration::from_millis(30);

/// How long a flow is observed.
const WATCHED: Duration = Duration::from_millis(500);

const INSERT: &str = "insert into notifications (user_id, text) values ('alice', 'row')";

async fn insert(client: &Client) {
    client.execute(INSERT, &[]).await.expect("a row");
}

/// Writers that insert as fast as they can until the flow is stopped, which returns the number of
/// rows.
struct Flow {
    writers: JoinSet<usize>,
    stop: CancellationToken,
}

impl Flow {
    async fn start(database: &Database) -> Self {
        let (mut writers, stop) = (JoinSet::new(), CancellationToken::new());
        for _ in 0..WRITERS {
            let (client, stop) = (database.connect().await, stop.clone());
            writers.spawn(async move {
                let mut count = 0;
                while !stop.is_cancelled() {
                    insert(&client).await;
                    count += 1;
                }
                count
            });
        }
        Self { writers, stop }
    }

    async fn stop(self) -> usize {
        self.stop.cancel();
        self.writers.join_all().await.into_iter().sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_is_rung_for_row_by_row() {
    const ROWS: usize = 20;
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let witness = Witness::of(&database, "public").await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    let client = database.connect().await;
    bell.until_rung().await;
    witness.received().await;
    for _ in 0..ROWS {
        insert(&client).await;
        rows(&mut source, 1).await;
        sleep(TRICKLE).await;
    }
    assert_eq!(witness.received().await, ROWS);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_rings_once_whatever_it_writes() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let witness = Witness::of(&database, "public").await;
    let _bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    bell.until_rung().await;
    witness.received().await;
    let all = format!("begin; {INSERT}; savepoint a; {INSERT}; release a; {INSERT}; commit");
    database.execute(&all).await;
    assert_eq!(witness.received().await, 1);
    let nothing = format!("begin; {INSERT}; savepoint a; {INSERT}; rollback");
    database.execute(&nothing).await;
    assert_eq!(witness.received().await, 0);
    let unrung = format!("begin; set local tidings.doorbell = off; {INSERT}; commit");
    database.execute(&unrung).await;
    assert_eq!(witness.received().await, 0);
}

/// A busy machine can interrupt the flow for a moment, so that the bridge falls asleep. The test
/// therefore repeats until, during one flow, fewer than 1 in 20 rows sent NOTIFY.
#[tokio::test(flavor = "multi_thread")]
async fn hardly_a_writer_rings_while_rows_flow() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let witness = Witness::of(&database, "public").await;
    let _bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let (start, mut flows) = (Instant::now(), Vec::new());
    loop {
        bell.keeps_awake().await;
        let flow = Flow::start(&database).await;
        bell.lets_sleep().await;
        witness.received().await;
        sleep(WATCHED).await;
        let written = flow.stop().await;
        let rung = witness.received().await;
        if rung * 20 < written {
            break;
        }
        flows.push((rung, written));
        assert!(start.elapsed() < PATIENCE, "rings and rows: {flows:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_wakes_sleeping_bridges() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let _bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    bell.until_all_sleep().await;
    let flow = Flow::start(&database).await;
    bell.until("select pg_sequence_last_value('tidings_bell') is null")
        .await;
    assert!(flow.stop().await > 0);
}

/// Of several bridges, one wakes, and the others must notice.
#[tokio::test(flavor = "multi_thread")]
async fn what_flows_reaches_the_bridges_that_relied_on_who_has_woken() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let (mut bridges, mut sources) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
        sources.push(bridge.connect_live("alice").await);
        bridges.push(bridge);
    }
    let (start, mut woken) = (Instant::now(), 0);
    // If the machine is too busy for a flow to wake a bridge, the test is only easier to pass.
    while woken < FLOWS && start.elapsed() < FLOWS_LIMIT {
        bell.until_rung().await;
        let flow = Flow::start(&database).await;
        sleep(WATCHED).await;
        let written = flow.stop().await;
        woken += usize::from(bell.since().await.is_none());
        for source in &mut sources {
            rows(source, written).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_sleeps_on_after_a_flow_whatever_is_rung() {
    let database = Database::migrated().await;
    let bell = Bell::of(&database).await;
    let witness = Witness::of(&database, "public").await;
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    for _ in 0..FLOWS {
        bell.keeps_awake().await;
        let flow = Flow::start(&database).await;
        sleep(WATCHED).await;
        rows(&mut source, flow.stop().await).await;
        bell.lets_sleep().await;
        bell.until_rung().await;
        bell.until_all_sleep().await;
        witness.received().await;
        for _ in 0..3 {
            bell.does(RING).await;
            sleep(Duration::from_millis(5)).await;
        }
        bell.until_all_sleep().await;
        assert_eq!(witness.received().await, 3, "it rings itself");
    }
    bridge.stop().await;
}
