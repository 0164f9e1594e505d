//! Rows that an application's objects keep from being removed: they are skipped, counted and
//! retried, and all other rows are removed.

use std::{
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use tokio::process::Command;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
    process,
};

/// A generous upper bound for removing some thousand rows, most of which can't be removed.
const IN_TIME: Duration = Duration::from_secs(60);

/// The number of rows that were sent long ago: more than a batch.
const SENT: i64 = 900;

/// The number of rows that have expired, all at the same time: more than a batch.
const EXPIRED: i64 = 900;

/// Objects that an application adds, each of which keeps every third row.
const OBSTACLES: [(&str, &str); 9] = [
    (
        "a foreign key",
        "create table receipts (notification_id bigint references notifications); \
         insert into receipts select id from notifications where id % 3 = 0",
    ),
    (
        "a foreign key that restricts",
        "create table receipts \
           (notification_id bigint primary key references notifications on delete restrict); \
         insert into receipts select id from notifications where id % 3 = 0",
    ),
    (
        "a foreign key that is checked at commit",
        "create table receipts (notification_id bigint primary key \
           references notifications deferrable initially deferred); \
         insert into receipts select id from notifications where id % 3 = 0",
    ),
    (
        "a foreign key that sets a column to null that may not be null",
        "create table receipts \
           (notification_id bigint not null unique references notifications on delete set null); \
         insert into receipts select id from notifications where id % 3 = 0",
    ),
    (
        "a trigger that raises",
        "create function keep() returns trigger language plpgsql as $$ begin \
           if old.id % 3 = 0 then raise exception 'kept for the auditors'; end if; \
           return old; end $$; \
         create trigger keep before delete on notifications for each row execute function keep()",
    ),
    (
        "a trigger that skips",
        "create function keep() returns trigger language plpgsql as $$ begin \
           return case when old.id % 3 = 0 then null else old end; end $$; \
         create trigger keep before delete on notifications for each row execute function keep()",
    ),
    (
        "a trigger that raises after the statement",
        "create function keep() returns trigger language plpgsql as $$ begin \
           if exists (select from gone where id % 3 = 0) then raise exception 'kept'; end if; \
           return null; end $$; \
         create trigger keep after delete on notifications referencing old table as gone \
           for each statement execute function keep()",
    ),
    (
        "a trigger that raises at commit",
        "create function keep() returns trigger language plpgsql as $$ begin \
           if old.id % 3 = 0 then raise exception 'kept'; end if; return null; end $$; \
         create constraint trigger keep after delete on notifications \
           deferrable initially deferred for each row execute function keep()",
    ),
    (
        "a foreign key that cascades to a row that stays",
        "create table receipts \
           (notification_id bigint primary key references notifications on delete cascade); \
         insert into receipts select id from notifications where id % 3 = 0; \
         create function keep() returns trigger language plpgsql as $$ begin \
           raise exception 'kept'; end $$; \
         create trigger keep before delete on receipts for each row execute function keep()",
    ),
];

/// A database with rows whose time is over, and one young row.
async fn filled() -> Database {
    let database = Database::migrated().await;
    fill(&database).await;
    database
}

async fn fill(database: &Database) {
    let fill = format!(
        "insert into notifications (user_id, text, created_at, sent_at) \
         select 'bob', 'sent', now() - interval '3 hours', now() - interval '2 hours' \
         from generate_series(1, {SENT}); \
         insert into notifications (user_id, text, created_at, expires_at) \
         select 'bob', 'expired', now() - interval '3 hours', now() - interval '2 hours' \
         from generate_series(1, {EXPIRED}); \
         insert into notifications (user_id, text) values ('bob', 'young')"
    );
    database.owner().execute(&fill).await;
}

async fn prune(database: &Database) -> Output {
    let running = Command::new(process::PROGRAM)
        .args(["prune", "--sent-before=1h"])
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_LOG_FORMAT", "text")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(IN_TIME, running).await;
    output.expect("an end in time").expect("an output")
}

/// Its standard output and standard error.
async fn said_by(database: &Database) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = prune(database).await;
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (said, complaint) = (text(stdout), text(stderr));
    assert!(status.success(), "{complaint}");
    (said, complaint)
}

