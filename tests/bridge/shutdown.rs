//! The real binary stops gracefully, in time and with a good exit code, whatever it is doing and
//! whatever hangs.

use std::{
    fs,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::{interval, timeout},
};

use crate::support::{
    PATIENCE,
    bridge::{SECRET, token},
    database::{Database, start_cluster},
    dev::{self, DataFolder, Dev},
    event_source::{End, EventSource, Item},
    frozen::Frozen,
    ports::free_address,
    process::{PROGRAM, Served, serve, signal},
    until,
};

const STREAMS: usize = 1_000;

/// The time that docs/operations/running.md allows beyond the drain time, and some tolerance for a
/// busy machine.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
const TOLERANCE: Duration = Duration::from_secs(2);

/// A process that stops before it serves has nothing to finish.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_end_spread_out_within_seconds_and_every_mark_is_kept() {
    // The clients' ends of the streams are open files of this process.
    rlimit::increase_nofile_limit(8 * STREAMS as u64).expect("more open files");
    let database = Database::migrated().await;
    let (mut child, address) = serve(&database, &["--drain=2s"]).await;
    let open = async |n: usize| {
        let bearer = format!("Bearer {}", token(&format!("user{n}")));
        let mut source = EventSource::open(address, "/stream", &[("Authorization", &bearer)]).await;
        until(&mut source, "tidings.caught-up").await;
        source
    };
    let mut sources = Vec::new();
    for hundred in 0..STREAMS / 100 {
        sources.extend(join_all((0..100).map(|n| open(hundred * 100 + n))).await);
    }
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user' || n, 'last words' from generate_series(0, {STREAMS} - 1) n"
        ))
        .await;
    for source in &mut sources {
        assert_eq!(source.next_event().await.data, "last words");
    }
    let asked = Instant::now();
    signal(&child, Signal::SIGTERM);
    let ends = join_all(sources.into_iter().map(async |mut source| {
        let (items, end) = source.rest().await;
        let Some(Item::Retry(retry)) = items.last() else {
            panic!("not a retry: {items:?}")
        };
        assert_eq!(end, End::Clean);
        (asked.elapsed(), *retry)
    }))
    .await;
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("an end")
        .expect("a status");
    let took = asked.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    // Spread over the drain time, with different retry delays.
    let (first, last) = (
        ends.iter().min().expect("ends"),
        ends.iter().max().expect("ends"),
    );
    assert!(
        last.0 - first.0 > Duration::from_secs(1),
        "{first:?} to {last:?}"
    );
    let mut retries: Vec<u64> = ends.iter().map(|end| end.1).collect();
    retries.sort_unstable();
    retries.dedup();
    assert!(
        retries.len() > STREAMS / 4,
        "{} different waits",
        retries.len()
    );
    assert_eq!(
        database
            .ids("select id from notifications where not sent")
            .await,
        [0; 0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_it_too() {
    let database = Database::migrated().await;
    let (mut child, _) = serve(&database, &[]).await;
    signal(&child, Signal::SIGINT);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("an end")
        .expect("a status");
    assert!(status.success(), "{status}");
}

/// Waits until it ends, and returns how long that took.
async fn end(child: &mut Child) -> (ExitStatus, Duration) {
    let begin = Instant::now();
    let ended = timeout(PATIENCE, child.wait()).await;
    (ended.expect("an end").expect("a status"), begin.elapsed())
}

/// A command that uses the database at this URL, not yet started.
fn command(name: &[&str], url: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(name)
        .env("TIDINGS_LOG_FORMAT", "json")
        .env("DATABASE_URL", url)
        .env("TIDINGS_JWT_SECRET", SECRET)
        .env("TIDINGS_LISTEN", "127.0.0.1:0")
        .env("TIDINGS_ADMIN_LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_database_with_marks_to_write_holds_it_up_no_longer_than_documented() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let send = "select send_notification('alice', 'unmarked')";
    database.execute(send).await;
    // Its mark can't be written while another session holds the row.
    let holder = database.superuser().connect().await;
    let lock = "begin; select from notifications for update";
    holder.batch_execute(lock).await.expect("a lock");
    let drain = Duration::from_secs(1);
    let mut bridge = Served::start(&database, &["--drain=1s"]).await;
    let mut tab = bridge.connect("alice", None).await;
    assert_eq!(tab.next_event().await.data, "unmarked");

    let frozen = Frozen::freeze(&cluster).await;
    let asked = Instant::now();
    bridge.signal(Signal::SIGTERM);
    bridge.until_logged("WARN", "could not be marked").await;
    let status = bridge.ended().await;
    let took = asked.elapsed();
    assert!(status.success(), "{status}");
    assert!(
        took < drain + SHUTDOWN_LIMIT + TOLERANCE,
        "it took {took:?}"
    );
    drop(frozen);
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_database_that_never_answers_stops_at_once() {
    // It accepts connections and never responds.
    let black_hole = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = black_hole.local_addr().expect("its address");
    let url = format!("postgres://bridge@{address}/app?sslmode=disable");
    let prune: &[&str] = &["prune", "--sent-before=30d"];
    for (name, asked, code) in [
        (&["serve"] as &[&str], Signal::SIGTERM, 0),
        (&["serve"], Signal::SIGINT, 0),
        (prune, Signal::SIGTERM, 1),
    ] {
        let mut child = command(name, &url).spawn().expect("the binary");
        let accepted = timeout(PATIENCE, black_hole.accept()).await;
        let (_silent, _) = accepted.expect("it connects").expect("a connection");
        signal(&child, asked);
        let (status, took) = end(&mut child).await;
        assert_eq!(status.code(), Some(code), "{name:?}: {status}");
        assert!(took < AT_ONCE, "{name:?} took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_database_that_is_not_there_yet_stops_at_once() {
    let address = free_address();
    let url = format!("postgres://bridge@{address}/app?sslmode=disable");
    let mut child = command(&["serve"], &url).spawn().expect("the binary");
    let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
    let waiting = async {
        while let Some(line) = log.next_line().await.expect("text") {
            if line.contains("can't reach the database") {
                return;
            }
        }
        panic!("it ended");
    };
    timeout(PATIENCE, waiting).await.expect("it waits");
    signal(&child, Signal::SIGTERM);
    let (status, took) = end(&mut child).await;
    assert!(status.success(), "{status}");
    assert!(took < AT_ONCE, "it took {took:?}");
}

/// The system call that reads a secret may never return, for example if its file is on a network
/// drive. Here it is a pipe without data.
#[tokio::test(flavor = "multi_thread")]
async fn a_system_call_that_never_returns_does_not_keep_it_from_stopping() {
    let folder = DataFolder::new();
    fs::create_dir(folder.path()).expect("a folder");
    let pipe = folder.path().join("secret");
    let made = Command::new("mkfifo").arg(&pipe).status().await;
    assert!(made.expect("mkfifo").success());
    let mut waiting = command(&["serve"], "postgres://bridge@127.0.0.1/app");
    waiting
        .env_remove("TIDINGS_JWT_SECRET")
        .env("TIDINGS_JWT_SECRET_FILE", &pipe);
    let mut child = waiting.spawn().expect("the binary");
    // Opening the pipe for writing waits for a reader.
    let opening = tokio::task::spawn_blocking(move || fs::File::create(pipe));
    let opened = timeout(PATIENCE, opening).await.expect("it reads");
    let _silent = opened.expect("no panic").expect("a pipe");
    signal(&child, Signal::SIGTERM);
    let (status, took) = end(&mut child).await;
    assert!(status.success(), "{status}");
    assert!(took < AT_ONCE + TOLERANCE, "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_is_interrupted_while_it_makes_its_database_and_starts_again_later() {
    let folder = DataFolder::new();
    let mut child = dev::command(&folder).spawn().expect("the binary");
    let making = async {
        while !folder.path().exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, making).await.expect("it begins");
    signal(&child, Signal::SIGINT);
    let (status, took) = end(&mut child).await;
    assert!(status.success(), "{status}");
    assert!(took < AT_ONCE + TOLERANCE, "it took {took:?}");
    let made = fs::read_dir(folder.path()).expect("a folder");
    let mut made = made.map(|entry| entry.expect("an entry").file_name());
    let is_whole = |name: &str| name.starts_with("postgres-") && !name.ends_with(".new");
    assert!(
        !made.any(|name| is_whole(&name.to_string_lossy())),
        "it made its database first"
    );
    Dev::start(&folder).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_twice_it_stops_at_once_but_not_for_an_echo_of_the_first_signal() {
    let database = Database::migrated().await;
    let mut bridge = Served::start(&database, &["--drain=2s"]).await;
    let mut tab = bridge.connect("alice", None).await;
    until(&mut tab, "tidings.caught-up").await;
    bridge.signal(Signal::SIGTERM);
    bridge.signal(Signal::SIGINT);
    bridge.signal(Signal::SIGTERM);
    assert_eq!(tab.rest().await.1, End::Clean, "it was stopped in order");
    bridge.until_logged("INFO", "stopped").await;
    assert!(bridge.ended().await.success());

    let drain = Duration::from_secs(60);
    let mut bridge = Served::start(&database, &["--drain=60s"]).await;
    let tabs = join_all((0..20).map(|_| bridge.connect("alice", None))).await;
    let asked = Instant::now();
    let asking = async {
        // The time between two signals matters.
        let mut pace = interval(Duration::from_millis(200));
        loop {
            pace.tick().await;
            bridge.signal(Signal::SIGTERM);
            if timeout(Duration::ZERO, bridge.ended()).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, asking).await.expect("an end");
    assert!(asked.elapsed() < drain / 10, "{:?}", asked.elapsed());
    bridge
        .until_logged("WARN", "received a second signal to stop")
        .await;
    assert!(bridge.ended().await.success());
    drop(tabs);
}

/// After closing the terminal, its user has no other way to stop it.
#[tokio::test(flavor = "multi_thread")]
async fn dev_ends_with_its_terminal_and_with_no_other_hangup() {
    let folder = DataFolder::new();
    // `script` holds the other end of the terminal, and closes it when it is killed.
    let settings = dev::command(&folder);
    let settings = settings.as_std();
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(format!("exec {PROGRAM} dev --log-format=json"))
        .arg("/dev/null")
        .envs(
            settings
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut terminal = command.spawn().expect("script, of util-linux");
    let mut shown = terminal.stdout.take().expect("what it shows");
    let mut text = String::new();
    let starting = async {
        while !text.contains("streaming on") {
            let mut bytes = [0; 1_024];
            let count = shown.read(&mut bytes).await.expect("what it shows");
            assert!(count > 0, "it ended: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    };
    timeout(PATIENCE, starting).await.expect("it starts");
    terminal.kill().await.expect("a signal");
    // It has ended once another process can use its folder.
    let begin = Instant::now();
    let again = async {
        loop {
            let output = dev::command(&folder).arg("--drain=0s").spawn();
            let mut next = output.expect("the binary");
            let mut log = BufReader::new(next.stderr.take().expect("its log")).lines();
            while let Some(line) = log.next_line().await.expect("text") {
                if line.contains("streaming on") {
                    return next;
                }
            }
        }
    };
    let mut next = timeout(PATIENCE, again).await.expect("its end");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(30), "it took {took:?}");
    signal(&next, Signal::SIGTERM);
    assert!(end(&mut next).await.0.success());
}
