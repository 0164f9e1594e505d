//! At a million rows the reading queries still use their indexes, even with plans that were made
//! while the table was empty and never analyzed.

use serde_json::Value;
use tidings::postgres::{connect, queries::Sql, schema::SchemaName};

use crate::support::database::Database;

/// The number of buffers that a query with few or no rows to return may touch. A table scan would
/// touch tens of thousands; measured here: 4 to 40.
const BUFFERS: u64 = 200;

const ROWS: u32 = 1_000_000;

/// The number of users with rows.
const USERS: u64 = 2_501;

/// For each user: the step from the previous user, the user's floor, and the first row above it.
const BUFFERS_A_USER: u64 = 16;

/// The user with half of the rows.
const HEAVY: &str = "heavy";

#[tokio::test(flavor = "multi_thread")]
async fn at_a_million_rows_every_reading_query_stays_on_its_index() {
    let database = Database::migrated().await;
    let (client, _driver) = connect::connect(&database.url(), |_| ())
        .await
        .expect("a session");
    connect::settle(&client).await.expect("its settings");
    let sql = Sql::new(&SchemaName::public());
    let owner = database.owner().connect().await;
    owner
        .batch_execute(
            "alter table notifications set (autovacuum_enabled = off); \
             create function public.since() returns timestamptz language sql security definer \
               as 'select since from public.tidings_incarnation'",
        )
        .await
        .expect("a table that is never analysed");
    let prepared = [
        (
            "tail_page",
            "xid8, xid8[], xid8[], bigint[], bigint, bigint, xid8, xid8[], bigint, bigint",
            &sql.tail_page,
        ),
        (
            "tail_page_past_floor",
            "xid8, xid8[], xid8, bigint, bigint",
            &sql.tail_page_past_floor,
        ),
        (
            "user_page",
            "xid8, xid8[], bigint[], bigint, bigint, text",
            &sql.user_page,
        ),
        // A replica has the same indexes, and plans for itself.
        (
            "user_page_on_replica",
            "xid8, xid8[], bigint[], bigint, bigint, text, xid8, xid8[]",
            &sql.user_page_on_replica,
        ),
        (
            "backlog_page",
            "text, bigint, bigint, xid8, xid8[], bigint[], bigint, bigint",
            &sql.backlog_page,
        ),
        ("tail_start", "", &sql.tail_start),
        (
            "mark_sent",
            "bigint[], int, timestamptz, timestamptz[]",
            &sql.mark_sent,
        ),
        (
            "acknowledged",
            "text[], bigint[], xid8[], bigint[], bigint[], xid8[], bigint[], bigint, int",
            &sql.acknowledged,
        ),
        ("doorbell", "text, name", &sql.doorbell),
        ("drain", "text, xid8, bigint, int, timestamptz", &sql.drain),
        ("drain_live", "text, bigint", &sql.drain_live),
    ];
    for (name, types, query) in prepared {
        let types = if types.is_empty() {
            String::new()
        } else {
            format!("({types})")
        };
        let prepare = format!("prepare {name} {types} as {query}");
        client.batch_execute(&prepare).await.expect(name);
    }
    // Planned while the table is empty, as by a bridge on a new database.
    for execute in executions("0", "0", 1) {
        client.batch_execute(&execute).await.expect(&execute);
    }

    let fill = format!(
        "insert into notifications (user_id, text, sent_at) \
         select case n % 2 when 0 then '{HEAVY}' else 'user' || n % 5000 end, 'row ' || n, now() \
         from generate_series(1, {ROWS}) n"
    );
    owner.batch_execute(&fill).await.expect("a million rows");
    let last = owner
        .query_one(
            "select xid::text, (xid::text::bigint + 1)::text from notifications \
             order by xid desc limit 1",
            &[],
        )
        .await
        .expect("the newest transaction");
    let (last, floor): (String, String) = (last.get(0), last.get(1));
    owner
        .batch_execute("insert into notifications (user_id, text) select 'user7', 'new' from generate_series(1, 20)")
        .await
        .expect("new rows");
    owner
        .batch_execute(&format!(
            "insert into notifications (user_id, text) select '{HEAVY}', 'new' from generate_series(1, 3)"
        ))
        .await
        .expect("unsent rows");
    // When a query finds rows only after skipping all of these, a floor is recorded, and the next
    // query doesn't read them again.
    let heavy = format!(
        "execute backlog_page ('{HEAVY}', 501, 262144, '{}', '{{}}', '{{}}', 7, 100)",
        u64::MAX >> 1
    );
    let (first, _) = explain(&client, &heavy).await;
    assert!(first > u64::from(ROWS / 2) / 100, "{first} buffers");
    let note = format!("execute drain ('{HEAVY}', '{floor}', 7, 1, public.since())");
    client.batch_execute(&note).await.expect(&note);
    let (second, plan) = explain(&client, &heavy).await;
    assert!(second <= BUFFERS, "{second} buffers: {plan:#}");
    // Since version 18, Postgres reports a mean with a fraction.
    assert_eq!(plan["Actual Rows"].as_f64(), Some(3.0), "{plan:#}");

    for execute in executions(&floor, &last, i64::from(ROWS) + 1) {
        assert_cheap(&client, &execute).await;
    }
    // As if all users had been connected, some of them for a long time.
    let drain = format!(
        "insert into tidings_drained \
         select distinct user_id, '{floor}'::xid8, system_identifier \
         from notifications, pg_control_system() \
         on conflict (user_id) do update set system_identifier = excluded.system_identifier"
    );
    owner.batch_execute(&drain).await.expect(&drain);
    assert_cheap(&client, "execute drain_live ('user7', 10000)").await;
    assert_pending_is_cheap(&database).await;
    assert_marks_of_adopted_tables_are_cheap(&database).await;
    owner
        .batch_execute("analyze notifications")
        .await
        .expect("analyze");
    assert_pending_is_cheap(&database).await;
    assert_marks_of_adopted_tables_are_cheap(&database).await;
    for execute in executions(&floor, &last, i64::from(ROWS) + 2) {
        assert_cheap(&client, &execute).await;
    }
}

