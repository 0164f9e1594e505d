//! Limits and origins as a real browser's `EventSource` experiences them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::interval;

use crate::support::{
    bridge::{Bridge, token},
    browser::{Browser, Kind, in_each_browser},
    database::Database,
    page::Page,
};

in_each_browser!(
    a_browser_comes_back_by_itself_from_every_refusal_and_misses_nothing,
    a_browser_that_asks_too_often_is_slowed_down_and_comes_back,
    a_browser_goes_on_after_the_end_of_an_old_stream_and_misses_nothing,
    a_browser_that_was_turned_away_still_knows_what_it_has_seen,
    a_page_that_is_not_listed_gets_nothing_and_marks_nothing,
);

/// Opens a page with a user's cookie, which a browser sends to every port of this host, and with an
/// `EventSource` that records everything it receives.
async fn listen(browser: &Browser, page: &Page, bridge: &Bridge, user: &str) {
    browser.client.goto(&page.origin()).await.expect("the page");
    let script = "document.cookie = 'tidings_token=' + arguments[1]; \
         window.heard = []; window.errors = []; \
         window.source = new EventSource(arguments[0], { withCredentials: true }); \
         source.onmessage = (event) => heard.push(event.data); \
         source.onerror = () => errors.push(source.readyState)";
    let stream = format!("http://{}/stream", bridge.address());
    run(browser, script, vec![json!(stream), json!(token(user))]).await;
}

async fn run(browser: &Browser, script: &str, arguments: Vec<Value>) -> Value {
    browser
        .client
        .execute(script, arguments)
        .await
        .expect("a script")
}

async fn send(database: &Database, user: &str, text: &str) {
    let send = format!("select send_notification('{user}', '{text}')");
    database.execute(&send).await;
}

async fn a_browser_comes_back_by_itself_from_every_refusal_and_misses_nothing(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    for (limit, in_the_way) in [
        ("--max-connections=1", "bob"),
        ("--max-connections-per-user=1", "alice"),
        ("--max-connections-per-address=1", "bob"),
    ] {
        let settings = [origin.as_str(), limit, "--retry-after=1s"];
        let bridge = Bridge::start_with(&database, &settings).await;
        // Another client leaves no room, which the page notices at least twice.
        let other = bridge.connect_live(in_the_way).await;
        listen(&browser, &page, &bridge, "alice").await;
        browser.until("errors.length >= 2").await;
        let states = run(&browser, "return [...new Set(errors)]", vec![]).await;
        assert_eq!(states, json!([0]), "{limit}: it gave up");
        send(&database, "carol", "not for alice").await;
        drop(other);
        browser.until("source.readyState === 1").await;
        send(&database, "alice", limit).await;
        browser
            .until(&format!("heard.join() === {}", json!(limit)))
            .await;
        bridge.stop().await;
    }
    browser.stop().await;
}

async fn a_browser_that_asks_too_often_is_slowed_down_and_comes_back(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let settings = [origin.as_str(), "--connection-rate=1", "--retry-after=1s"];
    let bridge = Bridge::start_with(&database, &settings).await;
    // Another user at the same address uses up the whole rate.
    let asking = async {
        let mut pace = interval(Duration::from_millis(5));
        loop {
            pace.tick().await;
            let status = bridge.try_connect("bob").await;
            assert!(status == 200 || status == 429, "{status}");
        }
    };
    let turned_away = async {
        bridge.until_refused("rate").await;
        // Occasionally alice is the one who gets the one connection per second.
        loop {
            listen(&browser, &page, &bridge, "alice").await;
            browser
                .until("errors.length >= 2 || source.readyState === 1")
                .await;
            if run(&browser, "return errors.length >= 2", vec![]).await == json!(true) {
                break;
            }
        }
    };
    tokio::select! {
        () = asking => unreachable!("it never ends"),
        () = turned_away => {}
    }
    browser.until("source.readyState === 1").await;
    let states = run(&browser, "return [...new Set(errors)]", vec![]).await;
    assert_eq!(states, json!([0]), "it gave up");
    send(&database, "alice", "here").await;
    browser.until("heard.join() === 'here'").await;
    browser.stop().await;
}

async fn a_browser_goes_on_after_the_end_of_an_old_stream_and_misses_nothing(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let settings = [origin.as_str(), "--max-stream-age=1s"];
    let bridge = Bridge::start_with(&database, &settings).await;
    listen(&browser, &page, &bridge, "alice").await;
    for round in 1..=2 {
        browser.until("source.readyState === 1").await;
        send(&database, "alice", "while open").await;
        browser.until(&format!("errors.length >= {round}")).await;
        send(&database, "alice", "or closed").await;
    }
    browser.until("heard.length >= 4").await;
    let heard = run(&browser, "return heard.join()", vec![]).await;
    let expected = "while open,or closed,while open,or closed";
    assert_eq!(heard, json!(expected));
    browser.stop().await;
}

async fn a_browser_that_was_turned_away_still_knows_what_it_has_seen(kind: Kind) {
    let database = Database::migrated().await;
    let (browser, page) = (Browser::start(kind).await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    // A stream lasts at least six seconds, and a browser reconnects after at most three.
    let settings = [
        origin.as_str(),
        "--max-connections=1",
        "--max-stream-age=8s",
        "--retry-after=1s",
    ];
    let bridge = Bridge::start_with(&database, &settings).await;
    listen(&browser, &page, &bridge, "alice").await;
    browser.until("source.readyState === 1").await;
    send(&database, "alice", "one").await;
    browser.until("heard.join() === 'one'").await;
    // Another tab of alice's takes the place and receives the next row, which is then no longer
    // backlog.
    browser.until("errors.length === 1").await;
    bridge.until_connections(0).await;
    let mut tab = bridge.connect_live("alice").await;
    send(&database, "alice", "two").await;
    assert_eq!(tab.next_event().await.data, "two");
    database
        .until("select bool_and(sent) from notifications")
        .await;
    browser.until("errors.length >= 2").await;
    drop(tab);
    browser.until("heard.join() === 'one,two'").await;
    browser.stop().await;
}

async fn a_page_that_is_not_listed_gets_nothing_and_marks_nothing(kind: Kind) {
    let database = Database::migrated().await;
    let browser = Browser::start(kind).await;
    let (page, evil) = (Page::serve().await, Page::serve().await);
    let origin = format!("--cors-origins={}", page.origin());
    let bridge = Bridge::start_with(&database, &[&origin]).await;
    send(&database, "alice", "a secret").await;

    listen(&browser, &evil, &bridge, "alice").await;
    browser.until("source.readyState === 2").await;
    // Requests that a page can make without a preflight.
    let others = "window.failed = 0; \
         const image = new Image(); \
         image.onerror = () => window.failed += 1; \
         image.src = arguments[0]; \
         fetch(arguments[0], { mode: 'no-cors', credentials: 'include' }) \
             .then((answer) => answer.text()).then(() => window.failed += 1)";
    let stream = format!("http://{}/stream", bridge.address());
    run(&browser, others, vec![json!(stream)]).await;
    browser.until("failed === 2").await;
    assert_eq!(run(&browser, "return heard", vec![]).await, json!([]));
    assert_eq!(bridge.refused("origin").await, 3);
    let unsent = "select id from notifications where not sent";
    assert_eq!(database.ids(unsent).await, [1]);

    listen(&browser, &page, &bridge, "alice").await;
    browser.until("heard.join() === 'a secret'").await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    browser.stop().await;
}
