//! A user's tab: what it is connected to, and what it received.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::{
    oracle::{Chain, Elsewhere, Facts, Number, Opening, Received, number_of},
    program::{Asked, User},
    table::{Names, read_rows},
};
use crate::support::{
    bridge::token,
    event_source::{Event, EventSource, Item},
};

/// A tab, connected or not.
pub struct Tab {
    pub user: User,
    pub asked: Asked,
    pub names: Names,
    /// Rows of earlier programs have lower numbers.
    first: Number,
    patience: Duration,
    source: Option<EventSource>,
    last_event_id: String,
    opening: Option<Opening>,
    chain: Option<Chain>,
    /// Chains that have ended.
    ended: Vec<Chain>,
    pub was_connected: bool,
    /// The bridge that it is connected to, or was last.
    pub bridge: Option<usize>,
    /// How many of the chain's rows its last reconnection acknowledged.
    acknowledged: usize,
    /// Its connections so far, the present one last.
    pub connections: Vec<Connected>,
}

/// A connection, by the program's own clock.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    pub bridge: usize,
    pub opened: u64,
    /// When the bridge no longer had it.
    pub gone: Option<u64>,
}

/// How far to read.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Until the bridge has sent an id, which means that it has read a page.
    FirstId,
    /// Until this many rows, or the row with this number, have been received.
    Rows(usize, Number),
}

impl Tab {
    pub fn new(
        (user, asked): (User, Asked),
        names: Names,
        first: Number,
        patience: Duration,
    ) -> Self {
        Self {
            user,
            asked,
            names,
            first,
            patience,
            source: None,
            last_event_id: String::new(),
            opening: None,
            chain: None,
            ended: Vec::new(),
            was_connected: false,
            bridge: None,
            acknowledged: 0,
            connections: Vec::new(),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.source.is_some()
    }

    /// Whether it has no id to return with.
    pub fn is_stranger(&self) -> bool {
        self.chain.is_none()
    }

    /// Records that Postgres has crashed.
    pub fn crash(&mut self) {
        if let Some(opening) = &mut self.opening {
            opening.has_crashed = true;
        }
        if let Some(chain) = &mut self.chain {
            chain.crash();
        }
    }

    /// Each chain, and whether it is still open.
    pub fn chains(&self) -> impl Iterator<Item = (&Chain, bool)> {
        let ended = self.ended.iter().map(|chain| (chain, false));
        ended.chain(self.chain.iter().map(|chain| (chain, true)))
    }

    /// Whether its open chain is complete and correct.
    pub fn has_all(&self, facts: Facts<'_>) -> bool {
        let judge = |chain: &Chain| chain.judge(facts, true).is_ok();
        self.chain.as_ref().is_none_or(judge)
    }

    /// The rows of its chain that its last reconnection acknowledged.
    pub fn acknowledged(&self) -> &[Received] {
        match &self.chain {
            Some(chain) => &chain.received()[..self.acknowledged],
            None => &[],
        }
    }

    /// Opens a connection. If the tab has no id, the caller must read the table before and after,
    /// and pass both to `observed`.
    pub async fn connect(&mut self, bridge: usize, address: SocketAddr, now: u64) {
        let bearer = format!("Bearer {}", token(&self.names.user));
        let mut headers = vec![("Authorization", bearer.as_str())];
        self.acknowledged = 0;
        if let Some(chain) = &self.chain {
            headers.push(("Last-Event-ID", &self.last_event_id));
            self.acknowledged = chain.received().len();
        }
        let asked = self.asked.into_iter().flatten();
        let asked: Vec<_> = asked
            .map(|&topic| format!("topic={}", self.names.topic(topic)))
            .collect();
        let path = format!("/stream?{}", asked.join("&"));
        self.source = Some(EventSource::open(address, &path, &headers).await);
        self.was_connected = true;
        self.bridge = Some(bridge);
        self.connections.push(Connected {
            bridge,
            opened: now,
            gone: None,
        });
    }

    pub fn observed(&mut self, opening: Opening) {
        self.opening = Some(opening);
    }

    /// Disconnects, in whatever way, and keeps its id and its chain.
    pub fn leave(&mut self) -> Option<EventSource> {
        // Without an id the connection doesn't count: no row was received.
        self.opening = None;
        if let Some(chain) = &mut self.chain {
            chain.leave();
        }
        self.source.take()
    }

    /// Forgets its id too.
    pub fn close(&mut self) {
        self.leave();
        self.last_event_id.clear();
        self.ended.extend(self.chain.take());
    }

    /// Reads, at most until the connection ends. `elsewhere` is what the user's other streams may
    /// have been sent by now.
    pub async fn read(
        &mut self,
        client: &Client,
        until: Until,
        elsewhere: &Elsewhere,
    ) -> Result<(), String> {
        let mut rows = 0;
        // A row extends the deadline, a heartbeat doesn't.
        let mut deadline = Instant::now() + self.patience;
        loop {
            match until {
                Until::FirstId if self.chain.is_some() => return Ok(()),
                Until::Rows(count, _) if rows >= count => return Ok(()),
                _ => {}
            }
            let Some(source) = &mut self.source else {
                return Ok(());
            };
            let item = timeout_at(deadline, source.next_item()).await;
            let item = item.map_err(|_| format!("{}: no row came, {until:?}", self.names.user))?;
            let Ok(item) = item else {
                self.leave();
                return Ok(());
            };
            if !source.last_event_id().is_empty() {
                source.last_event_id().clone_into(&mut self.last_event_id);
                if let Some(opening) = self.opening.take() {
                    let after = read_rows(client, &self.names).await?;
                    let of = (self.user, self.asked);
                    self.chain = Some(opening.settle(of, &after, elsewhere.clone()));
                }
            }
            if let Item::Event(event) = item
                && let Some(number) = self.take(event)?
            {
                rows += 1;
                deadline = Instant::now() + self.patience;
                if let Until::Rows(_, last) = until
                    && number == last
                {
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<Number>, String> {
        let Some(chain) = &mut self.chain else {
            return Err(format!("{}: {event:?} came without an id", self.names.user));
        };
        match event.name.as_str() {
            "message" => {
                let id = event.last_event_id.split('-').next().unwrap_or_default();
                let id = id.parse().map_err(|_| format!("no row in {event:?}"))?;
                let number = number_of(&event.data)?;
                if number < self.first {
                    // A row for everyone.
                    return Ok(None);
                }
                let opened = self.connections.last().map_or(0, |one| one.opened);
                chain.receive(Received {
                    opened,
                    number,
                    id,
                    text: event.data,
                });
                Ok(Some(number))
            }
            "tidings.open" | "tidings.heartbeat" | "tidings.topics" => Ok(None),
            "tidings.caught-up" => {
                chain.catch_up();
                Ok(None)
            }
            _ => Err(format!("{}: {event:?}", self.names.user)),
        }
    }
}
