//! Requests for the stream while the bridge stops: the port keeps answering, and no stream is opened.
//!
//! A port that is closed while streams drain turns a restart into a failure for clients that give up after
//! one refused connection, such as Firefox on a page of another origin.

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
    http::{methods::readable, retry_later::Deferral},
};

/// A client that is turned away while the bridge stops comes back within the drain time, but not later
/// than this. The next process, or another bridge, is there by then.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The least of that: a request every second or more from each client costs little.
const SHORTEST_WAIT: Duration = Duration::from_secs(4);

/// How often it is looked whether requests that had passed were answered.
const LOOK: Duration = Duration::from_millis(5);

/// Open until the bridge stops, then closed for good.
#[derive(Debug)]
pub struct Gate {
    is_closed: AtomicBool,
    /// Requests that have passed and have no response yet.
    passing: AtomicUsize,
    turned_away: AtomicU64,
    come_back: Duration,
}

/// Marks a request that came after the gate was closed.
#[derive(Clone, Copy, Debug)]
struct TurnedAway;

impl Gate {
    /// That of a bridge which ends its streams over this time.
    pub fn new(drain: Duration) -> Self {
        Self {
            is_closed: AtomicBool::new(false),
            passing: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
            come_back: drain.clamp(SHORTEST_WAIT, LONGEST_WAIT),
        }
    }

    /// From now on no request opens a stream, except for those that have passed.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Lets a request pass. None if the gate is closed.
    fn enter(&self) -> Option<Passing<'_>> {
        // In this order, while `close` and `passed` look in the other one: a request that finds the
        // gate open is seen by whoever has closed it.
        self.passing.fetch_add(1, Ordering::SeqCst);
        let passing = Passing(self);
        (!self.is_closed.load(Ordering::SeqCst)).then_some(passing)
    }

    /// Resolves once all requests that passed the gate have their response: streams that they opened are
    /// in the hub by then. To be called after the gate was closed.
    pub async fn passed(&self) {
        let mut looks = interval(LOOK);
        while self.passing.load(Ordering::SeqCst) > 0 {
            looks.tick().await;
        }
    }

    /// How many requests were turned away because it was closed.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Adds the route of the stream that is used while the gate is closed. It must be added before the
    /// stream's own, needs the same data, and works for the same pages.
    pub fn routes(gate: &web::Data<Self>, origins: &Origins, config: &mut web::ServiceConfig) {
        let is_turned_away =
            |context: &GuardContext<'_>| context.req_data().contains::<TurnedAway>();
        config.app_data(gate.clone()).service(
            readable("/stream", turn_away)
                .guard(guard::fn_guard(is_turned_away))
                .wrap(origins.cors())
                // The last is asked first.
                .wrap(from_fn(origin::check)),
        );
    }
}

/// A request that has passed, until it has its response.
struct Passing<'a>(&'a Gate);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.passing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes note of every request, and marks those that come after the gate was closed. Needs `Data<Gate>`.
///
/// # Errors
///
/// Those of the application.
pub async fn pass(
    gate: web::Data<Gate>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let passing = gate.enter();
    if passing.is_none() {
        request.extensions_mut().insert(TurnedAway);
    }
    next.call(request).await
}

async fn turn_away(request: HttpRequest, gate: web::Data<Gate>) -> HttpResponse {
    gate.turned_away.fetch_add(1, Ordering::Relaxed);
    Deferral::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "this bridge is stopping: come back for the next one",
        gate.come_back,
    )
    .answer(&request)
}
