//! The real bridge, running inside the test's process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;
use tidings::{
    app::{App, Parts, RunError},
    auth::jwt::{self, JwtSecret, Rules},
    config::{Cli, Command, ServeOptions},
    delivery::hub::Hub,
    domain::{
        notification::UserId,
        position::{EventId, Position},
    },
};
use tokio::{task::JoinHandle, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    PATIENCE,
    database::Database,
    event_source::{EventSource, Response, get},
    until, with_room,
};

pub const SECRET: &str = "a secret of the tests, 32 bytes or more";

/// Seconds after its expiry for which a token is still accepted.
const LEEWAY: u64 = 30;

/// How often to poll. The pause leaves the CPU to other tests.
pub const ASKS_AGAIN: Duration = Duration::from_millis(20);

/// Has every page read from the table: rows that were removed are gone at once, and no memory is
/// taken for recent rows.
pub const NONE_RECENT: &str = "--recent-bytes=0";

/// Without a replica and NATS, a bridge has no metrics of them.
pub const ALL_THAT_HAS_METRICS: [&str; 4] = [
    "--replica-database-url",
    "postgres://nobody@127.0.0.1:1/nothing",
    "--nats-url",
    "nats://127.0.0.1:1",
];

/// A running bridge. Dropping it stops it.
pub struct Bridge {
    address: SocketAddr,
    admin_address: SocketAddr,
    hub: Arc<Hub>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

/// The settings of `tidings serve`, parsed as from a command line, with the tests' secret. Rows
/// settle immediately, except in tests about settling.
pub fn serve_options(database: &Database, more: &[&str]) -> ServeOptions {
    options_without_secret(database, &[&["--jwt-secret", SECRET], more].concat())
}

/// The same without a secret, so no authentication is configured by default.
pub fn options_without_secret(database: &Database, more: &[&str]) -> ServeOptions {
    let arguments = [
        "tidings",
        "serve",
        "--database-url",
        &database.connection_string(),
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
        "--drain=0s",
    ];
    let mut more = with_room(more);
    if !more.iter().any(|setting| setting.starts_with("--settle=")) {
        more.push("--settle=0s");
    }
    match Cli::parse_from(arguments.iter().chain(&more)).command {
        Command::Serve(options) => options,
        other => panic!("not serve: {other:?}"),
    }
}

impl Bridge {
    pub async fn start(database: &Database) -> Self {
        Self::start_with(database, &[]).await
    }

    /// Starts a bridge with additional settings.
    pub async fn start_with(database: &Database, more: &[&str]) -> Self {
        Self::start_as(&serve_options(database, more)).await
    }

    /// Starts a bridge on addresses that outlive it ([`super::ports::free_address`]): one for
    /// streams and one for administration.
    pub async fn start_at(options: &ServeOptions, place: (SocketAddr, SocketAddr)) -> Self {
        let mut options = options.clone();
        (options.bridge.listen, options.bridge.admin_listen) = place;
        Self::start_as(&options).await
    }

