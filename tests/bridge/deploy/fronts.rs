//! What must hold behind each proxy for which we ship a configuration.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::front::{Front, Kind, Upstream};
use crate::support::{
    PATIENCE,
    bridge::{Bridge, serve_options, token},
    browser::{self, Browser},
    database::Database,
    event_source::{EventSource, Item, Response, get},
    no_repeats,
    ports::free_address,
    rows, until,
};

const ROWS: usize = 2_000;

/// More than the six connections that a browser opens to one host over HTTP/1.1.
const TABS: usize = 20;

/// No heartbeat helps.
const SILENT: &str = "--heartbeat=300s";

/// Interval between a client's reconnection attempts. A browser waits longer.
const COMES_BACK: Duration = Duration::from_millis(50);

const PROXY: &str = "--trusted-proxies=127.0.0.1";

macro_rules! behind_each {
    ($($test:ident),+ $(,)?) => {
        behind_each!(@ nginx Nginx $($test)+);
        behind_each!(@ caddy Caddy $($test)+);
        behind_each!(@ haproxy Haproxy $($test)+);
    };
    (@ $name:ident $kind:ident $($test:ident)+) => {
        mod $name {
            use super::Kind;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Kind::$kind).await;
            })+
        }
    };
}

behind_each!(
    events_pass_at_once,
    all_tabs_of_a_browser_share_one_connection_and_who_leaves_is_noticed,
    heartbeats_keep_a_stream_open_and_silence_ends_it,
    an_address_is_the_clients_own,
    a_page_of_the_streams_own_origin_is_let_in,
    a_client_goes_on_at_another_bridge_and_comes_back_when_there_was_none,
    whoever_accepts_events_is_told_to_come_back_unless_it_asks_for_the_status,
    a_client_is_sent_past_a_bridge_that_stops,
    a_real_browsers_streams_are_all_open_and_outlive_the_bridge,
);

async fn events_pass_at_once(kind: Kind) {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SILENT]).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    // No further bytes follow that would flush it.
    database
        .execute("select send_notification('alice', 'at once')")
        .await;
    assert_eq!(source.next_event().await.data, "at once");
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 100) from generate_series(1, {ROWS})"
        ))
        .await;
    let ids = rows(&mut source, ROWS).await;
    assert!(ids.is_sorted());
    no_repeats(&ids);
}

async fn all_tabs_of_a_browser_share_one_connection_and_who_leaves_is_noticed(kind: Kind) {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SILENT]).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let connection = front.connect_http2().await;
    let mut tabs = Vec::new();
    for number in 0..TABS {
        let mut tab = connection.open(&format!("user{number}")).await;
        tab.until("event: tidings.caught-up").await;
        tabs.push(tab);
    }
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user' || n, 'for user' || n from generate_series(0, {TABS} - 1) n"
        ))
        .await;
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.until(&format!("data: for user{number}\nid: ")).await;
    }
    // One tab is closed, then the browser.
    tabs.pop().expect("a tab").reset();
    bridge.until_connections(TABS - 1).await;
    drop((tabs, connection));
    bridge.until_connections(0).await;
}

async fn heartbeats_keep_a_stream_open_and_silence_ends_it(kind: Kind) {
    let database = Database::migrated().await;
    let silent = Bridge::start_with(&database, &[SILENT]).await;
    let front = Front::with_silence(kind, [&silent, &silent], "3s").await;
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    // The proxy drops a bridge that sends nothing.
    source.rest().await;
    silent.until_connections(0).await;

    let beating = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let front = Front::with_silence(kind, [&beating, &beating], "4s").await;
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    // Longer than the silence that the proxy tolerates.
    for _ in 0..6 {
        let item = source.next_item().await;
        assert!(matches!(item, Ok(Item::Id(_))), "no heartbeat: {item:?}");
    }
    database
        .execute("select send_notification('alice', 'still open')")
        .await;
    assert_eq!(source.next_event().await.data, "still open");
    // Over HTTP/1.1, not every proxy notices at once that a client is gone; all notice when a
    // heartbeat can't be written.
    drop(source);
    beating.until_connections(0).await;
}

