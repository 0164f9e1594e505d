//! Anything that hides rows from the bridge turns readiness red, with the fix in the reason, and no
//! rows are lost meanwhile.

use std::time::{Duration, Instant};

use serde_json::Value;
use tidings::postgres::retention::{Prune, Retention, Retentions, Retry};

use crate::support::{
    bridge::{Bridge, serve_options},
    database::Database,
    event_source::get,
    process::{Served, refusal},
};

/// How soon readiness must be red.
const RED_WITHIN: Duration = Duration::from_secs(15);

/// Breaks something, and returns the statement that readiness then gives as the fix, which is the
/// first text in backticks.
async fn fix_after(bridge: &Bridge, database: &Database, breaking: &str, found: &str) -> String {
    let broken_at = Instant::now();
    database.superuser().execute(breaking).await;
    loop {
        let body = bridge.until_ready_is(503).await.text().await;
        assert!(broken_at.elapsed() < RED_WITHIN, "{breaking}: {body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let reason = body["reason"].as_str().expect("a reason");
        // At first the bridge may only know that the query failed.
        if let Some(fix) = reason.split('`').nth(1).filter(|_| reason.contains(found)) {
            assert_eq!(body["readiness"], "listener-failing", "{body}");
            return fix.to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_on_any_table_is_reported_and_loses_nothing() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    for (round, table) in [
        "notifications",
        "stream_tickets",
        "tidings_drained",
        "tidings_reopened",
        "tidings_incarnation",
    ]
    .into_iter()
    .enumerate()
    {
        let enable = format!("alter table {table} enable row level security");
        let found = format!("row-level security on public.{table} applies to bridge");
        let fix = fix_after(&bridge, &database, &enable, &found).await;
        database
            .owner()
            .execute(&format!("select send_notification('alice', 'row {round}')"))
            .await;
        database.owner().execute(&fix).await;
        assert_eq!(tab.next_event().await.data, format!("row {round}"));
        bridge.until_ready_is(200).await;
    }
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

/// Policies make no difference: the bridge can't know whether one lets all rows pass.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_with_a_policy_is_reported_as_well() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let secure = "alter table notifications enable row level security; \
                  create policy bridges on notifications to tidings_bridge using (user_id <> 'alice')";
    let found = "row-level security on public.notifications applies to bridge";
    let fix = fix_after(&bridge, &database, secure, found).await;
    database.owner().execute(&fix).await;
    bridge.until_ready_is(200).await;
}

/// It then applies to the owner too, which the functions run as.
#[tokio::test(flavor = "multi_thread")]
async fn forced_row_level_security_is_reported() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    for table in ["tidings_disconnections", "tidings_pruned", "notifications"] {
        let force =
            format!("alter table {table} enable row level security, force row level security");
        let found = format!("row-level security on public.{table} applies to");
        let fix = fix_after(&bridge, &database, &force, &found).await;
        database.owner().execute(&fix).await;
        bridge.until_ready_is(200).await;
    }
}

/// A role that bypasses it or owns the tables sees all rows.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_that_does_not_apply_to_the_bridge_is_no_trouble() {
    let database = Database::migrated().await;
    let enable = "alter table notifications enable row level security; \
                  alter table stream_tickets enable row level security";
    database.superuser().execute(enable).await;
    let bridge = Bridge::start(&database.owner()).await;
    let mut tab = bridge.connect_live("alice").await;
    database
        .owner()
        .execute("select send_notification('alice', 'seen')")
        .await;
    assert_eq!(tab.next_event().await.data, "seen");
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_place_of_the_table_is_reported_and_its_hidden_rows_are_delivered_later() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    let replace = "alter table notifications rename to notifications_kept; \
                   create view notifications as \
                     select * from notifications_kept where user_id <> 'alice'; \
                   grant select, update on notifications to tidings_bridge; \
                   insert into notifications_kept (user_id, text) values ('alice', 'hidden')";
    let found = "public.notifications is a view";
    let fix = fix_after(&bridge, &database, replace, found).await;
    database.superuser().execute(&fix).await;
    assert_eq!(tab.next_event().await.data, "hidden");
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_sign_that_would_survive_crashes_is_reported() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    let set = "alter table tidings_incarnation set logged";
    let found = "public.tidings_incarnation is not UNLOGGED";
    let fix = fix_after(&bridge, &database, set, found).await;
    database.superuser().execute(&fix).await;
    bridge.until_ready_is(200).await;
    // The fix empties the table. The bridge takes that for a crash, which costs no row.
    database
        .execute("select send_notification('alice', 'after')")
        .await;
    assert_eq!(tab.next_event().await.data, "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_would_not_see_all_rows_says_so_instead_of_starting() {
    let database = Database::migrated().await;
    let enable = "alter table notifications enable row level security";
    database.superuser().execute(enable).await;
    let refused = refusal(&database, &[]).await;
    assert!(
        refused.contains("`tidings check` shows the statement"),
        "{refused}"
    );
    assert!(refused.contains("notifications"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_why_tickets_cannot_be_looked_up() {
    let database = Database::migrated().await;
    let mut bridge = Served::start(&database, &["--tickets=on"]).await;
    let client = database.connect().await;
    let ticket = "select create_stream_ticket('alice')";
    let ticket: String = client.query_one(ticket, &[]).await.expect(ticket).get(0);
    let enable = "alter table stream_tickets enable row level security";
    database.superuser().execute(enable).await;
    let path = format!("/stream?ticket={ticket}");
    let answer = get(bridge.address(), &path, &[]).await.expect("an answer");
    // Not a 401, after which a browser would give up.
    assert_eq!(answer.status(), 503);
    let line = bridge.until_logged("WARN", "could not look up").await;
    let line = line.to_string();
    assert!(
        line.contains("row-level security would hide rows"),
        "{line}"
    );
    bridge
        .until_logged(
            "ERROR",
            "alter table public.stream_tickets disable row level security",
        )
        .await;
    let disable = "alter table stream_tickets disable row level security";
    database.superuser().execute(disable).await;
    bridge.until_ready_is(200).await;
    let answer = get(bridge.address(), &path, &[]).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

/// Pruning must not mistake hidden rows for no rows.
#[tokio::test(flavor = "multi_thread")]
async fn pruning_says_that_row_level_security_hides_rows() {
    let database = Database::migrated().await;
    let force = "alter table notifications enable row level security, force row level security";
    database.superuser().execute(force).await;
    let options = serve_options(&database, &[]);
    let url = options.database.url().expect("a URL");
    let month = Retention::For(Duration::from_secs(30 * 24 * 60 * 60));
    let retentions = Retentions {
        sent: month,
        topics: month,
    };
    let schema = tidings::postgres::schema::SchemaName::public();
    let prune = Prune::open(&url, &schema, retentions, Retry::All).await;
    let error = prune
        .expect("a session")
        .batch()
        .await
        .expect_err("hidden rows");
    let error = tidings::monitoring::logging::ErrorChain(&error).to_string();
    assert!(
        error.contains("row-level security would hide rows"),
        "{error}"
    );
    assert!(!error.contains("grant execute"), "{error}");
}
