//! `health`: the command for a container's health check.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{Said, command, said};
use crate::support::{
    PATIENCE,
    bridge::Bridge,
    database::{Database, start_cluster},
};

async fn health(address: &str) -> Said {
    let mut command = command(&["health"]);
    command.env("TIDINGS_ADMIN_LISTEN", address);
    said(command, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_is_healthy_while_it_reaches_its_database() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let address = bridge.admin_address();
    assert_eq!(health(&address.to_string()).await.well(), "ready\n");
    // The address as containers set it.
    let everywhere = format!("0.0.0.0:{}", address.port());
    assert_eq!(health(&everywhere).await.well(), "ready\n");
    assert_eq!(
        health(&format!(":{}", address.port())).await.well(),
        "ready\n"
    );

    cluster.stop().await.expect("it stops");
    let falling_ill = async {
        loop {
            let said = health(&address.to_string()).await;
            if said.code != Some(0) {
                return said.badly();
            }
        }
    };
    let told = timeout(PATIENCE, falling_ill).await.expect("it is told");
    assert!(told.contains("is not ready: "), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_silent_or_no_bridge_is_not_healthy() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let begin = Instant::now();
    let told = health(&address).await.badly();
    assert!(told.contains("did not answer within 5 s"), "{told}");
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    drop(silent);
    let told = health(&address).await.badly();
    assert!(
        told.contains("no bridge answers") && told.contains("TIDINGS_ADMIN_LISTEN"),
        "{told}"
    );

    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = stranger.local_addr().expect("an address").to_string();
    let answering = thread::spawn(move || {
        let (mut socket, _) = stranger.accept().expect("a client");
        let _ = socket.read(&mut [0; 1024]);
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n<html>");
    });
    let told = health(&address).await.badly();
    assert!(told.contains("is not a bridge"), "{told}");
    answering.join().expect("no panic");
}
