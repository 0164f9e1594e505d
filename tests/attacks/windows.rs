//! Clients over HTTP/2 that announce no flow-control window, or don't consume data.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::bystander::{Bystander, time_to_first_row};
use crate::support::{
    bridge::Bridge,
    database::Database,
    process::Served,
    tls::{
        authority::Authority,
        http2::Http2,
        start,
        tunnel::{ORIGIN, Tunnel},
    },
};

/// A stream that the bridge ends must end within this time: `disconnect_user` is read
/// once a second. It is far below the write deadline, which would also end it.
const ENDS: Duration = Duration::from_secs(8);

/// Enough for the first bytes of a stream, but not for the page that follows.
const LITTLE: usize = 200;

/// Less than what precedes the first page.
const LEAST: usize = 5;

async fn backlog(database: &Database, users: usize) {
    database
        .execute(&format!(
            "insert into notifications (user_id, text)
             select 'user' || u, repeat('x', 10000)
             from generate_series(0, {users} - 1) u, generate_series(1, 10)"
        ))
        .await;
}

/// Streams of users with a backlog whose clients announce a window of `window` bytes
/// don't delay other clients.
async fn stalled_streams_delay_nobody(streams: usize, window: usize) {
    let database = Database::migrated().await;
    let authority = Arc::new(Authority::new());
    let bridge = start(&database, &authority, &[]).await;
    let elsewhere = Tunnel::to(bridge.address(), Arc::clone(&authority)).await;
    let stream = elsewhere.stream("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(100).await;
    backlog(&database, streams).await;

    let attacker = Http2::with_window(bridge.address(), &authority, window).await;
    let mut stalled = Vec::with_capacity(streams);
    for number in 0..streams {
        stalled.push(attacker.open(&format!("user{number}")).await);
    }
    let took = time_to_first_row(elsewhere.address, &database, "alice").await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    bystander.receive(100).await.assert_close_to(&undisturbed);
    bridge.until_connections(streams + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_streams_without_room_delay_nobody() {
    stalled_streams_delay_nobody(8, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_full_of_streams_without_room_delays_nobody() {
    stalled_streams_delay_nobody(128, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_stop_before_their_first_page_delay_nobody() {
    stalled_streams_delay_nobody(128, LEAST).await;
}

/// A bridge with stalled streams of alice: one whose client never announced a window,
/// and one that stopped in the middle of a page.
async fn stalled(
    database: &Database,
    authority: &Authority,
    more: &[&str],
) -> (Bridge, [Http2; 2]) {
    let bridge = start(database, authority, more).await;
    let insert = "insert into notifications (user_id, text)
                  select 'alice', repeat('x', 10000) from generate_series(1, 100)";
    database.execute(insert).await;
    let connect = |window| Http2::with_window(bridge.address(), authority, window);
    let connections = [connect(0).await, connect(LITTLE).await];
    (bridge, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_ends_when_its_user_is_disconnected() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let (bridge, connections) = stalled(&database, &authority, &[]).await;
    let mut streams = [
        connections[0].open("alice").await,
        connections[1].open("alice").await,
    ];
    bridge.until_connections(2).await;
    database.execute("select disconnect_user('alice')").await;
    let ending = async {
        for stream in &mut streams {
            stream.until_over().await;
        }
        bridge.until_connections(0).await;
    };
    timeout(ENDS, ending).await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_ends_when_its_ticket_expires() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let (bridge, connections) = stalled(&database, &authority, &[]).await;
    let application = database.connect().await;
    let make = "select create_stream_ticket('alice', '3 seconds')";
    let ticket: String = application
        .query_one(make, &[])
        .await
        .expect("a ticket")
        .get(0);
    let mut streams = [
        connections[0].open_by_ticket(&ticket).await,
        connections[1].open_by_ticket(&ticket).await,
    ];
    bridge.until_connections(2).await;
    let ending = async {
        for stream in &mut streams {
            stream.until_over().await;
        }
        bridge.until_connections(0).await;
    };
    timeout(ENDS, ending).await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_ends_at_its_maximum_age() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let (bridge, connections) = stalled(&database, &authority, &["--max-stream-age=3s"]).await;
    let mut streams = [
        connections[0].open("alice").await,
        connections[1].open("alice").await,
    ];
    let ending = async {
        for stream in &mut streams {
            stream.until_over().await;
        }
        bridge.until_connections(0).await;
    };
    timeout(ENDS, ending).await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_streams_end_with_the_drain_time_when_the_bridge_stops() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let [certificate, key] = authority.issue("bridge", &[ORIGIN]).settings();
    let settings = [&certificate, &key, "--drain=1s"];
    let environment = [("TIDINGS_LOG", "tidings=debug")];
    let mut bridge = Served::start_in(&database, &settings, &environment).await;
    backlog(&database, 2).await;
    let mut stalled = Vec::new();
    for (user, window) in [("user0", 0), ("user1", LITTLE)] {
        let connection = Http2::with_window(bridge.address(), &authority, window).await;
        let stream = connection.open(user).await;
        bridge.until_logged("DEBUG", "opened a stream").await;
        stalled.push((connection, stream));
    }
    let lines = timeout(ENDS, bridge.log()).await.expect("an end");
    // The streams end by themselves, not because the server stops.
    let ended = |line: &&String| line.contains(r#""reason":"draining""#);
    assert_eq!(lines.iter().filter(ended).count(), 2, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_reset_at_the_deadline_of_writes() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let (bridge, connections) = stalled(&database, &authority, &[]).await;
    let mut streams = [
        connections[0].open("alice").await,
        connections[1].open("alice").await,
    ];
    bridge.until_connections(2).await;
    let ending = async {
        for stream in &mut streams {
            assert_eq!(stream.until_over().await, Some(h2::Reason::CANCEL));
        }
        bridge.until_connections(0).await;
    };
    // Thirty seconds, plus a margin for a busy machine.
    timeout(Duration::from_secs(45), ending)
        .await
        .expect("an end");
    let ended = "tidings_connections_ended_total{reason=\"silent\"} 2";
    bridge
        .until_metrics(|metrics| metrics.contains(ended), ended)
        .await;
}
