//! Between the feeder and its follower is a carrier that loses, repeats, delays and reorders
//! messages, and forges some.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use rand::seq::SliceRandom;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    FEEDING, FOLLOWING, bridge, bridge_with, metric, receives, receives_all, send, until_role,
    write,
};
use crate::support::{bridge::Bridge, database::Database, nats::NatsServer};

/// A feeder at one server, a follower at another one.
struct Apart {
    _servers: [NatsServer; 2],
    feeder: Bridge,
    follower: Bridge,
    from: Client,
    to: Client,
}

impl Apart {
    async fn start(database: &Database) -> Self {
        let (near, far) = (NatsServer::start(), NatsServer::start());
        let feeder = bridge(database, &near).await;
        until_role(&feeder, FEEDING).await;
        let follower = bridge_with(database, &far.url(), &["--feed=never"]).await;
        let client = async |server: &NatsServer| {
            let client = async_nats::connect(server.url()).await;
            client.expect("a connection")
        };
        Self {
            from: client(&near).await,
            to: client(&far).await,
            _servers: [near, far],
            feeder,
            follower,
        }
    }

    /// Passes on what this makes of each message.
    async fn carry(
        &self,
        mut fate: impl FnMut(Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        let mut messages = self.from.subscribe("tidings.>").await.expect("messages");
        self.from.flush().await.expect("a subscription");
        let to = self.to.clone();
        let carrying = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                for payload in fate(message.payload.into()) {
                    let subject = message.subject.clone();
                    to.publish(subject, payload.into()).await.expect("sent");
                }
            }
        });
        AbortOnDropHandle::new(carrying)
    }
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
    let apart = Apart::start(&database).await;
    let mut held: Vec<Vec<u8>> = Vec::new();
    let _carrying = apart
        .carry(move |message| match rand::random_range(0..10) {
            0 | 1 => Vec::new(),
            2 => vec![message.clone(), message],
            3 => {
                held.push(message);
                Vec::new()
            }
            4 => {
                held.push(message);
                let mut all = std::mem::take(&mut held);
                all.shuffle(&mut rand::rng());
                all
            }
            _ => vec![message],
        })
        .await;
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
    let apart = Apart::start(&database).await;
    let (kept, mut messages) = mpsc::unbounded_channel();
    let _carrying = apart
        .carry(move |message| {
            let _ = kept.send(message.clone());
            vec![message]
        })
        .await;
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
    let foreign = Apart::start(&other).await;
    let (kept, mut messages) = mpsc::unbounded_channel();
    let _listening = foreign
        .carry(move |message| {
            let _ = kept.send(message);
            Vec::new()
        })
        .await;
    send(&other).await;
    all.push(messages.recv().await.expect("a message"));
    let subject = format!("tidings.1.{}.rows", place(&database).await);
    let publish = async |payload: Vec<u8>| {
        let subject = subject.clone();
        let published = apart.to.publish(subject, payload.into()).await;
        published.expect("sent");
    };
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
        publish(message.clone()).await;
        for message in forged {
            publish(message).await;
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
    let apart = Apart::start(&database).await;
    let (late, mut messages) = mpsc::unbounded_channel();
    let carrying = apart
        .carry(move |message| {
            let _ = late.send(message);
            Vec::new()
        })
        .await;
    let mut source = apart.follower.connect_live("alice").await;
    let owed = write(&database, 3, 40).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    // The follower has polled; now everything arrives, in the order in which it was sent.
    sleep(Duration::from_millis(500)).await;
    drop(carrying);
    let subject = format!("tidings.1.{}.rows", place(&database).await);
    while let Some(message) = messages.recv().await {
        let published = apart.to.publish(subject.clone(), message.into()).await;
        published.expect("sent");
    }
    apart.to.flush().await.expect("sent");
    let id = send(&database).await;
    receives(&mut source, id).await;
    let metrics = apart.follower.admin("/metrics").await.text().await;
    assert!(outcomes(&metrics)[1] > 0.0, "{metrics}");
    drop(apart.feeder);
}
