//! The operator's page: the state of this bridge at a glance, in one file without
//! external resources.

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
        chart_data::{ChartData, Sample},
        database_state::DatabaseState,
        logging::{self, Line},
        stats::{Figures, Stats},
    },
    postgres::{connect::Borrowed, database::Database},
    runtime::error_chain::ErrorChain,
};

const PAGE: &str = include_str!("dashboard/index.html");

/// How long an answer of the database is shown.
const SURVEY_AGE: Duration = Duration::from_secs(5);

/// The pause before the next query is this multiple of the time that the last one took,
/// and at most a minute: however many pages are open, they cost the database little.
const SURVEY_PAUSE: u32 = 20;
const SURVEY_LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Allows the page's own script and style by their hashes, and nothing else.
static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style"),
    )
});

/// The hash of the content of the page's only element of this name.
fn hash_of(element: &str) -> String {
    let after = PAGE.split_once(&format!("<{element}>"));
    let inside = after.and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let text = inside.map(|(text, _)| text).unwrap_or_default();
    let hash = digest(&SHA256, text.as_bytes());
    format!("sha256-{}", BASE64_STANDARD.encode(hash))
}

/// The state behind the page.
#[derive(Debug)]
pub struct Dashboard {
    stats: Arc<Stats>,
    history: Arc<ChartData>,
    settings: Vec<ShownSetting>,
    database: Database,
    /// The last answer of the database, and until when it is shown.
    survey: Mutex<Option<(Arc<DatabaseState>, Instant)>>,
}

/// A setting that is in use, under the name of its variable. None of them is secret.
#[derive(Debug, Serialize)]
pub struct ShownSetting {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
struct Overview<'a> {
    version: &'static str,
    #[serde(flatten)]
    figures: Figures,
    /// The last fifteen minutes, oldest first.
    history: Vec<Sample>,
    lines: Vec<Line>,
    settings: &'a [ShownSetting],
}

impl Dashboard {
    pub fn new(
        stats: Arc<Stats>,
        history: Arc<ChartData>,
        options: &BridgeOptions,
        database: Database,
    ) -> Self {
        Self {
            stats,
            history,
            settings: settings(options, &database),
            database,
            survey: Mutex::default(),
        }
    }

    /// The state of the database, at most some seconds old unless the database takes long
    /// to answer.
    async fn survey(&self) -> Arc<DatabaseState> {
        // A request that arrives during a query waits for the same answer.
        let mut survey = self.survey.lock().await;
        if let Some((survey, until)) = &*survey
            && Instant::now() < *until
        {
            return Arc::clone(survey);
        }
        let mut pause = SURVEY_AGE;
        let Database {
            direct_url, schema, ..
        } = &self.database;
        // A connection of its own, so that neither streams nor marks have to wait.
        let taken = Arc::new(match Borrowed::to_read(direct_url).await {
            Ok(client) => {
                let began = Instant::now();
                let taken = DatabaseState::take(&client, schema).await;
                let earned = began.elapsed() * SURVEY_PAUSE;
                pause = earned.clamp(SURVEY_AGE, SURVEY_LONGEST_PAUSE);
                taken
            }
            Err(error) => DatabaseState::unknown(&ErrorChain(&error).to_string()),
        });
        *survey = Some((Arc::clone(&taken), Instant::now() + pause));
        taken
    }
}

fn settings(options: &BridgeOptions, database: &Database) -> Vec<ShownSetting> {
    let limits = &options.limits;
    let span = |span| humantime::format_duration(span).to_string();
    let listed = [
        // Host and database, without credentials and parameters.
        ("DATABASE_URL", database.url.to_string()),
        ("TIDINGS_SCHEMA", database.schema.to_string()),
        ("TIDINGS_MEMBERSHIPS", database.sql.memberships.to_string()),
        ("TIDINGS_LISTEN", options.listen.to_string()),
        ("TIDINGS_POOL_SIZE", options.pool_size.to_string()),
        ("TIDINGS_QUEUE_BYTES", options.queue_bytes.to_string()),
        ("TIDINGS_RECENT_BYTES", options.recent_bytes.to_string()),
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
    let setting = |(name, value)| ShownSetting { name, value };
    listed.into_iter().map(setting).collect()
}

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

/// Answers what the page requests every five seconds. Needs `Data<Dashboard>`.
pub async fn overview(operator: web::Data<Dashboard>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(Overview {
            version: env!("CARGO_PKG_VERSION"),
            figures: operator.stats.figures(),
            history: operator.history.samples(),
            lines: logging::recent(),
            settings: &operator.settings,
        })
}

/// Answers what the page requests from time to time: the pending rows and the connected
/// bridges. Needs `Data<Dashboard>`.
pub async fn database(operator: web::Data<Dashboard>) -> HttpResponse {
    let operator = operator.into_inner();
    // In a task of its own, so that a client that disconnects doesn't leave an untracked
    // query behind.
    match tokio::spawn(async move { operator.survey().await }).await {
        Ok(survey) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(&*survey),
        // The bridge is stopping.
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}
