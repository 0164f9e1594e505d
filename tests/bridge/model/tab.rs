//! A user's tab: what it is connected to, and what it received.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::{
    oracle::{Chain, Commits, Number, Opening, Received, Rows, number_of},
    run::user_rows,
};
use crate::support::{
    bridge::token,
    event_source::{Event, EventSource, Item},
};

/// A tab, connected or not.
pub struct Tab {
    pub name: String,
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
    pub fn new(name: String, patience: Duration) -> Self {
        Self {
            name,
            patience,
            source: None,
            last_event_id: String::new(),
            opening: None,
            chain: None,
            ended: Vec::new(),
            was_connected: false,
            bridge: None,
            acknowledged: 0,
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
    pub fn has_all(&self, table: &Rows, commits: &Commits) -> bool {
        let judge = |chain: &Chain| chain.judge(table, commits, true).is_ok();
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
    pub async fn connect(&mut self, address: SocketAddr) {
        let bearer = format!("Bearer {}", token(&self.name));
        let mut headers = vec![("Authorization", bearer.as_str())];
        self.acknowledged = 0;
        if let Some(chain) = &self.chain {
            headers.push(("Last-Event-ID", &self.last_event_id));
            self.acknowledged = chain.received().len();
        }
        self.source = Some(EventSource::open(address, "/stream", &headers).await);
        self.was_connected = true;
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

    /// Reads, at most until the connection ends.
    pub async fn read(&mut self, client: &Client, until: Until) -> Result<(), String> {
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
            let item = item.map_err(|_| format!("{}: no row came, {until:?}", self.name))?;
            let Ok(item) = item else {
                self.leave();
                return Ok(());
            };
            if !source.last_event_id().is_empty() {
                source.last_event_id().clone_into(&mut self.last_event_id);
                if let Some(opening) = self.opening.take() {
                    self.chain = Some(opening.settle(&user_rows(client, &self.name).await?));
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
            return Err(format!("{}: {event:?} came without an id", self.name));
        };
        match event.name.as_str() {
            "message" => {
                let id = event.last_event_id.split('-').next().unwrap_or_default();
                let id = id.parse().map_err(|_| format!("no row in {event:?}"))?;
                let number = number_of(&event.data)?;
                chain.receive(Received {
                    number,
                    id,
                    text: event.data,
                });
                Ok(Some(number))
            }
            "tidings.open" | "tidings.heartbeat" => Ok(None),
            "tidings.caught-up" => {
                chain.catch_up();
                Ok(None)
            }
            _ => Err(format!("{}: {event:?}", self.name)),
        }
    }
}
