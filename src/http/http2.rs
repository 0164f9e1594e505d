//! HTTP/2 connections of clients: many requests and streams in one connection, each of
//! them limited.
//!
//! A connection, its pending requests and its streams are one task on the worker thread
//! that accepted the connection. Everything that they write is sent before the task
//! sleeps, and all of them end with the connection. An event stream is polled only when
//! the client's window had room for all its earlier bytes; that is when its rows count as
//! sent.

use std::{
    future::poll_fn,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use actix_http::{Message, Request, RequestHead, Response, ResponseHead};
use actix_service::Service;
use actix_web::{
    HttpMessage,
    body::{BodySize, BoxBody, MessageBody},
    http::header::{
        CONNECTION, CONTENT_LENGTH, DATE, HeaderName, HeaderValue, HttpDate, TRANSFER_ENCODING,
        TryIntoHeaderValue, UPGRADE,
    },
};
use bytes::Bytes;
use futures_util::{
    FutureExt, Stream,
    future::{CatchUnwind, LocalBoxFuture},
    stream::FuturesUnordered,
};
use h2::{
    Ping, PingPong, Reason, SendStream,
    server::{self, SendResponse},
};
use http::{Method, request::Parts};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};
use tracing::debug;

use crate::{
    delivery::stream::EventStream,
    http::{
        detached_stream::Handover, read_rate::Paced, sockets::CLIENT_LIMIT, write_deadline::Stall,
    },
};

/// The most requests and streams that are open at once in one connection. A browser has
/// one stream per tab; a client that needs more opens another connection.
pub const STREAMS: u32 = 128;

/// The most bytes of a request's headers. HTTP/2 counts 32 more per header line. This is
/// too little for four tokens of the greatest accepted length, and no browser sends half
/// as much.
pub const HEADER_BYTES: u32 = 32 << 10;

/// The most bytes of a stream that wait in the connection for room in the socket. More
/// are produced when these have been written. This limits the memory for a client that
/// stops reading: 2 MiB with [`STREAMS`] streams.
const WAITING_BYTES: usize = 16 << 10;

/// Bytes of request bodies that a client may send. No route reads them, so this is the
/// smallest connection window that HTTP/2 allows.
const BODY_BYTES: u32 = 65_535;

/// The most requests that the client reset before they were accepted. A client that has
/// more of them at once is disconnected (CVE-2023-44487).
const RESET_EARLY: usize = 20;

/// The most streams reset by the bridge for which late frames are still tolerated.
const RESET_BY_US: usize = 16;

/// How many streams may violate the protocol before the connection is closed.
const BROKEN: usize = 128;

/// Requests to accept before yielding to other connections of the thread.
const AT_ONCE: usize = 32;

/// The interval of pings. If a ping is not answered within the same time, the connection
/// is closed. Streams also have heartbeats, so there is no need to wake a phone more
/// often.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// After a graceful shutdown was announced, the connection is closed this long after its
/// last stream.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Serves a connection until the client closes it or doesn't answer a ping, it has
/// carried nothing for `CLIENT_LIMIT`, or, once `stopping` resolves, its last stream
/// has ended. A request that isn't answered within `answer_limit` is reset.
pub async fn serve<I, S, B>(
    io: I,
    peer: Option<SocketAddr>,
    app: Rc<S>,
    stopping: impl Future<Output = ()> + 'static,
    answer_limit: Duration,
) where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request> + 'static,
    S::Error: Into<Response<BoxBody>>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .max_send_buffer_size(WAITING_BYTES)
        .initial_window_size(BODY_BYTES)
        .initial_connection_window_size(BODY_BYTES)
        .max_pending_accept_reset_streams(RESET_EARLY)
        .max_concurrent_reset_streams(RESET_BY_US)
        .max_local_error_reset_streams(Some(BROKEN));
    let frames = match timeout(CLIENT_LIMIT, builder.handshake(Paced::new(io))).await {
        Ok(Ok(frames)) => frames,
        Ok(Err(error)) => return debug!(%error, "could not set up an HTTP/2 connection: {error}"),
        Err(_) => return debug!("could not set up an HTTP/2 connection: the client took too long"),
    };
    let mut frames = frames;
    let mut connection = Http2Connection {
        life: frames.ping_pong().map(Life::new),
        frames,
        peer,
        app,
        answer_limit,
        answers: FuturesUnordered::new(),
        deliveries: FuturesUnordered::new(),
        stopping: Some(Box::pin(stopping)),
        idle: None,
    };
    if let Err(error) = poll_fn(|cx| connection.poll(cx)).await {
        debug!(%error, "an HTTP/2 connection failed: {error}");
    }
}

/// A delivery whose panic ends only that stream. Behind a proxy, a connection may carry
/// the streams of many users.
type Guarded = CatchUnwind<AssertUnwindSafe<ResponseBody>>;

