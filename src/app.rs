//! Builds the bridge, runs it, and stops it in order.

mod database;
mod delivery;
pub mod reload;
pub mod shutdown;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{dev::Server, web};
use futures_util::future::join_all;
use tokio::{
    runtime::Handle,
    time::{Instant, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{delivery::Delivery, reload::Reload, shutdown::Hangups};
use crate::{
    auth::{
        authenticator::{Authenticator, Credentials, QueryUser, TicketPolicy},
        client_addr::Proxies,
        jwt::Tokens,
        origin::Origins,
        rejections::Rejections,
        ticket::Tickets,
    },
    config::{self, BridgeOptions, ConfigError, MigratePolicy, ServeOptions},
    delivery::{
        health::Health,
        hub::Hub,
        listener::{ListenError, Listener},
        mailbox::Ending,
        marker::Marker,
    },
    http::{
        admission::Admission,
        demo::Demo,
        detached_stream::DetachedStreams,
        draining::Draining,
        inherited_sockets::InheritedSockets,
        servers::{self, ServersError, StreamApp, StreamServer},
        sockets::{self, Sockets},
        stream_route::StreamRoute,
    },
    monitoring::{
        chart_data::ChartData, dashboard::Dashboard, logging, prometheus::Metrics,
        reporter::Reporter,
    },
    postgres::{
        connect::DatabaseUrl,
        database::Database,
        listen_probe::DirectError,
        pool::{Pool, QueryError},
        pruner::Pruner,
        schema::{SchemaError, SchemaName},
    },
    runtime::tasks::{Failed, Failure, Stopped, Task, Tasks},
    tls::server_certificate::Certificate,
};

/// Limit for the whole shutdown, beyond the drain time: after it the process ends,
/// whatever hangs. Process managers are configured to wait this long.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The part of [`SHUTDOWN_LIMIT`] that is reserved for what follows once all tasks have
/// ended or were aborted: the admin server, the last log lines, and the end of the
/// runtime.
const EXIT_RESERVE: Duration = Duration::from_millis(1_500);

/// How long the listener may take to stop: one poll, and releasing its lock.
const LISTENER_LIMIT: Duration = Duration::from_secs(2);

/// How long the HTTP server may take to close its port and its connections.
const SERVER_LIMIT: Duration = servers::CLOSING_LIMIT.saturating_add(Duration::from_millis(400));

/// How long writing the last marks may take: all of [`SHUTDOWN_LIMIT`] if the other parts
/// of the shutdown take no time, because rows without marks are sent again.
const MARKER_LIMIT: Duration = SHUTDOWN_LIMIT;

/// How often to check whether all streams have ended.
const STREAMS_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long the last report may take; the reporter itself gives up earlier.
const REPORTER_LIMIT: Duration = Duration::from_millis(1_500);

/// How long the pruner may take to stop: it is dropped wherever it is waiting.
const PRUNER_LIMIT: Duration = Duration::from_secs(1);

/// How long the admin server may take to stop: it drops its connections.
const ADMIN_LIMIT: Duration = Duration::from_millis(500);

/// How long a bridge with these settings may take to stop.
pub fn shutdown_limit(options: &BridgeOptions) -> Duration {
    options.drain + SHUTDOWN_LIMIT
}

/// A bridge that is ready to run.
pub struct App {
    hub: Arc<Hub>,
    health: Arc<Health>,
    pool: Pool,
    listener: Listener,
    marker: Marker,
    pruner: Option<Pruner>,
    reporter: Reporter,
    detached: Arc<DetachedStreams>,
    drain: Duration,
    gate: web::Data<Draining>,
    server: StreamServer,
    admin: Server,
    admin_address: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    reload: Option<Reload>,
    tasks: Tasks,
    /// Tasks that have nothing to finish when they are stopped.
    background: Vec<Task>,
}

/// Why the bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Direct(#[from] DirectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Pool(#[from] deadpool::managed::BuildError),
    #[error("DATABASE_URL")]
    Query(#[from] QueryError),
    #[error(
        "DATABASE_URL and TIDINGS_DIRECT_DATABASE_URL lead to different servers, or one of them \
         to a standby: the bridge must read rows from the same server on which it listens"
    )]
    TwoServers,
    #[error(transparent)]
    Servers(#[from] ServersError),
}

/// Why a running bridge stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task can't continue, for example a server whose socket fails: its name and the
    /// reason.
    #[error("the {0} failed: {1}")]
    Failed(&'static str, String),
    /// A task ended on its own, which is a bug: its name.
    #[error("the {0} ended unexpectedly; please report this with the log")]
    Ended(&'static str),
}

impl From<Failed> for RunError {
    fn from(Failed { name, how }: Failed) -> Self {
        match how {
            Failure::Error(error) => Self::Failed(name, error),
            Failure::Returned | Failure::Panicked => Self::Ended(name),
        }
    }
}

/// What a bridge is built from: its databases, who may connect, and what it serves
/// besides streams.
pub struct Parts {
    /// For reading pages and writing marks.
    pub url: DatabaseUrl,
    /// For the listener and migrations, if `url` goes through a pooler.
    pub direct_url: Option<DatabaseUrl>,
    pub schema: SchemaName,
    /// Whether the schema may be migrated.
    pub migrate: MigratePolicy,
    pub credentials: Credentials,
    /// For HTTPS; without it browsers connect over HTTP.
    pub certificate: Option<Certificate>,
    /// The proxies whose forwarding headers are trusted.
    pub proxies: Proxies,
    /// The origins whose pages may open streams.
    pub origins: Origins,
    /// The demo page of `tidings dev`.
    pub demo: Option<Demo>,
    /// The settings whose files are read again on SIGHUP.
    pub reloadable: Option<Box<ServeOptions>>,
    /// Listening sockets that the service manager passed.
    pub activation: InheritedSockets,
}

impl Parts {
    /// The parts of `tidings serve`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if a setting is missing or can't be used.
    pub fn of(options: &ServeOptions) -> Result<Self, ConfigError> {
        let user_header = options.trust.user_header()?;
        let tokens = options.tokens()?;
        let credentials = Credentials {
            tokens: tokens.map(Arc::new),
            cookie: options.trust.cookie_name.clone(),
            user_header,
            tickets: match options.trust.tickets {
                Some(config::TicketSetting::Off) => TicketPolicy::Refused,
                Some(config::TicketSetting::On) | None => TicketPolicy::Believed,
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
            reloadable: Some(Box::new(options.clone())),
            activation: InheritedSockets::default(),
        })
    }
}

impl App {
    /// Checks the schema, starts the listener, and binds both addresses. Must be called
    /// on a multi-threaded runtime, which drives the database connections.
    ///
    /// # Errors
    ///
    /// [`StartError`]. A database that can't be reached is retried for 30 s.
    pub async fn build(parts: Parts, options: &BridgeOptions) -> Result<Self, StartError> {
        let health = Arc::new(Health::default());
        let tasks = Tasks::new({
            let health = Arc::clone(&health);
            move |name| health.task_ended(name)
        });
        // Early, so that the keys are there for the first connection.
        let tokens = parts.credentials.tokens.clone();
        let mut background = refresh_keys(tokens.as_deref(), &tasks);
        sockets::warn_of_few_files(&options.limits, options.pool_size);
        let database = Database::open(&parts, options).await?;
        let delivery = Delivery::start(&database, options, Arc::clone(&health)).await?;
        let pruned = Arc::default();
        let rejections = Arc::new(Rejections::default());
        let stats = Arc::new(delivery.stats(&database, options, &pruned, &rejections));
        let history = Arc::new(ChartData::default());
        let (admin, admin_address) = servers::bind_admin(
            options,
            parts.activation.admin,
            web::Data::from(Arc::clone(&health)),
            web::Data::new(Metrics::new(Arc::clone(&stats), &delivery.streams.ended)),
            web::Data::new(Dashboard::new(
                Arc::clone(&stats),
                Arc::clone(&history),
                options,
                database.clone(),
            )),
        )?;
        background.push(tasks.start_endless("chart data", history.record(stats)));
        let tickets = Tickets::new(Arc::clone(&delivery.hub), database.clone());
        let detached = Arc::new(DetachedStreams::new(Handle::current()));
        let limits = &options.limits;
        let admission = Admission::new(
            limits.clone(),
            parts.proxies.clone(),
            Arc::clone(&rejections),
        );
        let sockets = Sockets::new(limits, parts.proxies.clone(), Arc::clone(&rejections));
        let stream = StreamRoute {
            streams: Arc::clone(&delivery.streams),
            detached: Arc::clone(&detached),
            authenticator: Arc::new(Authenticator::new(parts.credentials, tickets)),
            admission: Arc::new(admission),
            origins: web::Data::new(parts.origins),
            proxies: web::Data::new(parts.proxies),
            rejections: web::Data::from(rejections),
        };
        let certificate = parts.certificate.map(Arc::new);
        let gate = web::Data::new(Draining::new(options.drain));
        let server = servers::bind_streams(
            options,
            parts.activation.stream,
            StreamApp {
                stream,
                gate: gate.clone(),
                demo: parts.demo,
            },
            Arc::new(sockets),
            certificate.as_ref(),
        )?;
        let reload = parts.reloadable.map(|options| Reload {
            options,
            url: parts.url,
            direct_url: parts.direct_url,
            tokens,
            certificate: certificate.clone(),
        });
        Ok(Self {
            pruner: database.pruner(&options.retention, pruned),
            reporter: delivery.reporter(&database, server.address()),
            marker: delivery.marker(&database),
            hub: delivery.hub,
            listener: delivery.listener,
            pool: database.pool,
            health,
            detached,
            drain: options.drain,
            gate,
            server,
            admin,
            admin_address,
            certificate,
            reload,
            tasks,
            background,
        })
    }

    /// The address for browsers. If port 0 was configured, with the port that the system
    /// assigned.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address for probes and monitors.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Runs a task alongside the bridge, under the same contract as the bridge's own
    /// tasks (`Tasks`): if it returns or panics, readiness turns red and the bridge
    /// stops with an error. It is dropped when the bridge stops. `name` is a noun that
    /// can follow "the".
    pub fn supervise(
        &mut self,
        name: &'static str,
        running: impl Future<Output = ()> + Send + 'static,
    ) {
        self.background
            .push(self.tasks.start_endless(name, running));
    }

    /// Reads secrets and certificates from their files again at each SIGHUP.
    pub fn reload_on(&mut self, hangups: Hangups) {
        if let Some(reload) = self.reload.take() {
            self.supervise("reload on SIGHUP", reload.run(hangups));
        }
    }

    /// Serves until `shutdown` resolves or a task ends on its own, then stops in order:
    /// new streams are deferred, the listener stops, the streams end spread over the
    /// drain time, the last marks are written, and the port closes, which answers until
    /// then. Whatever takes too long is aborted, so stopping takes at most the drain time
    /// plus ten seconds.
    ///
    /// # Errors
    ///
    /// [`RunError`], if a task ended on its own.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let address = self.address();
        info!(
            %address, admin_address = %self.admin_address,
            "streaming on {}://{}/stream, operator's page at http://{}/",
            if self.certificate.is_some() { "https" } else { "http" },
            address, self.admin_address
        );
        if let Some(certificate) = self.certificate.take() {
            self.supervise("certificate renewal", certificate.renew());
        }
        self.supervise("log summary", logging::keep_telling_what_is_missing());
        let tasks = &self.tasks;
        let marker = tasks.start("marker", MARKER_LIMIT, |stop| self.marker.run(stop));
        let pruner = self
            .pruner
            .map(|pruner| tasks.start("pruner", PRUNER_LIMIT, |stop| pruner.run(stop)));
        let reporter = tasks.start("reporter", REPORTER_LIMIT, |stop| self.reporter.run(stop));
        let listener = tasks.start("listener", LISTENER_LIMIT, |stop| self.listener.run(stop));
        let server = tasks.start("HTTP server", SERVER_LIMIT, |stop| self.server.run(stop));
        let admin = tasks.start("admin server", ADMIN_LIMIT, |stop| drive(self.admin, stop));

        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            failed = tasks.failed() => Err(RunError::from(failed)),
        };

        // First: from now on requests for streams are answered with a deferral.
        self.gate.close();
        self.health.drain();
        let connections = self.hub.connections();
        info!(connections, "stopping: ending {connections} streams");
        let begin = Instant::now();
        let mut stopping = Stopping {
            deadline: begin + self.drain + SHUTDOWN_LIMIT - EXIT_RESERVE,
            cut_off: Vec::new(),
        };
        if let Some(pruner) = &pruner {
            pruner.request_stop();
        }
        listener.request_stop();
        self.hub.end_all(Ending::Draining);
        // The listener may be waiting for a database that can't be reached.
        stopping.stop(listener).await;
        let streams_deadline = Instant::now() + self.drain + servers::STOP_GRACE;
        let ended = timeout_at(streams_deadline, async {
            self.gate.passed().await;
            until_empty(&self.hub).await;
        });
        let server = match ended.await {
            // No stream can start any more, so the port keeps answering until the end.
            Ok(()) => {
                let _ = timeout_at(streams_deadline, self.detached.ended()).await;
                Some(server)
            }
            // Streams that are cut off can't write rows after the last marks.
            Err(_) => {
                stopping.stop(server).await;
                None
            }
        };
        // The last report follows the last marks, so that it includes them.
        let marks_deadline = stopping.deadline - REPORTER_LIMIT;
        stopping.stop_before(marks_deadline, marker).await;
        stopping
            .stop_all([reporter].into_iter().chain(server))
            .await;
        self.pool.close();
        let rest = self.background.into_iter().chain(pruner);
        stopping.deadline = Instant::now() + ADMIN_LIMIT;
        stopping.stop_all(rest.chain([admin])).await;
        logging::report_suppressed();
        stopping.warn_of_aborted();
        let took = begin.elapsed();
        let deferred = self.gate.deferred();
        info!(
            took_ms = took.as_millis() as u64,
            deferred,
            // The name of earlier releases.
            turned_away = deferred,
            "stopped; {deferred} requests for streams were told to retry"
        );
        outcome
    }
}

