//! The operator's page in a real browser.

use serde_json::{Value, json};

use crate::support::{
    bridge::Bridge,
    browser::{Browser, Kind},
    database::Database,
    event_source::get,
    proxy::Network,
};

async fn ask(browser: &Browser, script: &str) -> Value {
    let answer = browser.client.execute(script, vec![]).await;
    answer.expect(script)
}

/// Waits until an element of the page has this text.
async fn until_reads(browser: &Browser, id: &str, text: &str) {
    let reads = format!("document.getElementById('{id}').textContent === '{text}'");
    browser.until(&reads).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_page_shows_how_the_bridge_does_and_asks_nobody_else() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let bridge = Bridge::start(&reached).await;
    let browser = Browser::start(Kind::Chromium).await;
    let origin = format!("http://{}/", bridge.admin_address());
    browser.client.goto(&origin).await.expect("the page");
    until_reads(&browser, "status", "ready").await;
    until_reads(&browser, "listener", "connected").await;
    until_reads(&browser, "connections", "0").await;

    let mut tab = bridge.connect_live("alice").await;
    let _other = bridge.connect_live("bob").await;
    until_reads(&browser, "connections", "2").await;
    database
        .execute("select send_notification('alice', 'a text of nobody else')")
        .await;
    assert_eq!(tab.next_event().await.data, "a text of nobody else");
    until_reads(&browser, "delivered-all", "1 so far").await;
    browser
        .until("/^[0-9.]+ m?s$/.test(document.getElementById('delay').textContent)")
        .await;

    // A chart is as wide as its card, and there from the beginning when the page opens again.
    let line = "document.querySelector('#connections-chart polyline')";
    browser.until(line).await;
    browser.client.refresh().await.expect("the page");
    browser.until(line).await;
    let gap = "const card = document.querySelector('#charts .card').getBoundingClientRect(); \
         const chart = document.getElementById('connections-chart').getBoundingClientRect(); \
         return card.width - chart.width < 40";
    assert_eq!(ask(&browser, gap).await, json!(true));

    // The rows that wait in the database, and the other bridges.
    until_reads(&browser, "pending-more", "none waiting").await;
    database
        .execute("select send_notification('carol', 'a text of nobody else')")
        .await;
    let other = Bridge::start(&database).await;
    until_reads(&browser, "pending", "1 row").await;
    browser
        .until("document.getElementById('pending-more').textContent.startsWith('for 1 user; ')")
        .await;
    let told = |address| {
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "[...document.querySelectorAll('#bridges tr')].some((line) => {{ \
                 const cells = [...line.cells].map((cell) => cell.textContent); \
                 return cells[0].startsWith('{address}') && cells[1] === '{version}' && \
                     /^a(wake|sleep)$/.test(cells[2]) && /^[02]$/.test(cells[3]); \
             }})"
        )
    };
    browser.until(&told(bridge.address())).await;
    browser.until(&told(other.address())).await;
    other.stop().await;
    browser
        .until("document.querySelectorAll('#bridges tr').length === 1")
        .await;

    // It fits a phone: nothing is wider than the page.
    let narrow = "document.documentElement.style.width = '360px'; \
         const wide = [...document.querySelectorAll('body *')] \
             .filter((element) => element.getBoundingClientRect().right > 360.5) \
             .map((element) => element.id || element.tagName); \
         document.documentElement.style.width = ''; return wide";
    assert_eq!(ask(&browser, narrow).await, json!([]));

    network.set(Network::Refuse);
    network.reset();
    until_reads(&browser, "listener", "disconnected").await;
    until_reads(&browser, "status", "listener-failing").await;
    browser
        .until("document.getElementById('reason').textContent")
        .await;
    network.set(Network::Pass);
    until_reads(&browser, "status", "ready").await;

    let asked = "return performance.getEntriesByType('resource').map((one) => one.name)";
    let asked = ask(&browser, asked).await;
    let own = ["overview", "database"].map(|path| json!(format!("{origin}{path}")));
    let asked = asked.as_array().expect("names");
    let elsewhere: Vec<_> = asked.iter().filter(|name| !own.contains(name)).collect();
    assert!(!asked.is_empty() && elsewhere.is_empty(), "{elsewhere:?}");

    bridge.stop().await;
    until_reads(&browser, "status", "unreachable").await;
    browser.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_page_tells_no_secret_no_text_and_no_user() {
    let database = Database::migrated().await;
    let with_password = Database::at(format!(
        "{} password=a-password-that-nobody-checks",
        database.connection_string()
    ));
    let bridge = Bridge::start(&with_password).await;
    let mut tab = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'between us')")
        .await;
    assert_eq!(tab.next_event().await.data, "between us");
    for path in ["/", "/overview", "/database"] {
        let answer = get(bridge.admin_address(), path, &[])
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        if path == "/" {
            let policy = answer.header("content-security-policy").unwrap_or_default();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'sha256-"),
                "{policy}"
            );
            assert!(!policy.contains("unsafe"), "{policy}");
        }
        let text = answer.text().await;
        let bridges_secret = crate::support::bridge::SECRET;
        for secret in ["alice", "between us", "a-password", bridges_secret, "user="] {
            assert!(!text.contains(secret), "{path} tells {secret}: {text}");
        }
    }
}
