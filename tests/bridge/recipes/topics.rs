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

    /// The block of SQL that contains this.
    fn sql(&self, what: &str) -> String {
        let mut blocks = self.page.shown("sql").into_iter();
        blocks.find(|block| block.contains(what)).expect(what)
    }

    /// Runs a block of SQL, each statement in a transaction of its own.
    async fn run(&self, what: &str) {
        for statement in self.sql(what).split_inclusive(';') {
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
async fn a_view_of_the_application_says_who_receives_what() {
    let reader = Reader::new().await;
    let users = "create table app.users (id bigint primary key, plan text)";
    reader.database.execute(users).await;
    reader.run("create view app.memberships").await;
    let join = "insert into app.users values (7, 'pro')";
    reader.database.execute(join).await;
    let send = async |topic: &str, text: &str| {
        let send = format!("select send_to_topic('{topic}', '{text}')");
        reader.database.execute(&send).await;
    };
    send("plan:pro", "Before").await;
    let bridge = Bridge::start_with(&reader.database, &["--memberships=app.memberships"]).await;
    let mut stream = bridge.connect("7").await;
    let before = until(&mut stream, "tidings.caught-up").await;
    assert!(
        before.iter().all(|event| event.name != "message"),
        "{before:?}"
    );
    send("plan:pro", "For pros").await;
    assert_eq!(next(&mut stream).await, event("message", "For pros"));
    let change = "update app.users set plan = 'free'";
    reader.database.execute(change).await;
    send("plan:pro", "Not for 7").await;
    send("plan:free", "Free").await;
    assert_eq!(next(&mut stream).await, event("message", "Free"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_tickets_grant_their_topics() {
    let reader = Reader::new().await;
    let mut claims: Value = serde_json::from_str(&reader.block("json")).expect("claims");
    claims["exp"] = (get_current_timestamp() + 3_600).into();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::default(), &claims, &key).expect("a token");
    let bearer = format!("Bearer {token}");
    let create = reader.sql("create_stream_ticket");
    let application = reader.database.connect().await;
    let ticket: String = application
        .query_one(&create, &[])
        .await
        .expect("one")
        .get(0);
    let send = |text: &str| format!("select send_to_topic('scores', '{text}')");
    // The bridge has read what another stream of the user has received.
    let address = reader.bridge.address();
    let headers = [("Authorization", bearer.as_str())];
    let mut earlier = EventSource::open(address, "/stream", &headers).await;
    until(&mut earlier, "tidings.caught-up").await;
    reader.database.execute(&send("before")).await;
    assert_eq!(next(&mut earlier).await, event("message", "before"));
    let mut streams = Vec::new();
    for (path, headers) in [
        ("/stream".to_owned(), headers.as_slice()),
        (format!("/stream?ticket={ticket}"), &[]),
    ] {
        let mut stream = EventSource::open(address, &path, headers).await;
        let before = until(&mut stream, "tidings.caught-up").await;
        assert!(
            before.iter().all(|event| event.name != "message"),
            "{before:?}"
        );
        streams.push(stream);
    }
    reader.database.execute(&send("1:0")).await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, event("message", "1:0"));
    }
}
