//! The demo page in a real browser.

use serde_json::json;

use crate::support::{
    browser::{Browser, Kind},
    dev::{DataFolder, Dev, command, shell},
};

impl Browser {
    /// Opens the demo page and waits until both its streams are open.
    async fn open_page(&self, dev: &Dev) {
        let page = format!("http://{}/", dev.address);
        self.client.goto(&page).await.expect("the page");
        for side in ["left", "right"] {
            self.find(&format!(
                "[data-side={side}] [data-role=light][data-state=open]"
            ))
            .await;
        }
    }

    async fn send(&self, side: &str, text: &str) {
        self.write(&format!("[data-side={side}]"), text).await;
    }

    /// Sends a text with the form in this part of the page.
    async fn write(&self, part: &str, text: &str) {
        let form = format!("{part} form[data-role=send]");
        self.find(&format!("{form} [name=text]"))
            .await
            .send_keys(text)
            .await
            .expect("keys");
        self.find(&format!("{form} [type=submit]"))
            .await
            .click()
            .await
            .expect("a click");
    }

    async fn tell_visibility(&self, state: &str) {
        let tell = format!(
            "Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }}); \
             Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))",
            state == "hidden",
        );
        self.client.execute(&tell, vec![]).await.expect("a script");
    }
}

/// A script expression for the texts in one pane's list, newest first.
fn texts(side: &str) -> String {
    format!(
        "[...document.querySelectorAll('[data-side={side}] [data-role=list] li[data-id] .text')]\
         .map((text) => text.textContent)"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_page_shows_each_user_their_own_notifications() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let browser = Browser::start(Kind::Chromium).await;
    browser.open_page(&dev).await;

    // Sent by the page. Markup is shown as text.
    let text = "<b>not bold</b> & \u{e9}";
    browser.send("left", text).await;
    let list = texts("left");
    browser
        .until(&format!("{list}[0] === {}", json!(text)))
        .await;
    browser
        .find("[data-side=left] li[data-id][data-sent=true]")
        .await;
    // Sent with SQL, by the command line that the page shows.
    let psql = browser
        .find("[data-role=psql]")
        .await
        .text()
        .await
        .expect("a line");
    assert_eq!(psql, dev.psql);
    shell(&psql).await;
    browser
        .until(&format!("{list}[0] === 'Hello from SQL'"))
        .await;
    // The other pane received none of it, although bob's stream works.
    browser.send("right", "for bob").await;
    browser
        .until(&format!(
            "JSON.stringify({}) === '[\"for bob\"]'",
            texts("right")
        ))
        .await;
    browser.until(&format!("{list}.length === 2")).await;

    // The page shows when each arrived, and not only when it was marked.
    let detail = "document.querySelector('[data-side=right] li[data-id] .meta').textContent";
    let arrived = "/^arrived [0-9:]{8}, after [0-9]+ (ms|s); marked as sent$/";
    browser.until(&format!("{arrived}.test({detail})")).await;

    // Another user in the same pane: alice's notifications disappear from it.
    let user = "[data-side=left] [data-role=user]";
    let field = browser.find(user).await;
    field.clear().await.expect("an empty field");
    field.send_keys("bob\u{e007}").await.expect("keys");
    browser
        .until(&format!("JSON.stringify({list}) === '[\"for bob\"]'"))
        .await;
    browser.send("left", "to both panes").await;
    for side in ["left", "right"] {
        browser
            .until(&format!("{}[0] === 'to both panes'", texts(side)))
            .await;
    }
    browser.stop().await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_in_the_room_receives_one_row_until_they_leave() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let browser = Browser::start(Kind::Chromium).await;
    browser.open_page(&dev).await;
    let shows = async |side: &str, wanted: &[&str]| {
        let shown = format!("JSON.stringify({})", texts(side));
        let wanted = json!(json!(wanted).to_string());
        browser.until(&format!("{shown} === {wanted}")).await;
    };
    let is_in = async |user: &str, is_in: bool| {
        let button = format!(".room button[value={user}][aria-pressed={is_in}]");
        browser.find(&button).await
    };
    is_in("alice", true).await;
    is_in("carol", false).await;
    browser.write(".room", "to the room").await;
    for side in ["left", "right"] {
        shows(side, &["to the room"]).await;
        let topic = format!("[data-side={side}] li[data-sent=true] .topic");
        let topic = browser.find(&topic).await.text().await.expect("a name");
        assert_eq!(topic, "room:lobby");
    }

    is_in("bob", true).await.click().await.expect("a click");
    is_in("bob", false).await;
    browser.write(".room", "without bob").await;
    shows("left", &["without bob", "to the room"]).await;
    browser.send("right", "for bob").await;
    shows("right", &["for bob", "to the room"]).await;

    is_in("bob", false).await.click().await.expect("a click");
    is_in("bob", true).await;
    browser.write(".room", "with bob").await;
    shows("left", &["with bob", "without bob", "to the room"]).await;
    shows("right", &["with bob", "for bob", "to the room"]).await;

    // Who is in a pane or joins with SQL can be seen in the room too.
    let user = browser.find("[data-side=right] [data-role=user]").await;
    user.clear().await.expect("an empty field");
    user.send_keys("dora\u{e007}").await.expect("keys");
    is_in("dora", false).await;
    let join = "subscribe('erin', 'room:lobby')";
    shell(
        &dev.psql
            .replace("send_notification('alice', 'Hello from SQL')", join),
    )
    .await;
    is_in("erin", true).await;
    // The list of rows has those of the room too, after a reload.
    browser.open_page(&dev).await;
    shows("left", &["with bob", "without bob", "to the room"]).await;
    browser.stop().await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_page_shows_rows_of_any_event() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let browser = Browser::start(Kind::Chromium).await;
    browser.open_page(&dev).await;
    // The list of rows shows the first one, and the stream the next one.
    for text in ["first", "second"] {
        let given = format!("'{text}', 'build'");
        shell(&dev.psql.replace("'Hello from SQL'", &given)).await;
        let shown = format!("{}[0] === '{text}'", texts("left"));
        browser.until(&shown).await;
    }
    let meta = "document.querySelector('[data-side=left] li[data-id] .meta').textContent";
    browser
        .until(&format!("{meta}.startsWith('arrived ')"))
        .await;
    browser.stop().await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_tab_closes_its_streams_and_misses_nothing() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let browser = Browser::start(Kind::Chromium).await;
    browser.open_page(&dev).await;
    browser.send("left", "seen").await;
    browser
        .until(&format!("{}[0] === 'seen'", texts("left")))
        .await;
    // A headless browser never hides a tab, so the test sets the state and sends the event of a
    // hidden tab.
    browser.tell_visibility("hidden").await;
    browser
        .find("[data-side=left] [data-role=light]:not([data-state=open])")
        .await;
    shell(&dev.psql).await;
    let shown = browser
        .client
        .execute(&format!("return {}.length", texts("left")), vec![])
        .await;
    assert_eq!(
        shown.expect("a number"),
        json!(1),
        "a hidden tab holds no stream"
    );
    browser.tell_visibility("visible").await;
    browser
        .until(&format!(
            "JSON.stringify({}) === '[\"Hello from SQL\",\"seen\"]'",
            texts("left")
        ))
        .await;
    browser.stop().await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_own_event_source_resumes_by_itself_when_the_bridge_comes_back() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let browser = Browser::start(Kind::Chromium).await;
    browser.open_page(&dev).await;
    // Not one of our pages: a bare EventSource that records everything it receives.
    let listen = "window.heard = []; const source = new EventSource('/stream?user=dora'); \
         window.source = source; \
         source.onmessage = (event) => window.heard.push(parseInt(event.lastEventId) + ' ' + event.data); \
         source.onerror = () => window.heard.push('error ' + source.readyState)";
    browser
        .client
        .execute(listen, vec![])
        .await
        .expect("a script");
    browser.until("source.readyState === 1").await;
    let send = |text: &str| {
        dev.psql
            .replace("'alice', 'Hello from SQL'", &format!("'dora', '{text}'"))
    };
    shell(&send("first")).await;
    browser.until("heard.length === 1").await;

    // The bridge stops and starts again at the same address.
    let (one, two, address) = (send("while away"), send("after"), dev.address);
    dev.stop().await;
    let mut again = command(&folder);
    again.env("TIDINGS_LISTEN", address.to_string());
    let dev = Dev::start_with(again).await;
    shell(&one).await;
    shell(&two).await;
    browser
        .until("heard.filter((line) => !line.startsWith('error')).length === 3")
        .await;
    let heard = browser
        .client
        .execute("return heard", vec![])
        .await
        .expect("lines");
    let rows: Vec<&str> = heard
        .as_array()
        .expect("lines")
        .iter()
        .filter_map(|line| {
            line.as_str()?
                .split_once(' ')
                .filter(|line| line.0 != "error")
        })
        .map(|line| line.1)
        .collect();
    assert_eq!(rows, ["first", "while away", "after"], "{heard}");
    browser.stop().await;
    dev.stop().await;
}
