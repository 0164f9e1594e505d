//! Proves that messages on a subject reach every subscriber, whichever server it uses.

use std::{collections::BTreeSet, time::Duration};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::NatsServers;
use crate::runtime::error_chain::ErrorChain;

/// How long connecting may take, and how long messages may.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MESSAGE_LIMIT: Duration = Duration::from_secs(2);

/// What keeps bridges from exchanging messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFlaw {
    /// A server can't be used.
    Unreachable { server: String, reason: String },
    /// A message doesn't come back from the server to which it was sent.
    Denied { server: String },
    /// A message to the first server doesn't arrive at the second one.
    Apart { from: String, to: String },
}

struct Probed {
    server: String,
    client: Client,
    subscriber: Subscriber,
}

/// Sends a message to each server, and waits until it arrives from each.
pub async fn probe(servers: &NatsServers, subject: &str) -> Vec<ProbeFlaw> {
    let (mut flaws, mut all) = (Vec::new(), Vec::new());
    for server in servers.each() {
        match connect(&server, subject).await {
            Ok(probed) => all.push(probed),
            Err(reason) => flaws.push(ProbeFlaw::Unreachable {
                server: server.to_string(),
                reason,
            }),
        }
    }
    // Not those of another run, at the same time.
    let run = rand::random::<u64>();
    let token = |number: usize| format!("{run} {number}");
    for (number, Probed { client, .. }) in all.iter().enumerate() {
        let _ = client
            .publish(subject.to_owned(), token(number).into())
            .await;
        let _ = timeout(MESSAGE_LIMIT, client.flush()).await;
    }
    let names: Vec<_> = all.iter().map(|it| it.server.clone()).collect();
    let give_up = Instant::now() + MESSAGE_LIMIT;
    for (to, probed) in all.iter_mut().enumerate() {
        let mut missing: BTreeSet<usize> = (0..names.len()).collect();
        while !missing.is_empty()
            && let Ok(Some(message)) = timeout_at(give_up, probed.subscriber.next()).await
        {
            missing.retain(|&number| message.payload != token(number));
        }
        if missing.contains(&to) {
            let server = names[to].clone();
            flaws.push(ProbeFlaw::Denied { server });
            continue;
        }
        flaws.extend(missing.into_iter().map(|from| ProbeFlaw::Apart {
            from: names[from].clone(),
            to: names[to].clone(),
        }));
    }
    flaws
}

async fn connect(server: &NatsServers, subject: &str) -> Result<Probed, String> {
    let connecting = async {
        let options = server.options_once().map_err(|error| error.to_string())?;
        let client = options.connect(server.addresses()).await;
        let client = client.map_err(|error| ErrorChain(&error).to_string())?;
        let subscriber = client.subscribe(subject.to_owned()).await;
        let subscriber = subscriber.map_err(|error| ErrorChain(&error).to_string())?;
        let flushed = client.flush().await;
        flushed.map_err(|error| ErrorChain(&error).to_string())?;
        Ok(Probed {
            server: server.to_string(),
            client,
            subscriber,
        })
    };
    let connected = timeout(CONNECT_LIMIT, connecting).await;
    connected.unwrap_or_else(|_| Err(format!("no answer within {} s", CONNECT_LIMIT.as_secs())))
}
