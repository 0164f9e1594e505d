//! Clients that open a connection for TLS and send nothing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::bystander::{Bystander, time_to_first_row};
use crate::support::{
    database::Database,
    process::Served,
    tls::{
        authority::Authority,
        tunnel::{ORIGIN, Tunnel},
    },
};

const SILENT: usize = 3_000;
const A_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Connections of one address that are kept: 100 streams, a quarter more, and 64.
const KEPT: usize = 100 + 25 + 64;

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((A_CLIENT, 0).into()).expect("an address");
    socket.connect(address).await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_handshakes_of_one_address_are_counted_and_keep_nobody_else_waiting() {
    rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    let database = Database::migrated().await;
    let authority = Arc::new(Authority::new());
    let [certificate, key] = authority.issue("bridge", &[ORIGIN]).settings();
    let settings = [
        &certificate,
        &key,
        "--max-connections=1000",
        "--max-connections-per-address=100",
    ];
    let bridge = Served::start(&database, &settings).await;
    let elsewhere = Tunnel::to(bridge.address(), Arc::clone(&authority)).await;
    let stream = elsewhere.stream("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(100).await;

    let mut silent = Vec::with_capacity(SILENT);
    for _ in 0..SILENT {
        silent.push(connect(bridge.address()).await);
    }
    let took = time_to_first_row(elsewhere.address, &database, "alice").await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    bystander.receive(100).await.assert_close_to(&undisturbed);

    let refused = (SILENT - KEPT) as u64;
    let counting = async { while bridge.refused("sockets").await < refused {} };
    let counted = timeout(Duration::from_secs(5), counting).await;
    counted.expect("all that are too many are counted");

    // The connections that were kept have a deadline of ten seconds.
    let start = Instant::now();
    for socket in silent {
        let closing = timeout(Duration::from_secs(15), socket.readable()).await;
        closing.expect("an end").expect("an end");
    }
    assert!(start.elapsed() <= Duration::from_secs(15));
}