/// A page of disconnections costs only what it contains: after a million rows, among them, and
/// beside a transaction that has been open since before them.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_million_disconnections_a_page_of_them_costs_no_more() {
    let database = Database::migrated().await;
    let (client, _driver) = connect::connect(&database.url(), |_| ())
        .await
        .expect("a session");
    connect::settle(&client).await.expect("its settings");
    let sql = Sql::new(&SchemaName::public());
    let prepare = format!("prepare page as {}", sql.disconnections);
    client.batch_execute(&prepare).await.expect("a statement");
    let first = "execute page ('3', '{}', '{}', 2001)";
    // Planned while the table is empty.
    client.batch_execute(first).await.expect(first);
    let owner = database.owner().connect().await;
    let fill = format!(
        "alter table tidings_disconnections set (autovacuum_enabled = off); \
         insert into tidings_disconnections (user_id) \
         select 'user' || n from generate_series(1, {ROWS}) n"
    );
    owner.batch_execute(&fill).await.expect("a million");
    let xid = "select xid::text::bigint from tidings_disconnections limit 1";
    let xid = database.ids(xid).await[0];
    for (page, rows) in [
        (first.to_owned(), 2001),
        (
            format!("execute page ('{}', '{{}}', '{{}}', 2001)", xid + 1),
            0,
        ),
        (
            format!(
                "execute page ('{}', '{{{xid}}}', '{{500000}}', 2001)",
                xid + 1
            ),
            2001,
        ),
        // Rows of a transaction that were read aren't read again, although an earlier transaction
        // is still open.
        (
            format!(
                "execute page ('{}', '{{{}}}', '{{0}}', 2001)",
                xid + 1,
                xid - 1
            ),
            0,
        ),
        ("execute page (null, '{}', '{}', 2001)".to_owned(), 1),
    ] {
        let found = client.query(page.as_str(), &[]).await.expect(&page);
        let found = found
            .iter()
            .filter(|row| row.get::<_, Option<i64>>("id").is_some());
        assert_eq!(found.count(), rows, "{page}");
        let (buffers, plan) = explain(&client, &page).await;
        assert!(buffers <= BUFFERS, "{buffers} buffers: {page}: {plan:#}");
    }
}

/// Pending rows are found without reading the others, in a dashboard's session, which has none of
/// our settings.
async fn assert_pending_is_cheap(database: &Database) {
    let dashboard = database.monitor().connect().await;
    // One of them has been marked.
    let pending = "select pending, users from tidings_pending_total";
    let row = dashboard.query_one(pending, &[]).await.expect(pending);
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (22, 2));
    let (buffers, plan) = explain(&dashboard, pending).await;
    assert!(buffers <= USERS * BUFFERS_A_USER, "{buffers}: {plan:#}");
}