/// Runs a server until it is stopped. It makes progress, and stops, only while its future
/// is polled. Its connections are dropped.
async fn drive(server: Server, stop: CancellationToken) -> io::Result<()> {
    let handle = server.handle();
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended,
        () = stop.cancelled() => {
            let stopping = handle.stop(false);
            let ((), ended) = tokio::join!(stopping, server);
            ended
        }
    }
}

async fn until_empty(hub: &Hub) {
    let mut ticks = interval(STREAMS_POLL_INTERVAL);
    while hub.connections() > 0 {
        ticks.tick().await;
    }
}

/// The deadline of a shutdown, and the tasks that were aborted in it.
#[derive(Debug)]
struct Stopping {
    deadline: Instant,
    cut_off: Vec<&'static str>,
}

impl Stopping {
    async fn stop(&mut self, task: Task) {
        self.stop_before(self.deadline, task).await;
    }

    async fn stop_before(&mut self, deadline: Instant, task: Task) {
        let name = task.name();
        match task.stop(deadline).await {
            Stopped::InTime => {}
            Stopped::CutOff => self.cut_off.push(name),
        }
    }

    /// Stops all of them concurrently.
    async fn stop_all(&mut self, tasks: impl Iterator<Item = Task>) {
        let deadline = self.deadline;
        let stopped = join_all(tasks.map(async |task| (task.name(), task.stop(deadline).await)));
        let cut_off = stopped.await.into_iter();
        let cut_off = cut_off.filter(|(_, stopped)| *stopped == Stopped::CutOff);
        self.cut_off.extend(cut_off.map(|(name, _)| name));
    }

    fn warn_of_aborted(&self) {
        if !self.cut_off.is_empty() {
            let cut_off = self.cut_off.join(", ");
            warn!(
                cut_off,
                "stopping took too long, so these tasks were aborted: {cut_off}. Rows that were \
                 sent but not marked are sent again to clients that connect without a last event \
                 id"
            );
        }
    }
}

/// Starts to fetch the keys that verify tokens, if they are published at a URL.
fn refresh_keys(tokens: Option<&Tokens>, tasks: &Tasks) -> Vec<Task> {
    let Some(tokens) = tokens else {
        return Vec::new();
    };
    if let Some(warning) = tokens.warning() {
        warn!("{warning}");
    }
    let keys = tokens.key_set();
    keys.map(|keys| tasks.start_endless("key set refresh", keys.refresh()))
        .into_iter()
        .collect()
}
