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

    pub fn routes(&self, config: &mut web::ServiceConfig) {
        let json = web::JsonConfig::default()
            .limit(BODY_BYTES)
            .error_handler(|error, _| {
                let detail = format!("send a JSON object with user_id and text ({error})");
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
            .service(postable("/demo/notifications", list, send));
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

#[derive(Deserialize)]
struct Draft {
    user_id: String,
    text: String,
}

/// Sends a notification as an application would.
async fn send(
    request: HttpRequest,
    scheme: web::Data<Scheme>,
    demo: web::Data<Demo>,
    draft: web::Json<Draft>,
) -> Result<HttpResponse, Problem> {
    // Other pages could not send JSON without a preflight request either; this is a second
    // safeguard.
    if !origin::is_same_origin(&request, **scheme) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "only the demo page itself may send from a browser",
        ));
    }
    let query = include_str!("../../sql/demo_send.sql");
    let parameters = [
        (&draft.user_id as _, Type::TEXT),
        (&draft.text as _, Type::TEXT),
    ];
    let sent = demo.pool.query(QUERY_LIMIT, query, &parameters).await;
    match sent.and_then(|rows| Ok(rows[0].try_get::<_, i64>(0)?)) {
        Ok(id) => Ok(HttpResponse::Created().json(serde_json::json!({ "id": id }))),
        Err(QueryError::Postgres(error)) if error.as_db_error().is_some() => {
            let said = ErrorChain(&error).to_string();
            let detail = match error_hint::of(&error) {
                Some(explanation) => format!("{said}; {explanation}"),
                None => said,
            };
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
        Err(error) => Err(unavailable(error)),
    }
}

fn unavailable(error: QueryError) -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorChain(&error).to_string(),
    )
}
