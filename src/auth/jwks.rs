//! A set of public keys (JWKS, RFC 7517) that is fetched from a URL.
//!
//! It is fetched again at regular intervals, and when a token names an unknown key.

mod url;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, jwk::Jwk};
use reqwest::{Client, StatusCode, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

pub use self::url::JwksUrl;
use crate::{
    auth::jwt_key::{Accepted, Key, KeyKind},
    runtime::{
        backoff::{Backoff, jittered},
        error_chain::ErrorChain,
    },
    tls::certificates,
};

/// The largest set that is accepted; the largest in practice have some tens of thousands
/// of bytes.
const SET_BYTES: usize = 1 << 20;

/// The most keys that a set may have, usable or not.
const SET_KEYS: usize = 100;

/// The most keys of a set that are tried on one token: forging a signature is free, and
/// checking one is not. Only a set whose keys have no names can have more keys that
/// match.
const TRIED_KEYS: usize = 16;

/// Time limit for one fetch, from resolving the name to the last byte.
const FETCH_LIMIT: Duration = Duration::from_secs(5);

/// How many requests may wait for a fetch. Further ones have to retry later.
const WAITING: usize = 1_000;

/// How often the set is fetched.
#[derive(Clone, Copy, Debug)]
struct RefreshPace {
    /// The interval between fetches, with jitter.
    refresh: Duration,
    /// The shortest interval between fetches because of unknown keys: naming one in a
    /// forged token is free.
    asked: Duration,
    /// The first and the longest backoff after a failed fetch.
    retry: (Duration, Duration),
}

impl RefreshPace {
    const USUAL: Self = Self {
        refresh: Duration::from_secs(600),
        asked: Duration::from_secs(10),
        retry: (Duration::from_secs(1), Duration::from_secs(60)),
    };
}

/// The key is unknown, and the set can't be fetched at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfReach;

/// The keys of the set at a URL.
pub struct Jwks {
    shared: Arc<JwksState>,
}

struct JwksState {
    url: JwksUrl,
    accepted: Accepted,
    pace: RefreshPace,
    /// Replaced as a whole; `None` until the first fetch succeeds.
    keys: ArcSwapOption<Vec<Arc<Key>>>,
    /// When the last fetch that ended began, or that it failed.
    fetched: watch::Sender<Option<Result<Instant, OutOfReach>>>,
    /// Changes when a key is needed that is unknown.
    missing: watch::Sender<()>,
    /// Requests another fetch, also while one is running.
    anew: Notify,
    waiting: Semaphore,
}

impl Jwks {
    /// The set at `url`. Only keys that serve an accepted algorithm are used. Nothing is
    /// fetched before [`refresh`](Self::refresh).
    pub fn new(url: JwksUrl, accepted: Accepted) -> Self {
        Self::paced(url, accepted, RefreshPace::USUAL)
    }

    fn paced(url: JwksUrl, accepted: Accepted, pace: RefreshPace) -> Self {
        Self {
            shared: Arc::new(JwksState {
                url,
                accepted,
                pace,
                keys: ArcSwapOption::empty(),
                fetched: watch::Sender::default(),
                missing: watch::Sender::default(),
                anew: Notify::new(),
                waiting: Semaphore::new(WAITING),
            }),
        }
    }

    /// Fetches the set at regular intervals, forever. No key is known until the first
    /// fetch succeeds.
    pub fn refresh(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move { shared.refresh().await }
    }

    /// Requests another fetch without waiting for it. It starts at once, unless a
    /// requested fetch began less than 10 s ago.
    pub fn fetch_anew(&self) {
        self.shared.anew.notify_one();
    }

    /// Whether a key of the set could be used with this algorithm.
    pub fn may_serve(&self, algorithm: Algorithm) -> bool {
        let is_public = KeyKind::of(algorithm).is_some_and(|kind| kind != KeyKind::Secret);
        let configured = self.shared.accepted.configured();
        is_public && (configured.is_empty() || configured.contains(&algorithm))
    }

    /// The keys that may have signed a token. `kid` is the name in the token's header,
    /// and is only compared. If no key has this name, the set is fetched again before the
    /// key counts as unknown.
    ///
    /// # Errors
    ///
    /// [`OutOfReach`] if the fetch fails, or too many requests are waiting for one.
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
        let mut fetched = shared.fetched.subscribe();
        let arrived = Instant::now();
        loop {
            let last = *fetched.borrow_and_update();
            if let Some(keys) = shared.known(kid, algorithm) {
                return Ok(keys);
            }
            // An earlier fetch may have read the set before the key was added.
            if let Some(Ok(began)) = last
                && began >= arrived
            {
                return Ok(Vec::new());
            }
            shared.missing.send_replace(());
            last.transpose()?;
            fetched.changed().await.map_err(|_| OutOfReach)?;
        }
    }
}

impl JwksState {
    /// The keys with this name that serve the algorithm. `None` if no key has this name.
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

