//! Between NATS servers, a carrier that loses, repeats, delays and reorders messages.

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use rand::seq::SliceRandom;
use tokio_util::task::AbortOnDropHandle;

use super::nats::NatsServer;

/// What arrives instead of a message.
pub type Fate = Box<dyn FnMut(Vec<u8>) -> Vec<Vec<u8>> + Send>;

/// Servers, each of which gets from the others what a fate makes of their messages.
pub struct Carrier {
    servers: Vec<NatsServer>,
    clients: Vec<Client>,
    _carrying: Vec<AbortOnDropHandle<()>>,
}

impl Carrier {
    pub async fn between(servers: Vec<NatsServer>, fate: impl Fn() -> Fate) -> Self {
        let mut clients = Vec::new();
        for server in &servers {
            // What it brings doesn't come back to it.
            let client = ConnectOptions::new().no_echo().connect(server.url()).await;
            clients.push(client.expect("a connection"));
        }
        let mut carrying = Vec::new();
        for (place, from) in clients.iter().enumerate() {
            let mut messages = from.subscribe("tidings.>").await.expect("messages");
            from.flush().await.expect("a subscription");
            let others = clients.iter().enumerate();
            let others: Vec<Client> = others
                .filter(|(other, _)| *other != place)
                .map(|(_, client)| client.clone())
                .collect();
            let mut fate = fate();
            let bringing = tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    for payload in fate(message.payload.into()) {
                        for to in &others {
                            let sent = to.publish(message.subject.clone(), payload.clone().into());
                            sent.await.expect("sent");
                        }
                    }
                }
            });
            carrying.push(AbortOnDropHandle::new(bringing));
        }
        Self {
            servers,
            clients,
            _carrying: carrying,
        }
    }

    /// A server for each bridge, and an unreliable carrier between them.
    pub async fn unreliable(bridges: usize) -> Self {
        let servers = (0..bridges).map(|_| NatsServer::start()).collect();
        Self::between(servers, unreliable).await
    }

    pub fn url(&self, server: usize) -> String {
        self.servers[server].url()
    }

    /// A client of this server.
    pub fn client(&self, server: usize) -> &Client {
        &self.clients[server]
    }
}

/// Loses a fifth of all messages, repeats a tenth, and holds back a fifth.
fn unreliable() -> Fate {
    let mut held: Vec<Vec<u8>> = Vec::new();
    Box::new(move |message| match rand::random_range(0..10) {
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
}