struct Http2Connection<I: AsyncRead + AsyncWrite + Unpin, S> {
    answers: FuturesUnordered<LocalBoxFuture<'static, Option<ResponseBody>>>,
    deliveries: FuturesUnordered<Guarded>,
    frames: server::Connection<Paced<I>, Bytes>,
    peer: Option<SocketAddr>,
    app: Rc<S>,
    answer_limit: Duration,
    life: Option<Life>,
    /// `None` once a graceful shutdown was announced.
    stopping: Option<LocalBoxFuture<'static, ()>>,
    /// The deadline while the connection carries nothing.
    idle: Option<Pin<Box<Sleep>>>,
}

impl<I, S> Http2Connection<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request> + 'static,
    S::Error: Into<Response<BoxBody>>,
{
    /// Resolves when the connection has ended.
    fn poll<B>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>>
    where
        S::Response: Into<Response<B>>,
        B: MessageBody + 'static,
    {
        if let Some(stopping) = &mut self.stopping
            && stopping.poll_unpin(cx).is_ready()
        {
            self.close();
        }
        loop {
            if let Poll::Ready(outcome) = self.poll_frames(cx) {
                return Poll::Ready(outcome);
            }
            if let Some(life) = &mut self.life
                && life.poll_over(cx)?.is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_idle(cx));
            if self.stopping.is_none() {
                return Poll::Ready(Ok(()));
            }
            self.close();
        }
    }

    /// Announces a graceful shutdown: the client may finish its streams, but not open new
    /// ones.
    fn close(&mut self) {
        self.stopping = None;
        self.idle = None;
        self.frames.graceful_shutdown();
    }

    /// Resolves when the connection has carried nothing for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.answers.is_empty() || !self.deliveries.is_empty() {
            self.idle = None;
            return Poll::Pending;
        }
        let limit = match self.stopping {
            Some(_) => CLIENT_LIMIT,
            None => CLOSE_LIMIT,
        };
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(limit)));
        idle.as_mut().poll(cx)
    }

    /// Reads and writes, and advances pending requests. Resolves when the connection has
    /// ended.
    fn poll_frames<B>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>>
    where
        S::Response: Into<Response<B>>,
        B: MessageBody + 'static,
    {
        for _ in 0..AT_ONCE {
            while let Poll::Ready(Some(answered)) = Pin::new(&mut self.answers).poll_next(cx) {
                let delivery = answered.map(|delivery| AssertUnwindSafe(delivery).catch_unwind());
                self.deliveries.extend(delivery);
            }
            // The panic hook has already reported a panic.
            while let Poll::Ready(Some(_)) = Pin::new(&mut self.deliveries).poll_next(cx) {}
            // Last, so that everything written above is sent now.
            match ready!(self.frames.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    let (head, _) = request.into_parts();
                    let answer = answer(Rc::clone(&self.app), head, self.peer, respond);
                    let limited = timeout(self.answer_limit, answer);
                    // On timeout the answer is dropped, which resets the request.
                    let answer = limited.map(|outcome| outcome.unwrap_or_default());
                    self.answers.push(answer.boxed_local());
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Answers a request, and returns its stream if it has one. No route reads a request's
/// body, so its data is discarded, within the request's window.
async fn answer<S, B>(
    app: Rc<S>,
    head: Parts,
    peer: Option<SocketAddr>,
    mut respond: SendResponse<Bytes>,
) -> Option<ResponseBody>
where
    S: Service<Request>,
    S::Error: Into<Response<BoxBody>>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    let wants_head_alone = head.method == Method::HEAD;
    let handover = Handover::default();
    let request = request(head, peer);
    request.extensions_mut().insert(handover.clone());
    let response = tokio::select! {
        biased;
        // The client has reset the request.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return None,
        response = app.call(request) => response,
    };
    let response = match response {
        Ok(response) => response.into().map_into_boxed_body(),
        Err(error) => error.into(),
    };
    let (response, body) = response.into_parts();
    let is_whole = wants_head_alone || body.size().is_eof();
    let head = response_head(response.head(), body.size());
    let mut writer = Writer::new(respond.send_response(head, is_whole).ok()?);
    if is_whole {
        return None;
    }
    let mut body = pin!(body);
    while let Some(bytes) = poll_fn(|cx| body.as_mut().poll_next(cx)).await {
        match bytes {
            Ok(bytes) => writer.write(bytes).await.ok()?,
            Err(_) => {
                return match handover.take() {
                    Some(stream) => Some(ResponseBody { stream, writer }),
                    // The body failed, and the client must not take it for complete.
                    None => {
                        writer.reset(Reason::INTERNAL_ERROR);
                        None
                    }
                };
            }
        }
    }
    writer.end();
    None
}

/// Converts a request. Whitespace around header values is removed, as HTTP/1.1 parsers
/// do: HTTP/2 forbids it (RFC 9113, section 8.2.1) but transports it, and code that reads
/// a header should not have to handle it.
fn request(mut parts: Parts, peer: Option<SocketAddr>) -> Request {
    for value in parts.headers.values_mut() {
        let trimmed = value.as_bytes().trim_ascii();
        if trimmed.len() < value.len()
            && let Ok(trimmed) = HeaderValue::from_bytes(trimmed)
        {
            *value = trimmed;
        }
    }
    let mut head = Message::<RequestHead>::new();
    head.method = parts.method;
    head.uri = parts.uri;
    head.version = parts.version;
    head.headers = parts.headers.into();
    head.peer_addr = peer;
    Request::from(head)
}

/// Headers that only HTTP/1.1 allows
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-8.2.2>).
const OF_THE_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

fn response_head(head: &ResponseHead, size: BodySize) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = head.status;
    let headers = response.headers_mut();
    for (name, value) in head.headers() {
        if !OF_THE_CONNECTION.contains(name) {
            headers.append(name, value.clone());
        }
    }
    match size {
        BodySize::Sized(length) => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        BodySize::None | BodySize::Stream => {
            headers.remove(CONTENT_LENGTH);
        }
    }
    if let Ok(now) = HttpDate::from(SystemTime::now()).try_into_value() {
        headers.entry(DATE).or_insert(now);
    }
    response
}

