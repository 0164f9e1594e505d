//! The server for browsers and the server for the admin address, with their limits.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_server::{ServerBuilder, ServerHandle};
use actix_web::{
    App as ActixApp,
    dev::Server,
    middleware::{Condition, from_fn},
    web,
};
use actix_web_lab::middleware::CatchPanic;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{host, scheme::Scheme},
    config::BridgeOptions,
    delivery::health::Health,
    http::{
        acceptor::Acceptor,
        admin_routes,
        demo::Demo,
        draining::{self, Draining},
        inherited_sockets::Inherited,
        sockets::{self, Sockets},
        stream_route::{self, StreamRoute},
    },
    monitoring::{dashboard::Dashboard, prometheus::Metrics},
    runtime::loopback::is_loopback,
    tls::server_certificate::Certificate,
};

/// Streams have ended after the drain time. Whatever is still open this much later is
/// closed.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// The most connections that wait to be accepted: after a restart, all browsers reconnect
/// at once. The kernel caps this at `net.core.somaxconn`.
const ACCEPT_BACKLOG: i32 = 4_096;

/// The most connections to the admin address, from probes, monitoring and a few people.
/// Further clients wait until one of these is closed; none stays open for long.
const ADMIN_CONNECTIONS: usize = 1_024;

/// How long to wait until the thread that accepts connections has paused. It needs
/// microseconds, but doesn't report when it is done.
const PAUSE: Duration = Duration::from_millis(25);

/// How long connections that were accepted before the pause may take to send their
/// request and receive the response: a few round trips to the other side of the world.
/// Then they are closed.
pub const CLOSING_LIMIT: Duration = Duration::from_secs(1);

/// How often to check whether they have ended.
const CLOSING_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// The certificate can't be used.
    #[error("can't set up HTTPS")]
    Tls(#[from] rustls::Error),
    /// An address can't be bound.
    #[error("can't listen on {address} ({setting}): {reason}{}", advice(.reason))]
    Bind {
        address: SocketAddr,
        /// The setting that contains the address.
        setting: &'static str,
        reason: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop the program that is listening there (`ss -ltnp` lists it), or choose another \
             port"
        }
        io::ErrorKind::AddrNotAvailable => "; this machine doesn't have that address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 usually require root: choose another port"
        }
        _ => "",
    }
}

/// Checks that both addresses are free at the moment: listens on them, and stops at once.
pub fn check_ports(options: &BridgeOptions) -> Result<(), ServersError> {
    for (setting, address) in [
        ("TIDINGS_LISTEN", options.listen),
        ("TIDINGS_ADMIN_LISTEN", options.admin_listen),
    ] {
        listen(address).map_err(|reason| ServersError::Bind {
            address,
            setting,
            reason,
        })?;
    }
    Ok(())
}

/// The server for browsers.
pub struct StreamServer {
    server: Server,
    address: SocketAddr,
    sockets: Arc<Sockets>,
    closing: CancellationToken,
}

impl StreamServer {
    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled. Then it accepts no more connections, so those
    /// that wait are left to the next process if that shares the socket. It answers
    /// connections that were already accepted, and closes the rest after
    /// [`CLOSING_LIMIT`].
    ///
    /// # Errors
    ///
    /// If its socket fails.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let Self {
            mut server,
            sockets,
            closing,
            ..
        } = self;
        let handle = server.handle();
        tokio::select! {
            ended = &mut server => return ended,
            () = stop.cancelled() => {}
        }
        let close = async {
            accept_no_more(&handle).await;
            closing.cancel();
            let _ = timeout(CLOSING_LIMIT, all_closed(&sockets)).await;
            handle.stop(false).await;
        };
        let ((), ended) = tokio::join!(close, server);
        ended
    }
}

async fn accept_no_more(handle: &ServerHandle) {
    handle.pause().await;
    sleep(PAUSE).await;
}

async fn all_closed(sockets: &Sockets) {
    let mut ticks = interval(CLOSING_POLL_INTERVAL);
    while sockets.open() > 0 {
        ticks.tick().await;
    }
}

