//! Promise 8: with a client that doesn't read, more rows than fit in memory, and more clients than
//! connections to Postgres, each limit slows one consumer and no row is skipped.

use std::{env, time::Instant};

use tokio::task::JoinSet;

use crate::support::{
    account::Account,
    bridge::{Bridge, NONE_RECENT},
    database::Database,
    event_source::{EventSource, Item},
    process::{Served, Stats},
    row_id, rows, until,
};

/// How much more memory the bridge may use than before: a few pages of the tail and of the
/// catch-ups, and what the allocator retains of them. The rows of each test here are a multiple of
/// that.
const MEMORY: usize = 16 << 20;

const CLIENTS: usize = 5_000;

/// Multiplies the number of rows: `TIDINGS_TEST_SCALE=5` gives a million rows.
fn scale() -> usize {
    let scale = env::var("TIDINGS_TEST_SCALE").unwrap_or_else(|_| "1".to_owned());
    scale.parse().expect("TIDINGS_TEST_SCALE is a number")
}

async fn insert(database: &Database, user: &str, count: usize, bytes: usize) {
    let insert = format!(
        "insert into notifications (user_id, text) \
         select '{user}', repeat('x', {bytes}) from generate_series(1, {count})"
    );
    database.execute(&insert).await;
}

async fn ids_of(database: &Database, user: &str) -> Vec<i64> {
    let query = format!("select id from notifications where user_id = '{user}' order by xid, id");
    database.ids(&query).await
}

fn assert_bounded(before: Stats, after: Stats) {
    let more = after.peak_bytes.saturating_sub(before.resident_bytes);
    assert!(more < MEMORY, "{more} bytes more: {before:?}, {after:?}");
}

