//! Topics whose subscribers are in the applications' own tables: plain SQL, Django's groups and Rails'
//! `has_many`.

use std::path::Path;

use super::{
    USER,
    application::Application,
    page::Page,
    placed,
    shop::{Proof, Shop},
};
use crate::support::{event_source::Event, row_id, until};

#[tokio::test(flavor = "multi_thread")]
async fn plain_sql() {
    receive_what_is_sent_while_they_are_members("sql", Proof::Ticket).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn django() {
    receive_what_is_sent_while_they_are_members("django", Proof::Token).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn rails() {
    receive_what_is_sent_while_they_are_members("rails", Proof::Token).await;
}

/// Asserts what the page promises about the members of a project or a group.
async fn receive_what_is_sent_while_they_are_members(page: &str, proof: Proof) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("members")
        .join(page);
    let shop = Shop::open().await;
    let url = shop.database_url();
    let mut application = Application::start_in(&folder, &Page::open(page), page, &url).await;

    // Neither what was sent before the user joined nor what is sent to others.
    placed(application.ask("tell 1 Before").await);
    application.ask("join 7 1").await;
    application.ask("join 8 2").await;
    placed(application.ask("tell 2 For others").await);
    let away = placed(application.ask("tell 1 While away").await);
    let mut stream = shop.connect(&mut application, proof, USER).await;
    let mut backlog = until(&mut stream, "tidings.caught-up").await;
    backlog.retain(|event| event.name == "message");
    let backlog: Vec<_> = backlog.iter().map(row).collect();
    assert_eq!(backlog, [(away, "While away")]);

    // The stream is open while the user joins and leaves.
    application.ask("join 7 2").await;
    let welcome = placed(application.ask("tell 2 Welcome").await);
    let event = stream.next_event().await;
    assert_eq!(row(&event), (welcome, "Welcome"));
    application.ask("leave 7 1").await;
    placed(application.ask("tell 1 After leaving").await);
    let last = placed(application.ask("tell 2 Last").await);
    let event = stream.next_event().await;
    assert_eq!(row(&event), (last, "Last"));
    application.stop().await;
}

/// The id and the text of a row.
fn row(event: &Event) -> (String, &str) {
    (row_id(event).to_string(), &event.data)
}
