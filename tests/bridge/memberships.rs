//! Memberships that the bridge reads from a relation of the application: they are delivered by,
//! changes take effect, and a relation that fails for a user affects that user only.

use crate::support::{
    bridge::Bridge,
    database::Database,
    event_source::{Event, EventSource},
    process, until,
};

const SETTING: &str = "--memberships=app.memberships";

/// A schema of the application that bridges may use.
async fn with_schema() -> Database {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute("create schema app; grant usage on schema app to tidings_bridge")
        .await;
    database
}

/// The members of projects, and a view of them.
async fn with_members(user: &str) -> Database {
    let database = with_schema().await;
    database
        .superuser()
        .execute(&format!(
            "create table app.members (user_id {user}, project text, since pg_snapshot); \
             create view app.memberships as \
               select user_id, 'project:' || project as topic, since from app.members \
               union all select user_id, '*', pg_current_snapshot() from app.members \
               union all select user_id, null, null from app.members; \
             grant select on app.memberships to tidings_bridge; \
             select tidings_watch('app.members', 'user_id')"
        ))
        .await;
    database
}

async fn change(database: &Database, statement: &str) {
    database.superuser().execute(statement).await;
}

async fn send(database: &Database, topic: &str, text: &str) {
    let insert = format!("insert into notifications (topic, text) values ('{topic}', '{text}')");
    database.execute(&insert).await;
}

