//! Accepts connections on a port, and limits each of them from the moment it is accepted.

use std::{io, net::TcpListener, rc::Rc, sync::Arc, time::Duration};

use actix_http::{ConnectionType, HttpService, KeepAlive, Request, Response, ResponseHead};
use actix_server::ServerBuilder;
use actix_service::{
    IntoService, IntoServiceFactory, Service, ServiceFactory, fn_factory, fn_service, map_config,
};
use actix_web::{
    body::{BoxBody, MessageBody},
    dev::AppConfig,
};
use futures_util::FutureExt;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    http::{
        detached_stream::{Exchange, Framing},
        http2,
        sockets::{self, CLIENT_LIMIT, Sockets},
        transport::{Socket, Transport},
    },
    tls::server_certificate,
};

/// Time limit for a request and its response, measured from the connection or, over
/// HTTP/2, from the request's headers. Only streams may last longer. It is longer than
/// [`CLIENT_LIMIT`], so that a client that sent its request at the last moment still gets
/// a response.
pub const EXCHANGE_LIMIT: Duration = Duration::from_secs(40);

/// When a response is sent before the whole request was read, the client has this long to
/// read it before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// How a port handles a connection before HTTP.
#[derive(Clone)]
pub struct Acceptor {
    /// Counts the clients. `None` at the admin address, where they are not counted.
    pub sockets: Option<Arc<Sockets>>,
    /// HTTPS with HTTP/2 if set; otherwise plain HTTP/1.1.
    pub tls: Option<TlsAcceptor>,
    /// Cancelled when no more connections are accepted. HTTP/2 connections then shut down
    /// gracefully.
    pub closing: CancellationToken,
}

impl Acceptor {
    /// Makes `server` listen on `listener` and answer with the service that `app`
    /// creates.
    ///
    /// # Errors
    ///
    /// If the system refuses the listener.
    pub fn listen<F, I, S, B>(
        self,
        server: ServerBuilder,
        listener: TcpListener,
        app: F,
    ) -> io::Result<ServerBuilder>
    where
        F: Fn() -> I + Clone + Send + 'static,
        I: IntoServiceFactory<S, Request> + 'static,
        S: ServiceFactory<Request, Config = AppConfig> + 'static,
        S::Service: 'static,
        S::Error: Into<Response<BoxBody>> + 'static,
        S::Response: Into<Response<B>> + 'static,
        <S::Service as Service<Request>>::Future: 'static,
        B: MessageBody + 'static,
    {
        // Called once for each worker thread.
        server.listen("port", listener, move || {
            let (port, app) = (self.clone(), app.clone());
            fn_factory(move || {
                let port = port.clone();
                let app = map_config(app(), |()| AppConfig::default());
                async move { port.serve(app.new_service(()).await.map_err(drop)?).await }
            })
        })
    }

    /// Passes the requests of each connection to `app`.
    async fn serve<S, B>(
        self,
        app: S,
    ) -> Result<impl Service<TcpStream, Response = (), Error = ()>, ()>
    where
        S: Service<Request> + 'static,
        S::Error: Into<Response<BoxBody>> + 'static,
        S::Response: Into<Response<B>> + 'static,
        S::Future: 'static,
        B: MessageBody + 'static,
    {
        let app = Rc::new(app);
        let shared = Rc::clone(&app);
        let http1 = HttpService::build()
            // `EXCHANGE_LIMIT` covers the whole connection, so it serves only one
            // request.
            .keep_alive(KeepAlive::Disabled)
            // A client that takes longer gets a 408, after which an `EventSource` never
            // reconnects. A device that is waking up, or a connection that a browser
            // opened in advance, may take some seconds.
            .client_request_timeout(CLIENT_LIMIT)
            .client_disconnect_timeout(LINGER)
            // A body is polled again only when all its earlier bytes are in the kernel.
            // The meaning of "sent" depends on this.
            .h1_write_buffer_size(1)
            // A browser that closes its side of the connection has gone; a script that
            // queries the admin address may still be waiting for its response.
            .h1_allow_half_closed(self.sockets.is_none())
            .on_connect_ext(|exchange: &Exchange, extensions| {
                extensions.insert(exchange.clone());
            })
            .h1(fn_factory(move || {
                let app = Rc::clone(&shared);
                let answer = move |request| answer_http1(Rc::clone(&app), request);
                async move { Ok::<_, ()>(fn_service(answer)) }
            }))
            .new_service(())
            .await?;
        let (port, http1) = (Rc::new(self), Rc::new(http1));
        let serve = fn_service(move |tcp: TcpStream| {
            // Before the client can make the bridge do any work.
            let socket = port.on_connect(tcp);
            let (port, app, http1) = (Rc::clone(&port), Rc::clone(&app), Rc::clone(&http1));
            async move {
                let transport = port.open(socket?).await?;
                let peer = transport.peer();
                match transport {
                    Transport::Tls(stream) if server_certificate::speaks_http2(&stream) => {
                        let closing = port.closing.clone().cancelled_owned();
                        // Boxed, so that the futures of other connections don't reserve
                        // space for it.
                        Box::pin(http2::serve(stream, peer, app, closing, EXCHANGE_LIMIT)).await;
                    }
                    transport => {
                        let exchange = http1.call((Exchange::new(transport), peer));
                        if timeout(EXCHANGE_LIMIT, exchange).await.is_err() {
                            debug!("a request took too long");
                        }
                    }
                }
                Ok(())
            }
            .boxed_local()
        });
        Ok(serve.into_service())
    }

    /// Counts a connection, or closes it if a limit is reached.
    fn on_connect(&self, tcp: TcpStream) -> Result<Socket, ()> {
        let place = match &self.sockets {
            Some(sockets) => Some(sockets.on_connect(&tcp).ok_or(())?),
            None => {
                sockets::bound(&tcp);
                None
            }
        };
        Ok(Socket::new(tcp, place))
    }

    /// Performs the TLS handshake, if TLS is enabled.
    async fn open(&self, socket: Socket) -> Result<Transport, ()> {
        let Some(tls) = &self.tls else {
            return Ok(Transport::Plain(socket));
        };
        match timeout(server_certificate::HANDSHAKE_LIMIT, tls.accept(socket)).await {
            Ok(Ok(stream)) => Ok(Transport::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                debug!(%error, "a TLS handshake failed: {error}");
                Err(())
            }
            Err(_) => {
                debug!("a TLS handshake took too long");
                Err(())
            }
        }
    }
}

/// Answers a request over HTTP/1, in the framing of its version. A connection serves one
/// request, and the response says so, also to a client that asked to upgrade the
/// protocol.
async fn answer_http1<S, B>(app: Rc<S>, request: Request) -> Result<Response<B>, Response<BoxBody>>
where
    S: Service<Request>,
    S::Error: Into<Response<BoxBody>>,
    S::Response: Into<Response<B>>,
{
    let framing = Framing::of(request.version());
    let set = |head: &mut ResponseHead| {
        head.no_chunking(framing == Framing::Close);
        head.set_connection_type(ConnectionType::Close);
    };
    match app.call(request).await {
        Ok(response) => {
            let mut response = response.into();
            set(response.head_mut());
            Ok(response)
        }
        Err(error) => {
            let mut response = error.into();
            set(response.head_mut());
            Err(response)
        }
    }
}
