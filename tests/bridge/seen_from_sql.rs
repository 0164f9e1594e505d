//! What operators see from SQL: the views show the current state, to roles that may see it.

use private_postgres::Cluster;
use tidings::delivery::{counters::BOUNDS, page_reader::SKIPPED_ROWS_BEFORE_NOTING};
use tokio_postgres::{Client, error::SqlState};

use crate::support::{
    PATIENCE,
    bridge::Bridge,
    database::{Database, start_cluster},
    process::Served,
    rows, until,
};

const VIEWS: [&str; 8] = [
    "tidings_pending",
    "tidings_pending_total",
    "tidings_throughput",
    "tidings_delay",
    "tidings_bridges",
    "tidings_size",
    "tidings_queue",
    "tidings_topics",
];

/// A monitor's session.
struct Dashboard(Client);

impl Dashboard {
    async fn of(database: &Database) -> Self {
        Self(database.monitor().connect().await)
    }

    /// The first column.
    async fn texts(&self, query: &str) -> Vec<String> {
        let rows = self.0.query(query, &[]).await.expect(query);
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn text(&self, query: &str) -> String {
        let texts = self.texts(query).await;
        assert_eq!(texts.len(), 1, "{query}");
        texts.concat()
    }

    /// Each user's number of pending rows, after checking that the total agrees.
    async fn pending(&self) -> Vec<String> {
        let pending = self
            .texts("select user_id || ' ' || pending from tidings_pending order by user_id")
            .await;
        let agrees = "select (t.pending, t.users, t.oldest) is not distinct from \
             (select (coalesce(sum(pending), 0)::bigint, count(*), min(oldest)) from tidings_pending) \
             from tidings_pending_total as t";
        let row = self.0.query_one(agrees, &[]).await.expect(agrees);
        assert!(row.get::<_, bool>(0), "{pending:?}");
        pending
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_is_what_is_neither_sent_nor_expired() {
    let database = Database::migrated().await;
    let (owner, dashboard) = (database.owner(), Dashboard::of(&database).await);
    assert_eq!(dashboard.pending().await, [""; 0]);
    owner
        .execute(
            "insert into notifications (user_id, text, created_at, expires_at, sent_at) values \
             ('alice', 'x', now() - interval '2 hours', null, null), \
             ('alice', 'x', now(), now() + interval '1 hour', null), \
             ('alice', 'x', now(), now() - interval '1 second', null), \
             ('bob', 'x', now() - interval '1 hour', null, null), \
             ('carol', 'x', now(), now() - interval '1 second', null), \
             ('dave', 'x', now(), null, now())",
        )
        .await;
    assert_eq!(dashboard.pending().await, ["alice 2", "bob 1"]);
    let ages = "select string_agg(user_id || ' ' || date_trunc('hour', age), ', ' order by user_id) \
        || ', all ' || (select date_trunc('hour', age) from tidings_pending_total) \
        from tidings_pending";
    let ages = dashboard.text(ages).await;
    assert_eq!(ages, "alice 02:00:00, bob 01:00:00, all 02:00:00");
    // A row whose time has no age must not hide the others.
    owner
        .execute("update notifications set created_at = '-infinity' where user_id = 'bob'")
        .await;
    assert_eq!(dashboard.pending().await, ["alice 2", "bob 1"]);
    let ageless = "select (select string_agg(user_id, ' ') from tidings_pending where age is null) \
        || ', all ' || (select age is null from tidings_pending_total)";
    assert_eq!(dashboard.text(ageless).await, "bob, all true");
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_begins_at_a_users_floor_as_long_as_that_counts() {
    let database = Database::migrated().await;
    let (owner, dashboard) = (database.owner(), Dashboard::of(&database).await);
    owner
        .execute("insert into notifications (user_id, text) values ('alice', 'x'), ('bob', 'x')")
        .await;
    // Bob's floor is of another cluster and doesn't count. Alice's counts, so her row is not shown.
    owner
        .execute(
            "insert into tidings_drained \
             select user_id, (xid::text::bigint + 1)::text::xid8, \
               system_identifier + case user_id when 'bob' then 1 else 0 end \
             from notifications, pg_control_system()",
        )
        .await;
    assert_eq!(dashboard.pending().await, ["bob 1"]);
    let reopen = "update notifications set sent_at = null where user_id = 'alice'";
    owner.execute(reopen).await;
    assert_eq!(dashboard.pending().await, ["alice 1", "bob 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floor_of_a_user_who_stays_follows_what_is_sent() {
    // A cluster of its own, because transactions of other databases count too.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let mut sent = 0;
    let noted = "select count(*) from notifications as n \
        where xid < (select xid from tidings_drained where user_id = 'alice')";
    // A chunk may hold rows of two statements, and rows that aren't marked yet stay above the
    // floor.
    while database.superuser().ids(noted).await[0] < 2 * i64::from(SKIPPED_ROWS_BEFORE_NOTING) {
        assert!(
            sent < 100 * SKIPPED_ROWS_BEFORE_NOTING,
            "no floor at {sent} rows"
        );
        let insert = "insert into notifications (user_id, text) \
             select 'alice', 'x' from generate_series(1, 10)";
        database.execute(insert).await;
        rows(&mut source, 10).await;
        sent += 10;
        database
            .until("select bool_and(sent) from notifications")
            .await;
    }
    database
        .execute("insert into notifications (user_id, text) values ('bob', 'x')")
        .await;
    let dashboard = Dashboard::of(&database).await;
    assert_eq!(dashboard.pending().await, ["bob 1"]);
    // Marks and floors reopen nothing.
    let reopened = "select count(*) from tidings_reopened";
    assert_eq!(database.superuser().ids(reopened).await, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_appears_falls_asleep_and_is_gone() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let _source = bridge.connect_live("alice").await;
    let asleep = "select exists (select from tidings_bridges where state = 'asleep')";
    database.until(asleep).await;
    // The listener gets another session, and is reported with its complete state.
    let end = "select pg_terminate_backend(pid) from tidings_bridges_seen";
    database.superuser().execute(end).await;
    let seen =
        "select exists (select from tidings_bridges where state = 'asleep' and connections = 1)";
    database.until(seen).await;
    let other = Bridge::start(&database).await;
    database
        .until("select count(*) = 2 from tidings_bridges where state = 'asleep'")
        .await;
    let dashboard = Dashboard::of(&database).await;
    let what = "select concat_ws(' ', version, role, address, state) from tidings_bridges \
        where since >= started_at and last_seen >= since and last_seen <= clock_timestamp() \
          and clock_offset between interval '-1 second' and interval '1 second' \
        order by started_at";
    let expected = [&bridge, &other].map(|bridge| {
        let version = env!("CARGO_PKG_VERSION");
        format!("{version} bridge {} asleep", bridge.address())
    });
    // A row isn't shown if its session is gone and another session has its process id.
    let superuser = database.superuser().connect().await;
    let gone = "insert into tidings_bridges_seen \
        select 'gone', '1', 'bridge', 'a', null, now() - interval '1 hour', a.pid, \
          a.backend_start - interval '1 hour', 'asleep', now() - interval '1 hour', 0, \
          interval '0', now() - interval '2 minutes' \
        from pg_stat_activity as a where a.pid = pg_backend_pid()";
    superuser.batch_execute(gone).await.expect(gone);
    assert_eq!(dashboard.texts(what).await, expected);
    // The superuser sees when sessions started, and therefore the same rows.
    let rows = superuser.query(what, &[]).await.expect(what);
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, expected);
    bridge.stop().await;
    database
        .until("select count(*) = 1 from tidings_bridges")
        .await;
    other.stop().await;
    database
        .until("select count(*) = 0 from tidings_bridges")
        .await;
    assert_eq!(dashboard.texts(what).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bridges_did_stands_in_its_minute() {
    let database = Database::migrated().await;
    // The row that waited for alice counts as sent, but not as late.
    database
        .execute("insert into notifications (user_id, text) values ('alice', 'early')")
        .await;
    let bridges = [
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    ];
    let mut alice = bridges[0].connect("alice").await;
    let early = until(&mut alice, "tidings.caught-up").await;
    assert_eq!(early.len(), 1);
    let mut bob = bridges[1].connect_live("bob").await;
    let insert = "insert into notifications (user_id, text) \
        select unnest(array['alice', 'alice', 'bob', 'away']), 'x'";
    for _ in 0..5 {
        database.execute(insert).await;
    }
    rows(&mut alice, 10).await;
    rows(&mut bob, 5).await;
    database
        .until("select bool_and(sent or user_id = 'away') from notifications")
        .await;
    for bridge in bridges {
        bridge.stop().await;
    }
    let dashboard = Dashboard::of(&database).await;
    let throughput = "select concat_ws(' ', count(*), sum(inserted), sum(sent), \
        max(minute) = date_trunc('minute', now()), max(minute) - min(minute)) from tidings_throughput";
    assert_eq!(dashboard.text(throughput).await, "60 20 16 t 00:59:00");
    let delay = "select concat_ws(' ', count(*), sum(sent), \
        bool_and(p50 <= p99 and p99 < interval '1 minute' and p50 > interval '0')) from tidings_delay";
    assert_eq!(dashboard.text(delay).await, "60 15 t");
}

/// The view has the program's bounds.
#[tokio::test(flavor = "multi_thread")]
async fn delays_lie_between_the_bounds_that_they_were_counted_by() {
    let database = Database::migrated().await;
    let count = "insert into tidings_activity \
        select date_trunc('minute', now()) - n * interval '1 minute', 'a', 0, 0, \
          array_agg(case when bucket = n then 4 else 0 end order by bucket) \
        from generate_series(1, 18) as n, generate_series(1, 18) as bucket group by n";
    database.owner().execute(count).await;
    let dashboard = Dashboard::of(&database).await;
    let quantiles = "select array[extract(epoch from p50), extract(epoch from p99)]::float8[] \
        from tidings_delay where sent = 4 order by minute desc";
    let rows = dashboard.0.query(quantiles, &[]).await.expect(quantiles);
    assert_eq!(rows.len(), BOUNDS.len() + 1);
    let mut low = 0.0;
    for (row, bound) in rows.iter().zip(BOUNDS) {
        let (high, found) = (bound.as_secs_f64(), row.get::<_, Vec<f64>>(0));
        // Postgres stores microseconds.
        let middle = (low + high) / 2.0;
        assert!((found[0] - middle).abs() < 2e-6, "{found:?} of {bound:?}");
        assert!(found[1] > middle && found[1] <= high, "{found:?}");
        low = high;
    }
    let beyond: Vec<f64> = rows[BOUNDS.len()].get(0);
    assert_eq!(beyond, [60.0, 60.0]);
    // Counts of all bridges are added: 198 quick rows and two slower ones.
    let more = "insert into tidings_activity \
        values (date_trunc('minute', now()), 'a', 0, 0, array[98, 0, 2]), \
          (date_trunc('minute', now()), 'b', 0, 0, array[100, 0, 0])";
    database.owner().execute(more).await;
    let now =
        "select concat_ws(' ', sent, p50, p99) from tidings_delay order by minute desc limit 1";
    let now = dashboard.text(now).await;
    assert_eq!(now, "200 00:00:00.000101 00:00:00.0002");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_older_than_a_day_are_removed() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into tidings_activity \
             select now() - interval '25 hours' - n * interval '1 minute', 'old', 0, 0, '{}' \
             from generate_series(1, 20) as n; \
             insert into tidings_activity values (now() - interval '23 hours', 'young', 0, 0, '{}'); \
             insert into tidings_bridges_seen \
             select 'old', '1', null, 'a', null, now(), 1, null, 'awake', now(), 0, null, \
               now() - interval '25 hours'",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    database
        .until(
            "select (select count(*) from tidings_activity) = 1 \
             and not exists (select from tidings_bridges_seen where bridge = 'old')",
        )
        .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_the_queue_are_shown() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 100) from generate_series(1, 1000); \
             analyze notifications",
        )
        .await;
    // Before PostgreSQL 15, a statement's statistics are reported after it has ended.
    database
        .until("select last_analyze is not null from tidings_size where name = 'notifications'")
        .await;
    let dashboard = Dashboard::of(&database).await;
    let sizes = "select concat_ws(' ', kind, name, \"table\", rows, bytes > 0, \
        bytes_per_row between 10 and 1000, size = pg_size_pretty(bytes), last_analyze is not null) \
        from tidings_size where \"table\" = 'notifications'";
    assert_eq!(
        dashboard.texts(sizes).await,
        [
            "table notifications notifications 1000 t t t t",
            // None of the rows expires.
            "index notifications_expires_at notifications 0 t t f",
            "index notifications_pkey notifications 1000 t t t f",
            // None of them is for a topic.
            "index notifications_topic_xid_id notifications 0 t t f",
            "index notifications_user_id_xid_id notifications 1000 t t t f",
            "index notifications_xid_id notifications 1000 t t t f",
        ]
    );
    let all = "select count(distinct \"table\")::text from tidings_size";
    let tables = "select count(*)::text from pg_class \
        where relnamespace = 'public'::regnamespace and relkind = 'r'";
    assert_eq!(dashboard.text(all).await, dashboard.text(tables).await);

    let writer = database.superuser().connect().await;
    let begin = "begin; insert into notifications (user_id, text) values ('alice', 'x')";
    writer.batch_execute(begin).await.expect(begin);
    let pid = "select pg_backend_pid()";
    let pid: i32 = writer.query_one(pid, &[]).await.expect(pid).get(0);
    let held = "select concat_ws(' ', usage >= 0 and usage < 1, held_by, pid, age, state) \
        from tidings_queue";
    // A monitor sees the session that holds it; only a role that may see everything sees since
    // when.
    assert_eq!(dashboard.text(held).await, format!("t session {pid}"));
    let rest = "select age > interval '0' and state = 'idle in transaction' from tidings_queue";
    let superuser = database.superuser().connect().await;
    let row = superuser.query_one(rest, &[]).await.expect(rest);
    assert!(row.get::<_, bool>(0));
    writer.batch_execute("rollback").await.expect("rollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn autovacuum_is_not_reported_as_holding_back_vacuum() {
    let cluster = Cluster::temporary(&[("autovacuum_naptime", "1s")]).await;
    let cluster = cluster.expect("a private PostgreSQL");
    let database = Database::migrated_in(&cluster).await;
    database
        .owner()
        .execute(
            "alter table notifications set (autovacuum_vacuum_threshold = 100, \
               autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1); \
             insert into notifications (user_id, text) \
             select 'alice', 'x' from generate_series(1, 10000); \
             update notifications set sent_at = now()",
        )
        .await;
    let at_work = "select exists (select from pg_stat_activity where \
        backend_type = 'autovacuum worker' and backend_xmin is not null \
        and datname = current_database())";
    let dashboard = Dashboard::of(&database).await;
    let superuser = database.superuser().connect().await;
    let held = "select coalesce(held_by, 'nobody') from tidings_queue";
    // A worker may end while the view is read, such as one that only analyses a table. Then
    // nothing was seen, and the next one counts.
    let seen = async {
        loop {
            database.superuser().until(at_work).await;
            let holder = dashboard.text(held).await;
            let row = superuser.query_one(at_work, &[]).await.expect(at_work);
            if row.get::<_, bool>(0) {
                return holder;
            }
        }
    };
    let holder = tokio::time::timeout(PATIENCE, seen).await;
    assert_eq!(holder.expect("autovacuum is at work"), "nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_may_read_the_views_and_nobody_else() {
    let database = Database::migrated().await;
    let (dashboard, bridge) = (
        database.monitor().connect().await,
        database.bridge().connect().await,
    );
    let writer = database.connect().await;
    for view in VIEWS {
        let query = format!("select * from {view}");
        dashboard.query(&query, &[]).await.expect(view);
        bridge.query(&query, &[]).await.expect(view);
        let refused = writer.query(&query, &[]).await.expect_err(view);
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
        let described = "select obj_description($1::text::regclass, 'pg_class') is not null \
            and bool_and(col_description(attrelid, attnum) is not null) \
            and not bool_or(attname in ('text', 'event')) \
            from pg_attribute where attrelid = $1::text::regclass and attnum > 0";
        let row = dashboard.query_one(described, &[&view]).await.expect(view);
        assert!(row.get::<_, bool>(0), "{view}");
    }
    for (who, statement) in [
        (&writer, "select * from tidings_pending_users()"),
        (&writer, "select * from tidings_activity"),
        (&dashboard, "delete from tidings_activity"),
        (
            &bridge,
            "insert into tidings_activity values (now(), 'x', 0, 0, '{}')",
        ),
        (&bridge, "delete from tidings_bridges_seen"),
        (
            &dashboard,
            "select tidings_report('x', 'x', 'x', 'x', null, now(), 1, now(), 'awake', now(), 0, \
             null, null, 0, 0, '{}')",
        ),
    ] {
        let refused = who.batch_execute(statement).await.expect_err(statement);
        assert_eq!(
            refused.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{statement}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_may_not_report_still_serves() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "do $$ begin execute format('revoke execute on function %s from tidings_bridge', \
             (select oid::regprocedure from pg_proc where proname = 'tidings_report')); end $$",
        )
        .await;
    let mut bridge = Served::start(&database, &[]).await;
    bridge.until_logged("WARN", "`tidings check` prints").await;
    let mut source = bridge.connect("alice", None).await;
    until(&mut source, "tidings.caught-up").await;
    database
        .execute("select send_notification('alice', 'x')")
        .await;
    rows(&mut source, 1).await;
    bridge.stop().await;
    let told = "select count(*) from tidings_bridges_seen";
    assert_eq!(database.superuser().ids(told).await, [0]);
}
