//! Clients over TLS and HTTP/1.1 that don't read their stream.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;

use crate::bystander::Bystander;
use crate::support::{
    bridge::{Bridge, token},
    database::Database,
    process::Served,
    tls::{
        authority::Authority,
        http2::Http2,
        start,
        tunnel::{ORIGIN, Tunnel, connect},
    },
};

/// A stream that the bridge ends must end within this time, which is far below the
/// write deadline that would also end it.
const ENDS: Duration = Duration::from_secs(8);

/// Far more than the buffers of both kernels hold.
const BACKLOG: &str = "insert into notifications (user_id, text)
    select 'alice', repeat('x', 100000) from generate_series(1, 200)";

async fn ask(address: SocketAddr, authority: &Authority, target: &str) -> TlsStream<TcpStream> {
    let mut socket = connect(address, authority, "http/1.1").await.expect("TLS");
    let bearer = match target.contains("ticket") {
        true => String::new(),
        false => format!("Authorization: Bearer {}\r\n", token("alice")),
    };
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n");
    socket
        .write_all(request.as_bytes())
        .await
        .expect("a request");
    socket.flush().await.expect("a request");
    socket
}

/// A bridge with a stream of alice that can't be written to any more, because its
/// client doesn't read.
async fn blocked(
    database: &Database,
    authority: &Authority,
    more: &[&str],
    target: &str,
) -> (Bridge, TlsStream<TcpStream>) {
    let bridge = start(database, authority, more).await;
    database.execute(BACKLOG).await;
    let client = ask(bridge.address(), authority, target).await;
    bridge.until_connections(1).await;
    until_blocked(bridge.address(), database, authority).await;
    (bridge, client)
}

/// Waits until no more rows of alice are marked although those of others are.
async fn until_blocked(address: SocketAddr, database: &Database, authority: &Authority) {
    let connection = Http2::connect(address, authority).await;
    let mut other = connection.open("bob").await;
    let sent = "select id from notifications where user_id = 'alice' and sent";
    let mut before = 0;
    loop {
        for number in 0..5 {
            database
                .execute(&format!(
                    "select send_notification('bob', 'number {number}')"
                ))
                .await;
            other.until(&format!("data: number {number}\nid: ")).await;
            database
                .until("select bool_and(sent) from notifications where user_id = 'bob'")
                .await;
        }
        let now = database.ids(sent).await.len();
        if now > 0 && now == before {
            return;
        }
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tls_that_is_not_read_ends_when_its_user_is_disconnected() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let (bridge, _client) = blocked(&database, &authority, &[], "/stream").await;
    database.execute("select disconnect_user('alice')").await;
    let ending = timeout(ENDS, bridge.until_connections(0)).await;
    ending.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tls_that_is_not_read_ends_when_its_ticket_is_removed() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let application = database.connect().await;
    let make = "select create_stream_ticket('alice', '1 hour')";
    let ticket: String = application
        .query_one(make, &[])
        .await
        .expect("a ticket")
        .get(0);
    let target = format!("/stream?ticket={ticket}");
    let (bridge, _client) = blocked(&database, &authority, &[], &target).await;
    database
        .superuser()
        .execute("delete from stream_tickets")
        .await;
    let ending = timeout(ENDS, bridge.until_connections(0)).await;
    ending.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tls_that_is_not_read_ends_at_its_maximum_age() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let bridge = start(&database, &authority, &["--max-stream-age=4s"]).await;
    database.execute(BACKLOG).await;
    let _client = ask(bridge.address(), &authority, "/stream").await;
    bridge.until_connections(1).await;
    let ending = timeout(ENDS, bridge.until_connections(0)).await;
    ending.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tls_that_is_not_read_ends_with_the_drain_time_when_the_bridge_stops() {
    let (database, authority) = (Database::migrated().await, Authority::new());
    let [certificate, key] = authority.issue("bridge", &[ORIGIN]).settings();
    let settings = [&certificate, &key, "--drain=1s"];
    let environment = [("TIDINGS_LOG", "tidings=debug")];
    let mut bridge = Served::start_in(&database, &settings, &environment).await;
    database.execute(BACKLOG).await;
    let _client = ask(bridge.address(), &authority, "/stream").await;
    bridge.until_logged("DEBUG", "opened a stream").await;
    until_blocked(bridge.address(), &database, &authority).await;
    let lines = timeout(ENDS, bridge.log()).await.expect("an end");
    // The stream ends by itself, not because the server stops.
    let ended = |line: &&String| line.contains(r#""reason":"draining""#);
    assert_eq!(lines.iter().filter(ended).count(), 1, "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_tls_that_is_not_read_delays_nobody_and_ends_at_the_deadline_of_writes() {
    let (database, authority) = (Database::migrated().await, Arc::new(Authority::new()));
    let (bridge, _client) = blocked(&database, &authority, &[], "/stream").await;
    let elsewhere = Tunnel::to(bridge.address(), Arc::clone(&authority)).await;
    let stream = elsewhere.stream("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let during = bystander.receive(100).await;
    // Thirty seconds, plus a margin for a busy machine.
    let ended = "tidings_connections_ended_total{reason=\"silent\"} 1";
    let ending = bridge.until_metrics(|metrics| metrics.contains(ended), ended);
    timeout(Duration::from_secs(45), ending)
        .await
        .expect("an end");
    let undisturbed = bystander.receive(100).await;
    during.assert_close_to(&undisturbed);
}
