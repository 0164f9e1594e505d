//! A transaction with very many rows. Rows of other users that become visible while it
//! is read overtake it.

use std::{
    env,
    time::{Duration, Instant},
};

use crate::bystander::Bystander;
use crate::support::{database::Database, event_source::EventSource, process::Served, rows, until};

/// The longest permitted delay of another user's row (issue 12, item 7).
const LATEST: Duration = Duration::from_secs(2);

/// Rows in the transaction; `TIDINGS_TEST_SCALE=5` for more than a million.
const ROWS: usize = 250_000;

/// One in this many rows is for a connected user.
const CONNECTED: usize = 100;

/// Rows of the bystander that are measured together.
const MEASURED: usize = 10;

fn scale() -> usize {
    let scale = env::var("TIDINGS_TEST_SCALE").unwrap_or_else(|_| "1".to_owned());
    scale.parse().expect("TIDINGS_TEST_SCALE is a number")
}

async fn connect_live(bridge: &Served, user: &str) -> EventSource {
    let mut source = bridge.connect(user, None).await;
    until(&mut source, "tidings.caught-up").await;
    source
}

/// Inserts `count` rows in one transaction, `of_alice` of which, including the last
/// one, are for alice, while a bystander's rows are measured. No row of the bystander
/// may be late, and each of alice's must arrive once and in the order of ids.
async fn no_row_is_late_beside(count: usize, user: &str, of_alice: usize) {
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    let mut alice = connect_live(&bridge, "alice").await;
    let bob = connect_live(&bridge, "bob").await;
    let mut bystander = Bystander::watch(&database, "bob", bob).await;
    let undisturbed = bystander.receive(MEASURED).await;

    let insert = format!(
        "insert into notifications (user_id, text) \
         select {user}, 'bulk' from generate_series(1, {count}) n"
    );
    let writer = database.connect().await;
    let attack = tokio::spawn(async move {
        writer.batch_execute(&insert).await.expect("rows");
        let committed = Instant::now();
        (rows(&mut alice, of_alice).await, committed.elapsed())
    });
    let mut worst = Duration::ZERO;
    // Also measures rows that are in flight when alice has received her last row.
    while !attack.is_finished() {
        let during = bystander.receive(MEASURED).await;
        // Of so few rows, that is the longest delay.
        worst = worst.max(during.p99());
    }
    let (got, took) = attack.await.expect("alice's rows");
    assert!(
        worst <= LATEST,
        "a row of the bystander took {worst:?}, undisturbed {:?}; the transaction was read \
         {took:?} after its commit",
        undisturbed.p99()
    );
    let owed = database
        .ids("select id from notifications where user_id = 'alice' order by xid, id")
        .await;
    assert_eq!(got, owed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_very_many_rows_of_many_users_delays_no_other_rows() {
    let count = ROWS * scale();
    let user = format!("case n % {CONNECTED} when 0 then 'alice' else 'user' || n % 5000 end");
    no_row_is_late_beside(count, &user, count / CONNECTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_very_many_rows_of_one_client_delays_no_other_rows() {
    let count = ROWS * 2 / 5 * scale();
    no_row_is_late_beside(count, "'alice'", count).await;
}
