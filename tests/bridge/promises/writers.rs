//! Promise 7: an application's INSERT never fails or waits because a bridge is running, busy or
//! absent.

use nix::sys::signal::Signal;

use crate::support::{
    bridge::Bridge,
    bridge::token,
    database::Database,
    event_source::EventSource,
    process::{serve, signal},
    rows, until,
};

/// No INSERT may take longer than this, whatever its bridge does. It takes about a millisecond; the
/// rest is a margin for a busy machine.
const PATIENT: &str = "set statement_timeout = '5s'; set lock_timeout = '1s'";

const ROWS: usize = 500;

/// Inserts rows one by one, with the timeouts of `PATIENT`.
async fn write(database: &Database) {
    let client = database.connect().await;
    client.batch_execute(PATIENT).await.expect("settings");
    for n in 0..ROWS {
        let insert = "insert into notifications (user_id, text) values ('alice', $1)";
        let inserted = client.execute(insert, &[&format!("row {n}")]).await;
        inserted.expect("a row that waits for nobody");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_waits_for_no_bridge_that_is_frozen_at_work() {
    let database = Database::migrated().await;
    let (child, address) = serve(&database, &[]).await;
    let bearer = format!("Bearer {}", token("alice"));
    let mut source = EventSource::open(address, "/stream", &[("Authorization", &bearer)]).await;
    until(&mut source, "tidings.caught-up").await;
    // The bridge is frozen while it reads and marks, each time at a different moment.
    for _ in 0..5 {
        let (_, ()) = tokio::join!(write(&database), async {
            rows(&mut source, ROWS / 2).await;
            signal(&child, Signal::SIGSTOP);
        });
        write(&database).await;
        signal(&child, Signal::SIGCONT);
        rows(&mut source, 2 * ROWS - ROWS / 2).await;
    }
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_needs_no_bridge_and_minds_no_lock_of_one() {
    let database = Database::migrated().await;
    write(&database).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect("alice").await;
    tokio::join!(write(&database), rows(&mut source, 2 * ROWS));
    // An INSERT doesn't wait for a session that has locked rows to be marked either.
    let other = database.owner().connect().await;
    other
        .batch_execute("begin; update notifications set sent_at = null")
        .await
        .expect("locked rows");
    tokio::join!(write(&database), rows(&mut source, ROWS));
    other.batch_execute("rollback").await.expect("rollback");
    bridge.stop().await;
    write(&database).await;
}
