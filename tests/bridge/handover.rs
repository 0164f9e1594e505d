//! One bridge after another on one address: what clients get while the first one stops, while there is none, and while
//! the next one starts.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::Request;
use nix::sys::signal::Signal;
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};

use crate::support::{
    PATIENCE,
    bridge::{ASKS_AGAIN, token},
    database::Database,
    event_source::{Response, get, options},
    process::{Served, spawn_with_sockets},
    tls::{authority::Authority, http2::Http2, tunnel::ORIGIN},
    until,
};

/// A page of another origin, which may read the stream.
const PAGE: &str = "https://app.example.org";

const ALLOWS_PAGE: &str = "--cors-origins=https://app.example.org";

/// The number of clients that connect again and again.
const CLIENTS: usize = 16;

/// A request that arrives while the bridge runs or stops gets its response within this time, on a machine that is busy
/// with other tests.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The time between the end of a bridge and the first response of the next one, on such a machine.
const RESTART: Duration = Duration::from_secs(15);

/// A port that outlives bridges, as if a service manager held it.
fn held_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn pass(listener: &TcpListener) -> OwnedFd {
    listener.try_clone().expect("a socket").into()
}

/// The response to an `EventSource` that alice has on the page.
async fn ask(address: SocketAddr) -> io::Result<Response> {
    let cookie = format!("tidings_token={}", token("alice"));
    let headers = [
        ("Accept", "text/event-stream"),
        ("Cookie", cookie.as_str()),
        ("Origin", PAGE),
    ];
    get(address, "/stream", &headers).await
}

/// Asserts that a cross-origin `EventSource` with credentials accepts the response.
fn assert_readable(response: &Response) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("Access-Control-Allow-Origin"), Some(PAGE));
    let credentials = response.header("Access-Control-Allow-Credentials");
    assert_eq!(credentials, Some("true"));
    let kind = response.header("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
}

