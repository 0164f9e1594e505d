//! The pages of `docs/recipes`: the tests run the code on them, with an application's privileges
//! and against a running bridge.

mod adopted;
mod application;
mod development;
mod form_flow;
mod members;
pub mod page;
mod shop;
mod start;
mod topics;

use tokio::time::timeout;

use self::{
    application::Application,
    page::Page,
    shop::{Proof, Shop},
};
use crate::support::{
    PATIENCE,
    event_source::{End, EventSource},
    row_id,
};

/// The user whose streams are open, by primary key.
const USER: &str = "7";

const BOTH: [Proof; 2] = [Proof::Token, Proof::Ticket];

#[tokio::test(flavor = "multi_thread")]
async fn plain_sql() {
    holds("sql", &[Proof::Ticket]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn psycopg() {
    holds("psycopg", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn django() {
    holds("django", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn rails() {
    holds("rails", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn laravel() {
    holds("laravel", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn node() {
    holds("node", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn prisma() {
    holds("prisma", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn spring() {
    holds("spring", &BOTH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_the_applications_tells_of_what_anybody_writes() {
    let shop = Shop::open().await;
    let mut stream = shop.bridge().connect_live(USER).await;
    let page = Page::open("sql");
    for file in ["orders.sql", "trigger.sql"] {
        shop.execute(&page.files()[file]).await;
    }
    shop.execute(
        "begin; insert into orders (customer_id, item) values (7, 'table'); rollback; \
         insert into orders (customer_id, item) values (7, 'lamp'), (8, 'chair')",
    )
    .await;
    assert_eq!(order(&mut stream).await.1, "Your lamp is on its way");
    assert_eq!(shop.notifications_of("8").await, 1);
}

#[test]
fn every_page_is_listed_with_what_it_is_run_with() {
    let list = Page::open("README").text;
    let mut pages: Vec<String> = Page::all();
    pages.retain(|name| name != "README");
    assert!(pages.len() >= 8, "{pages:?}");
    for name in pages {
        let page = Page::open(&name);
        let line = list
            .lines()
            .find(|line| line.contains(&format!("]({name}.md)")))
            .unwrap_or_else(|| panic!("{name} is not listed"));
        let run_with = page.run_with();
        assert!(line.contains(&format!("| {run_with} |")), "{line}");
        assert!(!page.files().is_empty(), "{name} has no files");
    }
}

/// Asserts what the page promises.
async fn holds(page: &str, proofs: &[Proof]) {
    let page = Page::open(page);
    let shop = Shop::open().await;
    let mut application = Application::start(&page, &shop.database_url()).await;
    assert_eq!(
        application.versions(),
        page.run_with(),
        "on the page is another"
    );
    shop.sells().await;
    let mut streams = Vec::new();
    for proof in proofs {
        streams.push(shop.enter(&mut application, *proof, USER).await);
    }

    // Committed rows are delivered.
    let id = placed(application.ask("order 7 lamp").await);
    for stream in &mut streams {
        let expected = (id.clone(), "Your lamp is on its way".to_owned());
        assert_eq!(order(stream).await, expected);
    }
    // Uncommitted rows never are: the next delivered row is the next committed one.
    let refused = application.ask("order 7 unicorn").await;
    assert!(refused.contains("no unicorns"), "{refused}");
    let id = placed(application.ask("order 7 chair").await);
    for stream in &mut streams {
        let expected = (id.clone(), "Your chair is on its way".to_owned());
        assert_eq!(order(stream).await, expected);
    }
    assert_eq!(shop.sold().await, ["lamp", "chair"]);

    application.ask("announce 7,8 We close at six").await;
    for stream in &mut streams {
        let event = stream.next_event().await;
        assert_eq!((&*event.name, &*event.data), ("message", "We close at six"));
    }
    assert_eq!(shop.notifications_of("8").await, 1);

    application.ask("logout 7").await;
    for stream in &mut streams {
        let (rest, end) = timeout(PATIENCE, stream.rest()).await.expect("an end");
        assert_eq!(end, End::Clean, "{rest:?}");
    }
    assert_eq!(shop.tickets().await, 0);
    application.stop().await;
}

/// The id of an order's notification; fails if the order was rejected.
fn placed(answer: String) -> String {
    assert!(answer.parse::<i64>().is_ok(), "{answer}");
    answer
}

/// Reads the next event, which must be an order, and returns its row id and text.
async fn order(stream: &mut EventSource) -> (String, String) {
    let event = stream.next_event().await;
    assert_eq!(event.name, "order", "{event:?}");
    (row_id(&event).to_string(), event.data)
}
