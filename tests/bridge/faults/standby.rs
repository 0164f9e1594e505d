//! A hot standby supports neither LISTEN nor marking.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{
    database::{Database, start_cluster},
    process::refusal,
    standby::Standby,
};

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_standby_and_names_the_setting() {
    let primary = start_cluster().await;
    let database = Database::create(&primary, "app").await;
    database.migrate().await;
    let standby = Standby::of(&primary).await;
    standby.follows(&primary).await;
    let begin = Instant::now();
    let said = refusal(&Database::at(standby.cluster().url("app")), &[]).await;
    for expected in ["standby", "primary", "DATABASE_URL"] {
        assert!(said.contains(expected), "{said}");
    }
    // `serve` doesn't wait for the standby to be promoted, as it would for an unreachable database.
    assert!(begin.elapsed() < Duration::from_secs(20), "{said}");
}
