//! The two servers, and how they are bounded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{
    App as ActixApp, HttpServer,
    dev::Server,
    middleware::{Condition, from_fn},
    web,
};
use actix_web_lab::middleware::CatchPanic;

use crate::{
    admin,
    config::BridgeOptions,
    demo::{self, Demo},
    health::Health,
    http::{self, Door},
    metrics::Metrics,
    operator::Operator,
    sockets::{self, CLIENT_LIMIT, Sockets},
    tls::{self, Certificate},
};

/// Streams have ended after the drain time; what is still open then is cut off
/// after this.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted: after a restart all browsers come
/// back together. The kernel caps it at `net.core.somaxconn`.
const ACCEPT_BACKLOG: u32 = 4_096;

/// Bytes that a client may send beside its requests, over HTTP/2, before it has
/// to wait: the least that the protocol has, as nobody reads them.
const REQUEST_BODY_BYTES: u32 = 65_535;

/// Why a server did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// The certificate.
    #[error("HTTPS can't be had: {0}")]
    Tls(#[from] rustls::Error),
    /// An address.
    #[error("can't listen on {address} ({setting}): {source}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Where it was asked for.
        setting: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Binds the address where browsers connect.
///
/// # Errors
///
/// [`ServersError`].
pub fn bind_streams(
    options: &BridgeOptions,
    door: Door,
    sockets: Arc<Sockets>,
    demo: Option<Demo>,
    certificate: Option<&Arc<Certificate>>,
) -> Result<(Server, SocketAddr), ServersError> {
    let drain = options.drain;
    let server = HttpServer::new(move || {
        ActixApp::new()
            .wrap(CatchPanic::default())
            .wrap(Condition::new(demo.is_some(), from_fn(demo::loopback_only)))
            .configure(|config| door.routes(config))
            .configure(|config| {
                if let Some(demo) = &demo {
                    demo.routes(config);
                }
            })
            .default_service(web::to(http::not_found))
    })
    // A body is polled again only when all its earlier bytes are in the
    // kernel's hands: that is what "sent" rests on.
    .h1_write_buffer_size(1)
    // A browser that closes its half has gone; without this an idle stream
    // would never notice.
    .h1_allow_half_closed(false)
    // Who is slower to ask than this gets a 408, after which an `EventSource`
    // never comes back; actix's own limit is 5 s, which a device that wakes up,
    // or a connection that a browser opened ahead, can exceed.
    .client_request_timeout(CLIENT_LIMIT)
    .on_connect(move |connection, extensions| sockets.take_in(connection, extensions))
    // Above our own limit, at which a client is told, instead of never accepted.
    .max_connections(sockets::most(&options.limits) + 1)
    .backlog(ACCEPT_BACKLOG)
    .shutdown_timeout((drain + STOP_GRACE).as_secs().max(1))
    .disable_signals();
    let bind = |source| ServersError::Bind {
        address: options.listen,
        setting: "TIDINGS_LISTEN",
        source,
    };
    let server = match certificate {
        None => server.bind(options.listen),
        Some(certificate) => server
            .keep_alive(tls::SIGN_OF_LIFE)
            .tls_handshake_timeout(tls::HANDSHAKE_LIMIT)
            .max_connection_rate(tls::HANDSHAKES)
            // No request of ours has a body that is worth holding.
            .h2_initial_window_size(REQUEST_BODY_BYTES)
            .h2_initial_connection_window_size(REQUEST_BODY_BYTES)
            .bind_rustls_0_23(options.listen, certificate.server_config()?),
    };
    let server = server.map_err(bind)?;
    let address = server.addrs().first().copied().unwrap_or(options.listen);
    Ok((server.run(), address))
}

/// Binds the address where probes connect.
///
/// # Errors
///
/// [`ServersError`].
pub fn bind_admin(
    options: &BridgeOptions,
    health: web::Data<Health>,
    metrics: web::Data<Metrics>,
    operator: web::Data<Operator>,
    is_dev: bool,
) -> Result<(Server, SocketAddr), ServersError> {
    let server = HttpServer::new(move || {
        ActixApp::new()
            .wrap(Condition::new(is_dev, from_fn(demo::loopback_only)))
            .app_data(health.clone())
            .app_data(metrics.clone())
            .app_data(operator.clone())
            .configure(admin::routes)
            .default_service(web::to(http::not_found))
    })
    .workers(1)
    .disable_signals();
    let bind = |source| ServersError::Bind {
        address: options.admin_listen,
        setting: "TIDINGS_ADMIN_LISTEN",
        source,
    };
    let server = server.bind(options.admin_listen).map_err(bind)?;
    let address = server
        .addrs()
        .first()
        .copied()
        .unwrap_or(options.admin_listen);
    Ok((server.run(), address))
}
