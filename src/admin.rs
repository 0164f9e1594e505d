//! What probes and monitors ask for, on an address of its own.

use actix_web::{HttpResponse, http::header, web};

use crate::{
    health::Health,
    metrics::{self, Metrics},
    operator,
};

/// The routes of the admin address. Need `Data<Health>`, `Data<Metrics>` and
/// `Data<Operator>`.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/health/live", web::get().to(live))
        .route("/health/ready", web::get().to(ready))
        .route("/metrics", web::get().to(measured))
        .route("/", web::get().to(operator::page))
        .route("/overview", web::get().to(operator::overview))
        .route("/database", web::get().to(operator::database));
}

/// The process runs and answers. A database that is away is no reason to kill
/// it: streams stay open, and it finds back by itself.
async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(serde_json::json!({ "status": "live" }))
}

/// The bridge hears the database and may be sent clients.
async fn ready(health: web::Data<Health>) -> HttpResponse {
    let readiness = health.readiness();
    let mut response = if readiness.is_ready() {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(readiness)
}

/// What a monitor reads.
async fn measured(metrics: web::Data<Metrics>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type(metrics::CONTENT_TYPE)
        .body(metrics.text())
}