/// Reads this many rows, reconnecting when the stream is cut off.
async fn rows_over_breaks(
    bridge: &Served,
    user: &str,
    mut source: EventSource,
    count: usize,
) -> Vec<i64> {
    let mut ids = Vec::new();
    while ids.len() < count {
        match source.next_item().await {
            Ok(Item::Event(event)) if !event.name.starts_with("tidings.") => {
                ids.push(row_id(&event));
            }
            Ok(_) => {}
            Err(_) => source = bridge.connect(user, Some(source.last_event_id())).await,
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_up_nobody_and_costs_no_memory() {
    const ROWS: usize = 100_000;
    let mut account = Account::without_repeats("a client stops reading while its rows come in");
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[NONE_RECENT]).await;
    let mut bob = bridge.connect_live("bob").await;
    let mut healthy = bridge.connect_live("alice").await;
    // Neither of these is read from now on.
    let patient = bridge.connect_live("alice").await;
    let mut impatient = bridge.connect_live("alice").await;

    let before = bridge.vitals();
    let flood = async {
        insert(&database, "alice", ROWS, 300).await;
        let mut got = Vec::new();
        for _ in 0..20 {
            insert(&database, "bob", 1, 1).await;
            got.extend(rows(&mut bob, 1).await);
        }
        got
    };
    let (of_bob, of_healthy) = tokio::join!(flood, rows(&mut healthy, ROWS));
    assert_bounded(before, bridge.vitals());

    account.client(ids_of(&database, "bob").await, &of_bob);
    let owed = ids_of(&database, "alice").await;
    account.client(owed.clone(), &of_healthy);

    // One resets its connection after it has read part of what the kernel buffered for it, and
    // returns; the other continues reading.
    let mut of_impatient = rows(&mut impatient, 100).await;
    let id = impatient.last_event_id().to_owned();
    impatient.reset();
    let back = bridge.connect("alice", Some(&id)).await;
    let (rest, of_patient) = tokio::join!(
        rows_over_breaks(&bridge, "alice", back, ROWS - of_impatient.len()),
        rows_over_breaks(&bridge, "alice", patient, ROWS)
    );
    of_impatient.extend(rest);
    account.client(owed.clone(), &of_impatient);
    account.client(owed, &of_patient);
    assert_bounded(before, bridge.vitals());
    account.round();
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_any_length_streams_in_flat_memory() {
    let count = 200_000 * scale();
    let mut account = Account::without_repeats("a user returns to a very long backlog");
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[NONE_RECENT]).await;
    // The first page and the first marks allocate memory that stays in use: statements and buffers.
    insert(&database, "alice", 1_000, 100).await;
    bridge.connect_live("alice").await;
    database
        .until("select bool_and(sent) from notifications")
        .await;

    let first: i64 = 1 + 1_000;
    insert(&database, "alice", count, 100).await;
    let before = bridge.vitals();
    let mut source = bridge.connect("alice", None).await;
    let got = rows(&mut source, count).await;
    let last = first + count as i64 - 1;
    assert!(got.is_sorted(), "not in order");
    account.client(first..=last, &got);
    database
        .until(&format!("select sent from notifications where id = {last}"))
        .await;
    assert_bounded(before, bridge.vitals());
    assert_eq!(
        database
            .ids("select id from notifications where not sent")
            .await,
        [0; 0]
    );
    account.round();
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_resume_that_breaks_at_every_page_comes_to_an_end() {
    const ROWS: usize = 20_000;
    let mut account = Account::without_repeats("a long resume breaks again and again");
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let source = bridge.connect_live("alice").await;
    let mut id = source.last_event_id().to_owned();
    drop(source);
    // One transaction, so that every disconnect falls inside it.
    insert(&database, "alice", ROWS, 20).await;

    let mut got = Vec::new();
    // Before, at and after the end of a page of 500 rows.
    for rows_at_once in [499, 500, 501, 1, 737].into_iter().cycle() {
        if got.len() == ROWS {
            break;
        }
        let mut source = bridge.resume("alice", &id).await;
        got.extend(rows(&mut source, rows_at_once.min(ROWS - got.len())).await);
        id = source.last_event_id().to_owned();
        source.reset();
        account.round();
    }
    let mut source = bridge.resume("alice", &id).await;
    assert_eq!(until(&mut source, "tidings.caught-up").await, []);
    account.client(ids_of(&database, "alice").await, &got);
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_clients_that_return_at_once_all_catch_up_over_a_small_pool() {
    const POOL: i64 = 8;
    // The clients' ends of the streams are open files of this process.
    let files = rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    assert!(
        files > CLIENTS as u64 + 1_000,
        "only {files} files may be open: raise the limit (`ulimit -Hn`)"
    );
    let mut account = Account::without_repeats("5,000 clients return in the same moment");
    let database = Database::migrated().await;
    let bridge = std::sync::Arc::new(Served::start(&database, &[NONE_RECENT]).await);

    let mut opening = JoinSet::new();
    for n in 0..CLIENTS {
        let bridge = std::sync::Arc::clone(&bridge);
        opening.spawn(async move { (n, bridge.connect_live(&format!("user{n}")).await) });
    }
    let sources = opening.join_all().await;
    let ids: Vec<_> = sources
        .into_iter()
        .map(|(n, source)| {
            let id = source.last_event_id().to_owned();
            source.reset();
            (n, id)
        })
        .collect();
    // Each client misses one or two rows.
    for missing in [CLIENTS, CLIENTS / 2] {
        database
            .execute(&format!(
                "insert into notifications (user_id, text) \
                 select 'user' || n, 'missed' from generate_series(0, {missing} - 1) n"
            ))
            .await;
    }
    let owed = |n: usize| {
        let first = n as i64 + 1;
        let second = (n < CLIENTS / 2).then_some(first + CLIENTS as i64);
        [first].into_iter().chain(second)
    };

    let began = Instant::now();
    let mut returning = JoinSet::new();
    for (n, id) in ids {
        let bridge = std::sync::Arc::clone(&bridge);
        returning.spawn(async move {
            // Panics on any status other than 200.
            let mut source = bridge.connect(&format!("user{n}"), Some(&id)).await;
            let missed = until(&mut source, "tidings.caught-up").await;
            (n, missed.iter().map(row_id).collect::<Vec<_>>(), source)
        });
    }
    let client = database.superuser().connect().await;
    let sessions = "select count(*) from pg_stat_activity \
        where datname = current_database() and application_name = 'tidings'";
    let (mut most, mut open) = (0, Vec::new());
    while let Some(client_back) = returning.join_next().await {
        let (n, got, source) = client_back.expect("a client");
        account.client(owed(n), &got);
        open.push(source);
        if open.len() % 50 == 0 {
            let row = client.query_one(sessions, &[]).await.expect("a count");
            most = most.max(row.get::<_, i64>(0));
        }
    }
    account.recovered_after(began.elapsed());
    assert!(most <= POOL + 1, "{most} sessions");
    account.close();
}