/// Why bytes could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unwritten {
    /// The client has reset the stream, or the connection is broken.
    Gone,
    /// The client's window had no room until the deadline.
    Silent,
}

/// Writes one response within the client's flow-control window.
struct Writer {
    send: SendStream<Bytes>,
    writing: Bytes,
    stall: Stall,
}

impl Writer {
    fn new(send: SendStream<Bytes>) -> Self {
        Self {
            send,
            writing: Bytes::new(),
            stall: Stall::default(),
        }
    }

    /// Resolves with the room in the client's window, as soon as there is any. At most
    /// `wanted` bytes of it are reserved for this response.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Unwritten>> {
        self.send.reserve_capacity(wanted.min(WAITING_BYTES));
        let mut room = self.send.capacity();
        while room == 0 {
            room = match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(room))) => room,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Unwritten::Gone)),
                Poll::Pending => {
                    ready!(self.stall.poll_expired(cx));
                    return Poll::Ready(Err(Unwritten::Silent));
                }
            };
        }
        self.stall.end();
        Poll::Ready(Ok(room))
    }

    /// Resolves when the client's window had room for all bytes of `writing`.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwritten>> {
        if self.send.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Unwritten::Gone));
        }
        while !self.writing.is_empty() {
            let room = ready!(self.poll_room(cx, self.writing.len()))?;
            let piece = self.writing.split_to(room.min(self.writing.len()));
            if self.send.send_data(piece, false).is_err() {
                return Poll::Ready(Err(Unwritten::Gone));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Resolves when everything was written and the client's window has room for more.
    fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwritten>> {
        ready!(self.poll_written(cx))?;
        self.poll_room(cx, 1).map_ok(drop)
    }

    /// Writes these bytes, or resets the response.
    async fn write(&mut self, bytes: Bytes) -> Result<(), Unwritten> {
        self.writing = bytes;
        let written = poll_fn(|cx| self.poll_written(cx)).await;
        written.inspect_err(|_| self.reset(Reason::CANCEL))
    }

    /// Ends the response.
    fn end(&mut self) {
        // This fails only if the client already knows that the response was cut off.
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// Ends a response that may be incomplete. A browser's `EventSource` reconnects.
    fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }
}

/// Writes an event stream, until the stream or its client ends.
struct ResponseBody {
    stream: EventStream,
    writer: Writer,
}

impl Future for ResponseBody {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, writer } = self.get_mut();
        loop {
            // While the client's window has no room, the stream reads nothing.
            match writer.poll_free(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Unwritten::Gone)) => return Poll::Ready(()),
                Poll::Ready(Err(Unwritten::Silent)) => {
                    stream.time_out();
                    writer.reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                Poll::Pending => {
                    ready!(stream.poll_cut_off(cx));
                    writer.reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
            match ready!(Pin::new(&mut *stream).poll_next(cx)) {
                Some(Ok(bytes)) => writer.writing = bytes,
                None => {
                    writer.end();
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Checks with pings whether the client is still connected.
struct Life {
    ping: PingPong,
    is_awaited: bool,
    timer: Pin<Box<Sleep>>,
}

impl Life {
    fn new(ping: PingPong) -> Self {
        Self {
            ping,
            is_awaited: false,
            timer: Box::pin(sleep(SIGN_OF_LIFE)),
        }
    }

    /// Resolves when a ping was not answered in time.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if self.is_awaited && self.ping.poll_pong(cx)?.is_ready() {
                self.is_awaited = false;
                self.timer.as_mut().reset(Instant::now() + SIGN_OF_LIFE);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.is_awaited {
                return Poll::Ready(Ok(()));
            }
            self.ping.send_ping(Ping::opaque())?;
            self.is_awaited = true;
            self.timer.as_mut().reset(Instant::now() + SIGN_OF_LIFE);
        }
    }
}