/// The page of a user with 500 topics, in a table of a million rows of which 400,000 are for
/// topics.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_topics_stays_on_its_indexes() {
    /// For each topic: the way down the index, and the rows of the page.
    const BUFFERS_A_TOPIC: u64 = 8;
    const TOPICS: u64 = 500;

    let database = Database::migrated().await;
    let (client, _driver) = connect::connect(&database.url(), |_| ())
        .await
        .expect("a session");
    connect::settle(&client).await.expect("its settings");
    let sql = Sql::new(&SchemaName::public());
    for (name, types, query) in [
        (
            "topic_page",
            "xid8, xid8[], bigint[], bigint, bigint, text, xid8, xid8[], pg_snapshot, xid8, \
             bigint, bigint, text[], text[], pg_snapshot, xid8, xid8[], bigint[], xid8, pg_snapshot, \
             xid8, bigint",
            &sql.topic_page,
        ),
        (
            "membership_changes",
            "xid8, xid8[], bigint",
            &sql.membership_changes,
        ),
        (
            "replay_start",
            "text, bigint, bigint, text[], text[]",
            &sql.replay_start,
        ),
    ] {
        let prepare = format!("prepare {name} ({types}) as {query}");
        client.batch_execute(&prepare).await.expect(name);
    }
    let page = |user: &str, floor: u64, handled: u64, topics: &str| {
        format!(
            "execute topic_page ('{floor}', '{{}}', '{{}}', 501, 262144, '{user}', '{handled}', \
             '{{}}', null, null, null, 1001, {topics}, null, null, null, null, null, null, null, null, null)"
        )
    };
    client
        .batch_execute(&page("alice", 1, 1, "null"))
        .await
        .expect("a page of an empty table");
    database
        .owner()
        .execute(&format!(
            "alter table notifications set (autovacuum_enabled = off); \
             alter table topic_subscriptions set (autovacuum_enabled = off); \
             insert into notifications (user_id, text) \
               select 'user' || n % 5000, 'x' from generate_series(1, {ROWS} - 400000) as n; \
             insert into notifications (topic, text) \
               select 'topic' || n % 1000, 'x' from generate_series(1, 400000) as n; \
             insert into topic_subscriptions (user_id, topic) \
               select 'alice', 'topic' || n from generate_series(1, {TOPICS}) as n; \
             insert into topic_subscriptions (user_id, topic) \
               select 'user' || n % 2000, 'topic' || n % 1000 from generate_series(1, 50000) as n \
               on conflict do nothing; \
             insert into topic_subscriptions (user_id, topic, since) values ('carol', 'topic1', '1:1:')"
        ))
        .await;
    let next = "select (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint";
    let next = database.ids(next).await[0].unsigned_abs();
    database
        .owner()
        .execute(
            "insert into notifications (topic, text) \
               select 'topic' || n, 'new' from generate_series(1, 30) as n; \
             insert into notifications (user_id, text) values ('alice', 'own')",
        )
        .await;
    for (page, rows, bound) in [
        (
            page("alice", next, next, "null"),
            31,
            TOPICS * BUFFERS_A_TOPIC,
        ),
        (
            page("alice", next + 100, next + 100, "null"),
            0,
            TOPICS * BUFFERS_A_TOPIC,
        ),
        (page("alice", next, next, "'{topic3}'"), 2, BUFFERS),
        (page("bob", next, next, "null"), 0, BUFFERS),
        // Late rows: 400 of one topic, read by their keys.
        (page("carol", next, 1, "null"), 400, 400 * BUFFERS_A_TOPIC),
        (
            "execute membership_changes (pg_snapshot_xmax(pg_current_snapshot()), '{}', 1000)"
                .to_owned(),
            0,
            BUFFERS,
        ),
        (
            "execute replay_start ('alice', 10, 1000, null, '{}')".to_owned(),
            1,
            3 * TOPICS * BUFFERS_A_TOPIC,
        ),
    ] {
        let found = client.query(page.as_str(), &[]).await.expect(&page);
        let found = found.iter().filter(|row| {
            row.try_get::<_, Option<i64>>("id")
                .is_ok_and(|id| id.is_some())
        });
        assert_eq!(found.count(), rows, "{page}");
        let (buffers, plan) = explain(&client, &page).await;
        assert!(buffers <= bound, "{buffers} buffers: {page}: {plan:#}");
        let text = plan.to_string();
        for scan in ["Seq Scan\"", "Bitmap"] {
            assert!(!text.contains(scan), "{page}: {plan:#}");
        }
    }
}