/// Asserts that a body makes a client reconnect and keep its last event id. Returns the retry delay in milliseconds.
fn assert_deferral(body: &str) -> u64 {
    let (retry, comment) = body.split_once('\n').expect("two lines");
    assert!(
        comment.starts_with(": ") && comment.ends_with('\n'),
        "{body:?}"
    );
    assert_eq!(
        body.lines().count(),
        2,
        "a blank line resets the id: {body:?}"
    );
    let wait = retry
        .strip_prefix("retry: ")
        .and_then(|wait| wait.parse().ok());
    wait.unwrap_or_else(|| panic!("no retry: {body:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_bridge_stops_its_port_answers_every_request_at_once() {
    let database = Database::migrated().await;
    let settings = ["--drain=3s", ALLOWS_PAGE];
    let mut bridge = Served::start(&database, &settings).await;
    let address = bridge.address();
    // Some of these last as long as the bridge takes to stop.
    let mut streams = Vec::new();
    for number in 0..40 {
        let mut stream = bridge.connect(&format!("user{number}"), None).await;
        until(&mut stream, "tidings.caught-up").await;
        streams.push(stream);
    }
    bridge.signal(Signal::SIGTERM);
    bridge.until_logged("INFO", "stopping").await;
    let begin = Instant::now();
    let mut answered = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        let response = ask(address).await.expect("an answer");
        assert_readable(&response);
        assert_eq!(response.header("Cache-Control"), Some("no-store"));
        let wait = assert_deferral(&response.text().await);
        assert!((1_000..=4_000).contains(&wait), "{wait}");
        let took = asked.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
        answered += 1;
    }
    assert!(answered > 10, "{answered}");
    // Programs get the real status, and pages of other origins get nothing.
    let program = get(address, "/stream", &[("Accept", "*/*")]).await;
    let program = program.expect("an answer");
    assert_eq!(program.status(), 503);
    assert!(program.header("Retry-After").is_some());
    let stranger = [
        ("Accept", "text/event-stream"),
        ("Origin", "https://evil.example"),
    ];
    let stranger = get(address, "/stream", &stranger).await;
    assert_eq!(stranger.expect("an answer").status(), 403);
    let preflight = [
        ("Origin", PAGE),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "last-event-id"),
    ];
    let preflight = options(address, "/stream", &preflight).await;
    assert_eq!(preflight.expect("an answer").status(), 200);
    assert_eq!(
        get(address, "/", &[]).await.expect("an answer").status(),
        404
    );
    drop(streams);
    let stopped = bridge.until_logged("INFO", "stopped").await;
    let deferred = stopped["deferred"].as_u64().expect("a number");
    assert!(deferred > answered, "{deferred}");
    assert!(bridge.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_too_and_a_connection_that_was_open_before_is_closed_at_the_end() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let [certificate, key] = authority.issue("bridge", &[ORIGIN]).settings();
    // It ends before the drain time is over, with its last stream.
    let mut bridge = Served::start(&database, &["--drain=60s", &certificate, &key]).await;
    let address = bridge.address();
    let earlier = Http2::connect(address, &authority).await;
    let mut streams = Vec::new();
    for number in 0..10 {
        let mut stream = earlier.open(&format!("user{number}")).await;
        stream.until("event: tidings.caught-up").await;
        streams.push(stream);
    }
    bridge.signal(Signal::SIGTERM);
    bridge.until_logged("INFO", "stopping").await;
    let later = Http2::connect(address, &authority).await;
    for connection in [&earlier, &later] {
        let request = Request::get("https://localhost/stream");
        let request = request.header("accept", "text/event-stream");
        let asked = Instant::now();
        assert_deferral(&connection.open_with(request).await.rest().await);
        let took = asked.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
    }
    // Both clients keep their connections open, so only the bridge can close them.
    drop(streams);
    let begin = Instant::now();
    assert!(bridge.ended().await.success());
    let took = begin.elapsed();
    assert!(took < 3 * AT_ONCE, "{took:?}");
    drop((earlier, later));
}

/// The outcomes of the attempts to connect.
#[derive(Debug, Default)]
struct Attempts {
    streams: AtomicUsize,
    deferrals: AtomicUsize,
    /// Attempts without any response. They are a failure while a bridge shuts down gracefully.
    broken: AtomicUsize,
    is_over: AtomicBool,
}

impl Attempts {
    /// Starts clients that connect until the test is over. Each attempt must get a response; each client returns the
    /// longest time that one took.
    fn flood(self: &Arc<Self>, address: SocketAddr) -> JoinSet<Duration> {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let attempts = Arc::clone(self);
            clients.spawn(async move {
                let mut longest = Duration::ZERO;
                while !attempts.is_over.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    attempts.attempt(address).await;
                    longest = longest.max(begin.elapsed());
                    tokio::task::yield_now().await;
                }
                longest
            });
        }
        clients
    }

    async fn attempt(&self, address: SocketAddr) {
        let response = match ask(address).await {
            Ok(response) => response,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                panic!("refused: {error}")
            }
            Err(_) => {
                self.broken.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        assert_readable(&response);
        if response.header("Content-Length").is_some() {
            assert_deferral(&response.text().await);
            self.deferrals.fetch_add(1, Ordering::Relaxed);
        } else {
            self.streams.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until `2 * CLIENTS` more streams were opened.
    async fn until_streams(&self) {
        let before = self.streams.load(Ordering::Relaxed);
        let looking = async {
            let mut pace = interval(ASKS_AGAIN);
            while self.streams.load(Ordering::Relaxed) < before + 2 * CLIENTS {
                pace.tick().await;
            }
        };
        timeout(PATIENCE, looking).await.expect("streams");
    }
}

/// Runs bridges one after another on one socket, each ended by a signal, under a flood of new connections. Returns the
/// attempts and the longest time that one took.
async fn succession(signal: Signal) -> (Arc<Attempts>, Duration) {
    let database = Database::migrated().await;
    let (held, address) = held_port();
    let start = async || {
        let sockets = vec![("stream", pass(&held))];
        Served::start_with_sockets(&database, &["--drain=1s", ALLOWS_PAGE], sockets).await
    };
    let mut bridge = start().await;
    assert_eq!(bridge.address(), address);
    let attempts = Arc::new(Attempts::default());
    let mut clients = attempts.flood(address);
    for _ in 0..3 {
        attempts.until_streams().await;
        bridge.signal(signal);
        bridge.ended().await;
        bridge = start().await;
    }
    attempts.until_streams().await;
    attempts.is_over.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    while let Some(took) = clients.join_next().await {
        longest = longest.max(took.expect("no client was refused"));
    }
    (attempts, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_inherited_socket_no_client_notices_a_restart_but_by_its_wait() {
    let (attempts, longest) = succession(Signal::SIGTERM).await;
    assert_eq!(attempts.broken.load(Ordering::Relaxed), 0, "{attempts:?}");
    assert!(
        attempts.deferrals.load(Ordering::Relaxed) > 0,
        "{attempts:?}"
    );
    assert!(longest < RESTART, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_inherited_socket_a_crash_breaks_open_connections_and_refuses_none() {
    let (attempts, longest) = succession(Signal::SIGKILL).await;
    // Each client has one connection at a time.
    let broken = attempts.broken.load(Ordering::Relaxed);
    assert!(broken <= 3 * CLIENTS, "{attempts:?}");
    assert!(longest < RESTART, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_addresses_can_be_inherited_and_the_names_tell_which_is_which() {
    let database = Database::migrated().await;
    let ((stream, stream_address), (admin, admin_address)) = (held_port(), held_port());
    let sockets = vec![("admin", pass(&admin)), ("stream", pass(&stream))];
    let mut bridge = Served::start_with_sockets(&database, &[], sockets).await;
    assert_eq!(bridge.address(), stream_address);
    assert_eq!(bridge.admin_address(), admin_address);
    let line = bridge.until_logged("INFO", "TIDINGS_LISTEN").await;
    assert_eq!(line["inherited"], stream_address.to_string());
    bridge.until_ready_is(200).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'here')")
        .await;
    assert_eq!(source.next_event().await.data, "here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_without_a_name_is_the_streams() {
    let database = Database::migrated().await;
    let (held, address) = held_port();
    let sockets = vec![("unknown", pass(&held))];
    let bridge = Served::start_with_sockets(&database, &[], sockets).await;
    assert_eq!(bridge.address(), address);
    assert_ne!(bridge.admin_address(), address);
}

/// Variables that a parent process left behind don't describe sockets of ours.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_another_process_are_left_alone() {
    let database = Database::migrated().await;
    let environment = [("LISTEN_FDS", "1"), ("LISTEN_PID", "1")];
    let bridge = Served::start_in(&database, &[], &environment).await;
    bridge.connect_live("alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_listening_tcp_socket_is_refused_and_named() {
    let database = Database::migrated().await;
    let udp = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let folder = crate::support::dev::DataFolder::new();
    std::fs::create_dir_all(folder.path()).expect("a folder");
    let unix = UnixListener::bind(folder.path().join("socket")).expect("a socket");
    let (held, address) = held_port();
    let connected = std::net::TcpStream::connect(address).expect("a connection");
    let file = std::fs::File::open("/dev/null").expect("a file");
    let cases: [(Vec<(&str, OwnedFd)>, &str); 7] = [
        (vec![("stream", udp())], "named stream that can't be used"),
        (
            vec![("stream", unix.into())],
            "named stream that can't be used",
        ),
        (vec![("stream", connected.into())], "it is not listening"),
        (
            vec![("admin", file.into())],
            "named admin that can't be used",
        ),
        (vec![("http", pass(&held))], "named \"http\""),
        (
            vec![("tidings.socket", pass(&held))],
            "FileDescriptorName=stream",
        ),
        (
            vec![("stream", pass(&held)), ("stream", pass(&held))],
            "two sockets named stream",
        ),
    ];
    for (sockets, expected) in cases {
        let child = spawn_with_sockets(&database, &[], sockets);
        let ended = timeout(PATIENCE, child.wait_with_output()).await;
        let output = ended.expect("it refuses").expect("its log");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{expected}: {said}");
        // Retrying would not help.
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
}
