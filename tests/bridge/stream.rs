//! `GET /stream`: the exact bytes, resuming, heartbeats, and rejected requests.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::clock::Moment;

use crate::support::{
    bridge::{Bridge, serve_options, token},
    database::Database,
    event_source::{EventSource, Item, get},
    opening, row_id, until,
    wire::Wire,
};

async fn insert(database: &Database, event: Option<&str>, text: &str) {
    let insert = "insert into notifications (user_id, event, text) values ('alice', $1, $2)";
    let client = database.connect().await;
    client
        .execute(insert, &[&event, &text])
        .await
        .expect("a row");
}

/// Texts that are hard to transmit, and what the plain format turns them into.
fn texts() -> Vec<(String, String)> {
    let same = [
        "",
        " ",
        " leading space",
        ":colon",
        "data: not a field\nid: 5\nevent: x",
        "\n",
        "a\n",
        "\n\nb",
        "tab\tand \u{1f600} and \u{feff}BOM and \u{2028}separator",
        "{\"json\": [1, 2]}",
    ];
    let mut texts: Vec<_> = same.map(|text| (text.to_owned(), text.to_owned())).into();
    texts.push(("a\r\nb\rc\n\rd\r".to_owned(), "a\nb\nc\n\nd\n".to_owned()));
    texts.push(("m".repeat(1 << 20), "m".repeat(1 << 20)));
    texts.push(("\u{e9}\n".repeat(300_000), "\u{e9}\n".repeat(300_000)));
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn any_text_arrives_as_it_is_but_for_its_carriage_returns() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut live = bridge.connect_live("alice").await;
    for (text, _) in texts() {
        insert(&database, None, &text).await;
    }
    for (text, expected) in texts() {
        let event = live.next_event().await;
        assert_eq!(event.name, "message");
        assert!(
            event.data == expected,
            "{} bytes: {:.60?} is not {text:.60?}",
            text.len(),
            event.data
        );
    }
    // The same through catch-up.
    let mut replayed = bridge.connect_with("alice", "?replay=100", &[]).await;
    for (text, expected) in texts() {
        assert!(replayed.next_event().await.data == expected, "{text:.60?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_carries_any_text_exactly_with_its_id_event_and_time() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_with("alice", "?format=json", &[]).await;
    until(&mut source, "tidings.caught-up").await;
    for (index, (text, _)) in texts().into_iter().enumerate() {
        insert(&database, Some("build"), &text).await;
        let event = source.next_event().await;
        assert_eq!(event.name, "build");
        let data: Value = serde_json::from_str(&event.data).expect("JSON");
        assert_eq!(data["id"], json!(index + 1));
        assert_eq!(data["event"], json!("build"));
        assert!(data["text"] == json!(text), "{text:.60?}");
        let client = database.owner().connect().await;
        let same = "select $1::text::timestamptz = created_at from notifications where id = $2";
        let created_at = data["created_at"].as_str().expect("a time");
        let row = client
            .query_one(same, &[&created_at, &(index as i64 + 1)])
            .await;
        assert!(row.expect("a row").get::<_, bool>(0), "{created_at}");
        assert!(created_at.ends_with('Z'), "{created_at}");
    }
    // A time that JSON can't represent.
    database.owner().execute("insert into notifications (user_id, text, created_at) values ('alice', 'x', 'infinity')")
        .await;
    let data: Value = serde_json::from_str(&source.next_event().await.data).expect("JSON");
    assert_eq!(
        data,
        json!({ "id": texts().len() + 1, "event": null, "text": "x", "created_at": null })
    );
}

/// The bridge formats times itself. All possible years, every day of some years, and the limits.
#[tokio::test(flavor = "multi_thread")]
async fn times_look_exactly_as_postgres_shows_them() {
    let database = Database::migrated().await;
    let query = "
        select at, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
        from (
          select *
          from generate_series(
            '4713-01-01 BC'::timestamptz, '12000-01-01', '97 days 07:03:01.123457'
          )
          union all
          select *
          from generate_series(
            '1890-01-01'::timestamptz, '2110-01-01', '1 day 00:00:01.000001'
          )
          union all
          values
            ('4714-11-24 00:00:00Z BC'::timestamptz),
            ('294276-12-31 23:59:59.999999Z')
        ) as times (at)";
    let client = database.connect().await;
    for row in client.query(query, &[]).await.expect("times") {
        assert_eq!(row.get::<_, Moment>(0).to_string(), row.get::<_, &str>(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bytes_come_at_once_and_the_headers_keep_proxies_out_of_the_way() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let bearer = format!("Bearer {}", token("alice"));
    let response = get(
        bridge.address(),
        "/stream",
        &[("Authorization", &bearer), ("Accept-Encoding", "gzip")],
    )
    .await
    .expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(
        response.header("cache-control"),
        Some("no-cache, no-transform")
    );
    assert_eq!(response.header("x-accel-buffering"), Some("no"));
    assert_eq!(response.header("content-encoding"), None);

    let mut source = response.into_events().await;
    let Ok(Item::Retry(retry)) = source.next_item().await else {
        panic!("not a retry")
    };
    assert!((1_500..=3_000).contains(&retry), "{retry}");
    // An event with data, before any row: many clients ignore the id of any other block.
    let open = opening(&mut source).await;
    assert_eq!(open.data, r#"{"resumed":false}"#);
    assert!(open.last_event_id.starts_with("0-"), "{open:?}");
    let caught_up = source.next_event().await;
    assert_eq!(caught_up.name, "tidings.caught-up");
    assert_eq!(caught_up.data, r#"{"rows":0}"#);
    assert!(
        caught_up.last_event_id.starts_with("0-"),
        "{}",
        caught_up.last_event_id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_named_after_its_row_and_its_id_after_the_rows_id() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    insert(&database, Some("build"), "green").await;
    insert(&database, None, "plain").await;
    let mut source = bridge.connect("alice").await;
    let events = until(&mut source, "tidings.caught-up").await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.name.as_str(), event.data.as_str(), row_id(event)))
        .collect();
    assert_eq!(seen, [("build", "green", 1), ("message", "plain", 2)]);
    assert!(
        source.last_event_id().starts_with("2-"),
        "caught-up keeps the row's id"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_moves_the_position_and_fires_no_event() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let mut source = bridge.connect_live("alice").await;
    let before = source.last_event_id().to_owned();
    // Another user's row advances the bridge's position.
    database
        .execute("select send_notification('bob', 'hello')")
        .await;
    let Ok(Item::Id(after)) = source.next_item().await else {
        panic!("not a heartbeat")
    };
    assert!(after.starts_with("0-"), "{after}");
    assert_ne!(after, before);

    // Its id is as good as any other.
    drop(source);
    bridge.until_connections(0).await;
    database
        .execute("select send_notification('alice', 'missed')")
        .await;
    let mut source = bridge.resume("alice", &after).await;
    assert_eq!(source.next_event().await.data, "missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_never_overtakes_what_is_still_to_be_written() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let slow = database.connect().await;
    slow.batch_execute("begin; insert into notifications (user_id, text) values ('alice', 'slow')")
        .await
        .expect("a slow transaction");
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('bob', 'later, and visible')")
        .await;
    let Ok(Item::Id(id)) = source.next_item().await else {
        panic!("not a heartbeat")
    };
    source.reset();
    bridge.until_connections(0).await;
    slow.batch_execute("commit").await.expect("commit");
    let mut source = bridge.resume("alice", &id).await;
    assert_eq!(source.next_event().await.data, "slow");
}

/// Polyfills can't set the header: they append the id to the page's URL.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_may_be_in_the_query_under_two_names_and_more_than_once() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut first = bridge.connect_live("alice").await;
    let mut ids = Vec::new();
    for text in ["one", "two", "three"] {
        insert(&database, None, text).await;
        ids.push(first.next_event().await.last_event_id);
    }
    for (query, wanted) in [
        (format!("?lastEventId={}", ids[0]), "two"),
        (
            format!("?last_event_id={}&lastEventId={}", ids[0], ids[1]),
            "three",
        ),
        (
            format!("?lastEventId={}&last_event_id={}", ids[1], ids[0]),
            "two",
        ),
        (
            format!("?lastEventId={}&lastEventId={}", ids[0], ids[1]),
            "three",
        ),
        (format!("?last_event_id={}&lastEventId=", ids[1]), "three"),
        (
            format!("?_=1&lastEventId={}&utm_source=x&&y", ids[0]),
            "two",
        ),
    ] {
        let mut source = bridge.connect_with("alice", &query, &[]).await;
        let open = opening(&mut source).await;
        assert_eq!(open.data, r#"{"resumed":true}"#, "{query}");
        // It still names the last row.
        let row = if wanted == "two" { "1-" } else { "2-" };
        assert!(open.last_event_id.starts_with(row), "{open:?}");
        assert_eq!(source.next_event().await.data, wanted, "{query}");
    }
    // The header is set by the browser itself and more recent, unless it is empty.
    let query = format!("?lastEventId={}", ids[0]);
    for (header, wanted) in [(ids[1].as_str(), "three"), ("", "two")] {
        let headers = [("Last-Event-ID", header)];
        let mut source = bridge.connect_with("alice", &query, &headers).await;
        assert_eq!(source.next_event().await.data, wanted, "{header}");
    }
}

/// Some clients apply an id as soon as they read its line.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_the_last_line_of_its_block_and_the_first_one_comes_with_data_before_any_row() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    insert(&database, Some("build"), "two\nlines").await;
    let request = format!(
        "GET /stream HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        token("alice")
    );
    let mut wire = Wire::plain(bridge.address(), request).await;
    wire.head().await;
    let text = wire.until("event: tidings.caught-up\n").await;
    let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
    let lines = |block: &str| -> Vec<String> {
        let name = |line: &str| line.split(':').next().map(str::to_owned);
        block.lines().filter_map(name).collect()
    };
    let shape: Vec<Vec<String>> = blocks.iter().map(|block| lines(block)).collect();
    assert_eq!(
        shape,
        [
            vec!["retry"],
            vec!["event", "data", "id"],
            vec!["event", "data", "data", "id"]
        ],
        "{text}"
    );
    assert!(blocks[1].starts_with("event: tidings.open\n"), "{text}");
}

/// Firefox ignores the id of a block without data.
#[tokio::test(flavor = "multi_thread")]
async fn every_twentieth_heartbeat_moves_the_position_of_clients_that_ignore_bare_ids() {
    let database = Database::migrated().await;
    let mut options = serve_options(&database, &[]);
    options.bridge.heartbeat = Duration::from_millis(50);
    let bridge = Bridge::start_as(&options).await;
    let mut source = bridge.connect_live("alice").await;
    let mut bare = 0;
    for round in 0..3 {
        let beat = loop {
            match source.next_item().await.expect("a heartbeat") {
                Item::Event(event) => break event,
                Item::Id(_) => bare += 1,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            (beat.name.as_str(), beat.data.as_str()),
            ("tidings.heartbeat", "{}")
        );
        assert!(beat.last_event_id.starts_with("0-"), "{beat:?}");
        assert_eq!(bare, 19 * (round + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_cannot_be_used_is_answered_with_a_gap_and_the_backlog() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut first = bridge.connect_live("alice").await;
    insert(&database, None, "sent").await;
    assert_eq!(first.next_event().await.data, "sent");
    let good = first.last_event_id().to_owned();
    drop(first);
    bridge.until_connections(0).await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    insert(&database, None, "unsent").await;
    // The epoch is the second number of the position. A different one means another cluster.
    let elsewhere = "1-AgUJAA";
    for (id, reason) in [
        ("nonsense", "malformed"),
        ("7", "malformed"),
        (elsewhere, "epoch"),
    ] {
        let mut source = bridge.resume("alice", id).await;
        let gap = source.next_event().await;
        assert_eq!(
            (gap.name.as_str(), gap.data.clone()),
            ("tidings.gap", json!({ "reason": reason }).to_string())
        );
        assert_eq!(source.next_event().await.data, "unsent");
        database
            .until("select bool_and(sent) from notifications")
            .await;
        database
            .owner()
            .execute("update notifications set sent_at = null where text = 'unsent'")
            .await;
    }
    // A header that is not text is treated the same.
    let mut source = bridge
        .connect_with("alice", "", &[("Last-Event-ID", "\u{e9}\u{1f600}")])
        .await;
    assert_eq!(source.next_event().await.name, "tidings.gap");
    drop(source);

    // The header takes precedence over the query, which is for clients that can't set a header.
    let query = format!("?last_event_id={good}");
    database
        .owner()
        .execute("update notifications set sent_at = now()")
        .await;
    let mut source = bridge.connect_with("alice", &query, &[]).await;
    assert_eq!(source.next_event().await.data, "unsent");
    let newest = source.last_event_id().to_owned();
    let mut source = bridge
        .connect_with("alice", &query, &[("Last-Event-ID", &newest)])
        .await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 0);

    // An empty header counts as missing, and a duplicated one as one. Two different ids are
    // rejected, because the later one could skip a row.
    let id = |id: &'static str| ("Last-Event-ID", id);
    let (good, newest) = (good.leak(), newest.leak());
    for (query, headers, expected) in [
        (
            query.as_str(),
            &[id("")][..],
            &["message", "tidings.caught-up"][..],
        ),
        ("", &[id(good), id(good)], &["message", "tidings.caught-up"]),
        (
            "",
            &[id(good), id(newest)],
            &["tidings.gap", "tidings.caught-up"],
        ),
        (
            "",
            &[id(newest), id(good)],
            &["tidings.gap", "tidings.caught-up"],
        ),
    ] {
        let mut source = bridge.connect_with("alice", query, headers).await;
        for name in expected {
            assert_eq!(source.next_event().await.name, *name, "{headers:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_starts_with_the_last_rows_sent_or_not() {
    let database = Database::migrated().await;
    database.owner().execute("insert into notifications (user_id, text, sent_at) \
             select 'alice', 'row ' || n, case when n > 1 then now() end from generate_series(1, 9) n",
        )
        .await;
    // Started after the inserts: rows that the bridge has not seen yet don't count as past.
    let bridge = Bridge::start(&database).await;
    let texts = async |query: &str| {
        database
            .owner()
            .execute("update notifications set sent_at = null where id = 1")
            .await;
        let mut source = bridge.connect_with("alice", query, &[]).await;
        let events = until(&mut source, "tidings.caught-up").await;
        database
            .until("select bool_and(sent) from notifications")
            .await;
        events
            .into_iter()
            .map(|event| event.data.replace("row ", ""))
            .collect::<String>()
    };
    assert_eq!(texts("").await, "1");
    assert_eq!(texts("?replay=3").await, "1789");
    assert_eq!(texts("?replay=500").await, "123456789");

    // A phone that reconnects gets the rest, not the whole replay again.
    let mut source = bridge.connect_with("alice", "?replay=3", &[]).await;
    assert_eq!(source.next_event().await.data, "row 7");
    let id = source.last_event_id().to_owned();
    let mut source = bridge
        .connect_with("alice", "?replay=3", &[("Last-Event-ID", &id)])
        .await;
    assert_eq!(source.next_event().await.data, "row 8");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_refused_with_what_to_do() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let bearer = format!("Bearer {}", token("alice"));
    let ask = async |path: &str| {
        let headers = [("Authorization", bearer.as_str())];
        let response = get(bridge.address(), path, &headers)
            .await
            .expect("an answer");
        let content_type = response.header("content-type").map(String::from);
        assert_eq!(
            content_type.as_deref(),
            Some("application/problem+json"),
            "{path}"
        );
        let status = response.status();
        let problem: Value = serde_json::from_str(&response.text().await).expect("JSON");
        assert_eq!(problem["status"], json!(status), "{path}");
        (
            status,
            problem["detail"].as_str().expect("a detail").to_owned(),
        )
    };
    for path in [
        "/stream?format=xml",
        "/stream?replay=501",
        "/stream?replay=-1",
        "/stream?replay=x",
        "/stream?errors=no",
    ] {
        let (status, detail) = ask(path).await;
        assert_eq!(status, 400, "{path}");
        let (name, value) = path["/stream?".len()..].split_once('=').expect("a value");
        assert!(detail.starts_with(name), "{path}: {detail}");
        assert!(
            detail.ends_with(&format!("not {value:?}")),
            "{path}: {detail}"
        );
    }
    let (status, detail) = ask("/nothing").await;
    assert_eq!(status, 404);
    assert!(detail.contains("/stream"), "{detail}");
    // `?user=` has no meaning here.
    let headers = [("Authorization", bearer.as_str())];
    let mut source = EventSource::open(bridge.address(), "/stream?user=bob", &headers).await;
    until(&mut source, "tidings.caught-up").await;
    insert(&database, None, "for alice").await;
    assert_eq!(source.next_event().await.data, "for alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_slow_is_neither_cut_off_nor_skipped() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--queue-bytes=20000"]).await;
    // It reads nothing until everything is written, which is more than the kernel's buffers and its
    // own queue can hold.
    let mut slow = bridge.connect_live("alice").await;
    let mut quick = bridge.connect_live("alice").await;
    let rows = 400;
    for _ in 0..rows / 20 {
        let insert = "insert into notifications (user_id, text) \
                      select 'alice', repeat('x', 50000) from generate_series(1, 20)";
        database.execute(insert).await;
    }
    for row in 1..=rows {
        assert_eq!(row_id(&quick.next_event().await), row);
    }
    for row in 1..=rows {
        assert_eq!(row_id(&slow.next_event().await), row);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_is_forgotten_at_once() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--heartbeat=300s"]).await;
    let (closed, reset) = (
        bridge.connect_live("alice").await,
        bridge.connect_live("alice").await,
    );
    bridge.until_connections(2).await;
    drop(closed);
    bridge.until_connections(1).await;
    reset.reset();
    bridge.until_connections(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_liveness_and_readiness() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let live = bridge.admin("/health/live").await;
    assert_eq!(live.status(), 200);
    let ready = bridge.admin("/health/ready").await;
    assert_eq!(ready.status(), 200);
    let body: Value = serde_json::from_str(&ready.text().await).expect("JSON");
    assert_eq!(body["readiness"], "ready");
    assert!(
        body["last_poll_ms"].as_u64().expect("an age") < 5_000,
        "{body}"
    );
    assert_eq!(bridge.admin("/stream").await.status(), 404);
    assert_eq!(
        get(bridge.address(), "/health/ready", &[])
            .await
            .expect("an answer")
            .status(),
        404
    );
}
