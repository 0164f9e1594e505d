//! What must hold behind each proxy that there is a configuration for.

use std::{net::IpAddr, time::Duration};

use tokio::time::{interval, timeout};

use super::front::{Front, Kind};
use crate::{
    browser::Browser,
    support::{
        PATIENCE,
        bridge::{Bridge, serve_options, token},
        database::Database,
        event_source::{EventSource, Item},
        no_repeats, rows, until,
    },
};

const ROWS: usize = 2_000;

/// More than a browser opens at once to one host over HTTP/1.1, which is six.
const TABS: usize = 20;

/// No heartbeat comes to help.
const SILENT: &str = "--heartbeat=300s";

/// A client tries to come back this often. A browser waits longer.
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
    a_real_browsers_streams_are_all_open_and_outlive_the_bridge,
);

async fn events_pass_at_once(kind: Kind) {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[SILENT]).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    // Nothing follows that would push it on.
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
    // A bridge that says nothing is left.
    source.rest().await;
    silent.until_connections(0).await;

    let beating = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let front = Front::with_silence(kind, [&beating, &beating], "4s").await;
    let mut source = front.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    // For longer than the proxy bears silence.
    for _ in 0..6 {
        let item = source.next_item().await;
        assert!(matches!(item, Ok(Item::Id(_))), "no heartbeat: {item:?}");
    }
    database
        .execute("select send_notification('alice', 'still open')")
        .await;
    assert_eq!(source.next_event().await.data, "still open");
    // Over HTTP/1.1 not every proxy sees at once that a client has left; that
    // a heartbeat can't be written, all do.
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
    // Whatever it says of itself, it has one already.
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
    let mut one = Bridge::start(&database).await;
    let mut two = Bridge::start(&database).await;
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
    // Whoever's turn it were, nobody is sent to the one that is away.
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
    // An `EventSource` comes back after this, and knows where it was.
    let answer = front.ask("alice", source.last_event_id()).await;
    assert_eq!(answer.status(), 200);
    let kind = answer.header("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    let said = answer.text().await;
    let (retry, comment) = said.split_once('\n').expect("two lines");
    let wait: u64 = retry
        .strip_prefix("retry: ")
        .expect("a retry")
        .parse()
        .expect("a wait");
    assert!((3_000..=7_000).contains(&wait), "{wait}");
    assert_eq!(comment, ": no bridge answers\n");
    let status = front.ask_as_program("alice").await.status();
    assert!((502..=503).contains(&status), "{status}");

    let mut options = serve_options(&database, &[]);
    (options.bridge.listen, options.bridge.admin_listen) = place;
    let _one = Bridge::start_as(&options).await;
    let mut source = comes_back(&front, source.last_event_id()).await;
    assert_eq!(source.next_event().await.data, "missed, too");
    // Who is let through lets in all others, while his own stream is open.
    for _ in 0..8 {
        assert_eq!(front.ask_as_program("bob").await.status(), 200);
    }
}

async fn a_real_browsers_streams_are_all_open_and_outlive_the_bridge(kind: Kind) {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let front = Front::before(kind, [&bridge, &bridge]).await;
    let browser = Browser::start().await;
    // There is no such page, but it is on the streams' origin.
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

    let place = (bridge.address(), bridge.admin_address());
    bridge.stop().await;
    send("missed").await;
    // Once by the bridge's end, and once by what the proxy answers in its place.
    all("stream.breaks >= 2").await;
    let mut options = serve_options(&database, &[]);
    (options.bridge.listen, options.bridge.admin_listen) = place;
    let bridge = Bridge::start_as(&options).await;
    all("String(stream.texts) === 'live,missed'").await;
    send("live again").await;
    all("String(stream.texts) === 'live,missed,live again'").await;
    browser.stop().await;
    bridge.until_connections(0).await;
}

/// As browsers do, but sooner.
async fn comes_back(front: &Front, last_event_id: &str) -> EventSource {
    let trying = async {
        let mut pace = interval(COMES_BACK);
        loop {
            pace.tick().await;
            let answer = front.ask("alice", last_event_id).await;
            // The proxy's own answer says how long it is.
            if answer.header("Content-Length").is_none() {
                return answer.into_events().await;
            }
        }
    };
    timeout(PATIENCE, trying).await.expect("a stream")
}
