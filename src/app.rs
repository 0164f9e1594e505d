//! Puts the bridge together, runs it, and stops it in order.

use std::{
    fmt::Display,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix_web::{dev::Server, web};
use tokio::{
    runtime::Handle,
    task::JoinError,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    activity::Activity,
    admission::Admission,
    alarm::Heartbeats,
    authenticator::{Authenticator, Credentials, QueryUser, TicketPolicy},
    backoff::Backoff,
    catch_up::{PageMemory, Pages, Reads, Turns},
    check,
    client::Proxies,
    config::{self, BridgeOptions, ConfigError, MigratePolicy, ServeOptions},
    database::DatabaseUrl,
    demo::Demo,
    direct::{self, DirectError},
    drained::Drained,
    ends::Ended,
    health::Health,
    http::Door,
    hub::Hub,
    line::Lines,
    listener::{ListenError, Listener},
    mailbox::Ending,
    marker::{Marker, Marks},
    metrics::Metrics,
    operator::Operator,
    origin::Origins,
    pool::{Pool, QueryError, Sessions},
    pruner::{Pruned, Pruner},
    reader,
    refusals::Refusals,
    report::Reporter,
    retention::Retention,
    schema::{self, SchemaError, SchemaName},
    servers::{self, ServersError},
    sockets::{self, Sockets},
    sql::Sql,
    stream::Streams,
    telemetry,
    ticket::Tickets,
    tls::Certificate,
    vitals::Vitals,
};

/// A database that is not there yet, at start, is waited for this long:
/// services that are started together come up in any order.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The first and the longest wait between two tries at start.
const START_FIRST: Duration = Duration::from_millis(200);
const START_LONGEST: Duration = Duration::from_secs(3);

/// How long the listener may take to end: a look, and the lock given back.
const LISTENER_LIMIT: Duration = Duration::from_secs(2);

/// A bridge that is ready to run.
pub struct App {
    hub: Arc<Hub>,
    health: Arc<Health>,
    pool: Pool,
    listener: Listener,
    marker: Marker,
    pruner: Option<Pruner>,
    reporter: Reporter,
    lines: Arc<Lines>,
    drain: Duration,
    server: Server,
    admin: Server,
    address: SocketAddr,
    admin_address: SocketAddr,
    certificate: Option<Arc<Certificate>>,
}

/// Why the bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Where the listener is to connect.
    #[error("{0}")]
    Direct(#[from] DirectError),
    /// The schema, or the database itself.
    #[error("{0}")]
    Schema(#[from] SchemaError),
    /// The listener's connection.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The pool.
    #[error("{0}")]
    Pool(#[from] deadpool::managed::BuildError),
    /// The pool's connections.
    #[error("DATABASE_URL: {0}")]
    Query(#[from] QueryError),
    /// They lead somewhere else.
    #[error(
        "DATABASE_URL and TIDINGS_DIRECT_DATABASE_URL lead to different servers, or one of them \
             to a standby: rows that are heard of on one must be read on the same"
    )]
    TwoServers,
    /// The servers.
    #[error("{0}")]
    Servers(#[from] ServersError),
}

/// Why the bridge stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A server gave up.
    #[error("the {0} failed: {1}")]
    Server(&'static str, io::Error),
    /// A task is gone, which is a bug.
    #[error("the {0} ended unexpectedly; please report this with the log")]
    Ended(&'static str),
}

impl RunError {
    fn of_server(name: &'static str, ended: Result<io::Result<()>, JoinError>) -> Self {
        match ended {
            Ok(Err(error)) => Self::Server(name, error),
            Ok(Ok(())) | Err(_) => Self::Ended(name),
        }
    }
}

/// Where a bridge reads, as whom it knows people, and what it shows beside the
/// stream.
pub struct Parts {
    /// Pages and marks.
    pub url: DatabaseUrl,
    /// The listener and migrations, if the other URL leads through a pooler.
    pub direct_url: Option<DatabaseUrl>,
    /// Where everything lives.
    pub schema: SchemaName,
    /// Whether the schema may be changed.
    pub migrate: MigratePolicy,
    /// Who is asking.
    pub credentials: Credentials,
    /// What browsers are shown, if they connect by HTTPS.
    pub certificate: Option<Certificate>,
    /// Who may say whose request it is.
    pub proxies: Proxies,
    /// Whose pages may ask.
    pub origins: Origins,
    /// The demo page, in `tidings dev`.
    pub demo: Option<Demo>,
}

impl Parts {
    /// What `tidings serve` is made of.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if a setting is missing or can't be used.
    pub fn of(options: &ServeOptions) -> Result<Self, ConfigError> {
        let user_header = options.trust.user_header()?;
        let tokens = options.tokens()?;
        let credentials = Credentials {
            tokens,
            cookie: options.trust.cookie_name.clone(),
            user_header,
            tickets: match options.trust.tickets {
                Some(config::Tickets::Off) => TicketPolicy::Refused,
                Some(config::Tickets::On) | None => TicketPolicy::Believed,
            },
            query: QueryUser::Ignored,
        };
        Ok(Self {
            credentials,
            proxies: options.trust.trusted_proxies.clone(),
            origins: options.trust.cors_origins.clone(),
            url: options.database.url()?,
            direct_url: options.database.direct_url()?,
            schema: options.database.schema.clone(),
            migrate: options.migrate,
            certificate: options.tls.certificate()?,
            demo: None,
        })
    }
}

impl App {
    /// Checks the schema, starts to listen, and binds both addresses. Must be
    /// called on a multi-threaded runtime, which drives the database
    /// connections.
    ///
    /// # Errors
    ///
    /// [`StartError`]. A database that can't be reached is tried for 30 s.
    pub async fn build(parts: Parts, options: &BridgeOptions) -> Result<Self, StartError> {
        if let Some(tokens) = &parts.credentials.tokens {
            tokens.start();
        }
        sockets::warn_of_few_files(&options.limits, options.pool_size);
        let (direct_url, sessions) = match parts.direct_url {
            Some(ref url) => (url, Sessions::Lent),
            None => (&parts.url, Sessions::Own),
        };
        patiently(direct_url, DirectError::is_passing, || {
            direct::prove(direct_url)
        })
        .await?;
        patiently(direct_url, SchemaError::is_passing, async || {
            let may_migrate = parts.migrate == MigratePolicy::Auto;
            schema::prepare(direct_url, &parts.schema, may_migrate).await?;
            check::warn_of_readers(direct_url, &parts.schema).await
        })
        .await?;
        let schema = parts.schema;
        let pruned = Arc::new(Pruned::default());
        let pruner = match options.retention.prune_sent_after {
            Retention::Forever => None,
            Retention::SentFor(sent_for) => Some(Pruner {
                url: direct_url.clone(),
                schema: schema.clone(),
                sent_for,
                every: options.retention.prune_every,
                pruned: Arc::clone(&pruned),
            }),
        };
        let sql = Arc::new(Sql::new(&schema));
        let hub = Arc::new(Hub::new(options.queue_bytes as usize));
        let health = Arc::new(Health::default());
        let marks = Arc::new(Marks::default());
        let activity = Arc::new(Activity::default());
        let size = options.pool_size.into();
        let pool = Pool::new(&parts.url, sessions, size, Handle::current())?;
        // Before any connection is taken: what becomes visible from now on
        // reaches it.
        let listener = Listener::start(
            direct_url.clone(),
            schema.clone(),
            Arc::clone(&sql),
            Arc::clone(&hub),
            Arc::clone(&health),
            Arc::clone(&activity),
            options.safety_look,
        )
        .await?
        .with_page_rows(options.tail_rows.into());
        let found = patiently(&parts.url, QueryError::is_passing, || {
            reader::incarnation(&pool)
        });
        if found.await? != hub.tail().history.incarnation {
            return Err(StartError::TwoServers);
        }
        let drained = patiently(&parts.url, QueryError::is_passing, || {
            Drained::open(pool.clone(), Arc::clone(&sql), &schema)
        })
        .await?;
        let (reads, ended) = (Reads::default(), Ended::default());
        let streams = web::Data::new(Streams {
            hub: Arc::clone(&hub),
            marks: Arc::clone(&marks),
            activity: Arc::clone(&activity),
            pages: Arc::new(Pages {
                hub: Arc::clone(&hub),
                pool: pool.clone(),
                sql: Arc::clone(&sql),
                drained,
                health: Arc::clone(&health),
                turns: Arc::new(Turns::new(pages_at_once(options.pool_size))),
                memory: Arc::new(PageMemory::default()),
                runtime: Handle::current(),
                history: Mutex::new(hub.tail().history),
                reads: reads.clone(),
            }),
            heartbeats: Heartbeats::every(options.heartbeat),
            drain: options.drain,
            max_age: options.limits.max_stream_age,
            ended: ended.clone(),
        });
        let tickets = Tickets::new(Arc::clone(&hub), pool.clone(), Arc::clone(&sql));
        let authenticator = Authenticator::new(parts.credentials, tickets);
        let refusals = Arc::new(Refusals::default());
        let vitals = Arc::new(Vitals {
            hub: Arc::clone(&hub),
            marks: Arc::clone(&marks),
            activity: Arc::clone(&activity),
            health: Arc::clone(&health),
            pool: pool.clone(),
            reads,
            pruned,
            refusals: Arc::clone(&refusals),
            connections_limit: options.limits.max_connections,
        });
        let (admin, admin_address) = servers::bind_admin(
            options,
            web::Data::from(Arc::clone(&health)),
            web::Data::new(Metrics::new(Arc::clone(&vitals), &ended)),
            web::Data::new(Operator::new(
                vitals,
                options,
                &parts.url,
                direct_url.clone(),
                schema.clone(),
            )),
            parts.demo.is_some(),
        )?;
        let proxies = web::Data::new(parts.proxies.clone());
        let sockets = Sockets::new(
            &options.limits,
            parts.proxies.clone(),
            Arc::clone(&refusals),
        );
        let admission =
            Admission::new(options.limits.clone(), parts.proxies, Arc::clone(&refusals));
        let lines = Arc::new(Lines::new(Handle::current()));
        let door = Door {
            streams,
            lines: web::Data::from(Arc::clone(&lines)),
            authenticator: web::Data::new(authenticator),
            admission: web::Data::new(admission),
            origins: web::Data::new(parts.origins),
            proxies,
            refusals: web::Data::from(refusals),
        };
        let certificate = parts.certificate.map(Arc::new);
        let sockets = Arc::new(sockets);
        let (server, address) =
            servers::bind_streams(options, door, sockets, parts.demo, certificate.as_ref())?;
        let marker = Marker {
            marks,
            pool: pool.clone(),
            sql: Arc::clone(&sql),
            health: Arc::clone(&health),
            activity: Arc::clone(&activity),
        };
        let reporter = Reporter::new(
            address.to_string(),
            activity,
            Arc::clone(&hub),
            pool.clone(),
            sql,
            schema,
        );
        Ok(Self {
            hub,
            health,
            pool,
            listener,
            marker,
            pruner,
            reporter,
            lines,
            drain: options.drain,
            server,
            admin,
            address,
            admin_address,
            certificate,
        })
    }

    /// Where browsers connect; with port 0 asked for, the one that was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where probes connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Where connections are registered.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Serves until `shutdown` resolves, then stops in order: no new
    /// connections, no new rows, the streams spread over the drain time, the
    /// last marks.
    ///
    /// # Errors
    ///
    /// [`RunError`], if it stopped for another reason.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        info!(
            address = %self.address, admin_address = %self.admin_address,
            "streaming on {}://{}/stream, the operator's page is http://{}/",
            if self.certificate.is_some() { "https" } else { "http" },
            self.address, self.admin_address
        );
        let _renewal = self
            .certificate
            .map(|certificate| AbortOnDropHandle::new(tokio::spawn(certificate.renew())));
        let _telling =
            AbortOnDropHandle::new(tokio::spawn(telemetry::keep_telling_what_was_left_out()));
        let stop_marker = CancellationToken::new();
        let marker = tokio::spawn(self.marker.run(stop_marker.clone()));
        let stop_pruner = CancellationToken::new();
        let _pruner = self
            .pruner
            .map(|pruner| AbortOnDropHandle::new(tokio::spawn(pruner.run(stop_pruner.clone()))));
        let stop_reporter = CancellationToken::new();
        let reporter = tokio::spawn(self.reporter.run(stop_reporter.clone()));
        let stop_listener = CancellationToken::new();
        let mut listener =
            AbortOnDropHandle::new(tokio::spawn(self.listener.run(stop_listener.clone())));
        let (handle, admin_handle) = (self.server.handle(), self.admin.handle());
        // In tasks of their own: a server stops only while somebody drives it.
        let mut server = AbortOnDropHandle::new(tokio::spawn(self.server));
        let mut admin = AbortOnDropHandle::new(tokio::spawn(self.admin));

        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            _ = &mut listener => Err(RunError::Ended("listener")),
            ended = &mut server => Err(RunError::of_server("HTTP server", ended)),
            ended = &mut admin => Err(RunError::of_server("admin server", ended)),
        };

        info!(
            connections = self.hub.connections(),
            "stopping: ending {} streams",
            self.hub.connections()
        );
        self.health.drain();
        stop_pruner.cancel();
        stop_listener.cancel();
        self.hub.end_all(Ending::Draining);
        // It may be waiting for a database that is gone.
        if !listener.is_finished() {
            let _ = timeout(LISTENER_LIMIT, &mut listener).await;
        }
        let cut_off = Instant::now() + self.drain + servers::STOP_GRACE;
        // Waits for the streams to end that are still in it, and no longer than
        // its shutdown timeout; then none can leave it any more.
        handle.stop(true).await;
        let _ = timeout_at(cut_off, self.lines.ended()).await;
        stop_marker.cancel();
        // A panic in there was reported by the panic hook.
        let _ = marker.await;
        // It tells what the others have done to their end.
        stop_reporter.cancel();
        let _ = reporter.await;
        self.pool.close();
        admin_handle.stop(false).await;
        telemetry::tell_what_was_left_out();
        info!("stopped");
        outcome
    }
}

/// Pages that are read at once: one connection is reserved for marks, and one is
/// left for lookups of tickets and reports.
fn pages_at_once(pool_size: u16) -> usize {
    usize::from(pool_size).saturating_sub(2).max(1)
}

/// Tries again while the database at `url` is not there yet.
async fn patiently<T, E: Display>(
    url: &DatabaseUrl,
    is_passing: impl Fn(&E) -> bool,
    attempt: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    let give_up = Instant::now() + START_LIMIT;
    let mut backoff = Backoff::new(START_FIRST, START_LONGEST);
    loop {
        let error = match attempt().await {
            Err(error) if is_passing(&error) => error,
            outcome => return outcome,
        };
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(error);
        }
        warn!(
            %error, database = %url,
            "can't reach the database at {url}, trying for {} s more: {error}",
            left.as_secs()
        );
        sleep(backoff.next_delay()).await;
    }
}