/// The texts of the next notifications, up to this one.
async fn texts_to(source: &mut EventSource, last: &str) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let Event { name, data, .. } = source.next_event().await;
        if name != "message" {
            continue;
        }
        let is_last = data == last;
        texts.push(data);
        if is_last {
            return texts;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_found_by_a_column_of_any_type() {
    for (kind, member, strangers) in [
        (
            "bigint",
            "7",
            ["07", "+7", "7.0", "seven", " 7", "99999999999999999999"],
        ),
        ("text", "7", ["07", "+7", "7.0", "seven", " 7", "A"]),
        (
            "varchar(40)",
            "ann",
            ["Ann", "ann ", "an", "anna", "%", "_nn"],
        ),
        (
            "uuid",
            "0a1b2c3d-0000-4000-8000-00000000000f",
            [
                "0A1B2C3D-0000-4000-8000-00000000000F",
                "{0a1b2c3d-0000-4000-8000-00000000000f}",
                "0a1b2c3d00004000800000000000000f",
                "0a1b2c3d-0000-4000-8000-00000000000e",
                "x",
                "7",
            ],
        ),
    ] {
        let database = with_members(kind).await;
        // Twice, and once with what was visible: the oldest counts.
        let join = format!(
            "insert into app.members values ('{member}', '1', null), ('{member}', '1', null), \
             ('{member}', '1', pg_current_snapshot())"
        );
        change(&database, &join).await;
        let bridge = Bridge::start_with(&database, &[SETTING]).await;
        let mut source = bridge.connect_live(member).await;
        let mut others = Vec::new();
        for stranger in strangers {
            others.push(bridge.connect_live(stranger).await);
        }
        send(&database, "project:1", "for members").await;
        send(&database, "*", "for all").await;
        let received = texts_to(&mut source, "for all").await;
        assert_eq!(received, ["for members", "for all"], "{kind}");
        for (stranger, mut source) in strangers.into_iter().zip(others) {
            let received = texts_to(&mut source, "for all").await;
            assert_eq!(received, ["for all"], "{kind}: {stranger}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_take_effect_while_connected_and_away() {
    let database = with_members("bigint").await;
    let bridge = Bridge::start_with(&database, &[SETTING]).await;
    send(&database, "project:1", "before").await;
    let mut source = bridge.connect_live("7").await;
    change(&database, "insert into app.members values (7, '1')").await;
    send(&database, "project:1", "joined").await;
    assert_eq!(texts_to(&mut source, "joined").await, ["joined"]);
    change(&database, "delete from app.members where user_id = 7").await;
    send(&database, "project:1", "left").await;
    send(&database, "*", "for all").await;
    assert_eq!(texts_to(&mut source, "for all").await, ["for all"]);
    // Also if the application says so, and no trigger does.
    change(
        &database,
        "alter table app.members disable trigger user; \
         insert into app.members values (7, '1'); \
         select tidings_memberships_changed('7')",
    )
    .await;
    send(&database, "project:1", "joined again").await;
    assert_eq!(
        texts_to(&mut source, "joined again").await,
        ["joined again"]
    );
    let id = source.last_event_id().to_owned();
    source.reset();
    send(&database, "project:1", "missed").await;
    let mut source = bridge.resume("7", &id).await;
    assert_eq!(texts_to(&mut source, "missed").await, ["missed"]);
    // What was visible when a user joined isn't delivered, also to a new connection.
    send(&database, "project:2", "before joining").await;
    change(
        &database,
        "insert into app.members values (8, '2', pg_current_snapshot())",
    )
    .await;
    send(&database, "project:2", "after joining").await;
    let mut newcomer = bridge.connect("8").await;
    assert_eq!(
        texts_to(&mut newcomer, "after joining").await,
        ["after joining"]
    );
    // Where that isn't known, a new user begins at the present.
    change(&database, "insert into app.members values (9, '2')").await;
    let mut newcomer = bridge.connect_live("9").await;
    send(&database, "project:2", "now").await;
    assert_eq!(texts_to(&mut newcomer, "now").await, ["now"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relation_that_cannot_be_used_stops_the_start_with_an_explanation() {
    let database = with_schema().await;
    change(
        &database,
        "create view app.forbidden as select 1 as user_id, 'x' as topic, null::pg_snapshot as since; \
         create view app.short as select 1 as user_id, 'x' as topic; \
         create view app.user_less as select 'x' as topic, null::pg_snapshot as since; \
         create view app.dated as select 1 as user_id, 'x' as topic, now() as since; \
         create view app.numbered as select 1 as user_id, 2 as topic, null::pg_snapshot as since; \
         create view app.odd as select 1.5 as user_id, 'x' as topic, null::pg_snapshot as since; \
         grant select on app.short, app.user_less, app.dated, app.numbered, app.odd to tidings_bridge",
    )
    .await;
    for (name, expected) in [
        ("app.nothing", "the relation app.nothing doesn't exist"),
        (
            "nowhere.members",
            "the relation nowhere.members doesn't exist",
        ),
        (
            "a.b.c",
            "a.b.c is not the name of a relation with its schema",
        ),
        ("app.\"x", "is not the name of a relation with its schema"),
        ("app.forbidden", "grant select on app.forbidden to "),
        (
            "app.short",
            "app.short has no column since of type pg_snapshot",
        ),
        (
            "app.user_less",
            "app.user_less has no column user_id of type text",
        ),
        ("app.dated", "its type is timestamp with time zone"),
        (
            "app.numbered",
            "app.numbered has no column topic of type text",
        ),
        ("app.odd", "its type is numeric"),
    ] {
        let setting = format!("--memberships={name}");
        let said = process::refusal(&database, &[&setting]).await;
        assert!(said.contains(expected), "{name}: {said}");
    }
}

/// A view that fails in all possible ways, depending on the user.
async fn with_faults() -> Database {
    let database = with_schema().await;
    change(
        &database,
        "create table app.people (name text primary key); \
         insert into app.people values ('alice'), ('bob'), ('raises'), ('slow'), ('many'); \
         create function app.topics_of(name text) returns setof text language plpgsql as $$ begin \
           if name = 'raises' then raise exception 'broken for some'; end if; \
           if name = 'slow' then perform pg_sleep(60); end if; \
           if name = 'many' then \
             return query select 'topic:' || n from generate_series(1, 1000000) as n; \
           end if; \
           return query select 'news'; \
         end $$; \
         create view app.memberships as \
           select p.name as user_id, t.topic, null::pg_snapshot as since \
           from app.people as p cross join lateral app.topics_of(p.name) as t (topic); \
         grant select on app.memberships to tidings_bridge",
    )
    .await;
    database
}

/// The value of a metric without labels.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(-1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relation_that_fails_for_some_users_affects_only_those() {
    let database = with_faults().await;
    let bridge = Bridge::start_with(&database, &[SETTING, "--pool-size=4"]).await;
    let mut alice = bridge.connect_live("alice").await;
    let mut failing = bridge.connect("raises").await;
    // More than there are turns.
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(bridge.connect("slow").await);
    }
    let many = bridge.connect_live("many").await;
    send(&database, "news", "one").await;
    assert_eq!(texts_to(&mut alice, "one").await, ["one"]);
    // Without the distinction this would be an outage: failures for more than five seconds, and
    // hardly a success.
    bridge
        .until_metrics(
            |metrics| {
                value(metrics, "tidings_failing_subscribers") == 2.0
                    && value(metrics, "tidings_page_failures_total") >= 10.0
            },
            "both fail, and are retried",
        )
        .await;
    assert_eq!(bridge.admin("/health/ready").await.status(), 200);
    // Others connect, and read what they have missed, while those are retried.
    for _ in 0..3 {
        let mut bob = bridge.connect_live("bob").await;
        send(&database, "news", "two").await;
        assert_eq!(texts_to(&mut bob, "two").await, ["two"]);
        bob.reset();
    }
    assert_eq!(bridge.admin("/health/ready").await.status(), 200);
    drop((slow, many));
    // Once the relation works, they go on where they were.
    database
        .execute("select send_notification('raises', 'waited')")
        .await;
    change(
        &database,
        "create or replace function app.topics_of(name text) returns setof text language sql \
         as $$ select 'news' $$",
    )
    .await;
    let received = texts_to(&mut failing, "waited").await;
    assert_eq!(received, ["one", "two", "two", "two", "waited"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relation_that_fails_for_everyone_turns_readiness_red() {
    let database = with_faults().await;
    change(
        &database,
        "create or replace function app.topics_of(name text) returns setof text language plpgsql \
         as $$ begin raise exception 'broken for all'; end $$",
    )
    .await;
    let bridge = Bridge::start_with(&database, &[SETTING]).await;
    let (_alice, _bob) = (bridge.connect("alice").await, bridge.connect("bob").await);
    let answer = bridge.until_ready_is(503).await.text().await;
    assert!(answer.contains("broken for all"), "{answer}");
    change(
        &database,
        "create or replace function app.topics_of(name text) returns setof text language sql \
         as $$ select 'news' $$",
    )
    .await;
    bridge.until_ready_is(200).await;
    // A relation that is gone fails for everyone, too.
    change(&database, "alter view app.memberships rename to former").await;
    let _carol = bridge.connect("carol").await;
    let answer = bridge.until_ready_is(503).await.text().await;
    assert!(answer.contains("does not exist"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_too_many_topics_gets_a_thousand() {
    let database = with_faults().await;
    let bridge = Bridge::start_with(&database, &[SETTING]).await;
    let mut source = bridge.connect_live("many").await;
    let metrics = "tidings_topics 1000";
    bridge
        .until_metrics(|text| text.lines().any(|line| line == metrics), metrics)
        .await;
    database
        .execute("select send_notification('many', 'own')")
        .await;
    assert_eq!(texts_to(&mut source, "own").await, ["own"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_for_topics_is_counted() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select subscribe('alice', 'news'), subscribe('bob', 'news')")
        .await;
    let mut alice = bridge.connect_live("alice").await;
    let mut bob = bridge.connect_live("bob").await;
    send(&database, "news", "one").await;
    for source in [&mut alice, &mut bob] {
        assert_eq!(texts_to(source, "one").await, ["one"]);
    }
    let expected = [
        "tidings_topics 1",
        "tidings_topic_rows_total 1",
        "tidings_delivered_topic_rows_total 2",
        "tidings_membership_changes_total 2",
        "tidings_cursor_failures_total 0",
        "tidings_failing_subscribers 0",
    ];
    let has = |metrics: &str, lines: &[&str]| {
        let is_there = |line: &&str| metrics.lines().any(|other| other == *line);
        lines.iter().all(is_there)
    };
    bridge
        .until_metrics(|metrics| has(metrics, &expected), &expected.join(", "))
        .await;
    drop((alice, bob));
    let expected = ["tidings_topics 0", "tidings_cursors_written_total 2"];
    bridge
        .until_metrics(|metrics| has(metrics, &expected), &expected.join(", "))
        .await;
    // A role that may not write cursors serves on.
    database
        .superuser()
        .execute("revoke insert on tidings_cursors from tidings_bridge")
        .await;
    let mut alice = bridge.connect_live("alice").await;
    send(&database, "news", "two").await;
    texts_to(&mut alice, "two").await;
    drop(alice);
    bridge
        .until_metrics(
            |metrics| value(metrics, "tidings_cursor_failures_total") > 0.0,
            "a failure",
        )
        .await;
    assert_eq!(bridge.admin("/health/ready").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_while_rows_for_topics_were_removed_is_told() {
    // A cluster of its own: for an event id, any transaction of the cluster that has since ended
    // could be one whose rows were removed.
    let cluster = crate::support::database::start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select subscribe('alice', 'news'), subscribe('bob', 'news')")
        .await;
    let mut ids = Vec::new();
    for user in ["alice", "bob"] {
        let mut source = bridge.connect_live(user).await;
        send(&database, "news", "seen").await;
        texts_to(&mut source, "seen").await;
        ids.push(source.last_event_id().to_owned());
    }
    database
        .until("select count(*) = 2 from tidings_cursors")
        .await;
    database
        .owner()
        .execute(
            "insert into notifications (topic, text, created_at) \
             values ('news', 'removed', now() - interval '3 hours')",
        )
        .await;
    send(&database, "news", "kept").await;
    database
        .owner()
        .execute("call tidings_prune('30 days', topics_before => '2 hours')")
        .await;
    let mut alice = bridge.resume("alice", &ids[0]).await;
    crate::support::expect_gap(&mut alice, "pruned").await;
    let rest = until(&mut alice, "tidings.caught-up").await;
    assert!(rest.iter().any(|event| event.data == "kept"), "{rest:?}");
    // Without an id, the user's cursor says what was missed.
    let mut bob = bridge.connect("bob").await;
    crate::support::expect_gap(&mut bob, "pruned").await;
    assert_eq!(texts_to(&mut bob, "kept").await, ["kept"]);
    // Nobody who wasn't here before has missed anything.
    let mut carol = bridge.connect("carol").await;
    let events = until(&mut carol, "tidings.caught-up").await;
    assert!(events.iter().all(|event| event.name != "tidings.gap"));
    cluster.stop().await.expect("an end");
}

/// What it missed is among the bridge's recent rows; its topics are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_returns_soon_has_its_topics_although_none_were_used_yet() {
    let database = with_members("text").await;
    // As of before the bridge starts, so that it is told of no change.
    change(
        &database,
        "insert into app.members values ('ann', '1', null); \
         truncate tidings_membership_changes",
    )
    .await;
    let bridge = Bridge::start_with(&database, &[SETTING]).await;
    let id = bridge.connect_live("ann").await.last_event_id().to_owned();
    bridge.until_connections(0).await;
    database
        .execute("select send_notification('ann', 'missed')")
        .await;
    let mut ann = bridge.resume("ann", &id).await;
    until(&mut ann, "tidings.caught-up").await;
    send(&database, "project:1", "for members").await;
    assert_eq!(texts_to(&mut ann, "for members").await, ["for members"]);
}
