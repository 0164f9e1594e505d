//! The real bridge, entered by its front door.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;
use tidings::{
    app::{App, Parts, RunError},
    auth::jwt::{self, JwtSecret, Rules},
    config::{Cli, Command, ServeOptions},
    delivery::hub::Hub,
    domain::{notification::UserId, position::Position},
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

/// Seconds from the end of a token's life to the last moment at which it is
/// good.
const LEEWAY: u64 = 30;

/// A probe asks this often, to leave the processor to others.
pub const ASKS_AGAIN: Duration = Duration::from_millis(20);

/// A running bridge. Dropping it stops it.
pub struct Bridge {
    address: SocketAddr,
    admin_address: SocketAddr,
    hub: Arc<Hub>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

/// The settings of `tidings serve`, as if typed, with the secret of the tests. Rows settle
/// at once, except in tests about that.
pub fn serve_options(database: &Database, more: &[&str]) -> ServeOptions {
    options_without_secret(database, &[&["--jwt-secret", SECRET], more].concat())
}

/// The same, and nobody is known by default.
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

    /// With more of the settings.
    pub async fn start_with(database: &Database, more: &[&str]) -> Self {
        Self::start_as(&serve_options(database, more)).await
    }

    /// At addresses that outlive it ([`super::ports::free_address`]): of streams, and for
    /// administration.
    pub async fn start_at(options: &ServeOptions, place: (SocketAddr, SocketAddr)) -> Self {
        let mut options = options.clone();
        (options.bridge.listen, options.bridge.admin_listen) = place;
        Self::start_as(&options).await
    }

    /// With settings that nobody could type.
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

    /// Where its operator looks.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// How many streams it has.
    pub fn connections(&self) -> usize {
        self.hub.connections()
    }

    /// What it has read of the table.
    pub fn position(&self) -> Position {
        (*self.hub.tail().position).clone()
    }

    /// A stream of `user`, from its first bytes on.
    pub async fn connect(&self, user: &str) -> EventSource {
        self.connect_with(user, "", &[]).await
    }

    /// The stream of a client that was here before.
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

    /// A stream of `user` that has got its backlog, and is live.
    pub async fn connect_live(&self, user: &str) -> EventSource {
        let mut source = self.connect(user).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }

    /// What a stream of `user` is answered with; it is closed again.
    pub async fn try_connect(&self, user: &str) -> u16 {
        let bearer = format!("Bearer {}", token(user));
        let headers = [("Authorization", bearer.as_str())];
        let answer = get(self.address, "/stream", &headers).await;
        answer.expect("an answer").status()
    }

    pub async fn admin(&self, path: &str) -> Response {
        get(self.admin_address, path, &[]).await.expect("an answer")
    }

    /// Waits until the metrics are as wanted, asking all the while, and returns
    /// their text.
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

    /// How many were turned away for this reason.
    pub async fn refused(&self, reason: &str) -> u64 {
        refused(&self.admin("/metrics").await.text().await, reason)
    }

    /// Waits until somebody was turned away for this reason.
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

    /// Waits until readiness answers with this status, asking all the while,
    /// and returns that answer.
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

    /// Waits until so many connections are registered.
    pub async fn until_connections(&self, count: usize) {
        let counting = async {
            while self.hub.connections() != count {
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, counting).await;
        outcome.unwrap_or_else(|_| panic!("{} connections, not {count}", self.hub.connections()));
    }

    /// Stops it in order and waits for its end.
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

/// The count of those who were turned away, in the text of the metrics.
pub fn refused(metrics: &str, reason: &str) -> u64 {
    let name = format!("tidings_refused_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("no {name}in {metrics}"))
}

/// A valid token.
pub fn token(user: &str) -> String {
    let secret: JwtSecret = SECRET.parse().expect("a secret");
    let user = UserId::parse(user).expect("a user");
    jwt::sign(&secret, &Rules::default(), &user, 3_600).expect("a token")
}

/// A token of alice's that is good for so many seconds.
pub fn token_that_ends_in(seconds: u64) -> String {
    let claims = json!({ "sub": "alice", "exp": get_current_timestamp() + seconds - LEEWAY });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

/// The answer to a request with this token.
pub async fn status(address: SocketAddr, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let answer = get(address, "/stream", &[("Authorization", &bearer)]).await;
    answer.expect("an answer").status()
}

/// The same, once the bridge can tell: where a key is unknown it looks for it once
/// in a while, and puts the request off until then.
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
