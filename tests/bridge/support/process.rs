//! `tidings serve` as a process of its own.

use std::{net::SocketAddr, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{bridge::SECRET, database::Database};

/// A bridge of its own process, and where it listens.
pub async fn serve(database: &Database, more: &[&str]) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args([
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--log-format=json",
        ])
        .args(more)
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let address = loop {
        let line = lines
            .next_line()
            .await
            .expect("its log")
            .expect("it says where it listens");
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
            panic!("it doesn't start: {line}")
        };
        if let Some(address) = line["address"].as_str() {
            break address.parse().expect("an address");
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, address)
}

/// Sends it a signal.
pub fn signal(child: &Child, signal: Signal) {
    let id = child
        .id()
        .expect("a running process")
        .try_into()
        .expect("a process id");
    kill(Pid::from_raw(id), signal).expect("a signal");
}
