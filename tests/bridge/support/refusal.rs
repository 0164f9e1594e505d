//! A `tidings serve` that is not to start.

use std::process::Stdio;

use tokio::{process::Command, time::timeout};

use super::{PATIENCE, bridge::SECRET, database::Database};

/// What `tidings serve` said when it refused to start.
pub async fn refusal(database: &Database, more: &[&str]) -> String {
    let child = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args([
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ])
        .args(more)
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary");
    let ended = timeout(PATIENCE, child.wait_with_output()).await;
    let output = ended.expect("it refuses").expect("its log");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}
