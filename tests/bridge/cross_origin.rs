//! A cross-origin page whose `EventSource` can't reconnect at once. Firefox gives up after the
//! first reconnect that fails without a response; both browsers give up after a status other than
//! 200.

use std::{net::TcpListener, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use tokio::time::timeout;

use crate::{
    deploy::front::{self, Front},
    recipes::page::Page as Recipe,
    support::{
        bridge::{Bridge, serve_options, status, token, token_that_ends_in},
        browser::{Browser, Kind, in_each_browser},
        database::Database,
        page::Page,
        ports::free_address,
        process::Served,
        proxy::{Network, Proxy, Target},
    },
};

in_each_browser!(
    a_bridge_that_stops_in_order_on_a_held_port_is_not_noticed,
    a_bridge_that_is_killed_on_a_held_port_is_not_noticed,
    a_page_outlives_a_time_without_bridges_behind_nginx,
    the_lines_that_reopen_recover_when_a_reconnect_fails,
    the_module_recovers_when_a_reconnect_fails,
    the_module_recovers_when_the_token_has_expired,
    the_module_closes_its_stream_when_the_page_is_left,
);

/// A page that is left must close its stream within this time. If it didn't, Chromium would keep
/// the stream open for 60 s.
const LEFT_WITHIN: Duration = Duration::from_secs(20);

/// Clients reconnect sooner than by default.
const SOON: &str = "--retry-after=1s";

/// Opens the page, which has a plain `EventSource` and records what it receives.
async fn listen(browser: &Browser, page: &Page, stream: &str) {
    browser.client.goto(&page.origin()).await.expect("the page");
    let script = "document.cookie = 'tidings_token=' + arguments[1]; \
         window.heard = []; window.errors = []; \
         window.source = new EventSource(arguments[0], { withCredentials: true }); \
         source.onmessage = (event) => heard.push(event.data); \
         source.onerror = () => errors.push(source.readyState)";
    run(browser, script, vec![json!(stream), json!(token("alice"))]).await;
    browser.until("source.readyState === 1").await;
}

async fn run(browser: &Browser, script: &str, arguments: Vec<Value>) -> Value {
    let answer = browser.client.execute(script, arguments).await;
    answer.expect("a script")
}

async fn send(database: &Database, text: &str) {
    let send = format!("select send_notification('alice', '{text}')");
    database.execute(&send).await;
}

/// Waits until the page has received these texts, and nothing else.
async fn until_heard(browser: &Browser, texts: &[&str]) {
    let all = format!("heard.length >= {}", texts.len());
    browser.until(&all).await;
    assert_eq!(run(browser, "return heard", vec![]).await, json!(texts));
}

/// The values of `readyState` at the `EventSource`'s errors.
async fn states(browser: &Browser) -> Value {
    run(browser, "return [...new Set(errors)]", vec![]).await
}

async fn a_bridge_that_stops_in_order_on_a_held_port_is_not_noticed(kind: Kind) {
    is_succeeded(kind, Signal::SIGTERM).await;
}

async fn a_bridge_that_is_killed_on_a_held_port_is_not_noticed(kind: Kind) {
    is_succeeded(kind, Signal::SIGKILL).await;
}

/// Bridges run one after another on one port, which a service manager holds.
async fn is_succeeded(kind: Kind, signal: Signal) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address");
    let origin = format!("--cors-origins={}", page.origin());
    let start = async || {
        let socket = held.try_clone().expect("a socket").into();
        let settings = ["--drain=2s", SOON, origin.as_str()];
        Served::start_with_sockets(&database, &settings, vec![("stream", socket)]).await
    };
    let mut bridge = start().await;
    listen(&browser, &page, &format!("http://{address}/stream")).await;
    let mut texts = Vec::new();
    for round in 1..=2 {
        send(&database, "live").await;
        texts.push("live");
        until_heard(&browser, &texts).await;
        bridge.signal(signal);
        bridge.ended().await;
        // The page has tried to reconnect, while there was no bridge or to one that was stopping.
        browser.until(&format!("errors.length >= {round}")).await;
        send(&database, "while away").await;
        texts.push("while away");
        bridge = start().await;
        until_heard(&browser, &texts).await;
    }
    assert_eq!(states(&browser).await, json!([0]), "it gave up");
    browser.stop().await;
    bridge.stop().await;
}

async fn a_page_outlives_a_time_without_bridges_behind_nginx(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let (options, place) = (
        serve_options(&database, &[&origin]),
        (free_address(), free_address()),
    );
    let bridge = Bridge::start_at(&options, place).await;
    let front = Front::before(front::Kind::Nginx, [&bridge, &bridge]).await;
    // The page's cookie isn't sent cross-site, so the URL has a ticket.
    let stream = format!("/stream?ticket={}", ticket(&database).await);
    listen(&browser, &page, &front.url(&stream)).await;
    send(&database, "live").await;
    until_heard(&browser, &["live"]).await;
    bridge.stop().await;
    send(&database, "missed").await;
    // First when the bridge ended, then for the responses that the proxy sends in its place.
    browser.until("errors.length >= 3").await;
    let bridge = Bridge::start_at(&options, place).await;
    until_heard(&browser, &["live", "missed"]).await;
    send(&database, "live again").await;
    until_heard(&browser, &["live", "missed", "live again"]).await;
    assert_eq!(states(&browser).await, json!([0]), "it gave up");
    browser.stop().await;
    bridge.stop().await;
}

async fn ticket(database: &Database) -> String {
    let client = database.connect().await;
    let ticket = "select create_stream_ticket('alice', '1 hour')";
    let ticket = client.query_one(ticket, &[]).await.expect("a ticket");
    ticket.get(0)
}

