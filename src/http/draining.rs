//! Answers requests for a stream while the bridge stops: the port keeps responding, but
//! no stream is opened.
//!
//! If the port were closed while streams drain, a restart would look like a failure to
//! clients that give up after one refused connection, such as Firefox on a page of
//! another origin.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    guard::{self, GuardContext},
    http::StatusCode,
    middleware::{Next, from_fn},
    web,
};
use tokio::time::interval;

use crate::{
    auth::origin::{self, Origins},
    http::{methods::readable, retry_later::RetryLater},
};

/// A client that is rejected while the bridge stops retries within the drain time, but no
/// later than this. The next process, or another bridge, is available by then.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The lower bound of that time: clients then retry once a second at most, which costs
/// little.
const SHORTEST_WAIT: Duration = Duration::from_secs(4);

/// How often to check whether all requests that passed have a response.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Open until the bridge stops, then closed permanently.
#[derive(Debug)]
pub struct Draining {
    is_closed: AtomicBool,
    /// Requests that have passed and have no response yet.
    passing: AtomicUsize,
    deferred: AtomicU64,
    retry_after: Duration,
}

/// Marks a request that arrived after the gate was closed.
#[derive(Clone, Copy, Debug)]
struct Deferred;

impl Draining {
    /// The gate of a bridge that ends its streams over the time `drain`.
    pub fn new(drain: Duration) -> Self {
        Self {
            is_closed: AtomicBool::new(false),
            passing: AtomicUsize::new(0),
            deferred: AtomicU64::new(0),
            retry_after: drain.clamp(SHORTEST_WAIT, LONGEST_WAIT),
        }
    }

    /// From now on no request opens a stream, except for those that have already passed.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Lets a request pass. `None` if the gate is closed.
    fn enter(&self) -> Option<Passed<'_>> {
        // The order matters: a request writes `passing` before it reads `is_closed`, and
        // the closing side writes `is_closed` before it reads `passing`. So a request
        // that finds the gate open is seen by `passed`, which waits for it.
        self.passing.fetch_add(1, Ordering::SeqCst);
        let passing = Passed(self);
        (!self.is_closed.load(Ordering::SeqCst)).then_some(passing)
    }

    /// Resolves once all requests that passed the gate have their response. The streams
    /// that they opened are registered in the hub by then. Call it after
    /// [`close`](Self::close).
    pub async fn passed(&self) {
        let mut ticks = interval(POLL_INTERVAL);
        while self.passing.load(Ordering::SeqCst) > 0 {
            ticks.tick().await;
        }
    }

    /// How many requests were rejected because the gate was closed.
    pub fn deferred(&self) -> u64 {
        self.deferred.load(Ordering::Relaxed)
    }

    /// Adds the route of the stream for the time when the gate is closed. It must be
    /// added before the regular one, needs the same data, and allows the same origins.
    pub fn routes(gate: &web::Data<Self>, origins: &Origins, config: &mut web::ServiceConfig) {
        let is_deferred = |context: &GuardContext<'_>| context.req_data().contains::<Deferred>();
        config.app_data(gate.clone()).service(
            readable("/stream", defer)
                .guard(guard::fn_guard(is_deferred))
                .wrap(origins.cors())
                // The middleware added last runs first.
                .wrap(from_fn(origin::check)),
        );
    }
}

/// A request that has passed, until it has its response.
struct Passed<'a>(&'a Draining);

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.0.passing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Middleware that counts requests until they have their response, and marks those that
/// arrive after the gate was closed. Needs `Data<Draining>`.
pub async fn pass(
    gate: web::Data<Draining>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let passing = gate.enter();
    if passing.is_none() {
        request.extensions_mut().insert(Deferred);
    }
    next.call(request).await
}

async fn defer(request: HttpRequest, gate: web::Data<Draining>) -> HttpResponse {
    gate.deferred.fetch_add(1, Ordering::Relaxed);
    RetryLater::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this bridge is shutting down: reconnect to reach another one",
        gate.retry_after,
    )
    .answer(&request)
}
