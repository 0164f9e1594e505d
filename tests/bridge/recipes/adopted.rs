//! The frameworks' own tables of notifications, which the pages adopt in a migration.

use std::path::Path;

use serde_json::Value;

use super::{USER, application::Application, page::Page, shop::Shop};
use crate::support::{event_source::EventSource, until};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn rails() {
    adopts("rails", "noticed_notifications", "noticed", &["id", "type"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn laravel() {
    adopts("laravel", "notifications", "notification", &["id", "title"]).await;
}

/// Asserts that the framework's rows are delivered, with these keys in the text.
async fn adopts(page: &str, table: &str, event: &str, keys: &[&str]) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("adopted")
        .join(page);
    let shop = Shop::open().await;
    let url = shop.database_url();
    let mut application = Application::start_in(&folder, &Page::open(page), page, &url).await;
    let cookie = format!("tidings_token={}", application.ask("token 7").await);
    let address = shop.bridge().address();
    let mut stream =
        EventSource::open(address, "/stream?format=json", &[("Cookie", &cookie)]).await;
    until(&mut stream, "tidings.caught-up").await;

    application.ask("notify 7 Early").await;
    application.ask("adopt adopt.sh").await;
    application.ask("discard 7 Discarded").await;
    let id = application.ask("notify 7,8 Hello").await;
    // Neither what was there before nor what was rolled back precedes it.
    let received = stream.next_event().await;
    assert_eq!(received.name, event);
    let row: Value = serde_json::from_str(&received.data).expect("JSON");
    assert_eq!(row["ref"], format!("{table}:{id}"));
    let text = row["text"].as_str().expect("a text");
    let text: Value = serde_json::from_str(text).expect("JSON");
    let text = text.as_object().expect("an object");
    assert!(text.keys().eq(keys), "{text:?}");
    assert_eq!(text["id"].to_string().trim_matches('"'), id);
    assert_eq!(shop.notifications_of("8").await, 1);

    // The migration can be taken back.
    application.ask("release 1").await;
    application.ask("notify 7 Late").await;
    assert_eq!(shop.notifications_of(USER).await, 1);
    application.stop().await;
}
