//! `check` and `status` find what is wrong with a running system, each problem with its fix; once
//! the fix is applied, they report no problems.

use private_postgres::Cluster;
use serde_json::Value;

use super::{Said, command, run, said};
use crate::support::{
    bridge::{Bridge, SECRET},
    database::{Database, shared_cluster, start_cluster},
    pooler::Pooler,
    standby::Standby,
};

/// The output of both commands.
pub(super) async fn both(database: &Database, more: &[&str]) -> [(&'static str, Said); 2] {
    let arguments = ["check", "status"].map(|command| [&[command, "--json"], more].concat());
    let [check, status] = &arguments;
    let (check, status) = tokio::join!(run(database, check), run(database, status));
    [("check", check), ("status", status)]
}

pub(super) fn findings(said: &Said) -> Vec<Value> {
    let json = said.json();
    let report = if json["check"].is_object() {
        &json["check"]
    } else {
        &json
    };
    let all = report["findings"].as_array().expect("findings").clone();
    // Under the names of earlier releases as well.
    assert_eq!(report["not_checked"], report["unseen"]);
    assert_eq!(report["problems"], report["wrong"]);
    for finding in &all {
        assert_eq!(finding["fix"], finding["mend"]);
        assert_eq!(finding["kind"] == "problem", finding["severity"] == "wrong");
    }
    let is_problem = |finding: &Value| finding["kind"] == "problem";
    all.into_iter().filter(is_problem).collect()
}

/// Asserts that both commands find this and report what was expected. Returns the fixes for all
/// problems.
pub(super) async fn both_find(
    database: &Database,
    more: &[&str],
    topic: &str,
    text: &str,
) -> Vec<String> {
    let mut fixes = Vec::new();
    for (command, said) in both(database, more).await {
        assert_eq!(said.code, Some(1), "{command}: {said:?}");
        let found = findings(&said);
        let is_it = |finding: &&Value| {
            let found = finding["found"].as_str().expect("a text");
            finding["topic"] == topic && found.contains(text)
        };
        let finding = found.iter().find(is_it);
        let finding = finding.unwrap_or_else(|| panic!("{command} finds no {text}: {said:?}"));
        assert!(
            finding["expected"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert!(finding["fix"].as_object().is_some_and(|fix| fix.len() == 1));
        fixes = found
            .iter()
            .filter_map(|finding| finding["fix"]["sql"].as_str().map(str::to_owned))
            .collect();
    }
    fixes
}

pub(super) async fn both_are_content(database: &Database, more: &[&str]) {
    for (command, said) in both(database, more).await {
        assert_eq!(said.code, Some(0), "{command}: {said:?}");
        assert_eq!(findings(&said), Vec::<Value>::new(), "{command}");
    }
}

pub(super) async fn found_and_fixed(database: &Database, more: &[&str], topic: &str, text: &str) {
    let fixes = both_find(database, more, topic, text).await;
    assert!(!fixes.is_empty(), "{text}");
    for fix in fixes {
        database.superuser().execute(&fix).await;
    }
    both_are_content(database, more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_are_gone_or_disabled_are_found_and_fixed() {
    let database = Database::migrated().await;
    both_are_content(&database, &[]).await;
    for (table, trigger) in [
        ("notifications", "tidings_ring_doorbell"),
        ("notifications", "tidings_reopen"),
        ("notifications", "tidings_restamp"),
        ("stream_tickets", "tidings_end_streams_of_deleted"),
        ("stream_tickets", "tidings_end_streams_of_changed"),
        ("stream_tickets", "tidings_end_streams_of_truncated"),
        ("notifications", "tidings_refuse_topics"),
        ("tidings_bridges_seen", "tidings_note_bridge"),
        ("tidings_membership_changes", "tidings_ring_for_memberships"),
        ("topic_subscriptions", "tidings_note_subscribed"),
        ("topic_subscriptions", "tidings_note_unsubscribed"),
        ("topic_subscriptions", "tidings_note_truncated"),
        ("topic_subscriptions", "tidings_keep_membership"),
    ] {
        let made = trigger_definition(&database, trigger).await;
        for (breaking, text) in [
            (format!("drop trigger {trigger} on {table}"), "missing"),
            (
                format!("alter table {table} disable trigger {trigger}"),
                "disabled",
            ),
        ] {
            database.superuser().execute(&breaking).await;
            let text = format!("{trigger} on public.{table} is {text}");
            found_and_fixed(&database, &[], "trigger", &text).await;
        }
        // The same definition that the migrations created.
        assert_eq!(trigger_definition(&database, trigger).await, made);
    }
    // What `pg_restore --disable-triggers` leaves behind.
    database
        .superuser()
        .execute(
            "alter table notifications disable trigger all; \
             alter table notifications enable trigger all",
        )
        .await;
    let text = "tidings_restamp on public.notifications is not set to ENABLE ALWAYS";
    found_and_fixed(&database, &[], "trigger", text).await;
}

async fn trigger_definition(database: &Database, trigger: &str) -> String {
    let client = database.superuser().connect().await;
    let query = "select pg_get_triggerdef(oid) || ' ' || tgenabled::text from pg_trigger \
                 where tgname = $1";
    client
        .query_one(query, &[&trigger])
        .await
        .expect(query)
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_every_writer_needs_is_found_and_fixed() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute("revoke select on sequence tidings_all_deliver_topics from public")
        .await;
    let of_topics = "public lacks select on sequence public.tidings_all_deliver_topics";
    found_and_fixed(&database, &[], "missing-right", of_topics).await;
    database
        .superuser()
        .execute("revoke select on sequence tidings_bell from public")
        .await;
    let insert = "insert into notifications (user_id, text) values ('alice', 'hello')";
    // From PostgreSQL 18 on, a role that may not read the sequence sees it as empty, which means
    // that no bridge is asleep.
    let version = database.server_version().await;
    let inserted = database.connect().await.batch_execute(insert).await;
    assert_eq!(inserted.is_ok(), version >= 18_00_00, "{inserted:?}");
    found_and_fixed(
        &database,
        &[],
        "missing-right",
        "public lacks select on sequence",
    )
    .await;
    database.execute(insert).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_front_of_the_listener_is_found() {
    let database = Database::migrated().await;
    let pooler = Pooler::before(shared_cluster()).await;
    let pooled = pooler.database(&database).bridge();
    both_find(&pooled, &[], "path", "pool_mode=transaction").await;
    let direct = ["--direct-database-url", &database.connection_string()];
    both_are_content(&pooled, &direct).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_found() {
    let primary = start_cluster().await;
    let database = Database::create(&primary, "app").await;
    database.migrate().await;
    let standby = Standby::of(&primary).await;
    standby.follows(&primary).await;
    let beside = Database::at(standby.cluster().url("app")).bridge();
    both_find(&beside, &[], "path", "is a standby").await;
    both_are_content(&database, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_too_old_or_too_new_is_found() {
    let database = Database::empty().await;
    both_find(&database, &[], "schema", "Tidings is not installed").await;
    database.migrate().await;
    both_are_content(&database, &[]).await;
    let latest = "(select max(version) from tidings_schema_history)";
    for (change, text, undo) in [
        (
            format!("update tidings_schema_history set version = -1 where version = {latest}"),
            "is too old: version",
            "update tidings_schema_history set version = 1 + \
             (select max(version) from tidings_schema_history) where version = -1",
        ),
        (
            format!(
                "insert into tidings_schema_history select 1000, 'contract_all', applied_on, \
                 checksum from tidings_schema_history where version = {latest}"
            ),
            "is too new: version 1000",
            "delete from tidings_schema_history where version = 1000",
        ),
    ] {
        database.superuser().execute(&change).await;
        both_find(&database, &[], "schema", text).await;
        database.superuser().execute(undo).await;
        both_are_content(&database, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_apart_are_found() {
    let database = Database::migrated().await;
    both_are_content(&database, &["--clock-ahead=3s"]).await;
    both_find(
        &database,
        &["--clock-ahead=1m"],
        "clock",
        "behind this machine's",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_fills_is_found_and_who_holds_it_ended() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await.superuser();
    let deaf = database.connect().await;
    // Separately, since statements in one string would be one transaction.
    for statement in ["listen elsewhere", "begin", "select 1"] {
        deaf.batch_execute(statement).await.expect(statement);
    }
    database
        .execute("select count(pg_notify('elsewhere', repeat('x', 7000) || n)) from generate_series(1, 100) as n")
        .await;
    let limit = ["--max-queue=0.001"];
    found_and_fixed(&database, &limit, "queue", "% full").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_vacuum_back_is_found_and_named() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await.superuser();
    let forgotten = database.connect().await;
    forgotten
        .batch_execute("begin; select pg_current_xact_id()")
        .await
        .expect("a transaction");
    both_are_content(&database, &[]).await;
    // The commands' own sessions have transactions too, for milliseconds.
    database
        .until(
            "select bool_or(clock_timestamp() - xact_start > interval '3 s') \
             from pg_stat_activity where state = 'idle in transaction'",
        )
        .await;
    let limit = ["--max-transaction=3s"];
    found_and_fixed(
        &database,
        &limit,
        "horizon",
        "(tidings, idle in transaction)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autovacuum_that_is_off_or_behind_is_found_and_fixed() {
    let database = Database::migrated().await;
    // While a snapshot can still see the dead rows, no reader prunes them in passing.
    let seer = database.connect().await;
    seer.batch_execute("begin isolation level repeatable read; select 1")
        .await
        .expect("a snapshot");
    database
        .superuser()
        .execute(
            "alter table notifications set (autovacuum_enabled = off, \
               autovacuum_vacuum_threshold = 50); \
             insert into notifications (user_id, text) select 'alice', 'hello' from generate_series(1, 3000); \
             update notifications set expires_at = now()",
        )
        .await;
    database
        .until("select pg_stat_get_dead_tuples('notifications'::regclass) >= 3000")
        .await;
    let limit = ["--max-dead-rows=1000"];
    both_find(&database, &limit, "vacuum", "3000 dead rows").await;
    seer.batch_execute("commit").await.expect("an end");
    let off = "autovacuum is off for public.notifications";
    for fix in both_find(&database, &limit, "vacuum", off).await {
        database.superuser().execute(&fix).await;
    }
    // Before PostgreSQL 15, statistics are updated with a delay.
    database
        .until("select pg_stat_get_dead_tuples('notifications'::regclass) < 1000")
        .await;
    both_are_content(&database, &limit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_waits_and_who_serves_also_to_who_may_only_watch() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'secret'), send_notification('bob', 'secret')")
        .await;
    let bridge = Bridge::start(&database).await;
    let asleep = "select exists (select from tidings_bridges where state = 'asleep')";
    database.until(asleep).await;
    let said = run(&database.as_role("dashboard"), &["status", "--json"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let json = said.json();
    assert_eq!(json["pending"]["rows"], 2, "{json}");
    assert_eq!(json["pending"]["users"], 2, "{json}");
    let told = &json["bridges"][0];
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"), "{json}");
    assert_eq!(told["address"], bridge.address().to_string());
    assert_eq!(told["state"], "asleep");
    assert_eq!(told["connections"], 0);
    let name = format!("{} at {}", env!("CARGO_PKG_VERSION"), bridge.address());
    assert!(
        json["check"]["unseen"]
            .to_string()
            .contains("pg_read_all_stats"),
        "{json}"
    );
    let text = run(&database.as_role("dashboard"), &["status"])
        .await
        .well();
    let told = format!("{name}, asleep, 0 connections");
    for expected in [
        "2 rows for 2 users",
        "PostgreSQL",
        told.as_str(),
        "no problems",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(!text.contains("secret") && !text.contains('\x1b'), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_could_not_be_found_out_in_time_and_shows_the_rest() {
    let database = Database::migrated().await;
    let locker = database.superuser().connect().await;
    locker
        .batch_execute("begin; lock table tidings_drained in access exclusive mode")
        .await
        .expect("a lock");
    let said = run(&database, &["status", "--json"]).await;
    let json = said.json();
    assert_eq!(
        json["pending"]["unknown"], "the query takes longer than 5 s",
        "{json}"
    );
    assert_eq!(json["bridges"], Value::Array(Vec::new()), "{json}");
    locker.batch_execute("rollback").await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_settings_that_serve_would_have() {
    let database = Database::migrated().await;
    let check = |name: &str, value: &str| {
        let mut command = command(&["check"]);
        command
            .env("DATABASE_URL", database.connection_string())
            .env("TIDINGS_JWT_SECRET", SECRET)
            .env(name, value);
        said(command, "")
    };
    let content = check("TIDINGS_HEARTBEAT", "20s").await.well();
    assert!(
        content.contains("no problems: checked the schema public"),
        "{content}"
    );
    let refused = check("TIDINGS_TLS_CERT", "cert.pem").await;
    assert!(refused.out.contains("TIDINGS_TLS_KEY"), "{refused:?}");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(refused.error, "tidings: 1 problem found\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_locked_rows_for_long_is_found_and_fixed() {
    let database = Database::migrated().await.superuser();
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    let locker = database.connect().await;
    locker
        .batch_execute("begin; select from notifications for update")
        .await
        .expect("a lock");
    both_are_content(&database, &[]).await;
    // A role that may not see for how long still gets a hint.
    let said = run(&database.bridge(), &["check", "--json"]).await;
    let hint = hint(
        &said,
        "has locked rows of public.notifications; this role may not see for how long",
    );
    assert!(hint["fix"]["sql"].is_string(), "{hint}");
    database
        .until(
            "select bool_or(clock_timestamp() - xact_start > interval '10 s') \
             from pg_stat_activity where state = 'idle in transaction' \
             and datname = current_database()",
        )
        .await;
    let text = "has locked rows of public.notifications for 1";
    found_and_fixed(&database, &[], "marks", text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_has_locked_rows_for_long_is_found() {
    let settings = [
        ("max_connections", "100"),
        ("max_prepared_transactions", "10"),
    ];
    let cluster = Cluster::temporary(&settings).await.expect("a PostgreSQL");
    let database = Database::migrated_in(&cluster).await;
    let superuser = database.superuser();
    superuser
        .execute("select send_notification('alice', 'hello')")
        .await;
    let prepare = "begin; select from notifications for update; prepare transaction 'forgotten'";
    superuser.execute(prepare).await;
    superuser
        .until(
            "select bool_or(clock_timestamp() - prepared > interval '10 s') \
             from pg_prepared_xacts",
        )
        .await;
    let said = run(&database, &["check", "--json"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out.contains("the prepared transaction 'forgotten'"),
        "{said:?}"
    );
    superuser.execute("rollback prepared 'forgotten'").await;
    run(&database, &["check"]).await.well();
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_refuse_marks_is_named() {
    let database = Database::migrated().await;
    both_are_content(&database, &[]).await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create function audit() returns trigger language plpgsql \
             as $$ begin return new; end $$; \
             create trigger of_texts before update of text on notifications \
             for each row execute function audit(); \
             create trigger of_inserts after insert on notifications \
             for each row execute function audit(); \
             alter table notifications add constraint short_texts check (length(text) < 100) \
             not valid",
        )
        .await;
    let constraint = "the constraint short_texts on public.notifications";
    let check = || run(&database, &["check", "--json"]);
    let said = check().await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(hint(&said, constraint).is_object());
    assert!(!said.out.contains("of_texts") && !said.out.contains("of_inserts"));
    superuser
        .execute(
            "alter table notifications validate constraint short_texts; \
             create trigger of_all before update on notifications \
             for each row execute function audit()",
        )
        .await;
    let said = check().await;
    assert!(!said.out.contains("short_texts"), "{said:?}");
    let found = hint(
        &said,
        "the trigger of_all on public.notifications (public.audit()) fires",
    );
    assert_eq!(found["topic"], "marks");
    superuser
        .execute("alter table notifications disable trigger of_all")
        .await;
    assert!(!check().await.out.contains("of_all"));
}

/// A finding that needs no fix.
pub(super) fn hint(said: &Said, text: &str) -> Value {
    let json = said.json();
    let all = json["findings"].as_array().expect("findings").clone();
    let is_it = |finding: &&Value| {
        let found = finding["found"]
            .as_str()
            .is_some_and(|found| found.contains(text));
        found && finding["kind"] == "hint"
    };
    let found = all.iter().find(is_it).cloned();
    found.unwrap_or_else(|| panic!("no hint of {text}: {said:?}"))
}
