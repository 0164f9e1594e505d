//! Limits streams: their number in total, per user and per address, and the rate of new
//! ones.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{HttpRequest, http::StatusCode};
use parking_lot::Mutex;
use tracing::warn;

use crate::{
    auth::{
        client_addr::{Client, Proxies},
        rejections::{RejectReason, Rejections},
    },
    config::LimitOptions,
    domain::identity::Subscriber,
    http::retry_later::RetryLater,
    runtime::counter_map::CounterMap,
};

/// The burst that an idle address may use: as many streams at once as its rate allows in
/// this time. A browser may restore all its tabs, or a whole office may reconnect after a
/// power cut.
const BURST: Duration = Duration::from_secs(10);

/// The most addresses that have a rate of their own, each for at most [`BURST`] after its
/// last request. While there are this many, all further addresses share one rate. A map
/// of this size takes some megabytes.
const WATCHED: usize = 100_000;

/// Admits streams within the limits.
#[derive(Debug)]
pub struct Admission {
    limits: LimitOptions,
    proxies: Proxies,
    rejections: Arc<Rejections>,
    open: Mutex<OpenStreams>,
    pace: Mutex<RequestRate>,
    /// Whether the warning was logged that a proxy seems to be missing from the settings.
    told_of_proxy: AtomicBool,
}

/// The numbers of open streams.
#[derive(Debug, Default)]
struct OpenStreams {
    all: usize,
    subscribers: CounterMap<Subscriber>,
    clients: CounterMap<Client>,
}

/// A stream's place, released on drop.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    subscriber: Subscriber,
    client: Client,
}

impl Admission {
    pub fn new(limits: LimitOptions, proxies: Proxies, rejections: Arc<Rejections>) -> Self {
        Self {
            limits,
            proxies,
            rejections,
            open: Mutex::default(),
            pace: Mutex::default(),
            told_of_proxy: AtomicBool::new(false),
        }
    }

    /// The client to which the limits apply. Warns once if a proxy seems to be missing
    /// from the settings.
    pub fn client_of(&self, request: &HttpRequest) -> Client {
        let client = self.proxies.client_of(request);
        if self.proxies.disbelieve(request) && !self.told_of_proxy.swap(true, Ordering::Relaxed) {
            warn!(
                %client,
                "ignored the X-Forwarded-For header of a request from {client}: if that is your \
                 proxy, add it to TIDINGS_TRUSTED_PROXIES; otherwise all clients behind it share \
                 the limits of one address"
            );
        }
        client
    }

    /// Counts a request, unless the client exceeds its rate.
    ///
    /// # Errors
    ///
    /// A [`RetryLater`] if it does.
    pub fn pace(&self, client: Client) -> Result<(), RetryLater> {
        let is_in_time = self
            .pace
            .lock()
            .ask(client, self.limits.connection_rate, Instant::now());
        if is_in_time {
            Ok(())
        } else {
            Err(self.turn_away(RejectReason::Rate, client))
        }
    }

    /// Reserves a place for a stream.
    ///
    /// # Errors
    ///
    /// A [`RetryLater`] if a limit is reached.
    pub fn admit(
        self: &Arc<Self>,
        subscriber: &Subscriber,
        client: Client,
    ) -> Result<Permit, RetryLater> {
        let limits = &self.limits;
        let mut open = self.open.lock();
        let full = if open.all >= limits.max_connections as usize {
            Some(RejectReason::Connections)
        } else if open.subscribers.of(subscriber) >= limits.max_connections_per_user as usize {
            Some(RejectReason::User)
        } else if open.clients.of(&client) >= limits.max_connections_per_address as usize {
            Some(RejectReason::Address)
        } else {
            None
        };
        if let Some(reason) = full {
            drop(open);
            return Err(self.turn_away(reason, client));
        }
        open.all += 1;
        open.subscribers.add(subscriber.clone());
        open.clients.add(client);
        drop(open);
        Ok(Permit {
            admission: Arc::clone(self),
            subscriber: subscriber.clone(),
            client,
        })
    }

