//! What browsers ask for: `GET /stream`.

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
    middleware::from_fn,
    web,
};
use actix_web_lab::header::{CacheControl, CacheDirective};
use serde::Deserialize;
use tracing::{debug, debug_span};

use crate::{
    admission::Admission,
    authenticator::{Authenticator, Named},
    client::{Client, Proxies},
    identity::{Identity, Unidentified},
    line::{Departure, Exit, Lines},
    origin::{self, Origins},
    problem::Problem,
    reader::REPLAY_ROWS,
    refusals::{Reason, Refusals},
    sse::Format,
    stream::{EventStream, Start, Streams},
};

/// The header that a returning `EventSource` sends.
const LAST_EVENT_ID: &str = "last-event-id";

/// What the route of the stream works with.
#[derive(Clone)]
pub struct Door {
    /// What streams are made of.
    pub streams: web::Data<Streams>,
    /// Where they go once they have begun.
    pub lines: web::Data<Lines>,
    /// Who is asking.
    pub authenticator: web::Data<Authenticator>,
    /// How many are let in.
    pub admission: web::Data<Admission>,
    /// Whose pages may ask.
    pub origins: web::Data<Origins>,
    /// Who may say whose request it is.
    pub proxies: web::Data<Proxies>,
    /// Who is turned away.
    pub refusals: web::Data<Refusals>,
}

impl Door {
    /// Adds the route of the stream.
    pub fn routes(&self, config: &mut web::ServiceConfig) {
        config
            .app_data(self.streams.clone())
            .app_data(self.lines.clone())
            .app_data(self.authenticator.clone())
            .app_data(self.admission.clone())
            .app_data(self.origins.clone())
            .app_data(self.proxies.clone())
            .app_data(self.refusals.clone())
            .service(
                web::resource("/stream")
                    .wrap(self.origins.cors())
                    // The last is asked first.
                    .wrap(from_fn(origin::check))
                    .route(web::get().to(stream))
                    .default_service(web::to(only_get)),
            );
    }
}

/// Answers where there is nothing.
pub async fn not_found() -> Result<HttpResponse, Problem> {
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        "there is nothing here: the stream is at /stream",
    ))
}

async fn only_get() -> HttpResponse {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "the stream is read with GET",
    );
    let mut response = problem.error_response();
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// Who the query says is asking. It is read apart from the rest, which is not
/// looked at before that is known.
#[derive(Default, Deserialize)]
struct Who {
    user: Option<String>,
    ticket: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    format: Format,
    #[serde(default)]
    replay: u32,
    last_event_id: Option<String>,
}

async fn stream(
    request: HttpRequest,
    streams: web::Data<Streams>,
    lines: web::Data<Lines>,
    authenticator: web::Data<Authenticator>,
    admission: web::Data<Admission>,
    refusals: web::Data<Refusals>,
) -> Result<HttpResponse, Problem> {
    let client = admission.client_of(&request);
    // Before anything is done for it that costs more than this.
    if let Err(deferral) = admission.pace(client) {
        return Ok(deferral.answer(&request));
    }
    let noted = streams.hub.note();
    // Who is asking comes first: nothing is explained to strangers.
    let identity = match identify(&request, &authenticator, client).await {
        Ok(identity) => identity,
        Err(error) => {
            debug!(%client, %error, "turned away {client}: {error}");
            if error == Unidentified::Unavailable {
                refusals.count(Reason::Unavailable, client);
                return Ok(admission.unavailable(error.to_string()).answer(&request));
            }
            refusals.count(Reason::Identity, client);
            return Err(Problem::new(StatusCode::UNAUTHORIZED, error.to_string()));
        }
    };
    let parameters = web::Query::<Parameters>::from_query(request.query_string());
    let parameters = parameters.map_err(bad_parameters)?.into_inner();
    if parameters.replay > REPLAY_ROWS {
        return Err(bad_parameters(format!("replay is at most {REPLAY_ROWS}")));
    }
    let permit = match admission.into_inner().admit(&identity.user, client) {
        Ok(permit) => permit,
        Err(deferral) => return Ok(deferral.answer(&request)),
    };
    let start = start(&request, &parameters);
    let stream = EventStream::open(
        &streams.into_inner(),
        &identity,
        noted,
        &start,
        parameters.format,
    );
    // Of no cost unless the log is to be that talkative: a span that is kept takes half
    // a kilobyte, and an idle stream some two.
    let span = debug_span!(
        "connection", number = stream.number(), %client, start = start.name(), format = ?parameters.format
    );
    span.in_scope(|| debug!("a stream begins"));
    let stream = stream.holding(permit).within(span);
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
        .insert_header(CacheControl(vec![
            CacheDirective::NoCache,
            CacheDirective::NoTransform,
        ]))
        // nginx would buffer the stream otherwise.
        .insert_header(("x-accel-buffering", "no"));
    let exit = Exit::of(&request).ok_or_else(no_exit)?;
    Ok(response.body(Departure::new(lines.into_inner(), exit, stream)))
}

/// A server that was set up wrongly, which is a bug.
fn no_exit() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this server can't carry streams; please report this",
    )
}

async fn identify(
    request: &HttpRequest,
    authenticator: &Authenticator,
    client: Client,
) -> Result<Identity, Unidentified> {
    let who = web::Query::<Who>::from_query(request.query_string());
    let who = who.map_err(|_| Unidentified::Invalid)?;
    let named = Named {
        user: who.user.as_deref(),
        ticket: who.ticket.as_deref(),
    };
    authenticator.identify(request, named, client).await
}

/// Where the client wants to begin. An id that can't be used is no reason for a
/// 400, which would end an `EventSource` for good.
fn start(request: &HttpRequest, parameters: &Parameters) -> Start {
    let header = request.headers().get(LAST_EVENT_ID).map(|value| {
        // Not even text: as good as any other id that isn't ours.
        value.to_str().unwrap_or("?")
    });
    match header.or(parameters.last_event_id.as_deref()) {
        None | Some("") => Start::Backlog {
            replay: parameters.replay,
        },
        Some(id) => Start::Resume(id.to_owned()),
    }
}

fn bad_parameters(error: impl ToString) -> Problem {
    let detail = format!(
        "{}; the parameters are format=json, replay=0 to {REPLAY_ROWS}, and last_event_id",
        error.to_string()
    );
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
