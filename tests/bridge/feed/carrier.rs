//! Between the feeder and its follower is a carrier that loses, repeats, delays and reorders
//! messages, and forges some.

use tokio::sync::mpsc;

use super::{
    FEEDING, FOLLOWING, bridge_with, metric, receives, receives_all, send, until_role, write,
};
use crate::support::{
    bridge::Bridge,
    carrier::{Carrier, Fate},
    database::Database,
    nats::NatsServer,
};

/// A feeder at one server, a follower at another one.
struct Apart {
    carrier: Carrier,
    _feeder: Bridge,
    follower: Bridge,
}

impl Apart {
    async fn over(database: &Database, carrier: Carrier) -> Self {
        let feeder = bridge_with(database, &carrier.url(0), &[]).await;
        until_role(&feeder, FEEDING).await;
        let follower = bridge_with(database, &carrier.url(1), &["--feed=never"]).await;
        Self {
            carrier,
            _feeder: feeder,
            follower,
        }
    }

    /// Also returns the messages. They arrive at the follower if that is wanted.
    async fn tapped(
        database: &Database,
        arrives: Arrives,
    ) -> (Self, mpsc::UnboundedReceiver<Vec<u8>>) {
        let (tap, messages) = mpsc::unbounded_channel();
        let servers = vec![NatsServer::start(), NatsServer::start()];
        let carrier = Carrier::between(servers, || -> Fate {
            let tap = tap.clone();
            Box::new(move |message| {
                let _ = tap.send(message.clone());
                match arrives {
                    Arrives::AtOnce => vec![message],
                    Arrives::Never => Vec::new(),
                }
            })
        });
        (Self::over(database, carrier.await).await, messages)
    }

    /// Sends these bytes to the follower as if they were a message.
    async fn publish(&self, database: &Database, message: Vec<u8>) {
        let subject = format!("tidings.1.{}.rows", place(database).await);
        let client = self.carrier.client(1);
        let published = client.publish(subject, message.into()).await;
        published.expect("sent");
        client.flush().await.expect("sent");
    }
}

#[derive(Clone, Copy)]
enum Arrives {
    AtOnce,
    Never,
}

fn outcomes(metrics: &str) -> [f64; 4] {
    ["applied", "seen", "gap", "rejected"].map(|it| {
        metric(
            metrics,
            &format!(r#"tidings_feed_messages_total{{outcome="{it}"}}"#),
        )
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_repeated_and_reordered_messages_cost_polls_and_no_row() {
    let database = Database::migrated().await;
    let apart = Apart::over(&database, Carrier::unreliable(2).await).await;
    until_role(&apart.follower, FOLLOWING).await;
    let mut source = apart.follower.connect_live("alice").await;
    let owed = write(&database, 5, 200).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    let metrics = apart.follower.admin("/metrics").await.text().await;
    let [applied, seen, gaps, rejected] = outcomes(&metrics);
    assert!(applied > 0.0 && seen > 0.0 && gaps > 0.0, "{metrics}");
    assert_eq!(rejected, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_truncated_and_replayed_messages_do_nothing() {
    let database = Database::migrated().await;
    let (apart, mut messages) = Apart::tapped(&database, Arrives::AtOnce).await;
    until_role(&apart.follower, FOLLOWING).await;
    let mut source = apart.follower.connect_live("alice").await;
    for _ in 0..5 {
        let id = send(&database).await;
        receives(&mut source, id).await;
    }
    let mut all = Vec::new();
    while let Ok(message) = messages.try_recv() {
        all.push(message);
    }
    assert!(all.len() >= 5);
    // Those of another installation on the same servers, too.
    let other = Database::migrated().await;
    let (_apart, mut messages) = Apart::tapped(&other, Arrives::Never).await;
    send(&other).await;
    all.push(messages.recv().await.expect("a message"));
    let foreign = all.len() - 1;
    let mut rejected = 0;
    for (number, message) in all.iter().enumerate() {
        let mut forged: Vec<Vec<u8>> = Vec::new();
        for length in [0, 1, 5, 17, message.len() / 2, message.len() - 1] {
            forged.push(message[..length].to_vec());
        }
        for place in [0, 3, 10, 20, message.len() - 1] {
            let mut message = message.clone();
            message[place] ^= 1;
            forged.push(message);
        }
        rejected += forged.len() + usize::from(number == foreign);
        // As it was: it has nothing new.
        apart.publish(&database, message.clone()).await;
        for message in forged {
            apart.publish(&database, message).await;
        }
        // No more at once than it accepts.
        let is_done = |all: &str| !all.is_empty() && outcomes(all)[3] >= rejected as f64;
        apart.follower.until_metrics(is_done, "rejected").await;
    }
    let id = send(&database).await;
    receives(&mut source, id).await;
    until_role(&apart.follower, FOLLOWING).await;
}

/// The part of the subject that says which table it is.
async fn place(database: &Database) -> String {
    let client = database.superuser().connect().await;
    let place = "select system_identifier || '.' || d.oid || '.' || 'notifications'::regclass::oid \
                 from pg_control_system(), pg_database d where datname = current_database()";
    client.query_one(place, &[]).await.expect(place).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_held_back_for_seconds_repeat_nothing() {
    let database = Database::migrated().await;
    let (apart, mut messages) = Apart::tapped(&database, Arrives::Never).await;
    let mut source = apart.follower.connect_live("alice").await;
    let owed = write(&database, 3, 40).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    // The follower has polled; now everything arrives, in the order in which it was sent.
    while let Ok(message) = messages.try_recv() {
        apart.publish(&database, message).await;
    }
    let id = send(&database).await;
    receives(&mut source, id).await;
    let metrics = apart.follower.admin("/metrics").await.text().await;
    assert!(outcomes(&metrics)[1] > 0.0, "{metrics}");
}