async fn an_address_is_the_clients_own(kind: Kind) {
    let database = Database::migrated().await;
    let limits = [PROXY, "--max-connections-per-address=1"];
    let bridge = Bridge::start_with(&database, &limits).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let [one, two]: [IpAddr; 2] = [[127, 0, 0, 2].into(), [127, 0, 0, 3].into()];
    let mut first = front.ask_from(one, "192.0.2.1").await.into_events().await;
    until(&mut first, "tidings.caught-up").await;
    // Whatever address it claims, it already has one stream.
    let mut again = front.ask_from(one, "192.0.2.2").await.into_events().await;
    assert!(matches!(again.next_item().await, Ok(Item::Retry(_))));
    assert!(
        again
            .next_item()
            .await
            .is_ok_and(|item| matches!(item, Item::Comment(_)))
    );
    assert!(again.next_item().await.is_err());
    assert_eq!(bridge.refused("address").await, 1);
    let mut other = front.ask_from(two, "192.0.2.1").await.into_events().await;
    until(&mut other, "tidings.caught-up").await;
}

/// The proxy terminates TLS and must forward the original scheme.
async fn a_page_of_the_streams_own_origin_is_let_in(kind: Kind) {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[PROXY]).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    for (origin, expected) in [
        ("https://localhost", 200),
        ("http://localhost", 403),
        ("https://localhost:8443", 403),
    ] {
        let answer = front.ask_of_page(origin).await;
        assert_eq!(answer.status(), expected, "{origin}");
    }
}

async fn a_client_goes_on_at_another_bridge_and_comes_back_when_there_was_none(kind: Kind) {
    let database = Database::migrated().await;
    let options = serve_options(&database, &[]);
    let place = || (free_address(), free_address());
    let mut one = Bridge::start_at(&options, place()).await;
    let mut two = Bridge::start_at(&options, place()).await;
    let front = Front::before(kind, [&one, &two]).await;
    let send = async |text: &str| {
        let send = format!("select send_notification('alice', '{text}')");
        database.execute(&send).await;
    };
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    send("before").await;
    assert_eq!(source.next_event().await.data, "before");
    if one.connections() == 0 {
        (one, two) = (two, one);
    }
    assert_eq!((one.connections(), two.connections()), (1, 0));

    let place = (one.address(), one.admin_address());
    let ((items, _), ()) = tokio::join!(source.rest(), one.stop());
    assert!(matches!(items.last(), Some(Item::Retry(_))), "{items:?}");
    // Regardless of load balancing, no client is sent to the bridge that is down.
    for _ in 0..4 {
        assert_eq!(front.ask_as_program("bob").await.status(), 200);
    }
    send("missed").await;
    let answer = front.ask("alice", source.last_event_id()).await;
    let mut source = answer.into_events().await;
    let missed = until(&mut source, "tidings.caught-up").await;
    let missed: Vec<_> = missed.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(missed, ["missed"]);

    tokio::join!(source.rest(), two.stop());
    send("missed, too").await;
    // An `EventSource` reconnects after this response, with its last event id.
    let answer = front.ask("alice", source.last_event_id()).await;
    assert_eq!(answer.status(), 200);
    let kind = answer.header("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    assert!((3_000..=7_000).contains(&wait(answer).await));
    let status = front.ask_as_program("alice").await.status();
    assert!((502..=503).contains(&status), "{status}");

    let _one = Bridge::start_at(&options, place).await;
    let mut source = comes_back(&front, source.last_event_id()).await;
    assert_eq!(source.next_event().await.data, "missed, too");
    // Once one client gets through, all others do too, while its stream is open.
    for _ in 0..8 {
        assert_eq!(front.ask_as_program("bob").await.status(), 200);
    }
}

/// The `retry:` of a response whose body contains nothing else, in milliseconds.
async fn wait(answer: Response) -> u64 {
    let said = answer.text().await;
    let (retry, comment) = said.split_once('\n').expect("two lines");
    assert_eq!(comment, ": no bridge answers\n");
    let wait = retry
        .strip_prefix("retry: ")
        .and_then(|wait| wait.parse().ok());
    wait.unwrap_or_else(|| panic!("no wait: {said:?}"))
}

/// Responds to each request with the status in its query, and to health checks with 200.
struct Unavailable {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Unavailable {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    if client.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let asked = String::from_utf8_lossy(&asked);
                let status = asked
                    .split_once("status-")
                    .map_or("200", |(_, rest)| &rest[..3]);
                let answer = format!(
                    "HTTP/1.1 {status} Some\r\nConnection: close\r\nRetry-After: 9\r\n\
                     Content-Length: 4\r\n\r\nbusy"
                );
                let _ = client.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            address: self.address,
            admin_address: self.address,
        }
    }
}

