//! A set of public keys (JWKS, RFC 7517) that is fetched from a URL, and fetched
//! again: now and then, and when a token names a key that nobody has heard of.

mod url;

use std::{error::Error, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, jwk::Jwk};
use reqwest::{Client, StatusCode, redirect::Policy};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

pub use self::url::KeySetUrl;
use crate::{
    auth::jwt_key::{Accepted, Key, Kind},
    runtime::backoff::{Backoff, jittered},
};

/// A set has at most this many bytes; the largest of the field have some tens
/// of thousands.
const SET_BYTES: usize = 1 << 20;

/// A set has at most this many keys, of use or not.
const SET_KEYS: usize = 100;

/// So many keys of a set are tried on one token: a signature costs its forger
/// nothing, and each check some time. Only a set whose keys have no names of
/// their own has more that fit.
const TRIED_KEYS: usize = 16;

/// One fetch, from the name's resolution to the last byte, takes no longer.
const FETCH_LIMIT: Duration = Duration::from_secs(5);

/// So many requests may wait for a fetch. Others are told to come back.
const WAITING: usize = 1_000;

/// When the set is fetched.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// So long after the last time, give or take.
    refresh: Duration,
    /// Because of unknown keys at most so often: tokens that name them cost
    /// their forger nothing.
    asked: Duration,
    /// After a failure first so soon, later less often.
    retry: (Duration, Duration),
}

impl Pace {
    const USUAL: Self = Self {
        refresh: Duration::from_secs(600),
        asked: Duration::from_secs(10),
        retry: (Duration::from_secs(1), Duration::from_secs(60)),
    };
}

/// Nobody knows the key, and whoever does can't be asked at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfReach;

/// The keys that a URL holds.
pub struct KeySet {
    shared: Arc<Shared>,
}

struct Shared {
    url: KeySetUrl,
    accepted: Accepted,
    pace: Pace,
    /// Replaced as a whole; nothing until the first set has come.
    keys: ArcSwapOption<Vec<Arc<Key>>>,
    rounds: watch::Sender<Rounds>,
    /// The number of the round that somebody waits for.
    asked: watch::Sender<u64>,
    waiting: Semaphore,
}

/// How often the set was fetched, or tried to be.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    /// Whether the one that ended last did so without a set.
    failed: bool,
}

impl KeySet {
    /// The set at `url`, of which those keys are taken that serve an accepted
    /// algorithm. Nothing is fetched before [`refresh`](Self::refresh).
    pub fn new(url: KeySetUrl, accepted: Accepted) -> Self {
        Self::paced(url, accepted, Pace::USUAL)
    }

    fn paced(url: KeySetUrl, accepted: Accepted, pace: Pace) -> Self {
        Self {
            shared: Arc::new(Shared {
                url,
                accepted,
                pace,
                keys: ArcSwapOption::empty(),
                rounds: watch::Sender::default(),
                asked: watch::Sender::default(),
                waiting: Semaphore::new(WAITING),
            }),
        }
    }

    /// Fetches the set, again and again, for ever. Until the first time no key of it
    /// is known.
    pub fn refresh(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move { shared.refresh().await }
    }

    /// Has the set fetched once more, soon: unless that was done a moment ago, at
    /// once. Nobody waits for it.
    pub fn fetch_anew(&self) {
        let fresh = self.shared.rounds.borrow().begun + 1;
        self.shared.ask(fresh);
    }

    /// Whether a key of the set could be used with this algorithm.
    pub fn may_serve(&self, algorithm: Algorithm) -> bool {
        let is_public = Kind::of(algorithm).is_some_and(|kind| kind != Kind::Secret);
        let configured = self.shared.accepted.configured();
        is_public && (configured.is_empty() || configured.contains(&algorithm))
    }

    /// The keys that may have signed a token. `kid` is what the token says, and
    /// is only ever compared. If no key is called so, the set is fetched once
    /// more before that is believed.
    ///
    /// # Errors
    ///
    /// [`OutOfReach`], if it can't be told.
    pub async fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<Key>>, OutOfReach> {
        let shared = &self.shared;
        if let Some(keys) = shared.known(kid, algorithm) {
            return Ok(keys);
        }
        let _place = shared.waiting.try_acquire().map_err(|_| OutOfReach)?;
        let mut rounds = shared.rounds.subscribe();
        // A round that has begun already may have read the set before the key
        // was put into it.
        let fresh = rounds.borrow().begun + 1;
        loop {
            let now = *rounds.borrow_and_update();
            if let Some(keys) = shared.known(kid, algorithm) {
                return Ok(keys);
            }
            if now.ended >= fresh && !now.failed {
                return Ok(Vec::new());
            }
            if now.begun == now.ended {
                shared.ask(fresh);
            }
            if now.failed {
                return Err(OutOfReach);
            }
            rounds.changed().await.map_err(|_| OutOfReach)?;
        }
    }
}

