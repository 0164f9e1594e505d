//! `send` and `ticket`: what applications do in SQL.

use std::process::Stdio;

use super::{command, run, said};
use crate::{
    support::{bridge::Bridge, database::Database, event_source::EventSource, row_id, until},
    topics::OLD_BRIDGE,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_arrives_and_its_id_is_printed() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect_live("alice").await;
    let application = database.as_role("application");

    let id = run(&application, &["send", "alice", "-1 left", "--event=stock"]).await;
    let event = alice.next_event().await;
    assert_eq!(
        (event.name.as_str(), event.data.as_str()),
        ("stock", "-1 left")
    );
    assert_eq!(id.well(), format!("{}\n", row_id(&event)));

    let mut piped = command(&["send", "alice", "-"]);
    piped
        .env("DATABASE_URL", application.connection_string())
        .stdin(Stdio::piped());
    said(piped, "two\nlines\n").await.well();
    assert_eq!(alice.next_event().await.data, "two\nlines");

    run(&application, &["send", "bob", "soon over", "--expires=1h"])
        .await
        .well();
    let within = "select id from notifications where user_id = 'bob' \
                  and expires_at between now() + interval '59 minutes' and now() + interval '1 hour'";
    assert_eq!(database.ids(within).await.len(), 1);

    run(&application, &["send", "bob", "paid", "--ref=orders:7"])
        .await
        .well();
    let with_ref = "select id from notifications where ref = 'orders:7' and expires_at is null";
    assert_eq!(database.ids(with_ref).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_to_a_topic_or_to_everyone_arrives_as_one_row() {
    let database = Database::migrated().await;
    let application = database.as_role("application");
    database
        .execute("select subscribe('alice', 'project:7'), subscribe('bob', 'project:7')")
        .await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect_live("alice").await;
    let mut bob = bridge.connect_live("bob").await;
    let mut carol = bridge.connect_live("carol").await;

    let release = ["send", "--topic=project:7", "Released", "--event=release"];
    let id = run(&application, &release).await.well();
    for stream in [&mut alice, &mut bob] {
        let event = stream.next_event().await;
        let got = (event.name.as_str(), event.data.as_str());
        assert_eq!(got, ("release", "Released"));
        assert_eq!(id, format!("{}\n", row_id(&event)));
    }

    let everyone = ["send", "--everyone", "--expires=1h", "--", "-1 left"];
    run(&application, &everyone).await.well();
    for stream in [&mut alice, &mut bob, &mut carol] {
        assert_eq!(stream.next_event().await.data, "-1 left");
    }
    let rows = "select count(*) from notifications union all \
                select count(*) from notifications where topic = '*' and expires_at > now()";
    assert_eq!(database.ids(rows).await, [2, 1]);

    let mut piped = command(&["send", "-", "--ref=releases:7", "--topic", "project:7"]);
    piped
        .env("DATABASE_URL", application.connection_string())
        .stdin(Stdio::piped());
    said(piped, "two\nlines\n").await.well();
    assert_eq!(alice.next_event().await.data, "two\nlines");
    let with_ref = "select id from notifications where topic = 'project:7' and ref = 'releases:7'";
    assert_eq!(database.ids(with_ref).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_has_one_recipient_and_one_text() {
    let database = Database::migrated().await;
    let long = format!("--topic={}", "x".repeat(256));
    for (arguments, reason) in [
        (
            &["send", "--topic=a", "alice", "hello"][..],
            "leave out the user \"alice\"",
        ),
        (&["send", "--topic=a", "two", "words"], "quotation marks"),
        (
            &["send", "--everyone", "alice", "hello"],
            "leave out the user",
        ),
        (
            &["send", "--everyone", "--topic=a", "hello"],
            "cannot be used with",
        ),
        (&["send", "alice"], "--everyone TEXT"),
        (&["send", "--topic=a"], "--topic <TOPIC> <TEXT>"),
        (
            &["send", "", "hello"],
            "the user must be 1 to 255 bytes long",
        ),
        (&["send", "--topic=", "hello"], "1 to 255 bytes"),
        (&["send", "--topic=a\tb", "hello"], "control characters"),
        (&["send", &long, "hello"], "1 to 255 bytes"),
    ] {
        let told = run(&database, arguments).await.misused();
        assert!(told.contains(reason), "{arguments:?}: {told}");
    }
    assert!(
        database
            .ids("select id from notifications")
            .await
            .is_empty()
    );
}

/// A bridge that can't deliver topics is connected, or the schema has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_nothing_could_deliver_is_an_error_that_says_what_to_do() {
    let database = Database::migrated().await;
    let application = database.as_role("application");
    let bridge = database.bridge().connect().await;
    bridge.batch_execute(OLD_BRIDGE).await.expect("a report");
    for arguments in [
        ["send", "--topic=a", "hello"].as_slice(),
        &["send", "--everyone", "hello"],
    ] {
        let told = run(&application, arguments).await.badly();
        assert!(told.contains("version 0.2.0"), "{told}");
        assert!(told.contains("Upgrade all bridges"), "{told}");
    }
    database
        .owner()
        .execute("drop function send_to_topic(text, text, text, timestamptz, text)")
        .await;
    let told = run(&application, &["send", "--topic=a", "hello"])
        .await
        .badly();
    assert!(told.contains("too old: run `tidings migrate`"), "{told}");
    run(&application, &["send", "alice", "hello"]).await.well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_it_prints_opens_the_stream_of_its_user() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let application = database.as_role("application");
    let ticket = run(&application, &["ticket", "alice", "--ttl=5m"])
        .await
        .well();
    let path = format!("/stream?ticket={}", ticket.trim_end());
    let mut source = EventSource::open(bridge.address(), &path, &[]).await;
    until(&mut source, "tidings.caught-up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_may_grant_topics_with_a_user_or_without() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let application = database.as_role("application");
    for arguments in [
        &["ticket", "alice", "--topic=room:7", "--topic", "room:8"][..],
        &["ticket", "--topic=room:7"],
    ] {
        let ticket = run(&application, arguments).await.well();
        let path = format!("/stream?ticket={}", ticket.trim_end());
        let mut source = EventSource::open(bridge.address(), &path, &[]).await;
        until(&mut source, "tidings.caught-up").await;
    }
    let granted = "select cardinality(topics)::bigint from stream_tickets order by user_id";
    assert_eq!(database.ids(granted).await, [2, 1]);
    let everyone = run(&application, &["ticket", "--topic=*"]).await.badly();
    assert!(everyone.contains("every stream has"), "{everyone}");
    for (arguments, wanted) in [
        (&["ticket"][..], "<USER>"),
        (&["ticket", "--topic="], "the topic must be 1 to 255 bytes"),
    ] {
        let told = run(&application, arguments).await.misused();
        assert!(told.contains(wanted), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_who_may() {
    let database = Database::migrated().await;
    for (arguments, group) in [
        (
            &["send", "alice", "hello"][..],
            "grant tidings_writer to bridge",
        ),
        (
            &["send", "alice", "hello", "--expires=1m"],
            "grant tidings_writer to bridge",
        ),
        (
            &["send", "--topic=a", "hello"],
            "grant tidings_writer to bridge",
        ),
        (&["ticket", "alice"], "grant tidings_issuer to bridge"),
    ] {
        let told = run(&database, arguments).await.badly();
        assert!(told.contains(group), "{told}");
    }
    let empty = Database::empty().await.superuser();
    let told = run(&empty, &["send", "alice", "hello"]).await.badly();
    assert!(told.contains("tidings migrate"), "{told}");
}

/// An error of Postgres is reported with its fix, not only in Postgres's words.
#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_explained() {
    let database = Database::migrated().await;
    let application = database.as_role("application");
    let long = "x".repeat(101);
    for (event, reason) in [
        ("", "1 to 100 bytes"),
        (long.as_str(), "1 to 100 bytes"),
        ("two\nlines", "one line"),
        ("a\tb", "must not contain control characters"),
        ("\x1b[2J", "must not contain control characters"),
        ("open", "choose another name"),
        ("tidings.gap", "choose another name"),
    ] {
        let event = format!("--event={event}");
        let told = run(&application, &["send", "alice", "hello", &event]).await;
        let told = told.badly();
        assert!(told.contains(reason), "{event}: {told}");
    }
    let reference = format!("--ref={}", "x".repeat(256));
    let told = run(&application, &["send", "alice", "hello", &reference]).await;
    let told = told.badly();
    assert!(told.contains("at most 255 bytes"), "{told}");
    let send = |text: String| {
        let mut piped = command(&["send", "alice", "-"]);
        piped
            .env("DATABASE_URL", application.connection_string())
            .stdin(Stdio::piped());
        async move { said(piped, &text).await.badly() }
    };
    let told = send("a\0b".to_owned()).await;
    assert!(told.contains("NUL"), "{told}");
    let told = send("x".repeat((1 << 20) + 1)).await;
    assert!(told.contains("at most 1 MiB"), "{told}");

    // A constraint of the application's.
    database
        .superuser()
        .execute("alter table notifications add constraint theirs check (user_id <> 'alice')")
        .await;
    let told = run(&application, &["send", "alice", "hello"]).await.badly();
    assert!(
        told.contains("\"theirs\"") && told.contains("doesn't belong to Tidings"),
        "{told}"
    );

    // The other commands.
    let elsewhere = ["tail", "alice", "--schema=elsewhere"];
    let told = run(&database, &elsewhere).await.badly();
    assert!(told.contains("TIDINGS_SCHEMA"), "{told}");
    let told = run(&application, &["tail", "alice"]).await.badly();
    assert!(told.contains("tidings check"), "{told}");
}