    /// Never returns.
    async fn refresh(&self) {
        let (first, longest) = self.pace.retry;
        let mut backoff = Backoff::new(first, longest);
        let mut client = None;
        let mut missing = self.missing.subscribe();
        // When a requested fetch may begin.
        let mut permitted = Instant::now();
        loop {
            let failed_before = matches!(*self.fetched.borrow(), Some(Err(_)));
            let began = Instant::now();
            let outcome = self.fetch(&mut client).await;
            let fetched = outcome.as_ref().map(|_| began).map_err(|_| OutOfReach);
            match outcome {
                Ok(keys) => {
                    backoff.reset();
                    let count = keys.len();
                    let is_first = self.keys.swap(Some(Arc::new(keys))).is_none();
                    if is_first || failed_before {
                        info!(url = %self.url, keys = count, "fetched the key set");
                    } else {
                        debug!(url = %self.url, keys = count, "fetched the key set");
                    }
                }
                Err(reason) if failed_before => {
                    debug!(url = %self.url, reason, "still can't fetch the key set: {reason}");
                }
                Err(reason) => {
                    let meanwhile = if self.keys.load().is_some() {
                        "using the keys that were fetched before"
                    } else {
                        "tokens that need it are not accepted yet"
                    };
                    warn!(
                        url = %self.url, reason,
                        "can't fetch the key set ({meanwhile}), retrying: {reason}"
                    );
                }
            }
            // Whoever still misses a key says so again.
            missing.mark_unchanged();
            self.fetched.send_replace(Some(fetched));
            let pause = match fetched {
                Ok(_) => jittered(self.pace.refresh),
                Err(OutOfReach) => backoff.next_delay(),
            };
            let request = async {
                tokio::select! {
                    _ = missing.changed() => {}
                    () = self.anew.notified() => {}
                }
                sleep_until(permitted).await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = request => permitted = Instant::now() + self.pace.asked,
            }
        }
    }

    /// Fetches the set. An error describes the problem.
    async fn fetch(&self, client: &mut Option<Client>) -> Result<Vec<Arc<Key>>, String> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.client()?),
        };
        let fetching = timeout(FETCH_LIMIT, self.body(client));
        let body = fetching
            .await
            .map_err(|_| format!("the request took longer than {} s", FETCH_LIMIT.as_secs()))??;
        self.read(&body)
    }

    fn client(&self) -> Result<Client, String> {
        // Without any, no certificate is accepted. A set of this machine may need none.
        let roots = certificates::system_authorities().unwrap_or_else(|_| RootCertStore::empty());
        let tls = ClientConfig::builder_with_provider(certificates::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            // With one request in ten minutes, keeping the connection open has no
            // benefit.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
        // HTTPS_PROXY is respected, except for this machine, which needs no proxy.
        if self.url.is_this_machine() {
            builder = builder.no_proxy();
        }
        builder
            .build()
            .map_err(|error| ErrorChain(&error).to_string())
    }

    /// Reads the body, and fails once it is too large. The length that the server
    /// announces is not trusted.
    async fn body(&self, client: &Client) -> Result<Vec<u8>, String> {
        let answer = client.get(self.url.whole()).send().await;
        let mut answer = answer.map_err(|error| ErrorChain(&error.without_url()).to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the server responded with {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(piece) = answer
            .chunk()
            .await
            .map_err(|error| ErrorChain(&error.without_url()).to_string())?
        {
            if body.len() + piece.len() > SET_BYTES {
                return Err(format!("the response is larger than {SET_BYTES} bytes"));
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
        let set: Set = serde_json::from_slice(body).map_err(|_| {
            "the response is not a key set (a JSON object with \"keys\")".to_owned()
        })?;
        let count = set.keys.len();
        if count > SET_KEYS {
            return Err(format!(
                "the key set has {count} keys, more than {SET_KEYS}"
            ));
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
                "none of its {count} keys can be used: a key must be a public signature key (RSA \
                 with at least 2048 bits, P-256, P-384 or Ed25519) for an accepted algorithm"
            ));
        }
        Ok(keys)
    }
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

    /// Serves the set, and reports when each request arrived.
    async fn server() -> (JwksUrl, watch::Receiver<Vec<Instant>>) {
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
        let pace = RefreshPace {
            refresh: Duration::from_millis(20),
            ..RefreshPace::USUAL
        };
        let set = Jwks::paced(url, Accepted::default(), pace);
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
        let pace = RefreshPace {
            refresh: NEVER,
            asked: Duration::from_millis(200),
            ..RefreshPace::USUAL
        };
        let set = Jwks::paced(url, Accepted::default(), pace);
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
    async fn a_running_fetch_is_enough_unless_another_one_is_requested() {
        let (url, mut asked) = server().await;
        let pace = RefreshPace {
            refresh: NEVER,
            asked: Duration::ZERO,
            ..RefreshPace::USUAL
        };
        let set = Jwks::paced(url, Accepted::default(), pace);
        let _refreshing = AbortOnDropHandle::new(tokio::spawn(set.refresh()));
        let mut until_asked = async |count| {
            let fetched = timeout(PATIENCE, asked.wait_for(|asked| asked.len() >= count)).await;
            fetched.expect("it is asked").expect("a server").len()
        };
        until_asked(1).await;
        let known = set.find(Some("a"), Algorithm::EdDSA).await;
        assert_eq!(known.expect("within reach").len(), 1);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(until_asked(1).await, 1);
        for count in [2, 3] {
            set.fetch_anew();
            assert_eq!(until_asked(count).await, count);
        }
    }

    #[tokio::test]
    async fn no_more_requests_wait_than_there_are_places() {
        let (url, _asked) = server().await;
        let set = Jwks::paced(url, Accepted::default(), RefreshPace::USUAL);
        // The set is never fetched, so all of these wait.
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
