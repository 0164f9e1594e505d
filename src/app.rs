//! Builds the bridge, runs it, and stops it in order.

mod database;
mod delivery;
mod error;
mod parts;
pub mod reload;
pub mod shutdown;
mod stopping;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{dev::Server, web};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    delivery::Delivery,
    reload::Reload,
    shutdown::Hangups,
    stopping::{
        ADMIN_LIMIT, LISTENER_LIMIT, MARKER_LIMIT, PRUNER_LIMIT, REPORTER_LIMIT, Running,
        SERVER_LIMIT,
    },
};
pub use self::{
    error::{RunError, StartError},
    parts::Parts,
    stopping::shutdown_limit,
};
use crate::{
    auth::{authenticator::Authenticator, jwt::Tokens, rejections::Rejections, ticket::Tickets},
    config::BridgeOptions,
    delivery::{
        cursors::CursorWriter,
        feed::{Feed, FeedStats},
        health::Health,
        hub::Hub,
        listener::Listener,
        marker::Marker,
    },
    fanout,
    http::{
        admission::Admission,
        detached_stream::DetachedStreams,
        draining::Draining,
        servers::{self, StreamApp, StreamServer},
        sockets::{self, Sockets},
        stream_route::StreamRoute,
    },
    monitoring::{
        chart_data::ChartData, dashboard::Dashboard, logging, prometheus::Metrics,
        reporter::Reporter,
    },
    postgres::{database::Database, pool::Pool, pruner::Pruner},
    runtime::tasks::{Task, Tasks},
    tls::server_certificate::Certificate,
};

/// A bridge that is ready to run.
pub struct App {
    hub: Arc<Hub>,
    health: Arc<Health>,
    pool: Pool,
    listener: Listener,
    marker: Marker,
    cursors: CursorWriter,
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
        let (mut feed, mut feed_stats) = (None, None);
        if let Some(servers) = parts.nats {
            let (link, task) = fanout::link(servers);
            let stats = Arc::new(FeedStats::default());
            background.push(tasks.start_endless("connection to NATS", task.run()));
            feed = Some(Feed::new(link, parts.feed, Arc::clone(&stats)));
            feed_stats = Some(stats);
        }
        let replicas = &parts.replica_urls;
        let delivery =
            Delivery::start(&database, replicas, feed, options, Arc::clone(&health)).await?;
        if let Some(watch) = delivery.replica_watch(&database) {
            background.push(tasks.start_endless("watch over replicas", watch));
        }
        let pruned = Arc::default();
        let rejections = Arc::new(Rejections::default());
        let stats = Arc::new(delivery.stats(&database, options, &pruned, &rejections, feed_stats));
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
        let adopted = delivery.adopted_marker(&database).run();
        background.push(tasks.start_endless("marker of adopted tables", adopted));
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
            replica_urls: parts.replica_urls,
            tokens,
            certificate: certificate.clone(),
        });
        Ok(Self {
            pruner: database.pruner(&options.retention, pruned),
            reporter: delivery.reporter(&database, server.address()),
            marker: delivery.marker(&database),
            cursors: delivery.cursor_writer(&database),
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
        let cursors = tasks.start("writer of cursors", MARKER_LIMIT, |stop| {
            self.cursors.run(stop)
        });
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

        let running = Running {
            gate: self.gate,
            health: self.health,
            hub: self.hub,
            detached: self.detached,
            pool: self.pool,
            drain: self.drain,
            marker,
            cursors,
            pruner,
            reporter,
            listener,
            server,
            admin,
            background: self.background,
        };
        running.stop().await;
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
