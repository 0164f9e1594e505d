//! A client that holds a stream and reconnects when it breaks.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    PATIENCE,
    bridge::token,
    event_source::{Item, get},
    row_id,
};

/// Minimum interval between a client's connection attempts. A browser waits longer.
const COMES_BACK: Duration = Duration::from_millis(20);

/// When a client that has lost its stream reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Immediately. The client also leaves a server that is removed from the list.
    AtOnce,
    /// After the last `retry:` it received, as browsers do. It stays until its stream ends.
    WhenTold,
}

#[derive(Debug, Default)]
pub struct Seen {
    /// Whether it has received its backlog.
    pub live: bool,
    pub connected: bool,
    /// When it reconnected.
    pub returned: Vec<Instant>,
    /// Rows in the order of their arrival.
    pub ids: Vec<i64>,
    pub distinct: HashSet<i64>,
    /// How often a connection ended or an attempt failed.
    pub breaks: usize,
}

pub struct Reader {
    pub user: &'static str,
    pub seen: watch::Receiver<Seen>,
    _reading: AbortOnDropHandle<()>,
}

impl Reader {
    /// Starts with the server of this index and moves to the next one whenever its connection
    /// breaks.
    pub fn start(
        user: &'static str,
        first: usize,
        servers: watch::Receiver<Vec<SocketAddr>>,
        returns: Returns,
    ) -> Self {
        let (sees, seen) = watch::channel(Seen::default());
        let reading = tokio::spawn(read(user, first, servers, returns, sees));
        Self {
            user,
            seen,
            _reading: AbortOnDropHandle::new(reading),
        }
    }

    pub async fn until(&self, holds: impl Fn(&Seen) -> bool) {
        let mut seen = self.seen.clone();
        let outcome = timeout(PATIENCE, seen.wait_for(|seen| holds(seen))).await;
        match outcome.map(|outcome| outcome.is_ok()) {
            Ok(true) => {}
            Ok(false) => panic!("the client of {} ended", self.user),
            Err(_) => {
                let seen = self.seen.borrow();
                let (rows, breaks) = (seen.distinct.len(), seen.breaks);
                let user = self.user;
                panic!("the client of {user} is stuck with {rows} rows after {breaks} breaks");
            }
        }
    }
}

async fn read(
    user: &str,
    first: usize,
    mut servers: watch::Receiver<Vec<SocketAddr>>,
    returns: Returns,
    seen: watch::Sender<Seen>,
) {
    let mut last_event_id = String::new();
    let mut retry = Duration::ZERO;
    let mut pace = interval(COMES_BACK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for server in first.. {
        pace.tick().await;
        if returns == Returns::WhenTold && server > first {
            sleep(retry).await;
            seen.send_modify(|seen| seen.returned.push(Instant::now()));
        }
        let server = {
            let known = servers.borrow();
            known[server % known.len()]
        };
        tokio::select! {
            () = follow(server, user, &mut last_event_id, &mut retry, &seen) => {}
            _ = servers.wait_for(|known| !known.contains(&server)),
                if returns == Returns::AtOnce => {}
        }
        seen.send_modify(|seen| {
            seen.breaks += 1;
            seen.connected = false;
        });
    }
}

/// Reads a stream to its end, resuming where the previous one ended.
async fn follow(
    server: SocketAddr,
    user: &str,
    last_event_id: &mut String,
    retry: &mut Duration,
    seen: &watch::Sender<Seen>,
) {
    let bearer = format!("Bearer {}", token(user));
    let mut headers = vec![("Authorization", bearer.as_str())];
    let resumes_from = last_event_id.clone();
    if !resumes_from.is_empty() {
        headers.push(("Last-Event-ID", &resumes_from));
    }
    let headers = [&headers[..], &[("Accept", "text/event-stream")]].concat();
    let Ok(response) = get(server, "/stream", &headers).await else {
        return;
    };
    let mut source = response.into_events().await;
    seen.send_modify(|seen| seen.connected = true);
    while let Ok(item) = source.next_item().await {
        if !source.last_event_id().is_empty() {
            source.last_event_id().clone_into(last_event_id);
        }
        let event = match item {
            Item::Event(event) => event,
            Item::Retry(wait) => {
                *retry = Duration::from_millis(wait);
                continue;
            }
            Item::Id(_) | Item::Comment(_) => continue,
        };
        match event.name.as_str() {
            "tidings.caught-up" => seen.send_modify(|seen| seen.live = true),
            "tidings.open" | "tidings.heartbeat" => {}
            "tidings.gap" => panic!("a gap after {resumes_from}: {}", event.data),
            _ => seen.send_modify(|seen| {
                let id = row_id(&event);
                seen.ids.push(id);
                seen.distinct.insert(id);
            }),
        }
    }
}