    /// Starts a bridge with settings that a command line can't express.
    pub async fn start_as(options: &ServeOptions) -> Self {
        let parts = Parts::of(options).expect("settings");
        let app = App::build(parts, &options.bridge).await.expect("a bridge");
        let (address, admin_address) = (app.address(), app.admin_address());
        let (hub, stop) = (Arc::clone(app.hub()), CancellationToken::new());
        let running = tokio::spawn(app.run_until(stop.clone().cancelled_owned()));
        Self {
            address,
            admin_address,
            hub,
            stop,
            running,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the admin endpoints.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The number of open streams.
    pub fn connections(&self) -> usize {
        self.hub.connections()
    }

    /// The position up to which the bridge has read the table.
    pub fn position(&self) -> Position {
        (*self.hub.tail().position).clone()
    }

    /// How many open transactions an event id lists.
    pub fn open_transactions(&self, id: &str) -> usize {
        let id = EventId::parse(id, self.hub.tail().history).expect("an id of this bridge");
        id.position.open_xids().len()
    }

    /// A stream of `user`, from its first byte.
    pub async fn connect(&self, user: &str) -> EventSource {
        self.connect_with(user, "", &[]).await
    }

    /// The stream of a client that returns with a last event id.
    pub async fn resume(&self, user: &str, last_event_id: &str) -> EventSource {
        self.connect_with(user, "", &[("Last-Event-ID", last_event_id)])
            .await
    }

    pub async fn connect_with(
        &self,
        user: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> EventSource {
        let bearer = format!("Bearer {}", token(user));
        let mut all = vec![("Authorization", bearer.as_str())];
        all.extend(headers);
        EventSource::open(self.address, &format!("/stream{query}"), &all).await
    }

    /// A stream of `user` that has received its backlog and is live.
    pub async fn connect_live(&self, user: &str) -> EventSource {
        let mut source = self.connect(user).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }

    /// The status of the response to a stream request of `user`. The stream is closed again.
    pub async fn try_connect(&self, user: &str) -> u16 {
        let bearer = format!("Bearer {}", token(user));
        let headers = [("Authorization", bearer.as_str())];
        let answer = get(self.address, "/stream", &headers).await;
        answer.expect("an answer").status()
    }

    pub async fn admin(&self, path: &str) -> Response {
        get(self.admin_address, path, &[]).await.expect("an answer")
    }

    /// Polls until the metrics are as wanted and returns their text.
    pub async fn until_metrics(&self, wanted: impl Fn(&str) -> bool, what: &str) -> String {
        let mut metrics = String::new();
        let asking = async {
            let mut pace = interval(ASKS_AGAIN);
            while !wanted(&metrics) {
                pace.tick().await;
                metrics = self.admin("/metrics").await.text().await;
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() {
            panic!("never in the metrics: {what}\n{metrics}");
        }
        metrics
    }

    /// How many requests were rejected for this reason.
    pub async fn refused(&self, reason: &str) -> u64 {
        refused(&self.admin("/metrics").await.text().await, reason)
    }

    /// Waits until a request was rejected for this reason.
    pub async fn until_refused(&self, reason: &str) {
        let asking = async {
            let mut pace = interval(ASKS_AGAIN);
            while self.refused(reason).await == 0 {
                pace.tick().await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, asking).await;
        outcome.unwrap_or_else(|_| panic!("nobody was turned away for {reason}"));
    }

    /// Polls until the readiness endpoint returns this status, and returns the response.
    pub async fn until_ready_is(&self, status: u16) -> Response {
        let asking = async {
            let mut pace = interval(ASKS_AGAIN);
            loop {
                pace.tick().await;
                let answer = self.admin("/health/ready").await;
                if answer.status() == status {
                    return answer;
                }
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, asking).await;
        outcome.unwrap_or_else(|_| panic!("/health/ready never was {status}"))
    }

    /// Waits until this many connections are registered.
    pub async fn until_connections(&self, count: usize) {
        let counting = async {
            while self.hub.connections() != count {
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, counting).await;
        outcome.unwrap_or_else(|_| panic!("{} connections, not {count}", self.hub.connections()));
    }

    /// Stops the bridge gracefully and waits until it has ended.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, &mut self.running).await;
        ended
            .expect("it stops")
            .expect("no panic")
            .expect("no error");
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The number of requests rejected for this reason, from the text of the metrics.
pub fn refused(metrics: &str, reason: &str) -> u64 {
    let name = format!("tidings_refused_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("no {name}in {metrics}"))
}

pub fn token(user: &str) -> String {
    let secret: JwtSecret = SECRET.parse().expect("a secret");
    let user = UserId::parse(user).expect("a user");
    jwt::sign(&secret, &Rules::default(), &user, 3_600).expect("a token")
}

/// A token of alice that is accepted for this many more seconds.
pub fn token_that_ends_in(seconds: u64) -> String {
    let claims = json!({ "sub": "alice", "exp": get_current_timestamp() + seconds - LEEWAY });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

/// The status of the response to a request with this token.
pub async fn status(address: SocketAddr, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let answer = get(address, "/stream", &[("Authorization", &bearer)]).await;
    answer.expect("an answer").status()
}

/// The same, but retries until the bridge can decide: it fetches unknown keys at a limited rate and
/// defers requests until then.
pub async fn final_status(address: SocketAddr, token: &str) -> u16 {
    let asking = async {
        loop {
            match status(address, token).await {
                503 => {}
                status => return status,
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, asking).await;
    outcome.expect("an answer that is final")
}
