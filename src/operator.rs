//! The operator's page: how this bridge does, at a glance, in one file that needs
//! nothing from elsewhere.

use std::sync::{Arc, LazyLock};

use actix_web::{HttpResponse, http::header, web};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;

use crate::{
    config::BridgeOptions,
    database::DatabaseUrl,
    schema::SchemaName,
    telemetry::{self, Line},
    vitals::{Figures, Vitals},
};

const PAGE: &str = include_str!("operator/index.html");

/// The page's own script and style are named by their hashes, and nothing else runs
/// or is loaded.
static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style"),
    )
});

/// Of what stands in the page's only element of this name.
fn hash_of(element: &str) -> String {
    let after = PAGE.split_once(&format!("<{element}>"));
    let inside = after.and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let text = inside.map(|(text, _)| text).unwrap_or_default();
    let hash = digest(&SHA256, text.as_bytes());
    format!("sha256-{}", BASE64_STANDARD.encode(hash))
}

/// What the page shows.
#[derive(Debug)]
pub struct Operator {
    vitals: Arc<Vitals>,
    settings: Vec<Setting>,
}

/// A setting by the name of its variable, as it is in use. None of them is secret.
#[derive(Debug, Serialize)]
pub struct Setting {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
struct Overview<'a> {
    version: &'static str,
    #[serde(flatten)]
    figures: Figures,
    lines: Vec<Line>,
    settings: &'a [Setting],
}

impl Operator {
    /// Of a bridge with these settings, which reads this database.
    pub fn new(
        vitals: Arc<Vitals>,
        options: &BridgeOptions,
        url: &DatabaseUrl,
        schema: &SchemaName,
    ) -> Self {
        Self {
            vitals,
            settings: settings(options, url, schema),
        }
    }
}

fn settings(options: &BridgeOptions, url: &DatabaseUrl, schema: &SchemaName) -> Vec<Setting> {
    let limits = &options.limits;
    let span = |span| humantime::format_duration(span).to_string();
    let listed = [
        // Host and name, without whoever connects and how.
        ("DATABASE_URL", url.to_string()),
        ("TIDINGS_SCHEMA", schema.to_string()),
        ("TIDINGS_LISTEN", options.listen.to_string()),
        ("TIDINGS_POOL_SIZE", options.pool_size.to_string()),
        ("TIDINGS_QUEUE_BYTES", options.queue_bytes.to_string()),
        ("TIDINGS_HEARTBEAT", span(options.heartbeat)),
        ("TIDINGS_DRAIN", span(options.drain)),
        (
            "TIDINGS_MAX_CONNECTIONS",
            limits.max_connections.to_string(),
        ),
        (
            "TIDINGS_MAX_CONNECTIONS_PER_USER",
            limits.max_connections_per_user.to_string(),
        ),
        (
            "TIDINGS_MAX_CONNECTIONS_PER_ADDRESS",
            limits.max_connections_per_address.to_string(),
        ),
        (
            "TIDINGS_CONNECTION_RATE",
            limits.connection_rate.to_string(),
        ),
        ("TIDINGS_MAX_STREAM_AGE", span(limits.max_stream_age)),
        ("TIDINGS_COME_BACK", span(limits.come_back)),
    ];
    let setting = |(name, value)| Setting { name, value };
    listed.into_iter().map(setting).collect()
}

/// The page.
pub async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((
            header::CONTENT_SECURITY_POLICY,
            CONTENT_SECURITY_POLICY.as_str(),
        ))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(PAGE)
}

/// What the page asks for every two seconds. Needs `Data<Operator>`.
pub async fn overview(operator: web::Data<Operator>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(Overview {
            version: env!("CARGO_PKG_VERSION"),
            figures: operator.vitals.figures(),
            lines: telemetry::recent(),
            settings: &operator.settings,
        })
}
