//! The two servers, and how they are bounded.

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
        acceptor::Port,
        admin_routes,
        demo::Demo,
        draining::{self, Gate},
        inherited_sockets::Inherited,
        sockets::{self, Sockets},
        stream_route::{self, Door},
    },
    monitoring::{dashboard::Operator, prometheus::Metrics},
    tls::server_certificate::Certificate,
};

/// Streams have ended after the drain time; what is still open then is cut off
/// after this.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted: after a restart all browsers come
/// back together. The kernel caps it at `net.core.somaxconn`.
const ACCEPT_BACKLOG: i32 = 4_096;

/// Connections to the admin address: probes, monitors and a few people. Beyond
/// that, clients wait until one of them ends, which none keeps open for long.
const ADMIN_CONNECTIONS: usize = 1_024;

/// How long the thread that accepts connections may take to notice that it is to accept no more. It needs
/// microseconds; there is nothing to wait for.
const PAUSE: Duration = Duration::from_millis(25);

/// How long connections that were accepted before that may take to send their request and to be answered: a
/// few round trips to the other side of the world. Then they are closed.
pub const CLOSING_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked whether they have ended.
const CLOSING_LOOK: Duration = Duration::from_millis(5);

/// Why a server did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// The certificate.
    #[error("HTTPS can't be had: {0}")]
    Tls(#[from] rustls::Error),
    /// An address.
    #[error("can't listen on {address} ({setting}): {source}{}", advice(.source))]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Where it was asked for.
        setting: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; end the program that listens there (`ss -ltnp` names it), or choose another port"
        }
        io::ErrorKind::AddrNotAvailable => "; it is no address of this machine",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 are for root, as a rule: choose another port"
        }
        _ => "",
    }
}

/// Whether both addresses are free at the moment: listens there, and stops at once.
///
/// # Errors
///
/// [`ServersError`].
pub fn check_ports(options: &BridgeOptions) -> Result<(), ServersError> {
    for (setting, address) in [
        ("TIDINGS_LISTEN", options.listen),
        ("TIDINGS_ADMIN_LISTEN", options.admin_listen),
    ] {
        listen(address).map_err(|source| ServersError::Bind {
            address,
            setting,
            source,
        })?;
    }
    Ok(())
}

/// The server where browsers connect.
pub struct StreamServer {
    server: Server,
    address: SocketAddr,
    sockets: Arc<Sockets>,
    closing: CancellationToken,
}

impl StreamServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled. Then it accepts no more, so that connections which were not
    /// accepted are left to the next process if that has the same socket, answers those that were, and
    /// closes the rest after [`CLOSING_LIMIT`].
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
    let mut looks = interval(CLOSING_LOOK);
    while sockets.open() > 0 {
        looks.tick().await;
    }
}

/// Binds the address where browsers connect, unless a socket was inherited.
///
/// # Errors
///
/// [`ServersError`].
pub fn bind_streams(
    options: &BridgeOptions,
    inherited: Option<Inherited>,
    door: Door,
    gate: web::Data<Gate>,
    sockets: Arc<Sockets>,
    demo: Option<Demo>,
    certificate: Option<&Arc<Certificate>>,
) -> Result<StreamServer, ServersError> {
    let scheme = match certificate {
        Some(_) => Scheme::Https,
        None => Scheme::Http,
    };
    let app = move || {
        ActixApp::new()
            .wrap(CatchPanic::default())
            .wrap(Condition::new(demo.is_some(), from_fn(host::loopback_only)))
            .wrap(from_fn(draining::pass))
            .configure(|config| Gate::routes(&gate, &door.origins, config))
            .configure(|config| door.routes(scheme, config))
            .configure(|config| {
                if let Some(demo) = &demo {
                    demo.routes(config);
                }
            })
            .default_service(web::to(stream_route::not_found))
    };
    let server = ServerBuilder::new()
        // Above our own limit, at which a client is told, instead of never accepted.
        .max_concurrent_connections(sockets::most(&options.limits) + 1)
        .disable_signals();
    let closing = CancellationToken::new();
    let port = Port {
        sockets: Some(Arc::clone(&sockets)),
        tls: certificate.map(Certificate::acceptor).transpose()?,
        closing: closing.clone(),
    };
    let bind = |source| ServersError::Bind {
        address: options.listen,
        setting: "TIDINGS_LISTEN",
        source,
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

/// Binds the address where probes connect, unless a socket was inherited.
///
/// # Errors
///
/// [`ServersError`].
pub fn bind_admin(
    options: &BridgeOptions,
    inherited: Option<Inherited>,
    health: web::Data<Health>,
    metrics: web::Data<Metrics>,
    operator: web::Data<Operator>,
) -> Result<(Server, SocketAddr), ServersError> {
    let bind = |source| ServersError::Bind {
        address: options.admin_listen,
        setting: "TIDINGS_ADMIN_LISTEN",
        source,
    };
    let (listener, address) = listener(inherited, options.admin_listen).map_err(bind)?;
    // Only this machine can connect, but so can web pages in a browser on it.
    let is_loopback = address.ip().to_canonical().is_loopback();
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
    let port = Port {
        sockets: None,
        tls: None,
        closing: CancellationToken::new(),
    };
    let server = port.listen(server, listener, app).map_err(bind)?;
    Ok((server.run(), address))
}

/// The listener that was inherited, or one at this address, and where it listens.
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

/// A listener, and where it listens: with port 0 asked for, at the one that was
/// given.
fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A bridge that was just replaced leaves connections behind that end by
    // themselves.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}