    /// The response while something that the request needs is unavailable; `detail` names
    /// it.
    pub fn unavailable(&self, detail: impl Into<String>) -> RetryLater {
        RetryLater::new(
            StatusCode::SERVICE_UNAVAILABLE,
            detail,
            self.limits.retry_after(),
        )
    }

    fn turn_away(&self, reason: RejectReason, client: Client) -> RetryLater {
        self.rejections.count(reason, client);
        let (status, detail) = match reason {
            RejectReason::User => (
                StatusCode::TOO_MANY_REQUESTS,
                "you have too many streams open: close some tabs",
            ),
            RejectReason::Address => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many streams are open from your address",
            ),
            RejectReason::Rate => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests from your address: wait before you retry",
            ),
            _ => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too many streams are open: try again later",
            ),
        };
        RetryLater::new(status, detail, self.limits.retry_after())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.admission.open.lock();
        open.all -= 1;
        open.subscribers.remove(&self.subscriber);
        open.clients.remove(&self.client);
    }
}

/// The rate limit of each client.
#[derive(Debug, Default)]
struct RequestRate {
    /// When each client will have been quiet for long enough to be forgotten. Each
    /// request moves this by the time that the rate allows for one (the generic cell rate
    /// algorithm).
    clients: HashMap<Client, Instant>,
    /// The same, shared by all clients for which there was no room.
    others: Option<Instant>,
    /// When `clients` was last swept.
    swept: Option<Instant>,
}

impl RequestRate {
    fn ask(&mut self, client: Client, rate: u32, now: Instant) -> bool {
        if self.clients.len() >= WATCHED && !self.clients.contains_key(&client) {
            self.sweep(now);
        }
        let is_full = self.clients.len() >= WATCHED;
        let quiet = match self.clients.get_mut(&client) {
            Some(quiet) => quiet,
            None if is_full => self.others.get_or_insert(now),
            None => self.clients.entry(client).or_insert(now),
        };
        let next = (*quiet).max(now) + Duration::from_secs(1) / rate;
        let is_in_time = next <= now + BURST;
        if is_in_time {
            *quiet = next;
        }
        is_in_time
    }

