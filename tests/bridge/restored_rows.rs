//! Restored rows with old transaction ids, below their users' floors and below the positions of
//! open connections, are delivered, whichever way they are restored.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::{
    bridge::Bridge,
    database::{Database, psql, start_cluster},
    dev::shell,
    event_source::EventSource,
    until,
};

/// A generous upper bound for a row to reach an open connection.
const LIVE: Duration = Duration::from_secs(10);

/// Records that everything so far was delivered to alice and bob.
const DRAIN: &str = "insert into tidings_drained (user_id, xid, system_identifier) \
    select u, pg_current_xact_id(), system_identifier \
    from pg_control_system(), unnest(array['alice', 'bob']) as u \
    on conflict (user_id) do update set xid = excluded.xid";

/// Whether the floors are valid, by the same condition as in `sql/backlog_page.sql`.
const FLOORS_COUNT: &str = "select not exists \
    (select from tidings_reopened as r, tidings_drained as d where r.xid >= d.xid)";

/// A database whose users' rows were all delivered long ago.
async fn drained() -> Database {
    let database = Database::migrated().await;
    drain(&database).await;
    database
}

async fn drain(database: &Database) {
    database
        .execute("select send_notification('alice', 'sent'), send_notification('bob', 'sent')")
        .await;
    let owner = database.owner();
    let mark = "update notifications set sent_at = now()";
    owner.execute(mark).await;
    let transactions = "do $$ begin for n in 1..100 loop \
                          perform pg_current_xact_id(); commit; end loop; end $$";
    owner.execute(transactions).await;
    owner.execute(DRAIN).await;
    assert_eq!(
        database.ids("select count(*) from tidings_drained").await,
        [2]
    );
    database.until(FLOORS_COUNT).await;
}

async fn backlog(bridge: &Bridge, user: &str) -> Vec<String> {
    let mut source = bridge.connect(user).await;
    let events = until(&mut source, "tidings.caught-up").await;
    events.into_iter().map(|event| event.data).collect()
}

async fn live(source: &mut EventSource) -> String {
    let event = timeout(LIVE, source.next_event()).await;
    event.expect("it comes in time").data
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_with_an_older_transaction_is_delivered_live_and_as_backlog() {
    let both = "select u, 'restored', '5'::xid8 from unnest(array['alice', 'bob']) as u";
    let insert = format!("insert into notifications (user_id, text, xid) {both}");
    let ways = [
        insert.clone(),
        "insert into notifications (user_id, text, xid) values \
           ('alice', 'restored', '5'), ('bob', 'restored', '5')"
            .to_owned(),
        // A row with its old id.
        "with old as (delete from notifications returning *) \
         insert into notifications (id, user_id, text, created_at, xid) \
         overriding system value \
         select id, user_id, 'restored', created_at, xid from old"
            .to_owned(),
        format!("begin; set local session_replication_role = replica; {insert}; commit"),
        format!("begin; savepoint s; {insert}; release savepoint s; commit"),
        format!("begin; set local tidings.doorbell = off; {insert}; commit"),
        format!("begin; set local tidings.marking = 'on'; {insert}; commit"),
        format!(
            "begin; set local search_path = pg_catalog; \
                 {}; commit",
            insert.replace("into notifications", "into public.notifications")
        ),
    ];
    for way in ways {
        let database = drained().await;
        let bridge = Bridge::start(&database).await;
        let mut alice = bridge.connect_live("alice").await;
        database.superuser().execute(&way).await;
        assert_eq!(live(&mut alice).await, "restored", "{way}");
        assert_eq!(backlog(&bridge, "bob").await, ["restored"], "{way}");
        // A restored row that was already sent stays unchanged.
        let history = "insert into notifications (user_id, text, xid, sent_at) \
                       values ('alice', 'history', '5', now())";
        database.superuser().execute(history).await;
        database
            .execute("select send_notification('alice', 'new')")
            .await;
        assert_eq!(live(&mut alice).await, "new", "{way}");
        let kept = "select xid::text::bigint from notifications where text = 'history'";
        assert_eq!(database.ids(kept).await, [5]);
        // It doesn't invalidate any floor.
        database.until(FLOORS_COUNT).await;
        bridge.stop().await;
    }
}

/// A change that a transaction makes after it has restored a row counts as a change.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_taken_away_behind_a_restored_row_is_noticed_in_any_role() {
    for role in ["origin", "replica"] {
        let database = drained().await;
        database
            .superuser()
            .execute(&format!(
                "begin; set local session_replication_role = {role}; \
                 insert into notifications (user_id, text, xid) values ('carol', 'x', '5'); \
                 update notifications set sent_at = null where user_id = 'alice'; commit"
            ))
            .await;
        let bridge = Bridge::start(&database).await;
        assert_eq!(backlog(&bridge, "alice").await, ["sent"], "{role}");
        bridge.stop().await;
    }
}

