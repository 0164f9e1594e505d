//! The bridge's connection to NATS: a task that sends and receives, and the listener's end
//! of it, which never waits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_nats::{Client, Event, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{debug, info, warn};

use super::{NatsError, NatsServers};
use crate::runtime::log_throttle::OutageLog;

/// How many messages may wait in each direction between the listener and the task. If more
/// do, they are dropped, and the bridges that lack them poll.
const WAITING: usize = 64;

/// Whether messages can be sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    #[default]
    Disconnected,
    Connected,
}

/// The listener's end.
#[derive(Debug)]
pub struct FeedLink {
    subject: watch::Sender<Option<Arc<str>>>,
    outgoing: mpsc::Sender<Bytes>,
    incoming: mpsc::Receiver<Bytes>,
    state: watch::Receiver<LinkState>,
}

impl FeedLink {
    /// Sends and receives on this subject from now on.
    pub fn set_subject(&self, subject: &Arc<str>) {
        self.subject.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(subject);
            *known = Some(Arc::clone(subject));
            is_new
        });
    }

    pub fn state(&self) -> LinkState {
        *self.state.borrow()
    }

    /// Returns whether the message will be sent, if the connection lasts.
    pub fn send(&self, message: Vec<u8>) -> bool {
        self.state() == LinkState::Connected && self.outgoing.try_send(message.into()).is_ok()
    }

    /// The next message. Can be cancelled.
    pub async fn receive(&mut self) -> Bytes {
        match self.incoming.recv().await {
            Some(message) => message,
            // The bridge is stopping.
            None => std::future::pending().await,
        }
    }
}

/// The task that holds the connection.
#[derive(Debug)]
pub struct LinkTask {
    servers: NatsServers,
    subject: watch::Receiver<Option<Arc<str>>>,
    outgoing: mpsc::Receiver<Bytes>,
    incoming: mpsc::Sender<Bytes>,
    state: watch::Sender<LinkState>,
}

/// Connects nothing yet: that is the task's work.
pub fn link(servers: NatsServers) -> (FeedLink, LinkTask) {
    let (subject, wanted) = watch::channel(None);
    let (send, outgoing) = mpsc::channel(WAITING);
    let (incoming, receive) = mpsc::channel(WAITING);
    let (state, seen) = watch::channel(LinkState::default());
    let link = FeedLink {
        subject,
        outgoing: send,
        incoming: receive,
        state: seen,
    };
    let task = LinkTask {
        servers,
        subject: wanted,
        outgoing,
        incoming,
        state,
    };
    (link, task)
}

impl LinkTask {
    /// Connects, reconnects, sends and receives until it is dropped.
    pub async fn run(mut self) {
        let (client, events) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                // The files were in order at startup.
                warn!(%error, "can't connect to NATS until the bridge is restarted: {error}");
                return std::future::pending().await;
            }
        };
        // Dropped before the client: the end of the connection is no news then.
        let _stopping = scopeguard::guard(events, |events| {
            events.is_stopping.store(true, Ordering::Relaxed);
        });
        loop {
            let subject = self.subject.wait_for(Option::is_some).await;
            let subject = subject.ok().and_then(|it| it.clone());
            let Some(subject) = subject else {
                // The bridge is stopping.
                return std::future::pending().await;
            };
            match client.subscribe(subject.to_string()).await {
                Ok(subscriber) => self.carry(&client, &subject, subscriber).await,
                Err(error) => {
                    warn!(%error, %subject, "can't subscribe to {subject}: {error}");
                    let _ = self.subject.changed().await;
                }
            }
        }
    }

    async fn connect(&self) -> Result<(Client, Arc<Events>), NatsError> {
        let events = Arc::new(Events {
            servers: self.servers.to_string(),
            state: self.state.clone(),
            outage: parking_lot::Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let told = Arc::clone(&events);
        let options = self.servers.options()?.event_callback(move |event| {
            told.take(&event);
            std::future::ready(())
        });
        let connecting = options.connect(self.servers.addresses());
        let client = connecting.await.map_err(|_| NatsError::NoServer)?;
        Ok((client, events))
    }

    /// Sends and receives until the subject changes.
    async fn carry(&mut self, client: &Client, subject: &Arc<str>, mut subscriber: Subscriber) {
        loop {
            tokio::select! {
                message = self.outgoing.recv() => {
                    let Some(message) = message else {
                        return std::future::pending().await;
                    };
                    // What waits for a connection would be old when it arrives.
                    if *self.state.borrow() == LinkState::Connected
                        && let Err(error) = client.publish(subject.to_string(), message).await
                    {
                        debug!(%error, "could not send a message: {error}");
                    }
                }
                message = subscriber.next() => match message {
                    Some(message) => {
                        // If it is dropped, the bridge polls.
                        let _ = self.incoming.try_send(message.payload);
                    }
                    None => return,
                },
                _ = self.subject.changed() => return,
            }
        }
    }
}

/// What the library reports.
struct Events {
    servers: String,
    state: watch::Sender<LinkState>,
    outage: parking_lot::Mutex<OutageLog>,
    is_stopping: AtomicBool,
}

impl Events {
    fn take(&self, event: &Event) {
        let servers = &self.servers;
        match event {
            Event::Connected => {
                self.state.send_replace(LinkState::Connected);
                self.outage.lock().is_over();
                info!(%servers, "connected to NATS at {servers}");
            }
            Event::Disconnected | Event::Closed => {
                self.state.send_replace(LinkState::Disconnected);
                self.warn_of("the connection was lost");
            }
            Event::ServerError(error) => self.warn_of(&error.to_string()),
            Event::ClientError(error) => self.warn_of(&error.to_string()),
            Event::SlowConsumer(_) => {
                self.warn_of("this bridge is too slow for the messages of the feeder");
            }
            Event::LameDuckMode | Event::Draining => {
                debug!(%servers, "a NATS server is about to stop");
            }
        }
    }

    fn warn_of(&self, reason: &str) {
        if self.is_stopping.load(Ordering::Relaxed) {
            return;
        }
        let is_news = {
            let mut outage = self.outage.lock();
            outage.is_news(reason, Instant::now().into_std())
        };
        if is_news {
            let servers = &self.servers;
            warn!(
                %servers, reason,
                "trouble with NATS at {servers}: {reason}; the bridge polls the database \
                 by itself until messages arrive"
            );
        }
    }
}
