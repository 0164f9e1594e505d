//! The demo page of `tidings dev`, and the routes that it calls.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

use crate::{
    auth::{origin, problem::Problem, scheme::Scheme},
    domain::clock::Moment,
    http::methods::{postable, readable},
    postgres::{
        error_hint,
        pool::{Pool, QueryError},
        schema::SchemaName,
    },
    runtime::error_chain::ErrorChain,
};

/// Time limit for the page's queries.
const QUERY_LIMIT: Duration = Duration::from_secs(5);

/// The topic of the room that users can join on the page.
const ROOM: &str = "room:lobby";

/// Who is in the room at first: the users whom the page shows at first.
const FIRST_MEMBERS: [&str; 2] = ["alice", "bob"];

/// A form holds one text of at most 1 MiB, which JSON may escape.
const BODY_BYTES: usize = 8 << 20;

/// The page may run its own script and style and connect to its own server. No page may
/// embed it in a frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

#[derive(Clone)]
pub struct Demo {
    pool: Pool,
    psql: Arc<str>,
}

impl Demo {
    /// A page that inserts with connections from `pool` and shows the command `psql`.
    pub fn new(pool: Pool, psql: &str) -> Self {
        Self {
            pool,
            psql: psql.into(),
        }
    }

    /// Lets the first members join the room, unless it has members already.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub async fn open_room(&self) -> Result<(), QueryError> {
        let query = &SchemaName::public().fill(include_str!("../../sql/demo_open_room.sql"));
        let members = FIRST_MEMBERS.as_slice();
        let parameters = [(&ROOM as _, Type::TEXT), (&members as _, Type::TEXT_ARRAY)];
        self.pool.query(QUERY_LIMIT, query, &parameters).await?;
        Ok(())
    }

    pub fn routes(&self, config: &mut web::ServiceConfig) {
        let json = web::JsonConfig::default()
            .limit(BODY_BYTES)
            .error_handler(|error, _| {
                let detail = format!("send a JSON object as the demo page does ({error})");
                Problem::new(StatusCode::BAD_REQUEST, detail).into()
            });
        config
            .app_data(web::Data::new(self.clone()))
            .app_data(json)
            .service(readable("/", async || {
                page("text/html; charset=utf-8", include_str!("demo/index.html"))
            }))
            .service(readable("/demo.css", async || {
                page("text/css; charset=utf-8", include_str!("demo/demo.css"))
            }))
            .service(readable("/demo.js", async || {
                page(
                    "text/javascript; charset=utf-8",
                    include_str!("demo/demo.js"),
                )
            }))
            .service(readable("/demo/about", about))
            .service(postable("/demo/notifications", list, send))
            .service(postable("/demo/room", room, join));
    }
}

fn page(content_type: &str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(content_type)
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(text)
}

async fn about(demo: web::Data<Demo>) -> HttpResponse {
    let version = env!("CARGO_PKG_VERSION");
    HttpResponse::Ok().json(serde_json::json!({ "psql": &*demo.psql, "version": version }))
}

#[derive(Deserialize)]
struct Whose {
    user: String,
}

#[derive(Serialize)]
struct Listed {
    id: i64,
    topic: Option<String>,
    event: Option<String>,
    text: String,
    created_at: Moment,
    sent_at: Option<Moment>,
}

/// The newest notifications of a user, from the table.
async fn list(demo: web::Data<Demo>, whose: web::Query<Whose>) -> Result<HttpResponse, Problem> {
    let query = &SchemaName::public().fill(include_str!("../../sql/demo_notifications.sql"));
    let parameters = [(&whose.user as _, Type::TEXT)];
    let rows = demo.pool.query(QUERY_LIMIT, query, &parameters).await;
    let listed = rows
        .map_err(unavailable)?
        .iter()
        .map(|row| {
            Ok(Listed {
                id: row.try_get("id")?,
                topic: row.try_get("topic")?,
                event: row.try_get("event")?,
                text: row.try_get("text")?,
                created_at: row.try_get("created_at")?,
                sent_at: row.try_get("sent_at")?,
            })
        })
        .collect::<Result<Vec<_>, QueryError>>()
        .map_err(unavailable)?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(listed))
}

/// A notification for a user or a topic.
#[derive(Deserialize)]
struct Draft {
    user_id: Option<String>,
    topic: Option<String>,
    text: String,
}

/// Sends a notification as an application would.
async fn send(
    request: HttpRequest,
    scheme: web::Data<Scheme>,
    demo: web::Data<Demo>,
    draft: web::Json<Draft>,
) -> Result<HttpResponse, Problem> {
    check_origin(&request, **scheme)?;
    let query = include_str!("../../sql/demo_send.sql");
    let parameters = [
        (&draft.user_id as _, Type::TEXT),
        (&draft.topic as _, Type::TEXT),
        (&draft.text as _, Type::TEXT),
    ];
    let sent = demo.pool.query(QUERY_LIMIT, query, &parameters).await;
    let id = sent.and_then(|rows| Ok(rows[0].try_get::<_, i64>(0)?));
    let id = id.map_err(rejected)?;
    Ok(HttpResponse::Created().json(serde_json::json!({ "id": id })))
}

/// Who is in the room.
async fn room(demo: web::Data<Demo>) -> Result<HttpResponse, Problem> {
    let query = &SchemaName::public().fill(include_str!("../../sql/demo_members.sql"));
    let parameters = [(&ROOM as _, Type::TEXT)];
    let rows = demo.pool.query(QUERY_LIMIT, query, &parameters).await;
    let members = rows
        .map_err(unavailable)?
        .iter()
        .map(|row| Ok(row.try_get("user_id")?))
        .collect::<Result<Vec<String>, QueryError>>()
        .map_err(unavailable)?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(serde_json::json!({ "topic": ROOM, "members": members })))
}

/// Whether a user is to be in the room.
#[derive(Deserialize)]
struct Joining {
    user_id: String,
    joins: bool,
}

/// A user joins the room, or leaves it. Says who is there then.
async fn join(
    request: HttpRequest,
    scheme: web::Data<Scheme>,
    demo: web::Data<Demo>,
    joining: web::Json<Joining>,
) -> Result<HttpResponse, Problem> {
    check_origin(&request, **scheme)?;
    let query = &SchemaName::public().fill(include_str!("../../sql/demo_join.sql"));
    let parameters = [
        (&joining.user_id as _, Type::TEXT),
        (&ROOM as _, Type::TEXT),
        (&joining.joins as _, Type::BOOL),
    ];
    let joined = demo.pool.query(QUERY_LIMIT, query, &parameters).await;
    joined.map_err(rejected)?;
    room(demo).await
}

/// Other pages could not send JSON without a preflight request either; this is a second
/// safeguard.
fn check_origin(request: &HttpRequest, scheme: Scheme) -> Result<(), Problem> {
    match origin::is_same_origin(request, scheme) {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "only the demo page itself may send from a browser",
        )),
    }
}

/// The problem with what was sent, if Postgres says that there is one.
fn rejected(error: QueryError) -> Problem {
    match error {
        QueryError::Postgres(error) if error.as_db_error().is_some() => {
            let said = ErrorChain(&error).to_string();
            let detail = match error_hint::of(&error) {
                Some(explanation) => format!("{said}; {explanation}"),
                None => said,
            };
            Problem::new(StatusCode::BAD_REQUEST, detail)
        }
        error => unavailable(error),
    }
}

fn unavailable(error: QueryError) -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorChain(&error).to_string(),
    )
}