/// Adds a script to the page, after one that records each `EventSource`.
async fn add_script(browser: &Browser, page: &Page, script: &str) {
    const REMEMBER: &str = "\
        window.heard = []; window.sources = []; window.gaveUp = 0; \
        window.EventSource = class extends EventSource { \
          constructor(...with_these) { \
            super(...with_these); \
            sources.push(this); \
            this.addEventListener('error', () => { gaveUp += this.readyState === 2 }); \
          } \
        };";
    browser.client.goto(&page.origin()).await.expect("the page");
    let add = "for (const text of arguments) { \
           const script = document.createElement('script'); \
           script.textContent = text; \
           document.head.append(script); \
         }";
    run(browser, add, vec![json!(REMEMBER), json!(script)]).await;
    browser
        .until("sources.length === 1 && sources[0].readyState === 1")
        .await;
}

/// The contents of this file in docs/recipes/README.md, for a script that is not a module.
fn documented(file: &str) -> String {
    let recipes = Recipe::open("README");
    let files = recipes.files();
    files[file].replace("export ", "")
}

async fn the_lines_that_reopen_recover_when_a_reconnect_fails(kind: Kind) {
    recovers(kind, |stream| {
        format!(
            "const streamUrl = {}; const show = (event) => heard.push(event.data); {{ {} }}",
            json!(stream),
            documented("reopen.js")
        )
    })
    .await;
}

async fn the_module_recovers_when_a_reconnect_fails(kind: Kind) {
    recovers(kind, |stream| {
        format!(
            "{} keepStream(async () => {}, {{ message: (event) => heard.push(event.data) }})",
            documented("stream.js"),
            json!(stream)
        )
    })
    .await;
}

/// A page with such a script recovers when its connection was reset and the next one fails without
/// a response.
async fn recovers(kind: Kind, script: impl Fn(&str) -> String) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let bridge = Bridge::start_with(&database, &[&origin, SOON]).await;
    let network = Proxy::to(Target::Tcp(bridge.address())).await;
    let ticket = ticket(&database).await;
    let stream = format!("http://{}/stream?ticket={ticket}", network.address());
    add_script(&browser, &page, &script(&stream)).await;
    send(&database, "live").await;
    until_heard(&browser, &["live"]).await;

    network.set(Network::Refuse);
    network.reset();
    bridge.until_connections(0).await;
    network.until_opened(1).await;
    if kind == Kind::Firefox {
        browser.until("gaveUp >= 1").await;
    }
    // Another tab receives the row that is sent meanwhile and it is marked, so the page gets it
    // only by its last event id.
    let mut tab = bridge.connect_live("alice").await;
    send(&database, "missed").await;
    assert_eq!(tab.next_event().await.data, "missed");
    database
        .until("select bool_and(sent) from notifications")
        .await;
    network.set(Network::Pass);
    until_heard(&browser, &["live", "missed"]).await;
    send(&database, "live again").await;
    until_heard(&browser, &["live", "missed", "live again"]).await;
    let gave_up = run(&browser, "return gaveUp > 0", vec![]).await;
    assert_eq!(gave_up, json!(kind == Kind::Firefox));
    browser.stop().await;
}

async fn the_module_recovers_when_the_token_has_expired(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let bridge = Bridge::start_with(&database, &[&origin, SOON]).await;
    let network = Proxy::to(Target::Tcp(bridge.address())).await;
    // The application issues a new token.
    let script = format!(
        "{} keepStream(async () => {{ document.cookie = 'tidings_token=' + {}; return {} }}, \
         {{ message: (event) => heard.push(event.data) }})",
        documented("stream.js"),
        json!(token("alice")),
        json!(format!("http://{}/stream", network.address())),
    );
    add_script(&browser, &page, &script).await;
    send(&database, "live").await;
    until_heard(&browser, &["live"]).await;

    // As if the device had slept until after the token expired.
    let expired = token_that_ends_in(0);
    // The token stays valid through the second in which it expires.
    while status(bridge.address(), &expired).await != 401 {
        tokio::task::yield_now().await;
    }
    let turned_away = bridge.refused("identity").await;
    let expire = "document.cookie = 'tidings_token=' + arguments[0]";
    run(&browser, expire, vec![json!(expired)]).await;
    network.reset();
    bridge.until_connections(0).await;
    let mut tab = bridge.connect_live("alice").await;
    send(&database, "missed").await;
    assert_eq!(tab.next_event().await.data, "missed");
    browser.until("gaveUp >= 1").await;
    assert_eq!(bridge.refused("identity").await, turned_away + 1);
    until_heard(&browser, &["live", "missed"]).await;
    send(&database, "live again").await;
    until_heard(&browser, &["live", "missed", "live again"]).await;
    browser.stop().await;
}

async fn the_module_closes_its_stream_when_the_page_is_left(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let other = Page::serve().await;
    let origin = format!("--cors-origins={}", page.origin());
    let bridge = Bridge::start_with(&database, &[&origin, SOON]).await;
    let stream = format!(
        "http://{}/stream?ticket={}",
        bridge.address(),
        ticket(&database).await
    );
    let script = format!(
        "{} keepStream(async () => {}, {{ message: (event) => heard.push(event.data) }})",
        documented("stream.js"),
        json!(stream)
    );
    add_script(&browser, &page, &script).await;
    browser.client.goto(&other.origin()).await.expect("a page");
    let closed = timeout(LEFT_WITHIN, bridge.until_connections(0)).await;
    closed.expect("a page that was left has no stream");
    browser.stop().await;
}
