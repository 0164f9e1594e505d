//! Tickets: values created in SQL that open streams for a limited time: those of a user, or
//! without a user, those of topics.
//!
//! `create_stream_ticket` creates them; the database stores only their hashes. Deleting a
//! row ends the streams that its ticket opened.

use std::{
    sync::Arc,
    time::{self, Duration},
};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_postgres::types::Type;
use tracing::warn;

use crate::{
    auth::client_addr::Client,
    delivery::{hub::Hub, page_reader},
    domain::{
        identity::{Identity, TicketHash, Unidentified},
        notification::UserId,
        topic::{Topic, TopicChoice},
    },
    postgres::{
        database::Database,
        pool::{self, QueryError},
    },
    runtime::{counter_map::CounterMap, error_chain::ErrorChain, log_throttle::LogThrottle},
};

/// A ticket is 64 hexadecimal digits. Anything else is rejected without a query.
const DIGITS: usize = 64;

/// How many tickets are looked up at once. Guessed tickets must not take the pool's
/// connections from readers of pages.
const LOOKUPS_AT_ONCE: usize = 2;

/// How many requests may wait for a lookup or its result: some ten milliseconds' worth
/// while the database responds. Further requests are rejected at once and have to retry.
const WAITING: usize = 256;

/// How many of them may come from one address, so that none fills the queue alone.
const WAITING_PER_ADDRESS: usize = WAITING / 2;

/// Looks up tickets.
pub struct Tickets {
    lookup: Arc<Lookup>,
    queue: Mutex<LookupQueue>,
    /// Lookups run on this runtime, not on the request's worker: they finish properly
    /// whatever happens to the request.
    runtime: Handle,
}

/// Everything that a lookup needs.
struct Lookup {
    hub: Arc<Hub>,
    database: Database,
    turns: Arc<Semaphore>,
    failed: LogThrottle,
}

/// The numbers of requests that are waiting.
#[derive(Default)]
struct LookupQueue {
    all: usize,
    clients: CounterMap<Client>,
}

/// A request's place in the queue, released on drop.
struct QueuePlace<'a> {
    queue: &'a Mutex<LookupQueue>,
    client: Client,
}

impl TicketHash {
    /// The hash of a ticket. `None` if the text can't be a ticket.
    pub fn of(ticket: &str) -> Option<Self> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if ticket.len() != DIGITS || !ticket.as_bytes().iter().all(is_digit) {
            return None;
        }
        Self::from_bytes(digest(&SHA256, ticket.as_bytes()).as_ref())
    }
}

impl Tickets {
    /// Looks tickets up in tasks on the current runtime.
    pub fn new(hub: Arc<Hub>, database: Database) -> Self {
        Self {
            lookup: Arc::new(Lookup {
                hub,
                database,
                turns: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
                failed: LogThrottle::default(),
            }),
            queue: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// The identity of the ticket's holder, if the lookup ends before `deadline`. Only the
    /// database's clock decides whether the ticket has expired.
    ///
    /// If the request is dropped, its place in the queue is free at once. A lookup that
    /// has begun runs to its end, so that its connection stays usable.
    pub async fn verify(
        &self,
        ticket: &str,
        client: Client,
        deadline: Instant,
    ) -> Result<Identity, Unidentified> {
        let hash = TicketHash::of(ticket).ok_or(Unidentified::Ticket)?;
        let _place = QueuePlace::take(&self.queue, client).ok_or(Unidentified::Unavailable)?;
        let lookup = &self.lookup;
        let turn = timeout_at(deadline, Arc::clone(&lookup.turns).acquire_owned());
        // The semaphore is never closed.
        let Ok(Ok(turn)) = turn.await else {
            return Err(Unidentified::Unavailable);
        };
        let lookup = Arc::clone(lookup);
        let answer = self.runtime.spawn(async move {
            let _turn = turn;
            lookup.run(hash, deadline).await
        });
        match timeout_at(deadline, answer).await {
            Ok(Ok(identity)) => identity,
            // The lookup took too long, or the runtime is shutting down.
            Ok(Err(_)) | Err(_) => Err(Unidentified::Unavailable),
        }
    }
}

impl Lookup {
    async fn run(&self, hash: TicketHash, deadline: Instant) -> Result<Identity, Unidentified> {
        match self.find(hash, deadline).await {
            Ok(identity) => identity,
            Err(error) => {
                // Logged at a limited rate: anyone can cause a lookup.
                if let Some(count) = self.failed.count(time::Instant::now()) {
                    let error = ErrorChain(&error);
                    warn!(%error, count, "could not look up {count} tickets: {error}");
                }
                Err(Unidentified::Unavailable)
            }
        }
    }

    async fn find(
        &self,
        hash: TicketHash,
        deadline: Instant,
    ) -> Result<Result<Identity, Unidentified>, QueryError> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let parameters = [(&hash.0.as_slice() as _, Type::BYTEA)];
        let Database { pool, sql, .. } = &self.database;
        let query = pool.query(limit, &sql.ticket, &parameters);
        let rows = query.await?;
        let row = pool::first_row(&rows);
        if page_reader::read_incarnation(row)? != self.hub.tail().history.incarnation {
            // A former primary may keep its sessions forever, and doesn't know which
            // tickets were revoked since.
            pool.renew();
            return Ok(Err(Unidentified::Unavailable));
        }
        let Some(seconds) = row.try_get::<_, Option<f64>>("seconds_left")? else {
            return Ok(Err(Unidentified::Ticket));
        };
        let left = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let whose = match row.try_get::<_, Option<&str>>("user_id")? {
            Some(user) => UserId::parse(user).map(Identity::from),
            None => Some(Identity::of_ticket(hash)),
        };
        // No row can be for another name.
        let names: Option<Vec<&str>> = row.try_get("topics")?;
        let topics = names.into_iter().flatten().filter_map(Topic::parse);
        let identity = whose.map(|identity| Identity {
            expires: Some(Instant::now() + left),
            ticket: Some(hash),
            topics: topics.take(TopicChoice::MOST_GRANTED).collect(),
            ..identity
        });
        Ok(identity.ok_or(Unidentified::Ticket))
    }
}

impl<'a> QueuePlace<'a> {
    /// A place for a request of this client. `None` if the queue is full.
    fn take(queue: &'a Mutex<LookupQueue>, client: Client) -> Option<Self> {
        let mut waiting = queue.lock();
        if waiting.all >= WAITING || waiting.clients.of(&client) >= WAITING_PER_ADDRESS {
            return None;
        }
        waiting.all += 1;
        waiting.clients.add(client);
        drop(waiting);
        Some(Self { queue, client })
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.all -= 1;
        waiting.clients.remove(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn the_queue_is_bounded_in_all_and_by_address_and_a_place_is_given_back() {
        let client = |number| Client::from(IpAddr::from(Ipv4Addr::from_bits(number)));
        let queue = Mutex::default();
        let take = |number| QueuePlace::take(&queue, client(number));
        let mut ones: Vec<_> = (0..WAITING_PER_ADDRESS).map_while(|_| take(1)).collect();
        assert_eq!(ones.len(), WAITING_PER_ADDRESS);
        assert!(take(1).is_none());
        let others: Vec<_> = (2..).map_while(take).collect();
        assert_eq!(others.len(), WAITING - WAITING_PER_ADDRESS);
        assert!(ones.pop().is_some() && take(1).is_some());
        drop((ones, others));
        assert_eq!(queue.lock().all, 0);
        assert!(queue.lock().clients.is_empty());
    }
}