const LEFT: &str = "select id from notifications order by id";
const KEPT: &str = "select id from tidings_prune_failures order by id";
const TRIES: &str = "select distinct tries::bigint from tidings_prune_failures";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_something_keeps_are_skipped_and_counted_and_all_others_go() {
    for (what, obstacle) in OBSTACLES {
        let database = filled().await;
        database.superuser().execute(obstacle).await;
        let kept: Vec<i64> = (1..=SENT + EXPIRED).filter(|id| id % 3 == 0).collect();
        let gone = SENT + EXPIRED - kept.len() as i64;
        let (said, complaint) = said_by(&database).await;
        assert_eq!(said, format!("{gone} rows removed\n"), "{what}");
        let counted = format!("{} rows could not be removed: ", kept.len());
        assert!(
            complaint.contains(&counted) && complaint.contains("tidings check"),
            "{what}: {complaint}"
        );
        assert_eq!(database.ids(KEPT).await, kept, "{what}");
        let left = database.ids(LEFT).await;
        assert_eq!(left.split_last(), Some((&(SENT + EXPIRED + 1), &kept[..])));
        assert_eq!(database.ids(TRIES).await, [1], "{what}");

        // Automatic pruning retries them only later.
        let call = "call tidings_prune('1 hour')";
        database.owner().execute(call).await;
        assert_eq!(database.ids(TRIES).await, [1], "{what}");
        // The command retries them at once.
        let (said, complaint) = said_by(&database).await;
        assert_eq!(said, "0 rows removed\n", "{what}");
        assert!(complaint.contains(&counted), "{what}: {complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_keeps_all_rows_neither_fails_nor_goes_round_in_circles() {
    let database = filled().await;
    let rule = "create rule keep as on delete to notifications do instead nothing";
    database.superuser().execute(rule).await;
    let (said, complaint) = said_by(&database).await;
    assert_eq!(said, "0 rows removed\n");
    let counted = format!("{} rows could not be removed: ", SENT + EXPIRED);
    assert!(complaint.contains(&counted), "{complaint}");
    let drop = "drop rule keep on notifications";
    database.superuser().execute(drop).await;
    let call = "call tidings_prune('1 hour')";
    database.owner().execute(call).await;
    assert_eq!(database.ids(LEFT).await, [SENT + EXPIRED + 1]);
    assert_eq!(database.ids(KEPT).await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_what_kept_rows_has_changed_they_are_tried_again_at_once() {
    let changes = [
        (
            OBSTACLES[0].1,
            "alter table receipts drop constraint receipts_notification_id_fkey",
        ),
        (
            OBSTACLES[4].1,
            "create or replace function keep() returns trigger language plpgsql as $$ begin \
             return old; end $$",
        ),
        (
            OBSTACLES[4].1,
            "alter table notifications disable trigger keep",
        ),
    ];
    for (obstacle, change) in changes {
        let database = filled().await;
        database.superuser().execute(obstacle).await;
        let call = "call tidings_prune('1 hour')";
        database.owner().execute(call).await;
        let kept = (SENT + EXPIRED) / 3;
        let count = "select count(*) from tidings_prune_failures";
        assert_eq!(database.ids(count).await, [kept]);
        database.superuser().execute(change).await;
        database.owner().execute(call).await;
        assert_eq!(database.ids(LEFT).await, [SENT + EXPIRED + 1], "{change}");
        assert_eq!(database.ids(KEPT).await, [0; 0], "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_of_the_bridge_passes_them_and_says_so_in_the_log_and_the_metrics() {
    let database = filled().await;
    database.superuser().execute(OBSTACLES[0].1).await;
    let settings = ["--prune-sent-after=1h", "--prune-every=1s"];
    let bridge = Bridge::start_with(&database, &settings).await;
    let kept = (SENT + EXPIRED) / 3;
    let failed = format!("tidings_prune_failed_rows {kept}\n");
    let metrics = bridge
        .until_metrics(|metrics| metrics.contains(&failed), &failed)
        .await;
    let removed = format!("tidings_pruned_rows_total {}\n", SENT + EXPIRED - kept);
    assert!(metrics.contains(&removed), "{metrics}");
    bridge.stop().await;
    // The next passes skip them, and there is one line in the log.
    let mut served = process::Served::start(&database, &settings).await;
    let counted = format!("{kept} rows could not be removed");
    served.until_logged("WARN", &counted).await;
    fill(&database).await;
    let others = "select count(*) = 2 from notifications where id % 3 <> 0";
    database.until(others).await;
    let tries = "select tries::bigint from tidings_prune_failures where id = 3";
    assert_eq!(database.ids(tries).await, [1]);
    served.stop().await;
}

/// A batch ends in time however slow each delete is, and the next one continues behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_bounded_in_time_and_makes_progress_where_each_delete_is_slow() {
    let database = filled().await;
    database
        .superuser()
        .execute(
            "create function slow() returns trigger language plpgsql as $$ begin \
               perform pg_sleep(0.3); return old; end $$; \
             create trigger slow before delete on notifications \
               for each row execute function slow()",
        )
        .await;
    let owner = database.owner().connect().await;
    let mut after = 0_i64;
    for _ in 0..2 {
        let begin = Instant::now();
        let batch = "select removed, looked_to from tidings_prune_batch('1 hour', $1)";
        let row = owner.query_one(batch, &[&after]).await.expect(batch);
        // Deleting all of its rows would take five minutes.
        assert!(begin.elapsed() < Duration::from_secs(20));
        let (removed, looked_to): (i64, Option<i64>) = (row.get(0), row.get(1));
        assert!((2..100).contains(&removed), "{removed}");
        let looked_to = looked_to.expect("there is more");
        assert!(looked_to > after, "{looked_to}");
        after = looked_to;
        let left = database.ids(LEFT).await;
        assert!(left[0] > after, "what was tried before is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_delete_waits_for_a_lock_is_left_for_later() {
    let database = filled().await;
    database
        .superuser()
        .execute(
            "create table receipts \
               (notification_id bigint primary key references notifications on delete cascade); \
             insert into receipts values (7), (1007)",
        )
        .await;
    let holder = database.superuser().connect().await;
    let lock = "begin; select from receipts for update";
    holder.batch_execute(lock).await.expect(lock);
    let (said, complaint) = said_by(&database).await;
    assert_eq!(said, format!("{} rows removed\n", SENT + EXPIRED - 2));
    assert!(
        complaint.contains("2 rows could not be removed"),
        "{complaint}"
    );
    assert_eq!(database.ids(KEPT).await, [7, 1007]);
    let soon = "select count(*) from tidings_prune_failures \
                where retry_at < now() + interval '2 minutes'";
    assert_eq!(database.ids(soon).await, [2]);
    holder.batch_execute("commit").await.expect("an end");
    let (said, _) = said_by(&database).await;
    assert_eq!(said, "2 rows removed\n");
    assert_eq!(database.ids(KEPT).await, [0; 0]);
}

/// A returning client gets a gap for removed rows, even if other rows of the same batch stayed, and
/// a user's floor is removed with the user's last row.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_of_removed_rows_is_noted_beside_rows_that_stay() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    fill(&database).await;
    database.superuser().execute(OBSTACLES[0].1).await;
    database
        .owner()
        .execute(
            "insert into tidings_drained values ('bob', '7', 7), ('carol', '7', 7); \
             insert into notifications (user_id, text, created_at, sent_at) \
             select 'carol', 'sent', now() - interval '3 hours', now() - interval '2 hours'",
        )
        .await;
    let youngest = "select xid::text::bigint from notifications where user_id = 'carol'";
    let youngest = database.ids(youngest).await;
    said_by(&database).await;
    let noted = "select xid::text::bigint from tidings_pruned";
    assert_eq!(database.ids(noted).await, youngest);
    let floors = "select count(*) from tidings_drained where user_id = 'carol' \
                  union all select count(*) from tidings_drained";
    assert_eq!(database.ids(floors).await, [0, 1]);
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_floors_and_disconnections_that_stay_keep_no_rows() {
    let database = filled().await;
    database
        .superuser()
        .execute(
            "insert into stream_tickets (hash, user_id, created_at, expires_at) values \
               (sha256('a'), 'alice', now() - interval '3 hours', now() - interval '2 hours'); \
             insert into tidings_disconnections (user_id, created_at) \
               values ('alice', now() - interval '2 days'); \
             insert into tidings_drained values ('alice', '7', 7); \
             create table sessions (ticket bytea references stream_tickets); \
             insert into sessions select hash from stream_tickets; \
             create function keep() returns trigger language plpgsql as $$ begin \
               raise exception 'kept'; end $$; \
             create trigger keep before delete on tidings_disconnections \
               for each row execute function keep(); \
             create trigger keep before delete on tidings_drained \
               for each row execute function keep(); \
             insert into notifications (user_id, text, created_at, sent_at) values \
               ('alice', 'sent', now() - interval '3 hours', now() - interval '2 hours')",
        )
        .await;
    let (said, complaint) = said_by(&database).await;
    assert_eq!(said, format!("{} rows removed\n", SENT + EXPIRED + 1));
    assert_eq!(complaint, "");
    let stay = "select count(*) from stream_tickets \
                union all select count(*) from tidings_disconnections";
    assert_eq!(database.ids(stay).await, [1, 1]);
}
