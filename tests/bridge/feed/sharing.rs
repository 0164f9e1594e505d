//! One bridge reads, and the others follow it.

use futures_util::future::join_all;

use super::{
    ALONE, FEEDING, FOLLOWING, bridge, bridge_with, metric, pair, read_metric, receives,
    receives_all, send, until_role, until_shares, write,
};
use crate::support::{
    bridge::Bridge, database::Database, event_source::EventSource, nats::NatsServer, rows, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn one_bridge_reads_for_all_and_each_row_comes_once_everywhere() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let bridges = join_all((0..3).map(|_| bridge(&database, &nats))).await;
    let mut roles = Vec::new();
    for bridge in &bridges {
        roles.push(until_shares(bridge).await.contains(FEEDING));
    }
    assert_eq!(roles.iter().filter(|feeds| **feeds).count(), 1, "{roles:?}");
    let connecting = bridges.iter().map(|bridge| bridge.connect_live("alice"));
    let mut sources: Vec<EventSource> = join_all(connecting).await;
    let owed = write(&database, 4, 100).await;
    let last = send(&database).await;
    for source in &mut sources {
        receives_all(source, owed.clone(), last).await;
    }
    let rows = owed.len() as f64 + 1.0;
    for (bridge, feeds) in bridges.iter().zip(roles) {
        let taken = read_metric(bridge, "tidings_feed_rows_total").await;
        match feeds {
            true => assert_eq!(taken, 0.0),
            // It polls once a second, and so reads a few rows before they are sent.
            false => assert!(taken > rows / 2.0, "{taken} of {rows} rows"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hardly_polls_while_rows_flow() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    let polls = async |bridge: &Bridge| read_metric(bridge, "tidings_listener_polls_total").await;
    let (feeder_before, follower_before) = (polls(&feeder).await, polls(&follower).await);
    let owed = write(&database, 2, 300).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    let by_feeder = polls(&feeder).await - feeder_before;
    let by_follower = polls(&follower).await - follower_before;
    assert!(
        by_follower * 5.0 < by_feeder,
        "{by_follower} and {by_feeder}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_any_size_and_number_arrive_in_messages() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    for insert in [
        // As large as they can be; ten such rows need several messages.
        "insert into notifications (user_id, text, event, ref) \
         select 'alice', repeat('x', 1048576), repeat('e', 100), repeat('r', 255) \
         from generate_series(1, 10) returning id",
        "insert into notifications (user_id, text) select 'alice', 'x' \
         from generate_series(1, 20000) returning id",
        "insert into notifications (user_id, text) values ('alice', '') returning id",
    ] {
        let ids = database.ids(insert).await;
        assert_eq!(rows(&mut source, ids.len()).await, ids);
    }
    assert_eq!(read_metric(&feeder, "tidings_feed_unsent_total").await, 0.0);
    // On a busy machine, it polls when a message takes long.
    let taken = read_metric(&follower, "tidings_feed_rows_total").await;
    assert!(taken > 100.0, "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_row_has_besides_its_text_arrives_as_from_the_table() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    let mut sources = [
        feeder.connect_live("alice").await,
        follower.connect_live("alice").await,
    ];
    database
        .execute(
            "insert into notifications (user_id, text, event, ref, expires_at) values \
             ('alice', E'two\\nlines', 'invoice', 'r 1', now() + interval '1 hour'), \
             ('alice', 'too late', null, null, now()), \
             ('alice', 'last', null, null, 'infinity')",
        )
        .await;
    let mut received = Vec::new();
    for source in &mut sources {
        let mut events = Vec::new();
        while events.last().is_none_or(|(_, data)| data != "last") {
            let event = source.next_event().await;
            events.push((event.name, event.data));
        }
        received.push(events);
    }
    assert_eq!(received[0].len(), 2, "{received:?}");
    assert_eq!(received[0], received[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memberships_take_effect_at_followers() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    let to = |topic: &str| {
        format!("insert into notifications (topic, text) values ('{topic}', 'x') returning id")
    };
    for _ in 0..10 {
        // Joining and the first row are one transaction.
        let joined = "with joined as (select subscribe('alice', 'room')) \
                      insert into notifications (topic, text) \
                      select 'room', 'x' from joined returning id";
        let mut owed = database.ids(joined).await;
        owed.extend(database.ids(&to("room")).await);
        assert_eq!(rows(&mut source, 2).await, owed);
        database
            .execute("select unsubscribe('alice', 'room')")
            .await;
        // Committed after she left.
        database.execute(&to("room")).await;
        let everyones = database.ids(&to("*")).await;
        assert_eq!(rows(&mut source, 1).await, everyones);
    }
    let metrics = follower.admin("/metrics").await.text().await;
    assert!(metric(&metrics, "tidings_membership_changes_total") >= 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_return_to_a_follower_without_queries() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    let first = send(&database).await;
    receives(&mut source, first).await;
    let id = source.last_event_id().to_owned();
    drop(source);
    let missed: Vec<i64> = [send(&database).await, send(&database).await].into();
    let pages = async || read_metric(&follower, "tidings_page_seconds_count").await;
    let before = pages().await;
    let mut source = follower.resume("alice", &id).await;
    let page = until(&mut source, "tidings.caught-up").await;
    let page = page.iter().filter(|event| event.name == "message");
    assert_eq!(page.count(), missed.len());
    assert_eq!(pages().await, before, "it has the rows of the last minute");
    let last = send(&database).await;
    receives(&mut source, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_with_and_without_nats_mix() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (feeder, follower) = pair(&database, &nats).await;
    let plain = Bridge::start(&database).await;
    let mut sources = Vec::new();
    for bridge in [&feeder, &follower, &plain] {
        sources.push(bridge.connect_live("alice").await);
    }
    let owed = write(&database, 3, 40).await;
    let last = send(&database).await;
    for source in &mut sources {
        receives_all(source, owed.clone(), last).await;
    }
    let metrics = plain.admin("/metrics").await.text().await;
    assert!(!metrics.contains("tidings_feed"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn installations_on_the_same_servers_do_not_disturb_each_other() {
    let nats = NatsServer::start();
    let (one, other) = (Database::migrated().await, Database::migrated().await);
    let (_feeder, follower) = pair(&one, &nats).await;
    let (_other_feeder, other_follower) = pair(&other, &nats).await;
    let mut source = follower.connect_live("alice").await;
    let mut other_source = other_follower.connect_live("alice").await;
    for _ in 0..5 {
        let (id, other_id) = (send(&one).await, send(&other).await);
        receives(&mut source, id).await;
        receives(&mut other_source, other_id).await;
    }
    for bridge in [&follower, &other_follower] {
        let rejected = r#"tidings_feed_messages_total{outcome="rejected"}"#;
        assert_eq!(read_metric(bridge, rejected).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_must_not_feed_follows_and_polls_for_itself_until_it_can() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let never = bridge_with(&database, &nats.url(), &["--feed=never"]).await;
    let mut source = never.connect_live("alice").await;
    let id = send(&database).await;
    receives(&mut source, id).await;
    until_role(&never, ALONE).await;
    let feeder = bridge(&database, &nats).await;
    until_role(&never, FOLLOWING).await;
    until_role(&feeder, FEEDING).await;
    let id = send(&database).await;
    receives(&mut source, id).await;
}