/// What the server for browsers serves.
#[derive(Clone)]
pub struct StreamApp {
    pub stream: StreamRoute,
    pub gate: web::Data<Draining>,
    pub demo: Option<Demo>,
}

impl StreamApp {
    fn routes(&self, scheme: Scheme, config: &mut web::ServiceConfig) {
        Draining::routes(&self.gate, &self.stream.origins, config);
        self.stream.routes(scheme, config);
        if let Some(demo) = &self.demo {
            demo.routes(config);
        }
    }
}

/// Binds the address for browsers, unless a socket was inherited.
pub fn bind_streams(
    options: &BridgeOptions,
    inherited: Option<Inherited>,
    served: StreamApp,
    sockets: Arc<Sockets>,
    certificate: Option<&Arc<Certificate>>,
) -> Result<StreamServer, ServersError> {
    let scheme = match certificate {
        Some(_) => Scheme::Https,
        None => Scheme::Http,
    };
    let app = move || {
        ActixApp::new()
            .wrap(CatchPanic::default())
            .wrap(Condition::new(
                served.demo.is_some(),
                from_fn(host::loopback_only),
            ))
            .wrap(from_fn(draining::pass))
            .configure(|config| served.routes(scheme, config))
            .default_service(web::to(stream_route::not_found))
    };
    let server = ServerBuilder::new()
        // One more than our own limit, so that clients beyond that are rejected instead
        // of never accepted.
        .max_concurrent_connections(sockets::most(&options.limits) + 1)
        .disable_signals();
    let closing = CancellationToken::new();
    let port = Acceptor {
        sockets: Some(Arc::clone(&sockets)),
        tls: certificate.map(Certificate::acceptor).transpose()?,
        closing: closing.clone(),
    };
    let bind = |reason| ServersError::Bind {
        address: options.listen,
        setting: "TIDINGS_LISTEN",
        reason,
    };
    let (listener, address) = listener(inherited, options.listen).map_err(bind)?;
    let server = port.listen(server, listener, app).map_err(bind)?;
    Ok(StreamServer {
        server: server.run(),
        address,
        sockets,
        closing,
    })
}

/// Binds the admin address, unless a socket was inherited.
pub fn bind_admin(
    options: &BridgeOptions,
    inherited: Option<Inherited>,
    health: web::Data<Health>,
    metrics: web::Data<Metrics>,
    operator: web::Data<Dashboard>,
) -> Result<(Server, SocketAddr), ServersError> {
    let bind = |reason| ServersError::Bind {
        address: options.admin_listen,
        setting: "TIDINGS_ADMIN_LISTEN",
        reason,
    };
    let (listener, address) = listener(inherited, options.admin_listen).map_err(bind)?;
    // Only this machine can connect to a loopback address, but that includes web pages in
    // a browser on it.
    let is_loopback = is_loopback(address.ip());
    let app = move || {
        ActixApp::new()
            .wrap(Condition::new(is_loopback, from_fn(host::loopback_only)))
            .app_data(health.clone())
            .app_data(metrics.clone())
            .app_data(operator.clone())
            .configure(admin_routes::routes)
            .default_service(web::to(admin_routes::not_found))
    };
    let server = ServerBuilder::new()
        .workers(1)
        .max_concurrent_connections(ADMIN_CONNECTIONS)
        .disable_signals();
    let port = Acceptor {
        sockets: None,
        tls: None,
        closing: CancellationToken::new(),
    };
    let server = port.listen(server, listener, app).map_err(bind)?;
    Ok((server.run(), address))
}

/// The inherited listener, or a new one at this address; and the address on which it
/// listens.
fn listener(
    inherited: Option<Inherited>,
    address: SocketAddr,
) -> io::Result<(TcpListener, SocketAddr)> {
    match inherited {
        Some(inherited) => {
            let address = inherited.address();
            Ok((inherited.into_listener(), address))
        }
        None => listen(address),
    }
}

/// A new listener, and the address on which it listens; for port 0, with the port that
/// the system chose.
fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A bridge that was just replaced leaves connections behind, which end by themselves
    // but would keep this one from binding.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}