/// The position has an open transaction, which has been read up to its millionth row.
fn executions(floor: &str, open: &str, id: i64) -> [String; 11] {
    let position = format!("'{floor}', array['{open}']::xid8[], array[{ROWS}::bigint]");
    [
        format!(
            "execute tail_page ('{floor}', '{{}}', array['{open}']::xid8[], array[{ROWS}::bigint], \
             1001, 1048576, '{floor}', '{{}}', 251, 262144)"
        ),
        // In the middle of a large transaction that is read in pieces, ...
        format!(
            "execute tail_page ('{floor}', '{{}}', array['{open}']::xid8[], \
             array[{ROWS}::bigint / 2], 31, 1048576, '{floor}', '{{}}', 31, 262144)"
        ),
        // ... and at the beginning of one that was running before.
        format!(
            "execute tail_page ('{floor}', array['{open}']::xid8[], '{{}}', '{{}}', 1001, 1048576, \
             '{floor}', array['{open}']::xid8[], 31, 1048576)"
        ),
        format!("execute tail_page_past_floor ('{floor}', '{{}}', '{floor}', 1001, 1048576)"),
        format!("execute user_page ({position}, 501, 262144, 'user7')"),
        format!(
            "execute user_page_on_replica ({position}, 501, 262144, 'user7', \
             pg_snapshot_xmax(pg_current_snapshot()), '{{}}')"
        ),
        format!("execute backlog_page ('user7', 501, 262144, {position}, 7, 100)"),
        "execute tail_start".to_owned(),
        format!("execute mark_sent (array[{id}::bigint], 1, public.since(), array[now()])"),
        // For a user whose floor is far behind, and for one with few rows.
        format!(
            "execute acknowledged (array['{HEAVY}', 'user7'], array[2, 7]::bigint[], \
             array['{floor}', '{floor}']::xid8[], array[0, 0]::bigint[], array[1, 2]::bigint[], \
             array['{open}', '{open}']::xid8[], array[{ROWS}, {ROWS}]::bigint[], 7, 1000)"
        ),
        "execute doorbell ('notifications', 'tidings_ring_doorbell')".to_owned(),
    ]
}

/// The number of buffers that it touches, and its plan.
/// The settings of this session are the application's, whose function is called.
async fn assert_marks_of_adopted_tables_are_cheap(database: &Database) {
    let owner = database.owner().connect().await;
    owner
        .batch_execute(
            "create table if not exists adopted (id int primary key); \
             create or replace function mark_adopted(text[]) returns text \
               language sql security definer as 'select null'; \
             insert into tidings_adopted (schema_name, table_name, ref_prefix, mark_function) \
             values ('public', 'adopted', 'adopted:', 'mark_adopted') on conflict do nothing",
        )
        .await
        .expect("an adopted table");
    let client = database.bridge().connect().await;
    for ids in ["null", "array[5, 500000]"] {
        let mark = format!("select tidings_mark_adopted('public', 'adopted', {ids}, 10)");
        // The first call reads the catalogs, too.
        for is_measured in [false, true] {
            let anywhere = "update tidings_adopted set swept_at = '-infinity', swept_to = 500000";
            owner.batch_execute(anywhere).await.expect(anywhere);
            match is_measured {
                true => assert_cheap(&client, &mark).await,
                false => client.batch_execute(&mark).await.expect(&mark),
            }
        }
    }
}

async fn explain(client: &tokio_postgres::Client, execute: &str) -> (u64, Value) {
    let explain = format!("explain (analyze, buffers, format json) {execute}");
    let row = client.query_one(&explain, &[]).await.expect(&explain);
    // The binary form of plain json has no decoder that fits serde here: read the text.
    let mut plan: Value = serde_json::from_str(&row.get::<_, PlanText>(0).0).expect("a plan");
    let plan = plan[0]["Plan"].take();
    let buffers = plan["Shared Hit Blocks"].as_u64().expect("buffers")
        + plan["Shared Read Blocks"].as_u64().expect("buffers");
    (buffers, plan)
}

async fn assert_cheap(client: &tokio_postgres::Client, execute: &str) {
    let (buffers, plan) = explain(client, execute).await;
    // A user's backlog is searched for among all the user's retained rows.
    let bound = if execute.contains("backlog") {
        BUFFERS * 5
    } else if execute.contains("acknowledged") {
        // It passes over a thousand rows of a user whose floor is far behind.
        BUFFERS * 2
    } else {
        BUFFERS
    };
    assert!(
        buffers <= bound,
        "{execute} touched {buffers} buffers: {plan:#}"
    );
    assert!(
        !plan.to_string().contains("Seq Scan\""),
        "{execute}: {plan:#}"
    );
}

/// The text of a json value.
struct PlanText(String);

impl<'a> tokio_postgres::types::FromSql<'a> for PlanText {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }

    tokio_postgres::types::accepts!(JSON);
}
