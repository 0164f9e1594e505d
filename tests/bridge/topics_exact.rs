//! Promises of topics: what a user is owed is delivered once, whatever is committed late, and nothing
//! of before joining or after leaving. Each test is a situation in which a simpler design loses or
//! repeats a row (docs/decisions/0015-memberships.md); random programs seldom reach them.
//!
//! A row of the user's own that is committed last is a fence: whatever was owed before precedes it.

use std::sync::atomic::{AtomicU32, Ordering};

use private_postgres::Shutdown;
use tokio_postgres::Client;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_forgetful_cluster},
    event_source::{EventSource, Item},
    opening,
    proxy::Network,
    until,
};

/// A bridge and its database, and an application with two sessions.
struct Scene {
    database: Database,
    bridge: Bridge,
    one: Client,
    two: Client,
    third: Client,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with(&[]).await
    }

    async fn set_with(settings: &[&str]) -> Self {
        let database = Database::migrated().await;
        let bridge = Bridge::start_with(&database, settings).await;
        Self {
            one: database.connect().await,
            two: database.connect().await,
            third: database.connect().await,
            database,
            bridge,
        }
    }

    /// Runs this in a session of its own.
    async fn run(&self, work: &str) {
        run(&self.third, work).await;
    }

    /// Waits until the bridge has read everything that is committed.
    async fn until_read(&self, witness: &mut EventSource) {
        self.run("select send_notification('witness', 'read')")
            .await;
        while witness.next_event().await.data != "read" {}
    }

    async fn witness(&self) -> EventSource {
        self.bridge.connect_live("witness").await
    }

    /// Alice's rows up to a fence.
    async fn rows(&self, source: &mut EventSource) -> Vec<String> {
        let fence = fence(&self.third).await;
        up_to(source, &fence).await
    }
}

/// Sends alice a row of her own, and returns its text.
async fn fence(client: &Client) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let fence = format!("fence {}", NEXT.fetch_add(1, Ordering::Relaxed));
    run(
        client,
        &format!("select send_notification('alice', '{fence}')"),
    )
    .await;
    fence
}

async fn run(client: &Client, work: &str) {
    client.batch_execute(work).await.expect(work);
}

/// The rows up to this fence, without earlier fences.
async fn up_to(source: &mut EventSource, fence: &str) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let event = source.next_event().await;
        assert_ne!(event.name, "tidings.gap");
        if event.data == fence {
            return texts;
        }
        if !event.name.starts_with("tidings.") && !event.data.starts_with("fence ") {
            texts.push(event.data);
        }
    }
}

/// The next rows, fences included.
async fn next_rows(source: &mut EventSource, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let event = source.next_event().await;
        if !event.name.starts_with("tidings.") {
            texts.push(event.data);
        }
    }
    texts
}

fn to_x(text: &str) -> String {
    format!("insert into notifications (topic, text) values ('x', '{text}');")
}

const JOIN: &str = "select subscribe('alice', 'x');";
const LEAVE: &str = "select unsubscribe('alice', 'x');";

/// More own rows than a client that doesn't read can receive: its stream stays in the middle of them.
/// 60 MB.
const FLOOD: &str = "insert into notifications (user_id, text) \
     select 'alice', 'flood ' || n || repeat('.', 100000) from generate_series(1, 600) n;";
const FLOOD_ROWS: usize = 600;

