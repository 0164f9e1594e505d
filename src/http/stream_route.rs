//! The route `GET /stream`.

use std::{convert::Infallible, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    body::BodyStream,
    http::{Method, StatusCode, header::HeaderMap},
    middleware::from_fn,
    web,
};
use actix_web_lab::header::{CacheControl, CacheDirective};
use bytes::Bytes;
use futures_util::stream;
use tracing::{debug, debug_span};

use crate::{
    auth::{
        authenticator::Authenticator,
        client_addr::{Client, Proxies},
        origin::{self, Origins},
        problem::Problem,
        rejections::{RejectReason, Rejections},
        scheme::Scheme,
    },
    delivery::{
        sse,
        stream::{EventStream, Start, Streams},
    },
    domain::identity::Unidentified,
    http::{
        admission::Admission,
        detached_stream::{DetachedStreams, Exit, HandoffBody},
        methods::{self, readable},
        stream_query::{BadParameter, StreamQuery},
    },
};

/// The header that a reconnecting `EventSource` sends.
const LAST_EVENT_ID: &str = "last-event-id";

/// Replaces an id that can't be used; no valid id equals it.
const NO_ID: &str = "?";

/// The data that the route of the stream needs.
#[derive(Clone)]
pub struct StreamRoute {
    pub streams: Arc<Streams>,
    /// Takes over streams once their response has begun.
    pub detached: Arc<DetachedStreams>,
    pub authenticator: Arc<Authenticator>,
    pub admission: Arc<Admission>,
    pub origins: web::Data<Origins>,
    pub proxies: web::Data<Proxies>,
    pub rejections: web::Data<Rejections>,
}

impl StreamRoute {
    /// Adds the route of the stream to the application of a port with this scheme.
    pub fn routes(&self, scheme: Scheme, config: &mut web::ServiceConfig) {
        config
            .app_data(web::Data::new(self.clone()))
            .app_data(self.origins.clone())
            .app_data(self.proxies.clone())
            .app_data(self.rejections.clone())
            .app_data(web::Data::new(scheme))
            .service(
                readable("/stream", answer)
                    .wrap(self.origins.cors())
                    // The middleware added last runs first.
                    .wrap(from_fn(origin::check)),
            );
    }
}

/// The response for unknown paths.
pub async fn not_found(request: HttpRequest) -> HttpResponse {
    methods::missing(&request, "not found: the stream is at /stream")
}

/// Answers GET with a stream. HEAD gets the same status and headers and opens no stream:
/// no row is read or marked as sent.
async fn answer(
    request: HttpRequest,
    route: web::Data<StreamRoute>,
) -> Result<HttpResponse, Problem> {
    let StreamRoute {
        streams,
        detached,
        authenticator,
        admission,
        rejections,
        ..
    } = &**route;
    let client = admission.client_of(&request);
    // First, because everything after it costs more.
    if let Err(deferral) = admission.pace(client) {
        return Ok(deferral.answer(&request));
    }
    let noted = streams.hub.note();
    // Authentication comes before parsing: errors are not explained to unauthenticated
    // clients.
    let identity = match authenticator.identify(&request, client).await {
        Ok(identity) => identity,
        Err(error) => {
            if error == Unidentified::Unavailable {
                rejections.count_because(RejectReason::Unavailable, client, &error);
                return Ok(admission.unavailable(error.to_string()).answer(&request));
            }
            return Err(unauthorized(rejections, client, error));
        }
    };
    let parameters = StreamQuery::read(request.query_string()).map_err(bad_parameter)?;
    identity
        .expect(parameters.expected_user.as_deref())
        .map_err(|error| unauthorized(rejections, client, error))?;
    let permit = match admission.admit(&identity.subscriber, client) {
        Ok(permit) => permit,
        Err(deferral) => return Ok(deferral.answer(&request)),
    };
    let mut builder = HttpResponse::Ok();
    builder
        .content_type(sse::CONTENT_TYPE)
        .insert_header(CacheControl(vec![
            CacheDirective::NoCache,
            CacheDirective::NoTransform,
        ]))
        // Otherwise nginx would buffer the stream.
        .insert_header(("x-accel-buffering", "no"));
    if request.method() == Method::HEAD {
        // The response shows that a place was available; HEAD doesn't keep it.
        drop(permit);
        let empty = stream::empty::<Result<Bytes, Infallible>>();
        return Ok(builder.body(BodyStream::new(empty)));
    }
    let start = start(&request, &parameters);
    let stream = EventStream::open(streams, &identity, noted, &start, parameters.format)
        .narrowed_to(parameters.topics.map(Arc::from));
    // Costs nothing unless the log level enables it: an enabled span takes half a
    // kilobyte, and an idle stream about two.
    let span = debug_span!(
        "connection", number = stream.number(), %client, start = start.name(), format = ?parameters.format
    );
    span.in_scope(|| debug!("opened a stream"));
    let stream = stream.holding(permit).within(span);
    let exit = Exit::of(&request).ok_or_else(no_exit)?;
    Ok(builder.body(HandoffBody::new(Arc::clone(detached), exit, stream)))
}

/// The server was set up incorrectly, which is a bug.
fn no_exit() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this server can't open streams; this is a bug, please report it",
    )
}

/// Where the stream begins. An unusable id must not cause a 400, which would end an
/// `EventSource` permanently.
fn start(request: &HttpRequest, parameters: &StreamQuery) -> Start {
    let header = last_event_id(request.headers()).filter(|id| !id.is_empty());
    match header.or(parameters.last_event_id.as_deref()) {
        None => Start::Backlog {
            replay: parameters.replay,
        },
        Some(id) => Start::Resume(id.to_owned()),
    }
}

/// The id in the header. Two different ids are rejected, because the wrong one would skip
/// rows.
fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    let mut ids = headers.get_all(LAST_EVENT_ID);
    let id = ids.next()?;
    if ids.any(|other| other != id) {
        return Some(NO_ID);
    }
    Some(id.to_str().unwrap_or(NO_ID))
}

fn unauthorized(rejections: &Rejections, client: Client, error: Unidentified) -> Problem {
    rejections.count_because(RejectReason::Identity, client, &error);
    Problem::new(StatusCode::UNAUTHORIZED, error.to_string())
}

fn bad_parameter(error: BadParameter) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.to_string())
}