const PAGE: &str = "https://shop.example.org";

/// Requests of browsers and of libraries.
const ACCEPTS_EVENTS: [&[(&str, &str)]; 5] = [
    &[("Accept", "text/event-stream")],
    &[("Accept", "text/event-stream, */*")],
    &[("Accept", "application/json,text/event-stream;q=0.9")],
    &[("Accept", "Text/Event-Stream")],
    &[
        ("Accept", "text/event-stream"),
        ("Authorization", "Bearer x"),
    ],
];

const ACCEPTS_OTHERS: [&[(&str, &str)]; 4] = [
    &[],
    &[("Accept", "*/*")],
    &[("Accept", "text/event-streams")],
    &[("Accept", "text/html"), ("Authorization", "Bearer x")],
];

/// No bridge responds, or an upstream responds that no bridge does.
async fn whoever_accepts_events_is_told_to_come_back_unless_it_asks_for_the_status(kind: Kind) {
    let address = free_address();
    let away = Upstream {
        address,
        admin_address: address,
    };
    let front = Front::before_others(kind, [away; 2]).await;
    refuses_well(&front, "?x=y", 502..=503, 3_000..=7_000, "").await;
    refuses_well(&front, "", 502..=503, 3_000..=7_000, "").await;

    let [one, two] = [Unavailable::start().await, Unavailable::start().await];
    let front = Front::before_others(kind, [one.upstream(), two.upstream()]).await;
    for status in [502, 503, 504] {
        let query = format!("?status-{status}");
        refuses_well(&front, &query, status..=status, 3_000..=9_000, "busy").await;
    }
    // Other rejections are final and passed on.
    for headers in ACCEPTS_EVENTS {
        let answer = front.ask_with("?status-401", headers).await;
        assert_eq!(answer.status(), 401, "{headers:?}");
        assert_eq!(answer.text().await, "busy");
    }
}