/// Without the rows of the flood, all of which must be there.
fn without_flood(mut texts: Vec<String>) -> Vec<String> {
    let all = texts.len();
    texts.retain(|text| !text.starts_with("flood "));
    assert_eq!(all - texts.len(), FLOOD_ROWS, "rows of the flood");
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_transaction_that_joins_is_delivered_whatever_else_ends() {
    let scene = Scene::set().await;
    let mut live = scene.bridge.connect_live("alice").await;
    let id = live.last_event_id().to_owned();
    let work = format!("begin; {}", to_x("before"));
    run(&scene.one, &work).await;
    // Whether a younger transaction has ended decides whether a snapshot shows the own one.
    scene.run("select pg_current_xact_id()").await;
    run(&scene.one, &format!("{JOIN} {} commit", to_x("after"))).await;
    assert_eq!(scene.rows(&mut live).await, ["before", "after"]);
    let mut resumed = scene.bridge.resume("alice", &id).await;
    assert_eq!(scene.rows(&mut resumed).await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_read_before_the_membership_was_visible_is_delivered_then() {
    for settings in [&[][..], &["--heartbeat=1s"][..]] {
        let scene = Scene::set_with(settings).await;
        let mut live = scene.bridge.connect_live("alice").await;
        run(&scene.one, &format!("begin; {JOIN}")).await;
        scene.run(&to_x("late")).await;
        assert!(scene.rows(&mut live).await.is_empty());
        let id = live.last_event_id().to_owned();
        run(&scene.one, "commit").await;
        assert_eq!(scene.rows(&mut live).await, ["late"]);
        let mut resumed = scene.bridge.resume("alice", &id).await;
        assert_eq!(scene.rows(&mut resumed).await, ["late"]);
        // No stream has ended: there is no cursor.
        let mut stranger = scene.bridge.connect("alice").await;
        assert_eq!(scene.rows(&mut stranger).await, ["late"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_visible_when_the_user_joined_precedes_the_membership() {
    let scene = Scene::set().await;
    let mut live = scene.bridge.connect_live("alice").await;
    // The transaction that joins is older than the first row, and younger than the second.
    run(&scene.one, "begin; select pg_current_xact_id()").await;
    scene.run(&to_x("before")).await;
    run(&scene.two, &format!("begin; {}", to_x("owed"))).await;
    run(&scene.one, &format!("{JOIN} commit")).await;
    assert!(scene.rows(&mut live).await.is_empty());
    run(&scene.two, "commit").await;
    assert_eq!(scene.rows(&mut live).await, ["owed"]);
    // Neither does a backlog or a replay have it.
    let mut stranger = scene.bridge.connect("alice").await;
    let backlog = until(&mut stranger, "tidings.caught-up").await;
    assert!(
        backlog.iter().all(|event| event.data != "before"),
        "{backlog:?}"
    );
    let mut replayed = scene.bridge.connect_with("alice", "?replay=100", &[]).await;
    let replayed = until(&mut replayed, "tidings.caught-up").await;
    let texts: Vec<_> = replayed.iter().map(|event| &*event.data).collect();
    assert!(
        texts.contains(&"owed") && !texts.contains(&"before"),
        "{texts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_becomes_visible_with_the_membership_comes_once() {
    let scene = Scene::set().await;
    let mut live = scene.bridge.connect_live("alice").await;
    for round in 0..30 {
        let text = round.to_string();
        run(&scene.one, &format!("begin; {}", to_x(&text))).await;
        run(&scene.two, &format!("begin; {JOIN} commit")).await;
        run(&scene.one, "commit").await;
        assert_eq!(scene.rows(&mut live).await, [text]);
        scene.run(LEAVE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_do_not_move_the_position_past_what_their_transaction_left() {
    let scene = Scene::set_with(&["--heartbeat=1s"]).await;
    let mut live = scene.bridge.connect_live("alice").await;
    run(&scene.one, &format!("begin; {JOIN}")).await;
    for text in ["late 1", "late 2"] {
        scene.run(&to_x(text)).await;
    }
    assert!(scene.rows(&mut live).await.is_empty());
    let id = live.last_event_id().to_owned();
    let work = format!(
        "insert into notifications (user_id, text) values ('alice', 'own'); {} commit",
        to_x("new")
    );
    run(&scene.one, &work).await;
    let mut got = scene.rows(&mut live).await;
    got.sort();
    assert_eq!(got, ["late 1", "late 2", "new", "own"]);
    // A client that breaks after any of them has lost none.
    for kept in 0..=4 {
        let mut source = scene.bridge.resume("alice", &id).await;
        let mut got = next_rows(&mut source, kept).await;
        let last = source.last_event_id().to_owned();
        source.reset();
        let last = if last.is_empty() { &id } else { &last };
        let mut source = scene.bridge.resume("alice", last).await;
        got.extend(scene.rows(&mut source).await);
        got.retain(|text| !text.starts_with("fence "));
        let repeated = got.len() - 4;
        got.sort();
        got.dedup();
        assert_eq!(got, ["late 1", "late 2", "new", "own"], "after {kept}");
        assert!(
            repeated <= kept.min(2),
            "only late rows may come again: {repeated}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_in_the_middle_of_new_rows_gets_the_rest_alone() {
    let scene = Scene::set().await;
    let live = scene.bridge.connect_live("alice").await;
    let id = live.last_event_id().to_owned();
    drop(live);
    scene.run(JOIN).await;
    for text in ["1", "2", "3", "4", "5"] {
        scene.run(&to_x(text)).await;
    }
    let mut source = scene.bridge.resume("alice", &id).await;
    let mut got = next_rows(&mut source, 2).await;
    let id = source.last_event_id().to_owned();
    source.reset();
    let mut source = scene.bridge.resume("alice", &id).await;
    got.extend(scene.rows(&mut source).await);
    assert_eq!(got, ["1", "2", "3", "4", "5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_nobody_here_had_when_it_was_read_is_not_new_to_whoever_joins() {
    for settings in [&[][..], &["--heartbeat=1s"][..]] {
        let scene = Scene::set_with(settings).await;
        let mut live = scene.bridge.connect_live("alice").await;
        let mut witness = scene.witness().await;
        run(&scene.one, "begin; select pg_current_xact_id()").await;
        run(&scene.two, &format!("begin; {JOIN}")).await;
        run(&scene.one, &format!("{} commit", to_x("owed"))).await;
        scene.until_read(&mut witness).await;
        run(&scene.two, "commit").await;
        assert_eq!(scene.rows(&mut live).await, ["owed"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_while_pages_are_read_leaves_no_membership() {
    let scene = Scene::set().await;
    let mut witness = scene.witness().await;
    scene.run(FLOOD).await;
    // It doesn't read.
    let mut slow = scene.bridge.connect("alice").await;
    opening(&mut slow).await;
    scene.run(JOIN).await;
    scene.until_read(&mut witness).await;
    scene.run(&to_x("while a member")).await;
    scene.until_read(&mut witness).await;
    scene.run(LEAVE).await;
    scene.until_read(&mut witness).await;
    scene.run(&to_x("after leaving")).await;
    scene.until_read(&mut witness).await;
    assert!(without_flood(scene.rows(&mut slow).await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_begins_before_the_end_of_the_former_one_repeats_nothing() {
    let scene = Scene::set().await;
    scene.run(JOIN).await;
    let mut live = scene.bridge.connect_live("alice").await;
    let replace = format!("begin isolation level repeatable read; select; {LEAVE} {JOIN}");
    run(&scene.one, &replace).await;
    scene.run(&to_x("as the former")).await;
    assert_eq!(scene.rows(&mut live).await, ["as the former"]);
    run(&scene.one, "commit").await;
    assert!(scene.rows(&mut live).await.is_empty(), "it was sent");
    scene.run(&to_x("as the next")).await;
    assert_eq!(scene.rows(&mut live).await, ["as the next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_is_replaced_while_pages_are_read_repeats_nothing() {
    let scene = Scene::set().await;
    scene.run(JOIN).await;
    let mut slow = scene.bridge.connect_live("alice").await;
    let replace = format!("begin isolation level repeatable read; select; {LEAVE} {JOIN}");
    run(&scene.one, &replace).await;
    scene.run(&to_x("as the former")).await;
    assert_eq!(scene.rows(&mut slow).await, ["as the former"]);
    let mut witness = scene.witness().await;
    scene.run(FLOOD).await;
    scene.until_read(&mut witness).await;
    run(&scene.one, "commit").await;
    scene.until_read(&mut witness).await;
    scene.run(&to_x("as the next")).await;
    assert_eq!(without_flood(scene.rows(&mut slow).await), ["as the next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_the_user_leaves_is_not_delivered() {
    // What one stream settles isn't owed to the other, which reads it later.
    let scene = Scene::set_with(&["--settle=60s"]).await;
    scene.run(JOIN).await;
    let mut witness = scene.witness().await;
    let mut live = scene.bridge.connect_live("alice").await;
    // In the backlog of the second one, and in the mailbox of the first.
    scene.run(FLOOD).await;
    scene.run(&to_x("waits")).await;
    let mut slow = scene.bridge.connect("alice").await;
    opening(&mut slow).await;
    scene.until_read(&mut witness).await;
    scene.run(LEAVE).await;
    scene.until_read(&mut witness).await;
    let fence = fence(&scene.third).await;
    for source in [&mut live, &mut slow] {
        assert!(without_flood(up_to(source, &fence).await).is_empty());
    }
    // It is gone for good.
    scene.run(JOIN).await;
    assert!(scene.rows(&mut live).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_takes_effect_within_a_second_of_its_commit() {
    let scene = Scene::set().await;
    scene.run(JOIN).await;
    let mut live = scene.bridge.connect_live("alice").await;
    for round in 0..20 {
        let text = round.to_string();
        scene.run(&to_x(&text)).await;
        assert_eq!(scene.rows(&mut live).await, [text]);
        // Not even one moment after: the same statement reads both.
        scene.run(LEAVE).await;
        scene.run(&to_x("after leaving")).await;
        assert!(scene.rows(&mut live).await.is_empty());
        scene.run(JOIN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_committed_while_streams_open_come_once_to_each() {
    let scene = Scene::set().await;
    scene.run(JOIN).await;
    let first = scene.bridge.connect_live("alice").await;
    let id = first.last_event_id().to_owned();
    drop(first);
    let writing = async {
        for number in 0..300 {
            run(&scene.one, &to_x(&number.to_string())).await;
        }
        run(&scene.one, "select send_notification('alice', 'end')").await;
    };
    let reading = async {
        for _ in 0..30 {
            let mut source = scene.bridge.resume("alice", &id).await;
            let texts = up_to(&mut source, "end").await;
            let expected: Vec<_> = (0..300).map(|number| number.to_string()).collect();
            assert_eq!(texts, expected);
        }
    };
    tokio::join!(writing, reading);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_from_before_a_membership_was_visible_does_not_hide_its_rows() {
    let scene = Scene::set().await;
    // Its own topic, so that the stream has a cursor.
    scene.run("select subscribe('alice', 'y')").await;
    let mut live = scene.bridge.connect_live("alice").await;
    run(&scene.one, &format!("begin; {JOIN}")).await;
    scene.run(&to_x("late")).await;
    scene.run("select send_to_topic('y', 'y')").await;
    assert_eq!(scene.rows(&mut live).await, ["y"]);
    drop(live);
    let stored = "select exists (select from tidings_cursors where user_id = 'alice')";
    scene.database.until(stored).await;
    run(&scene.one, "commit").await;
    // Only the cursor knows now that the transaction was open.
    let mut witness = scene.witness().await;
    scene.until_read(&mut witness).await;
    let mut stranger = scene.bridge.connect("alice").await;
    assert_eq!(scene.rows(&mut stranger).await, ["late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_does_not_bring_back_a_membership_that_ended_and_takes_one_that_was_not_on_disk() {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut live = bridge.connect_live("alice").await;
    let hurried = database.connect().await;
    run(&hurried, &format!("{JOIN} set synchronous_commit = off")).await;
    let joined = fence(&hurried).await;
    up_to(&mut live, &joined).await;
    run(&hurried, LEAVE).await;
    run(&hurried, "select subscribe('alice', 'y')").await;
    let left = fence(&hurried).await;
    up_to(&mut live, &left).await;
    // Passed over, from here on.
    run(&hurried, &to_x("passed over")).await;
    run(&hurried, "select send_to_topic('y', 'seen')").await;
    let seen = fence(&hurried).await;
    assert_eq!(up_to(&mut live, &seen).await, ["seen"]);
    cluster.restart(Shutdown::Immediate).await.expect("a start");
    database.until_accepts().await;
    let kept = async |topic: &str| {
        let query = format!("select count(*) from topic_subscriptions where topic = '{topic}'");
        database.ids(&query).await[0]
    };
    assert_eq!(kept("x").await, 0, "it had ended");
    // Something else may have flushed the log in time.
    let owed: &[&str] = match kept("y").await {
        0 => &[],
        _ => &["of y"],
    };
    let after = database.connect().await;
    run(&after, &to_x("foreign")).await;
    run(&after, "select send_to_topic('y', 'of y')").await;
    let end = fence(&after).await;
    assert_eq!(up_to(&mut live, &end).await, owed);
    cluster.stop().await.expect("an end");
}

/// A page of late rows continues after the last one. A membership that becomes visible in between may
/// have late rows before that.
#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_appears_between_two_pages_of_late_rows_loses_none() {
    const LATE: usize = 1_600;
    let scene = Scene::set().await;
    let mut slow = scene.bridge.connect_live("alice").await;
    let mut witness = scene.witness().await;
    run(&scene.one, &format!("begin; {JOIN}")).await;
    run(&scene.two, "begin; select subscribe('alice', 'y')").await;
    scene
        .run("insert into notifications (topic, text) select 'y', 'y ' || n from generate_series(1, 3) n")
        .await;
    scene
        .run(&format!(
            "insert into notifications (topic, text) \
             select 'x', n || repeat('.', 20000) from generate_series(1, {LATE}) n"
        ))
        .await;
    // The stream is past them.
    assert!(scene.rows(&mut slow).await.is_empty());
    // 32 MB of late rows, in several pages.
    run(&scene.one, "commit").await;
    scene.until_read(&mut witness).await;
    run(&scene.two, "commit").await;
    scene.until_read(&mut witness).await;
    let mut got = scene.rows(&mut slow).await;
    assert_eq!(got.len(), LATE + 3);
    got.sort();
    got.dedup();
    assert_eq!(got.len(), LATE + 3, "each once");
}

/// The membership is younger than every row, so nothing but itself moves a position past it.
#[tokio::test(flavor = "multi_thread")]
async fn late_rows_of_the_youngest_transaction_do_not_come_again() {
    let scene = Scene::set_with(&["--heartbeat=1s"]).await;
    let mut live = scene.bridge.connect_live("alice").await;
    run(&scene.two, &format!("begin; {}", to_x("late"))).await;
    run(&scene.one, &format!("begin; {JOIN}")).await;
    run(&scene.two, "commit").await;
    run(&scene.one, "commit").await;
    assert_eq!(next_rows(&mut live, 1).await, ["late"]);
    // The id of a heartbeat: late rows keep the id of before.
    let id = loop {
        if let Item::Id(id) = live.next_item().await.expect("a stream") {
            break id;
        }
    };
    let mut resumed = scene.bridge.resume("alice", &id).await;
    let missed = until(&mut resumed, "tidings.caught-up").await;
    let mut rows = missed
        .iter()
        .filter(|event| !event.name.starts_with("tidings."));
    assert_eq!(rows.next(), None);
}

/// The cursor of another tab may pass a row after this tab was opened and before its first page was
/// read.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_tab_settles_before_the_first_page_comes_here_too() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let (near, far) = (
        Bridge::start(&database).await,
        Bridge::start(&reached).await,
    );
    let writer = database.connect().await;
    run(&writer, JOIN).await;
    let mut tab = near.connect_live("alice").await;
    let mut witness = far.connect_live("alice").await;
    run(&writer, &to_x("before")).await;
    let sent = fence(&writer).await;
    for source in [&mut tab, &mut witness] {
        assert_eq!(up_to(source, &sent).await, ["before"]);
    }
    // The far bridge can't read now.
    network.set(Network::BlackHole);
    let mut opened = far.connect("alice").await;
    run(&writer, &to_x("meanwhile")).await;
    let sent = fence(&writer).await;
    assert_eq!(up_to(&mut tab, &sent).await, ["meanwhile"]);
    drop(tab);
    let stored = "select exists (select from tidings_cursors)";
    database.until(stored).await;
    network.set(Network::Pass);
    network.reset();
    let sent = fence(&writer).await;
    let got = up_to(&mut opened, &sent).await;
    assert!(got.contains(&"meanwhile".to_owned()), "{got:?}");
    assert_eq!(up_to(&mut witness, &sent).await, ["meanwhile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_asks_for_topics_moves_no_cursor() {
    let scene = Scene::set().await;
    scene
        .run(&format!("{JOIN} select subscribe('alice', 'y')"))
        .await;
    let mut narrowed = scene.bridge.connect_with("alice", "?topic=y", &[]).await;
    until(&mut narrowed, "tidings.caught-up").await;
    scene
        .run(&format!("{} select send_to_topic('y', 'y')", to_x("x")))
        .await;
    assert_eq!(scene.rows(&mut narrowed).await, ["y"]);
    drop(narrowed);
    scene.bridge.until_connections(0).await;
    let mut stranger = scene.bridge.connect("alice").await;
    assert_eq!(scene.rows(&mut stranger).await, ["x", "y"]);
}

const FLOOR: &str = "select floor::text::bigint from tidings_cursors where user_id = 'alice'";

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_spares_whoever_comes_without_an_id_and_losing_it_repeats_rows() {
    let scene = Scene::set().await;
    scene.run(JOIN).await;
    let mut tab = scene.bridge.connect_live("alice").await;
    scene.run(&to_x("1")).await;
    assert_eq!(scene.rows(&mut tab).await, ["1"]);
    drop(tab);
    scene
        .database
        .until("select exists (select from tidings_cursors where user_id = 'alice')")
        .await;
    scene.run(&to_x("2")).await;
    let mut next = scene.bridge.connect("alice").await;
    assert_eq!(scene.rows(&mut next).await, ["2"]);
    let floor = scene.database.ids(FLOOR).await[0];
    drop(next);
    scene
        .database
        .until(&format!("select ({FLOOR}) > {floor}"))
        .await;
    let owner = scene.database.owner().connect().await;
    run(&owner, "delete from tidings_cursors").await;
    let mut third = scene.bridge.connect("alice").await;
    assert_eq!(scene.rows(&mut third).await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_memberships_are_as_exact() {
    let scene = Scene::set().await;
    let owner = scene.database.superuser().connect().await;
    run(
        &owner,
        "create table members (user_id text, room int, primary key (user_id, room)); \
         grant all on members to tidings_writer; \
         select tidings_watch('members', 'user_id', 'room', 'room:')",
    )
    .await;
    let mut live = scene.bridge.connect_live("alice").await;
    scene.run("select send_to_topic('room:1', 'before')").await;
    run(
        &scene.one,
        "begin; insert into members values ('alice', 1), ('bob', 2)",
    )
    .await;
    scene.run("select send_to_topic('room:1', 'late')").await;
    assert!(scene.rows(&mut live).await.is_empty());
    run(&scene.one, "select send_to_topic('room:1', 'own'); commit").await;
    let mut got = scene.rows(&mut live).await;
    got.sort();
    assert_eq!(got, ["late", "own"]);
    // One is replaced by the other.
    scene
        .run("delete from members; insert into members values ('bob', 1), ('alice', 2)")
        .await;
    scene
        .run("select send_to_topic('room:1', '1'); select send_to_topic('room:2', '2')")
        .await;
    assert_eq!(scene.rows(&mut live).await, ["2"]);
    scene.run("update members set room = 3 - room").await;
    scene
        .run("select send_to_topic('room:1', '1'); select send_to_topic('room:2', '2')")
        .await;
    assert_eq!(scene.rows(&mut live).await, ["1"]);
    run(&owner, "truncate members").await;
    scene
        .run("select send_to_topic('room:1', '1'); select send_to_topic('room:2', '2')")
        .await;
    assert!(scene.rows(&mut live).await.is_empty());
}