impl Shared {
    /// Asks for a round of this number.
    fn ask(&self, round: u64) {
        self.asked.send_if_modified(|asked| {
            let is_new = *asked < round;
            *asked = round.max(*asked);
            is_new
        });
    }

    /// The keys of that name that serve the algorithm, or nothing if there is
    /// no key of that name.
    fn known(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<Vec<Arc<Key>>> {
        let keys = self.keys.load_full()?;
        let is_named = |key: &&Arc<Key>| kid.is_none() || key.kid() == kid;
        if kid.is_some() && !keys.iter().any(|key| is_named(&key)) {
            return None;
        }
        let fits = |key: &&Arc<Key>| is_named(key) && key.serves(algorithm);
        let fitting = keys.iter().filter(fits).take(TRIED_KEYS);
        Some(fitting.cloned().collect())
    }

    /// Never ends.
    async fn refresh(&self) {
        let (first, longest) = self.pace.retry;
        let mut backoff = Backoff::new(first, longest);
        let mut client = None;
        // When it was last fetched because somebody asked.
        let mut asked: Option<Instant> = None;
        loop {
            let failed_before = self.rounds.borrow().failed;
            self.rounds.send_modify(|rounds| rounds.begun += 1);
            let outcome = self.fetch(&mut client).await;
            let failed = outcome.is_err();
            match outcome {
                Ok(keys) => {
                    backoff.reset();
                    let is_first = self.keys.swap(Some(Arc::new(keys))).is_none();
                    let count = self.keys.load().as_ref().map_or(0, |keys| keys.len());
                    if is_first || failed_before {
                        info!(url = %self.url, keys = count, "tokens' keys were fetched");
                    } else {
                        debug!(url = %self.url, keys = count, "tokens' keys were fetched");
                    }
                }
                Err(reason) if failed_before => {
                    debug!(url = %self.url, reason, "tokens' keys still can't be fetched");
                }
                Err(reason) => {
                    let meanwhile = if self.keys.load().is_some() {
                        "those that are known stay good"
                    } else {
                        "tokens that need them are not taken yet"
                    };
                    warn!(
                        url = %self.url, reason,
                        "tokens' keys can't be fetched, {meanwhile}; trying on: {reason}"
                    );
                }
            }
            self.rounds.send_modify(|rounds| {
                rounds.ended = rounds.begun;
                rounds.failed = failed;
            });
            let pause = if failed {
                backoff.next_delay()
            } else {
                jittered(self.pace.refresh)
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.is_asked(asked) => asked = Some(Instant::now()),
            }
        }
    }

    /// Somebody waits for another round, and it may begin.
    async fn is_asked(&self, last: Option<Instant>) {
        let begun = self.rounds.borrow().begun;
        let mut asked = self.asked.subscribe();
        // The sender lives as long as this.
        let _ = asked.wait_for(|asked| *asked > begun).await;
        if let Some(last) = last {
            sleep_until(last + self.pace.asked).await;
        }
    }

    /// The set as it is now, or what is wrong with it.
    async fn fetch(&self, client: &mut Option<Client>) -> Result<Vec<Arc<Key>>, String> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.client()?),
        };
        let fetching = timeout(FETCH_LIMIT, self.body(client));
        let body = fetching
            .await
            .map_err(|_| format!("it took longer than {} s", FETCH_LIMIT.as_secs()))??;
        self.read(&body)
    }

    fn client(&self) -> Result<Client, String> {
        let mut roots = RootCertStore::empty();
        // A certificate that can't be read is one that nothing is signed by.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            // One request in ten minutes: nothing is gained by keeping it open.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
        // HTTPS_PROXY is heeded. What is on this machine needs no proxy.
        if self.url.is_this_machine() {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| said(&error))
    }

    /// Reads no more than a set may have: a length that the server tells is a
    /// promise at best.
    async fn body(&self, client: &Client) -> Result<Vec<u8>, String> {
        let answer = client.get(self.url.whole()).send().await;
        let mut answer = answer.map_err(|error| said(&error.without_url()))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("it answers {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(piece) = answer
            .chunk()
            .await
            .map_err(|error| said(&error.without_url()))?
        {
            if body.len() + piece.len() > SET_BYTES {
                return Err(format!("it is larger than {SET_BYTES} bytes"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn read(&self, body: &[u8]) -> Result<Vec<Arc<Key>>, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(body)
            .map_err(|_| "it is no key set: a JSON object with \"keys\"".to_owned())?;
        let count = set.keys.len();
        if count > SET_KEYS {
            return Err(format!("it has {count} keys, more than {SET_KEYS}"));
        }
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
            .filter_map(|key| Key::of_jwk(&key, &self.accepted))
            .map(Arc::new)
            .collect();
        if keys.is_empty() {
            return Err(format!(
                "none of its {count} keys can be used: public keys for signatures, RSA of 2048 \
                 bits at least, P-256, P-384 or Ed25519, for an algorithm that is accepted"
            ));
        }
        Ok(keys)
    }
}

/// What an error says, and what it comes from.
fn said(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// A public key of RFC 8037, appendix A.
    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// Serves the set, and tells when each answer was asked for.
    async fn server() -> (KeySetUrl, watch::Receiver<Vec<Instant>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (ask, asked) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.expect("a request");
                }
                ask.send_modify(|asked| asked.push(Instant::now()));
                let length = SET.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{SET}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let url = format!("http://{address}/").parse().expect("a URL");
        (url, asked)
    }

    const PATIENCE: Duration = Duration::from_secs(60);
    const NEVER: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_set_is_fetched_again_when_its_time_has_come() {
        let (url, mut asked) = server().await;
        let pace = Pace {
            refresh: Duration::from_millis(20),
            ..Pace::USUAL
        };
        let set = KeySet::paced(url, Accepted::default(), pace);
        let _refreshing = AbortOnDropHandle::new(tokio::spawn(set.refresh()));
        let fetched = timeout(PATIENCE, asked.wait_for(|asked| asked.len() == 3)).await;
        let asked = fetched.expect("it is asked").expect("a server").clone();
        let least = pace.refresh / 2;
        assert!(
            asked.windows(2).all(|two| two[1] - two[0] >= least),
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn unknown_keys_are_asked_for_no_more_often_than_the_pace_allows() {
        let (url, asked) = server().await;
        let pace = Pace {
            refresh: NEVER,
            asked: Duration::from_millis(200),
            ..Pace::USUAL
        };
        let set = KeySet::paced(url, Accepted::default(), pace);
        let _refreshing = AbortOnDropHandle::new(tokio::spawn(set.refresh()));
        let known = set.find(Some("a"), Algorithm::EdDSA).await;
        assert_eq!(known.expect("within reach").len(), 1);
        for kid in ["b", "c", "d"] {
            let together = (0..20).map(|_| set.find(Some(kid), Algorithm::EdDSA));
            for found in futures_util::future::join_all(together).await {
                assert!(found.expect("within reach").is_empty());
            }
        }
        // At start, at once, and twice after a pause.
        let asked = asked.borrow().clone();
        let pauses: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(pauses.len(), 3, "{pauses:?}");
        assert!(
            pauses[1..]
                .iter()
                .all(|pause| *pause >= pace.asked * 9 / 10),
            "{pauses:?}"
        );
    }

    #[tokio::test]
    async fn no_more_requests_wait_than_there_are_places() {
        let (url, _asked) = server().await;
        let set = KeySet::paced(url, Accepted::default(), Pace::USUAL);
        // It was never started: who waits, waits.
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|_| Box::pin(set.find(Some("a"), Algorithm::EdDSA)))
            .collect();
        for one in &mut waiting {
            assert!(futures_util::poll!(one).is_pending());
        }
        let one_more = set.find(Some("a"), Algorithm::EdDSA).now_or_never();
        assert_eq!(one_more.expect("no waiting").err(), Some(OutOfReach));
        let _refreshing = AbortOnDropHandle::new(tokio::spawn(set.refresh()));
        for found in futures_util::future::join_all(waiting).await {
            assert_eq!(found.expect("within reach").len(), 1);
        }
    }
}