async fn refuses_well(
    front: &Front,
    query: &str,
    real: std::ops::RangeInclusive<u16>,
    waits: std::ops::RangeInclusive<u64>,
    real_body: &str,
) {
    for headers in ACCEPTS_EVENTS {
        let answer = front.ask_with(query, headers).await;
        assert_eq!(answer.status(), 200, "{query} {headers:?}");
        assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
        assert_eq!(answer.header("Access-Control-Allow-Credentials"), None);
        assert!(waits.contains(&wait(answer).await));

        let of_page = [headers, &[("Origin", PAGE)]].concat();
        let answer = front.ask_with(query, &of_page).await;
        assert_eq!(answer.status(), 200, "{query} {of_page:?}");
        for (name, value) in [
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store"),
            ("Access-Control-Allow-Origin", PAGE),
            ("Access-Control-Allow-Credentials", "true"),
            ("Vary", "Origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        assert!(waits.contains(&wait(answer).await));

        let separator = if query.is_empty() { "?" } else { "&" };
        let asks = format!("{query}{separator}errors=status");
        let status = front.ask_with(&asks, headers).await.status();
        assert!(real.contains(&status), "{asks} {headers:?}: {status}");
    }
    for headers in ACCEPTS_OTHERS {
        let answer = front.ask_with(query, headers).await;
        let status = answer.status();
        assert!(real.contains(&status), "{query} {headers:?}: {status}");
        if !real_body.is_empty() {
            assert_eq!(answer.header("Retry-After"), Some("9"));
            assert_eq!(answer.text().await, real_body);
        }
    }
}

/// How long clients may still be sent to a stopping bridge and told to reconnect, on a busy
/// machine: Caddy checks every second.
const NOTICED: Duration = Duration::from_secs(20);

async fn a_client_is_sent_past_a_bridge_that_stops(kind: Kind) {
    let database = Database::migrated().await;
    // The health checks of both bridges go to the same port.
    let unused = TcpListener::bind("127.0.0.11:0").await.expect("a port");
    let probes = unused.local_addr().expect("an address").port();
    drop(unused);
    let start = async |host: [u8; 4]| {
        let mut options = serve_options(&database, &[PROXY]);
        options.bridge.listen = (host, 0).into();
        options.bridge.admin_listen = (host, probes).into();
        // It stops earlier, with its last stream.
        options.bridge.drain = PATIENCE;
        Bridge::start_as(&options).await
    };
    let (one, two) = (start([127, 0, 0, 11]).await, start([127, 0, 0, 12]).await);
    let front = Front::before(kind, [&one, &two]).await;
    let mut streams = Vec::new();
    for number in 0..20 {
        let mut stream = front.connect(&format!("user{number}")).await;
        until(&mut stream, "tidings.caught-up").await;
        streams.push(stream);
    }
    assert!(one.connections() > 0 && two.connections() > 0);
    let (address, ready) = (one.address(), one.admin_address());
    let stopping = tokio::spawn(one.stop());
    let red = async {
        let mut pace = interval(COMES_BACK);
        loop {
            pace.tick().await;
            let answer = get(ready, "/health/ready", &[]).await.expect("an answer");
            if answer.status() == 503 {
                return;
            }
        }
    };
    timeout(PATIENCE, red).await.expect("it stops");
    // It still responds, and tells clients to reconnect.
    let headers = [("Accept", "text/event-stream")];
    let deferred = get(address, "/stream", &headers).await.expect("an answer");
    assert!(deferred.header("Content-Length").is_some());
    let begin = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < 20 {
        let answer = front.ask("alice", "").await;
        if answer.header("Content-Length").is_none() {
            in_a_row += 1;
        } else {
            assert!(matches!(kind, Kind::Caddy), "it is sent on at once");
            in_a_row = 0;
        }
        assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
    }
    assert!(!stopping.is_finished());
    // Not every proxy notices at once that a client is gone.
    drop((streams, front));
    stopping.await.expect("it stops");
    two.until_connections(0).await;
}

async fn a_real_browsers_streams_are_all_open_and_outlive_the_bridge(kind: Kind) {
    let database = Database::migrated().await;
    let (options, place) = (
        serve_options(&database, &[]),
        (free_address(), free_address()),
    );
    let bridge = Bridge::start_at(&options, place).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let browser = Browser::start(browser::Kind::Chromium).await;
    // The page doesn't exist, but it is on the streams' origin.
    let page = front.url("/nothing");
    browser.client.goto(&page).await.expect("the proxy");
    let open = format!(
        "document.cookie = 'tidings_token={}; path=/; secure'; \
         window.streams = Array.from({{ length: {TABS} }}, () => {{ \
             const stream = new EventSource('/stream'); \
             stream.texts = []; \
             stream.breaks = 0; \
             stream.onmessage = (event) => stream.texts.push(event.data); \
             stream.onerror = () => stream.breaks += 1; \
             return stream; \
         }});",
        token("alice")
    );
    browser.client.execute(&open, vec![]).await.expect("a page");
    let send = async |text: &str| {
        let send = format!("select send_notification('alice', '{text}')");
        database.execute(&send).await;
    };
    let all = async |script: &str| {
        let all = format!("streams.every((stream) => {script})");
        browser.until(&all).await;
    };
    all("stream.readyState === EventSource.OPEN").await;
    bridge.until_connections(TABS).await;
    send("live").await;
    all("String(stream.texts) === 'live'").await;

    bridge.stop().await;
    send("missed").await;
    // Once when the bridge stops, and once by the proxy's own response.
    all("stream.breaks >= 2").await;
    let bridge = Bridge::start_at(&options, place).await;
    all("String(stream.texts) === 'live,missed'").await;
    send("live again").await;
    all("String(stream.texts) === 'live,missed,live again'").await;
    browser.stop().await;
    bridge.until_connections(0).await;
}

/// Reconnects as browsers do, but sooner.
async fn comes_back(front: &Front, last_event_id: &str) -> EventSource {
    let trying = async {
        let mut pace = interval(COMES_BACK);
        loop {
            pace.tick().await;
            let answer = front.ask("alice", last_event_id).await;
            // Only the proxy's own response has a length.
            if answer.header("Content-Length").is_none() {
                return answer.into_events().await;
            }
        }
    };
    timeout(PATIENCE, trying).await.expect("a stream")
}
