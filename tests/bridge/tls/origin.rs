//! A real browser opens more than six streams of one origin, which is the purpose of HTTPS with
//! HTTP/2.

use serde_json::json;

use crate::support::tls::{authority::Authority, start, tunnel::ORIGIN};
use crate::support::{
    bridge::token,
    browser::{Browser, Kind},
    database::Database,
};

const STREAMS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_has_ten_streams_of_one_origin_at_once() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let browser = Browser::start(Kind::Chromium).await;
    // Any page of the same origin.
    let page = format!("https://{ORIGIN}:{}/", bridge.address().port());
    browser.client.goto(&page).await.expect("a page");
    let open = format!(
        "document.cookie = 'tidings_token={}; path=/; secure';
         window.heard = [];
         window.sources = Array.from({{ length: {STREAMS} }}, (_, tab) => {{
             const source = new EventSource('/stream');
             source.onmessage = (event) => heard.push(tab + ' ' + event.data);
             return source;
         }})",
        token("alice")
    );
    browser
        .client
        .execute(&open, vec![])
        .await
        .expect("a script");
    browser
        .until("sources.every((source) => source.readyState === 1)")
        .await;
    bridge.until_connections(STREAMS).await;
    database
        .execute("select send_notification('alice', 'to each tab')")
        .await;
    let expected: Vec<_> = (0..STREAMS)
        .map(|tab| format!("{tab} to each tab"))
        .collect();
    browser
        .until(&format!(
            "JSON.stringify([...heard].sort()) === {}",
            json!(json!(expected).to_string())
        ))
        .await;
    let protocols = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
    let protocol = browser.client.execute(protocols, vec![]).await;
    assert_eq!(protocol.expect("a name"), json!("h2"));
    // Closing the page closes all streams, and the bridge notices without waiting minutes for a
    // heartbeat.
    browser.stop().await;
}
