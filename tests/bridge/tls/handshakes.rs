//! Clients that connect and send nothing.

use std::thread::available_parallelism;

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::support::database::Database;
use crate::support::tls::{authority::Authority, http2::Http2, start};

/// More than a worker thread accepts at once by default.
const SILENT_BY_WORKER: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_finish_their_handshake_hold_up_nobody() {
    rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let workers = available_parallelism().expect("processors").get();
    let silent =
        join_all((0..SILENT_BY_WORKER * workers).map(|_| TcpStream::connect(bridge.address())))
            .await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let mut stream = connection.open("alice").await;
    stream.until("event: tidings.caught-up").await;
    // It did not have to wait until they were disconnected.
    for socket in silent {
        let nothing = socket.expect("a connection").try_read(&mut [0]);
        let error = nothing.expect_err("neither bytes nor the end");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
