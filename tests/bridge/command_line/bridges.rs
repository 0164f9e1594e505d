//! `check` and `status` detect that no bridge is connected while rows are unsent, and that bridges
//! aren't ready.

use super::state::{both, both_are_content, both_find, findings};
use crate::support::{bridge::Bridge, database::Database};

/// Inserts a row that is `minutes` old.
async fn waits(database: &Database, minutes: u32) {
    let insert = format!(
        "insert into notifications (user_id, text, created_at) \
         values ('alice', 'x', now() - interval '{minutes} minutes')"
    );
    database.owner().execute(&insert).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_while_no_bridge_is_connected_are_found_until_one_is() {
    let database = Database::migrated().await;
    waits(&database, 9).await;
    both_are_content(&database, &[]).await;
    both_find(
        &database,
        &["--max-wait=5m"],
        "bridges",
        "1 rows are waiting",
    )
    .await;
    waits(&database, 11).await;
    let text = "no bridge is connected, and 2 rows are waiting, the oldest for 11m";
    both_find(&database, &[], "bridges", text).await;
    for (command, said) in both(&database, &[]).await {
        let fix = &findings(&said)[0]["fix"]["command"];
        let fix = fix.as_str().unwrap_or_default();
        assert!(fix.contains("tidings serve"), "{command}: {said:?}");
    }
    // The row stays unsent, since its user is offline.
    let bridge = Bridge::start(&database).await;
    database
        .until("select exists (select from tidings_bridges where readiness = 'ready')")
        .await;
    both_are_content(&database, &[]).await;
    bridge.stop().await;
    both_find(&database, &[], "bridges", "no bridge is connected").await;
}

/// If the privilege to read the queue's usage was revoked from public, `check` prints the grant,
/// and both commands carry on.
#[tokio::test(flavor = "multi_thread")]
async fn both_commands_work_without_the_privilege_to_read_the_queue() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "revoke execute on function pg_notification_queue_usage() from public, tidings_bridge",
        )
        .await;
    let [(_, check), (_, status)] = both(&database, &[]).await;
    let unseen = "how full the notification queue is";
    for said in [&check, &status] {
        assert!(said.out.contains(unseen), "{said:?}");
    }
    assert!(status.json()["queue_usage"].is_null(), "{status:?}");
    let fix = "grant execute on function pg_catalog.pg_notification_queue_usage() to bridge;";
    assert_eq!(findings(&check)[0]["fix"]["sql"], fix, "{check:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_or_was_sent_waits_for_no_bridge() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text, created_at, expires_at, sent_at) values \
             ('alice', 'x', now() - interval '1 day', now() - interval '1 hour', null), \
             ('alice', 'x', now() - interval '1 day', null, now())",
        )
        .await;
    both_are_content(&database, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_keep_failing_are_found_and_fixed() {
    let database = Database::migrated().await;
    for (breaking, reason) in [
        (
            "create function refuse() returns trigger language plpgsql as $$ begin \
               raise 'no marks today'; end $$; \
             create trigger refuse before update on notifications \
               for each row execute function refuse()",
            "no marks today",
        ),
        (
            "create function refuse() returns trigger language plpgsql as $$ begin \
               return null; end $$; \
             create trigger refuse before update on notifications \
               for each row execute function refuse()",
            "a trigger suppresses the update",
        ),
    ] {
        database.owner().execute(breaking).await;
        let bridge = Bridge::start(&database).await;
        let mut tab = bridge.connect_live("alice").await;
        database
            .execute("select send_notification('alice', 'x')")
            .await;
        assert_eq!(tab.next_event().await.data, "x");
        let body = bridge.until_ready_is(503).await.text().await;
        assert!(body.contains("unmarked") && body.contains(reason), "{body}");
        database
            .until("select exists (select from tidings_bridges where readiness = 'unmarked')")
            .await;
        let text = "is not ready (unmarked): sent rows can't be marked";
        both_find(&database, &[], "bridges", text).await;
        both_find(&database, &[], "bridges", reason).await;
        // The fix that the trigger's hint gives.
        database
            .owner()
            .execute("drop trigger refuse on notifications; drop function refuse()")
            .await;
        bridge.until_ready_is(200).await;
        database
            .until("select bool_and(readiness = 'ready') from tidings_bridges")
            .await;
        both_are_content(&database, &[]).await;
        bridge.stop().await;
    }
}

/// Simulates a bridge that hangs: its session exists, but it no longer reports.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_has_not_reported_for_long_is_found() {
    let database = Database::migrated().await;
    let session = database.bridge().connect().await;
    let own = "select pg_backend_pid()";
    let pid: i32 = session.query_one(own, &[]).await.expect(own).get(0);
    let hangs = format!(
        "insert into tidings_bridges_seen (bridge, version, address, started_at, pid, \
           backend_start, state, since, connections, last_seen) \
         select 'x', '1', 'here:80', now(), pid, backend_start, 'asleep', now(), 0, \
           now() - interval '2 minutes' \
         from pg_stat_activity where pid = {pid}"
    );
    database.superuser().execute(&hangs).await;
    let text = "the bridge at here:80 is connected but has not reported for 2m";
    both_find(&database, &[], "bridges", text).await;
    let reports = "update tidings_bridges_seen set last_seen = now()";
    database.superuser().execute(reports).await;
    both_are_content(&database, &[]).await;
}