    /// Forgets clients that have been quiet, at most once a second: a flood of addresses
    /// must not cause a scan of the whole map for each request.
    fn sweep(&mut self, now: Instant) {
        let is_time = self
            .swept
            .is_none_or(|swept| now.saturating_duration_since(swept) >= Duration::from_secs(1));
        if is_time {
            self.swept = Some(now);
            self.clients.retain(|_, quiet| *quiet > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, thread};

    use clap::Parser;

    use super::*;
    use crate::domain::notification::UserId;

    #[derive(Parser)]
    struct Limits {
        #[command(flatten)]
        limits: LimitOptions,
    }

    fn admission(arguments: &[&str]) -> (Arc<Admission>, Arc<Rejections>) {
        let limits = Limits::parse_from([&["limits"], arguments].concat()).limits;
        let rejections = Arc::new(Rejections::default());
        let admission = Admission::new(limits, Proxies::default(), Arc::clone(&rejections));
        (Arc::new(admission), rejections)
    }

    fn client(number: u32) -> Client {
        Client::from(std::net::IpAddr::from(Ipv4Addr::from_bits(number)))
    }

    fn user(name: &str) -> Subscriber {
        UserId::parse(name).expect("a user").into()
    }

    fn refused(rejections: &Rejections, reason: RejectReason) -> u64 {
        rejections.counter.of(reason)
    }

    #[test]
    fn each_limit_turns_away_and_a_place_that_is_given_back_is_given_again() {
        let (admission, rejections) = admission(&[
            "--max-connections=3",
            "--max-connections-per-user=2",
            "--max-connections-per-address=2",
        ]);
        let admit = |name: &str, number| admission.admit(&user(name), client(number));
        let first = admit("alice", 1).expect("a place");
        let _second = admit("alice", 2).expect("a place");
        assert!(admit("alice", 3).is_err());
        assert_eq!(refused(&rejections, RejectReason::User), 1);
        let _third = admit("bob", 1).expect("a place");
        assert!(admit("carol", 3).is_err());
        assert_eq!(refused(&rejections, RejectReason::Connections), 1);
        drop(first);
        let fourth = admit("carol", 1).expect("a place");
        drop(fourth);
        let fourth = admit("carol", 2).expect("a place");
        drop(_second);
        assert!(admit("dave", 2).is_ok());
        drop(fourth);
        let _fifth = admit("dave", 1).expect("a place");
        assert!(admit("erin", 1).is_err());
        assert_eq!(refused(&rejections, RejectReason::Address), 1);
    }

    #[test]
    fn races_never_let_in_one_too_many_and_leave_nothing_behind() {
        let (admission, rejections) = admission(&["--max-connections=50"]);
        let held: Vec<Vec<Permit>> = thread::scope(|scope| {
            let racing: Vec<_> = (0..8)
                .map(|number| {
                    let admission = &admission;
                    scope.spawn(move || {
                        // Acquired and released, so that drops race too.
                        for _ in 0..100 {
                            drop(admission.admit(&user("alice"), client(number)));
                        }
                        let name = format!("user{number}");
                        (0..20)
                            .filter_map(|_| admission.admit(&user(&name), client(number)).ok())
                            .collect()
                    })
                })
                .collect();
            racing
                .into_iter()
                .map(|one| one.join().expect("no panic"))
                .collect()
        });
        let count: usize = held.iter().map(Vec::len).sum();
        assert!(count <= 50, "{count}");
        assert_eq!(admission.open.lock().all, count);
        assert!(refused(&rejections, RejectReason::Connections) >= 160 - 50);
        drop(held);
        let open = admission.open.lock();
        assert_eq!(open.all, 0);
        assert!(open.subscribers.is_empty() && open.clients.is_empty());
    }

    #[test]
    fn a_quiet_address_may_ask_for_a_burst_and_then_at_its_rate() {
        let mut pace = RequestRate::default();
        let start = Instant::now();
        let mut ask =
            |number, millis| pace.ask(client(number), 10, start + Duration::from_millis(millis));
        assert!((0..100).all(|_| ask(1, 0)));
        assert!(!ask(1, 0) && !ask(1, 99));
        // Other clients are not affected.
        assert!(ask(2, 99));
        assert!(ask(1, 100) && !ask(1, 100));
        assert!((0..10).all(|_| ask(1, 1_100)) && !ask(1, 1_100));
        assert!((0..100).all(|_| ask(1, 60_000)) && !ask(1, 60_000));
    }

    #[test]
    fn more_addresses_than_are_watched_share_a_rate_until_some_were_quiet() {
        let mut pace = RequestRate::default();
        let start = Instant::now();
        let count = u32::try_from(WATCHED).expect("a number");
        assert!((0..count).all(|number| pace.ask(client(number), 1, start)));
        let mut strangers = count..;
        let mut stranger = |pace: &mut RequestRate, seconds| {
            let number = strangers.next().expect("a number");
            pace.ask(client(number), 1, start + Duration::from_secs(seconds))
        };
        assert!((0..10).all(|_| stranger(&mut pace, 0)));
        assert!(!stranger(&mut pace, 0));
        // A client in the map keeps its own rate.
        assert!(pace.ask(client(0), 1, start));
        assert_eq!(pace.clients.len(), WATCHED);
        // After a second all but one are forgotten.
        assert!((0..20).all(|_| stranger(&mut pace, 1)));
        assert_eq!(pace.clients.len(), 21);
    }
}
