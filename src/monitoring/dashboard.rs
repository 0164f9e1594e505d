//! The operator's page: how this bridge does, at a glance, in one file that needs
//! nothing from elsewhere.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use actix_web::{HttpResponse, http::header, web};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    config::BridgeOptions,
    monitoring::{
        database_state::Survey,
        logging::{self, Line},
        stats::{Figures, Vitals},
    },
    postgres::{
        connect::{Borrowed, DatabaseUrl},
        schema::SchemaName,
    },
};

const PAGE: &str = include_str!("dashboard/index.html");

/// For how long what the database answered is shown.
const SURVEY_AGE: Duration = Duration::from_secs(5);

/// So many times as long as it took to answer it is not asked again, and for a minute
/// at most: however many pages are open, they are little work for it.
const SURVEY_PAUSE: u32 = 20;
const SURVEY_LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
    /// Where the database is asked, by a connection that neither streams nor marks
    /// have to wait for.
    url: DatabaseUrl,
    schema: SchemaName,
    /// What it answered last, and until when that is shown.
    survey: Mutex<Option<(Arc<Survey>, Instant)>>,
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
    /// Of a bridge with these settings, which reads this database; `direct_url` leads
    /// to it past any pooler.
    pub fn new(
        vitals: Arc<Vitals>,
        options: &BridgeOptions,
        url: &DatabaseUrl,
        direct_url: DatabaseUrl,
        schema: SchemaName,
    ) -> Self {
        Self {
            vitals,
            settings: settings(options, url, &schema),
            url: direct_url,
            schema,
            survey: Mutex::default(),
        }
    }

    /// What is so in the database, as of some seconds ago at most, unless it takes
    /// it long to answer.
    async fn survey(&self) -> Arc<Survey> {
        // Who comes while it is being asked waits for the same answer.
        let mut survey = self.survey.lock().await;
        if let Some((survey, until)) = &*survey
            && Instant::now() < *until
        {
            return Arc::clone(survey);
        }
        let mut pause = SURVEY_AGE;
        let taken = Arc::new(match Borrowed::to_read(&self.url).await {
            Ok(client) => {
                let began = Instant::now();
                let taken = Survey::take(&client, &self.schema).await;
                let earned = began.elapsed() * SURVEY_PAUSE;
                pause = earned.clamp(SURVEY_AGE, SURVEY_LONGEST_PAUSE);
                taken
            }
            Err(error) => Survey::unknown(&error.to_string()),
        });
        *survey = Some((Arc::clone(&taken), Instant::now() + pause));
        taken
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
        ("TIDINGS_RETRY_AFTER", span(limits.retry_after())),
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
            lines: logging::recent(),
            settings: &operator.settings,
        })
}

/// What the page asks for now and then: what waits in the database, and which bridges
/// there are. Needs `Data<Operator>`.
pub async fn database(operator: web::Data<Operator>) -> HttpResponse {
    let operator = operator.into_inner();
    // Who leaves doesn't leave a query behind that nobody knows of.
    match tokio::spawn(async move { operator.survey().await }).await {
        Ok(survey) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(&*survey),
        // The bridge is ending.
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}
