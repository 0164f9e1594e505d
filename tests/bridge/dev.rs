//! `tidings dev`: it works at once, survives SIGKILL, and is safe on a shared machine.

use std::net::{SocketAddr, TcpListener};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    database::Database,
    dev::{DataFolder, Dev, command, shell},
    event_source::{EventSource, get, options, post},
    until,
    wire::{Head, Wire},
};

async fn head(address: SocketAddr, path: &str) -> Head {
    let request = format!("HEAD {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut wire = Wire::plain(address, request).await;
    let head = wire.head().await;
    assert_eq!(wire.rest().await, "", "{path}");
    head
}

/// The next notification.
async fn next(source: &mut EventSource) -> String {
    loop {
        let event = source.next_event().await;
        if event.name == "message" {
            return event.data;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_that_it_prints_sends_a_notification_and_the_data_outlive_it() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let mut source = EventSource::open(dev.address, "/stream?user=alice", &[]).await;
    until(&mut source, "tidings.caught-up").await;
    shell(&dev.psql).await;
    assert_eq!(next(&mut source).await, "Hello from SQL");
    dev.stop().await;

    let mut dev = Dev::start(&folder).await;
    shell(&dev.psql).await;
    let leave = "unsubscribe('bob', 'room:lobby')";
    let leave = dev
        .psql
        .replace("send_notification('alice', 'Hello from SQL')", leave);
    shell(&leave).await;
    // After SIGKILL it can't clean up, and its PostgreSQL must not linger.
    dev.signal(Signal::SIGKILL);
    dev.end().await;

    let dev = Dev::start(&folder).await;
    let listed = get(dev.address, "/demo/notifications?user=alice", &[])
        .await
        .expect("an answer");
    let listed: Value = serde_json::from_str(&listed.text().await).expect("JSON");
    assert_eq!(listed.as_array().expect("a list").len(), 2, "{listed}");
    let room = get(dev.address, "/demo/room", &[]).await;
    let room: Value = serde_json::from_str(&room.expect("an answer").text().await).expect("JSON");
    assert_eq!(room["members"], json!(["alice"]));
    let mut source = EventSource::open(dev.address, "/stream?user=alice", &[]).await;
    assert_eq!(next(&mut source).await, "Hello from SQL");
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_and_a_database_of_somebody_else_are_left_alone() {
    let elsewhere = Database::empty().await;
    let folder = DataFolder::new();
    let mut with_url = command(&folder);
    with_url.env("DATABASE_URL", elsewhere.connection_string());
    let dev = Dev::start_with(with_url).await;
    dev.until_said("DATABASE_URL is set but ignored").await;
    let relations = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(elsewhere.ids(relations).await, [0]);

    let second = timeout(PATIENCE, command(&folder).output())
        .await
        .expect("an end");
    let second = second.expect("the binary");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(
        !second.status.success() && said.contains("TIDINGS_DEV_DATA"),
        "{said}"
    );
    let ready = get(dev.admin_address, "/health/ready", &[])
        .await
        .expect("an answer");
    assert_eq!(ready.status(), 200);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_machine_is_answered_and_only_its_own_page_may_send() {
    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    let foreign = format!("tidings.example:{}", dev.address.port());
    for (address, path) in [
        (dev.address, "/stream?user=alice"),
        (dev.address, "/"),
        (dev.address, "/nothing"),
        (dev.admin_address, "/health/ready"),
    ] {
        let headers = [
            ("Host", foreign.as_str()),
            ("X-Forwarded-Host", "localhost"),
        ];
        let response = get(address, path, &headers).await.expect("an answer");
        assert_eq!(response.status(), 403, "{path}");
    }
    let here = format!("localhost:{}", dev.address.port());
    let page = get(dev.address, "/", &[("Host", &here)])
        .await
        .expect("an answer");
    assert_eq!(page.status(), 200);
    let policy = page
        .header("content-security-policy")
        .expect("a policy")
        .to_owned();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );

    let draft = json!({ "user_id": "alice", "text": "hi" }).to_string();
    let send = async |headers: &[(&str, &str)], body: &str| {
        let response = post(dev.address, "/demo/notifications", headers, body).await;
        response.expect("an answer").status()
    };
    let json = ("Content-Type", "application/json");
    let own = format!("http://{}", dev.address);
    assert_eq!(send(&[json], &draft).await, 201);
    assert_eq!(
        send(
            &[json, ("Origin", &own), ("Sec-Fetch-Site", "same-origin")],
            &draft
        )
        .await,
        201
    );
    assert_eq!(
        send(&[json, ("Origin", "http://tidings.example")], &draft).await,
        403
    );
    assert_eq!(send(&[json, ("Origin", "null")], &draft).await, 403);
    assert_eq!(
        send(&[json, ("Sec-Fetch-Site", "cross-site")], &draft).await,
        403
    );
    assert_eq!(send(&[("Content-Type", "text/plain")], &draft).await, 400);
    assert_eq!(send(&[json], "{").await, 400);
    let nobody = json!({ "user_id": "", "text": "hi" }).to_string();
    assert_eq!(send(&[json], &nobody).await, 400);
    let both = json!({ "user_id": "alice", "topic": "room:lobby", "text": "hi" }).to_string();
    assert_eq!(send(&[json], &both).await, 400);
    let join = async |headers: &[(&str, &str)], body: Value| {
        let response = post(dev.address, "/demo/room", headers, &body.to_string()).await;
        response.expect("an answer")
    };
    let bob_leaves = json!({ "user_id": "bob", "joins": false });
    let foreign = [json, ("Origin", "http://tidings.example")];
    assert_eq!(join(&foreign, bob_leaves.clone()).await.status(), 403);
    let room = join(&[json], bob_leaves).await.text().await;
    let room: Value = serde_json::from_str(&room).expect("JSON");
    assert_eq!(room, json!({ "topic": "room:lobby", "members": ["alice"] }));
    let nobody = json!({ "user_id": "", "joins": true });
    let refused = join(&[json], nobody).await;
    assert_eq!(refused.status(), 400);
    let told = refused.text().await;
    assert!(told.contains("1 to 255 bytes long"), "{told}");
    for path in ["/", "/demo.css", "/demo.js", "/demo/about"] {
        let head = head(dev.address, path).await;
        assert_eq!((head.status, head.header("allow")), (200, ""), "{path}");
    }
    let refused = post(dev.address, "/demo/about", &[], "{}").await;
    let refused = refused.expect("an answer");
    assert_eq!(
        (refused.status(), refused.header("allow")),
        (405, Some("GET, HEAD"))
    );
    let notifications = "/demo/notifications?user=alice";
    assert_eq!(head(dev.address, notifications).await.status, 200);
    for path in [notifications, "/demo/room"] {
        let refused = options(dev.address, path, &[]).await;
        let refused = refused.expect("an answer");
        assert_eq!(
            (refused.status(), refused.header("allow")),
            (405, Some("GET, HEAD, POST"))
        );
    }
    // Without a user there is no stream: the request gets no default identity.
    let stream = get(dev.address, "/stream", &[]).await.expect("an answer");
    assert_eq!(stream.status(), 401);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_listed_origins_may_read_streams_but_not_send() {
    let folder = DataFolder::new();
    let mut with_origin = command(&folder);
    with_origin.env("TIDINGS_CORS_ORIGINS", "http://localhost:3000");
    let dev = Dev::start_with(with_origin).await;
    let listed = ("Origin", "http://localhost:3000");
    let read = async |origin| {
        let answer = get(dev.address, "/stream?user=alice", &[origin]).await;
        answer.expect("an answer").status()
    };
    assert_eq!(read(listed).await, 200);
    assert_eq!(read(("Origin", "http://localhost:3001")).await, 403);
    let draft = json!({ "user_id": "alice", "text": "hi" }).to_string();
    let sent = post(dev.address, "/demo/notifications", &[listed], &draft).await;
    assert_eq!(sent.expect("an answer").status(), 403);
    dev.stop().await;
}

/// It is reported before `tidings dev` creates its PostgreSQL, which takes seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_reported_before_anything_is_created() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = listener.local_addr().expect("an address").to_string();
    for setting in ["TIDINGS_LISTEN", "TIDINGS_ADMIN_LISTEN"] {
        let folder = DataFolder::new();
        let mut dev = command(&folder);
        dev.env(setting, &taken);
        let ended = timeout(PATIENCE, dev.output()).await.expect("an end");
        let output = ended.expect("the binary");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for expected in [setting, taken.as_str(), "choose another port"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert!(!folder.path().exists(), "{said}");
    }
}
