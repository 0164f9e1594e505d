//! Clients that don't read their backlog, or read it again and again.

use std::{
    cell::Cell,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use tidings::{
    delivery::{
        hub::Tail,
        mailbox::Ending,
        sse::Format,
        stream::{EventStream, Start},
    },
    domain::{history::History, notification::UserId},
    postgres::pool::{Pool, PoolMode},
};
use tokio::{runtime::Handle, task::JoinSet, time::timeout};
use tokio_postgres::types::Type;

use crate::bystander::{Bystander, best_time_to_first_row, time_to_first_row};
use crate::stalled::Stalled;
use crate::support::{
    PATIENCE, bridge::NONE_RECENT, database::Database, process::Served, rows, streams::streams,
    until,
};

/// A new stream must receive its first row within this time, whatever other clients do.
const FIRST_ROW: Duration = Duration::from_secs(1);

/// Pending rows of each user whose clients don't read.
const BACKLOG: usize = 6_000;

/// How many times in a row, 20 ms apart, the number of delivered rows must be
/// unchanged.
const SAME: usize = 10;

/// Rows that the bystander receives before an attack and during it.
const ROWS: usize = 200;

/// More than fits into one client's socket buffer, in rows so small that many clients
/// stop reading just when the next page is requested.
async fn give_backlog(database: &Database, users: usize) {
    let insert = format!(
        "insert into notifications (user_id, text) \
         select 'stalled' || n % {users}, repeat('x', 60) \
         from generate_series(1, {}) as n",
        users * BACKLOG
    );
    database.execute(&insert).await;
}

/// Makes `clients` clients of `users` users request their backlog and not read it.
async fn stall(bridge: &Served, users: usize, clients: usize) -> Vec<Stalled> {
    let address = bridge.address();
    let open = async |n| Stalled::open(address, &format!("stalled{}", n % users)).await;
    let stalled = join_all((0..clients).map(open)).await;
    bridge
        .until_metric("tidings_connections_opened_total", |opened| {
            opened >= clients as f64
        })
        .await;
    // They have stalled once no more rows are written.
    let (last, same) = (Cell::new(-1.0), Cell::new(0));
    bridge
        .until_metric("tidings_delivered_rows_total", |delivered| {
            same.set(if last.replace(delivered) == delivered {
                same.get() + 1
            } else {
                0
            });
            same.get() == SAME
        })
        .await;
    stalled
}

async fn nobody_notices(users: usize, clients: usize) {
    rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    give_backlog(&database, users).await;
    let stream = bridge.connect_live("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(ROWS).await;

    let stalled = stall(&bridge, users, clients).await;
    let took = best_time_to_first_row(bridge.address(), &database, "new").await;
    assert!(took < FIRST_ROW, "{took:?}");
    bystander.expect_undisturbed(&undisturbed).await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_users_who_do_not_read_their_backlogs_delay_nobody() {
    nobody_notices(60, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_with_a_hundred_connections_that_do_not_read_delays_nobody() {
    nobody_notices(1, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_do_not_read_delay_nobody() {
    nobody_notices(20, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_stalls_a_stream_reads_another_one_at_once() {
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    give_backlog(&database, 1).await;
    let _stalled = stall(&bridge, 1, 20).await;
    let start = Instant::now();
    let mut stream = bridge.connect("stalled0", None).await;
    // Rows that the kernel accepted for the others count as sent.
    let rows = until(&mut stream, "tidings.caught-up").await.len();
    assert!(rows > BACKLOG / 4, "{rows}");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_reads_pages_in_a_loop_delays_no_other_users_pages() {
    const LOOPS: usize = 90;
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    let insert = "insert into notifications (user_id, text) \
                  select 'looping', repeat('x', 100) from generate_series(1, 5000)";
    database.execute(insert).await;
    let stream = bridge.connect_live("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(ROWS).await;
    let mut before = Vec::new();
    for n in 0..50 {
        before.push(time_to_first_row(bridge.address(), &database, &format!("early{n}")).await);
    }

    let (address, stop) = (bridge.address(), Arc::new(AtomicBool::new(false)));
    let mut looping = JoinSet::new();
    for _ in 0..LOOPS {
        let stop = Arc::clone(&stop);
        looping.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let path = "/stream?replay=500";
                let mut stream = Stalled::ask(address, "looping", path).await;
                stream.read_until("tidings.caught-up").await;
            }
        });
    }
    let pages = |metrics: f64| metrics > 200.0;
    bridge
        .until_metric("tidings_page_seconds_count", pages)
        .await;
    let mut during = Vec::new();
    for n in 0..50 {
        during.push(time_to_first_row(bridge.address(), &database, &format!("late{n}")).await);
    }
    bystander.expect_undisturbed(&undisturbed).await;
    stop.store(true, Ordering::Relaxed);
    looping.join_all().await;
    let [before, during] = [before, during].map(|mut times| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() - 1])
    });
    assert!(
        during.0 < before.0 + Duration::from_millis(100),
        "{before:?}, {during:?}"
    );
    assert!(during.1 < FIRST_ROW, "{before:?}, {during:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_texts_of_line_breaks_take_little_memory_for_clients_that_do_not_read() {
    const MOST: usize = 200 << 20;
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    let insert = "insert into notifications (user_id, text) \
                  select 'stalled0', repeat(E'\\n', 1 << 20) from generate_series(1, 40)";
    database.execute(insert).await;
    let stalled = stall(&bridge, 1, 100).await;
    bridge
        .until_metric("tidings_pages_wanted", |wanted| wanted == 0.0)
        .await;
    let took = time_to_first_row(bridge.address(), &database, "new").await;
    assert!(took < FIRST_ROW, "{took:?}");
    let peak = bridge.vitals().peak_bytes;
    assert!(peak < MOST, "{peak} bytes");
    drop(stalled);

    // A client that reads receives all of them completely.
    let mut reading = bridge.connect("stalled0", None).await;
    for _ in 0..40 {
        let event = reading.next_event().await;
        assert_eq!(event.data.len(), 1 << 20);
        assert!(event.data.bytes().all(|byte| byte == b'\n'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_cut_off_for_memory_lose_nothing() {
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[]).await;
    let insert = "insert into notifications (user_id, text) \
                  select 'stalled0', n || repeat('x', 1000000) from generate_series(1, 5) as n";
    database.execute(insert).await;
    // It reads the beginning of its first row and stops: its page is the first to be
    // dropped when others need the memory.
    let mut slow = bridge.connect("stalled0", None).await;
    slow.next_item().await.expect("the first bytes");
    let _stalled = stall(&bridge, 1, 99).await;
    let cut_off = "tidings_connections_ended_total{reason=\"stalled\"}";
    bridge.until_metric(cut_off, |count| count > 0.0).await;
    let mut got = Vec::new();
    while got.len() < 5 {
        match slow.next_item().await {
            Ok(crate::support::event_source::Item::Event(event))
                if !event.name.starts_with("tidings.") =>
            {
                got.push(event.data[..1].to_owned());
            }
            Ok(_) => {}
            Err(_) => {
                let id = slow.last_event_id().to_owned();
                slow = bridge.connect("stalled0", Some(&id)).await;
            }
        }
    }
    assert_eq!(got, ["1", "2", "3", "4", "5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_keeps_no_memory_of_a_burst() {
    const USERS: usize = 20;
    const STREAMS: usize = 50;
    const MOST: usize = 2_560;
    rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &[NONE_RECENT]).await;
    let open = async |n: usize| bridge.connect_live(&format!("user{}", n % USERS)).await;
    let mut streams = join_all((0..USERS * STREAMS).map(open)).await;
    let burst = format!(
        "insert into notifications (user_id, text) \
         select 'user' || n / 500, 'row' from generate_series(0, {}) as n",
        USERS * 500 - 1
    );
    let before = bridge.vitals().resident_bytes;
    database.execute(&burst).await;
    join_all(streams.iter_mut().map(|stream| rows(stream, 500))).await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    let after = bridge.vitals().resident_bytes;
    let each = after.saturating_sub(before) / streams.len();
    assert!(each < MOST, "{each} bytes more for each stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_given_up_leaves_no_busy_connection_behind() {
    let database = Database::migrated().await;
    let pool = Pool::new(&database.url(), PoolMode::Session, 1, Handle::current()).expect("a pool");
    let sleep = "select pg_sleep($1)";
    let seconds: f64 = 9.0;
    let parameters = [(&seconds as _, Type::FLOAT8)];
    let asleep = "select count(*) = 1 from pg_stat_activity \
                  where datname = current_database() and query like 'select pg_sleep%' \
                      and state = 'active'";
    let superuser = database.superuser();
    tokio::select! {
        _ = pool.query(PATIENCE, sleep, &parameters) => panic!("it sleeps"),
        () = superuser.until(asleep) => {}
    }
    let start = Instant::now();
    let answer = pool.query(PATIENCE, "select 1", &[]).await;
    answer.expect("an answer");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

/// A failover while clients catch up: the positions of their streams are no longer
/// valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_history_has_ended_asks_for_no_more_pages_and_waits_for_its_end() {
    const POLLS: usize = 10;
    let database = Database::migrated().await;
    let streams = streams(&database).await;
    let alice = UserId::parse("alice").expect("a user");
    let (noted, start) = (streams.hub.note(), Start::Backlog { replay: 0 });
    let mut stream = EventStream::open(&streams, &alice.into(), noted, &start, Format::Text);
    let tail = streams.hub.tail();
    let history = History {
        system_identifier: tail.history.system_identifier + 1,
        ..tail.history
    };
    streams.hub.start(Tail {
        history,
        ..(*tail).clone()
    });
    stream
        .next()
        .await
        .expect("its first bytes")
        .expect("bytes");
    let mut polls = 0;
    let waiting = poll_fn(|cx| {
        polls += 1;
        stream.poll_next_unpin(cx)
    });
    // It has nothing to send, and nothing wakes it.
    let silence = timeout(Duration::from_millis(250), waiting).await;
    assert!(silence.is_err(), "{silence:?}");
    assert!(polls < POLLS, "polled {polls} times");
    streams.hub.end_all(Ending::AnotherHistory);
    while timeout(PATIENCE, stream.next())
        .await
        .expect("its end")
        .is_some()
    {}
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_and_pages_never_take_the_connection_of_the_marks() {
    const REQUESTS: usize = 20;
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &["--pool-size=2"]).await;
    let mut live = bridge.connect_live("live").await;
    // Ticket lookups wait for this lock, and so do first pages.
    let locking = database.superuser().connect().await;
    let lock = "begin; lock table stream_tickets, tidings_drained in access exclusive mode";
    locking.batch_execute(lock).await.expect(lock);
    let address = bridge.address();
    let ticket = format!("/stream?ticket={}", "0".repeat(64));
    let _asking: Vec<_> = join_all((0..REQUESTS).map(async |n| {
        let user = format!("new{n}");
        (
            Stalled::ask_with_ticket(address, &ticket).await,
            Stalled::open(address, &user).await,
        )
    }))
    .await;
    let waiting = "select count(*) >= 1 from pg_stat_activity \
                   where datname = current_database() and wait_event_type = 'Lock'";
    database.superuser().until(waiting).await;
    database
        .execute("select send_notification('live', 'still here')")
        .await;
    assert_eq!(live.next_event().await.data, "still here");
    let marked = database.until("select bool_and(sent) from notifications");
    let marked = timeout(Duration::from_secs(1), marked).await;
    marked.expect("it is marked while lookups and pages wait");
    locking.batch_execute("rollback").await.expect("rollback");
}
