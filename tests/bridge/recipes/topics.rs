//! `docs/topics.md`: its SQL, its requests and its tokens.

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use super::page::Page;
use crate::support::{
    bridge::{Bridge, SECRET},
    database::Database,
    event_source::EventSource,
    until,
};

/// The page, a database, and a bridge.
struct Reader {
    database: Database,
    bridge: Bridge,
    page: Page,
}

impl Reader {
    async fn new() -> Self {
        let database = Database::migrated().await;
        let create = "grant create on schema public to application; \
                      create schema app authorization application";
        database.superuser().execute(create).await;
        let bridge = Bridge::start(&database).await;
        Self {
            database,
            bridge,
            page: Page::of_docs("topics"),
        }
    }

    /// Runs the block of SQL that contains this, each statement in a transaction of its own.
    async fn run(&self, what: &str) {
        let blocks = self.page.shown("sql");
        let block = blocks.iter().find(|block| block.contains(what));
        for statement in block.expect(what).split_inclusive(';') {
            self.database.execute(statement).await;
        }
    }

    /// The only block in this language.
    fn block(&self, language: &str) -> String {
        let [block] = self.page.shown(language).try_into().expect("one block");
        block
    }
}

/// The name and the data of the next event.
async fn next(stream: &mut EventSource) -> (String, String) {
    let event = stream.next_event().await;
    (event.name, event.data)
}

fn event(name: &str, data: &str) -> (String, String) {
    (name.to_owned(), data.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_it_receives_all_three_and_nothing_after_leaving() {
    let reader = Reader::new().await;
    let mut stream = reader.bridge.connect_live("alice").await;
    reader.run("select subscribe(").await;
    for (name, data) in [
        ("release", "Version 2 is out"),
        ("message", "An INSERT does the same"),
        ("message", "We close at six"),
    ] {
        assert_eq!(next(&mut stream).await, event(name, data));
    }
    reader.run("select unsubscribe(").await;
    let send = "select send_to_topic('project:7', 'Gone'); select send_to_everyone('Still here')";
    reader.database.execute(send).await;
    assert_eq!(next(&mut stream).await, event("message", "Still here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_in_a_table_of_the_application_are_subscribed() {
    let reader = Reader::new().await;
    reader.run("create table project_members").await;
    let join = "insert into project_members (user_id, project_id) values (7, 42), (7, 7)";
    reader.database.execute(join).await;

    // The page asks for one topic that the user has, and one that the user doesn't have.
    let script = reader.block("js");
    let (_, query) = script.split_once("EventSource('/stream").expect("a URL");
    let (query, _) = query.split_once('\'').expect("its end");
    let stream = reader.bridge.connect_with("7", query, &[]);
    let mut stream = stream.await;
    let before = until(&mut stream, "tidings.caught-up").await;
    let topics = before.iter().find(|event| event.name == "tidings.topics");
    let topics: Value = serde_json::from_str(&topics.expect("the topics").data).expect("JSON");
    assert_eq!(topics, json!({ "topics": 1, "refused": ["project:8"] }));
    let said = format!("{}, {}", topics["topics"], topics["refused"]);
    assert!(script.contains(&format!("// {said}\n")), "{said}");

    let send = "select send_to_topic('project:42', 'Not asked for'); \
                select send_to_topic('project:7', 'Asked for')";
    reader.database.execute(send).await;
    let (name, row) = next(&mut stream).await;
    let row: Value = serde_json::from_str(&row).expect("JSON");
    assert_eq!(name, "message");
    assert_eq!([&row["topic"], &row["text"]], ["project:7", "Asked for"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_of_the_application_has_what_bridges_read() {
    let reader = Reader::new().await;
    let users = "create table app.users (id bigint primary key, plan text); \
                 select subscribe(7, 'project:7')";
    reader.database.execute(users).await;
    reader.run("create view app.memberships").await;
    let join = "insert into app.users values (7, 'pro')";
    reader.database.execute(join).await;
    let bridge = reader.database.bridge().connect().await;
    let read = "select array_agg(topic order by topic) from app.memberships where user_id = '7'";
    let topics: Vec<String> = bridge.query_one(read, &[]).await.expect(read).get(0);
    assert_eq!(topics, ["plan:pro", "project:7"]);
    let told = "select user_id from tidings_membership_changes order by id desc limit 1";
    let told: String = bridge.query_one(told, &[]).await.expect(told).get(0);
    assert_eq!(told, "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_grants_its_topics() {
    let reader = Reader::new().await;
    let mut claims: Value = serde_json::from_str(&reader.block("json")).expect("claims");
    claims["exp"] = (get_current_timestamp() + 3_600).into();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::default(), &claims, &key).expect("a token");
    let bearer = format!("Bearer {token}");
    let send = |text: &str| format!("select send_to_topic('scores', '{text}')");
    reader.database.execute(&send("before")).await;
    let headers = [("Authorization", bearer.as_str())];
    let mut stream = EventSource::open(reader.bridge.address(), "/stream", &headers).await;
    let before = until(&mut stream, "tidings.caught-up").await;
    assert!(
        !before.iter().any(|event| event.name == "message"),
        "{before:?}"
    );
    reader.database.execute(&send("1:0")).await;
    assert_eq!(next(&mut stream).await, event("message", "1:0"));
}