/// As operators do who want to restore a single table's rows.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_data_only_dump_are_delivered_also_if_triggers_were_disabled() {
    for disable in [false, true] {
        let cluster = start_cluster().await;
        let database = Database::migrated_in(&cluster).await;
        database
            .execute("select send_notification('alice', 'lost'), send_notification('bob', 'lost')")
            .await;
        let program = |name: &str| psql().with_file_name(name).display().to_string();
        let url = database.superuser().connection_string();
        let dump = cluster.folder().join("dump");
        let dump = dump.display();
        shell(&format!(
            "'{}' --data-only --format=custom --table=notifications --file={dump} '{url}'",
            program("pg_dump")
        ))
        .await;
        let empty = "delete from notifications";
        database.owner().execute(empty).await;
        drain(&database).await;
        let bridge = Bridge::start(&database).await;
        let mut alice = bridge.connect_live("alice").await;
        let how = if disable { "--disable-triggers" } else { "" };
        shell(&format!(
            "'{}' --data-only {how} --exit-on-error -d '{url}' {dump}",
            program("pg_restore")
        ))
        .await;
        let old = "select count(*) from notifications as n join tidings_drained as d \
                   using (user_id) where n.text = 'lost' and n.xid < d.xid";
        if disable {
            assert_eq!(database.ids(old).await, [2], "below the floors");
        } else {
            assert_eq!(live(&mut alice).await, "lost");
        }
        assert_eq!(backlog(&bridge, "bob").await, ["lost"]);
        drop(alice);
        bridge.stop().await;
        cluster.stop().await.expect("an end");
    }
}

/// While writes may have gone unnoticed, floors don't count, not even for monitoring. Once the
/// triggers are restored, floors count again and hide nothing.
#[tokio::test(flavor = "multi_thread")]
async fn floors_do_not_count_while_what_guards_them_may_not_fire() {
    for (breaking, mending) in [
        (
            "alter table notifications disable trigger all",
            "alter table notifications enable trigger all; \
             alter table notifications enable always trigger tidings_restamp; \
             alter table notifications enable always trigger tidings_reopen",
        ),
        (
            "alter table notifications disable trigger user; \
             alter table notifications enable trigger user",
            "alter table notifications enable always trigger tidings_restamp; \
             alter table notifications enable always trigger tidings_reopen",
        ),
        (
            "alter table notifications enable trigger tidings_reopen",
            "alter table notifications enable always trigger tidings_reopen",
        ),
        (
            "drop trigger tidings_restamp on notifications",
            "create trigger tidings_restamp after insert on notifications for each row \
               when (new.xid <> pg_current_xact_id() and new.sent_at is null) \
               execute function tidings_restamp(); \
             alter table notifications enable always trigger tidings_restamp",
        ),
    ] {
        let database = drained().await;
        let superuser = database.superuser();
        superuser.execute(breaking).await;
        superuser
            .execute(
                "begin; set local session_replication_role = replica; \
                 insert into notifications (user_id, text, xid) values \
                   ('alice', 'restored', '5'), ('bob', 'restored', '5'); commit",
            )
            .await;
        let bridge = Bridge::start(&database).await;
        assert_eq!(backlog(&bridge, "alice").await, ["restored"], "{breaking}");
        let waits = "select pending from tidings_pending where user_id = 'bob'";
        assert_eq!(database.ids(waits).await, [1], "{breaking}");
        let fix = format!(
            "begin; {mending}; insert into tidings_reopened (xid) values (pg_current_xact_id()) \
             on conflict do nothing; commit"
        );
        superuser.execute(&fix).await;
        assert_eq!(backlog(&bridge, "bob").await, ["restored"], "{breaking}");
        bridge.stop().await;
    }
}

/// A dump of a copy of this cluster that was further ahead, with the same identifier.
#[tokio::test(flavor = "multi_thread")]
async fn a_floor_of_the_future_hides_nothing_also_once_the_future_has_come() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let owner = database.owner();
    let future = "insert into tidings_drained (user_id, xid, system_identifier) \
                  select 'alice', (pg_current_xact_id()::text::bigint + 500)::text::xid8, \
                    system_identifier from pg_control_system()";
    owner.execute(future).await;
    database
        .execute("select send_notification('alice', 'unsent')")
        .await;
    let waits = "select pending from tidings_pending where user_id = 'alice'";
    assert_eq!(database.ids(waits).await, [1]);
    Bridge::start(&database).await.stop().await;
    let transactions = "do $$ begin for n in 1..1000 loop \
                          perform pg_current_xact_id(); commit; end loop; end $$";
    owner.execute(transactions).await;
    assert_eq!(database.ids(waits).await, [1]);
    let bridge = Bridge::start(&database).await;
    assert_eq!(backlog(&bridge, "alice").await, ["unsent"]);
    bridge.stop().await;
    cluster.stop().await.expect("an end");
}
