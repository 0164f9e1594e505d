//! The routes for probes and monitoring, on an address of their own.

use actix_web::{HttpRequest, HttpResponse, http::header, web};

use crate::{
    delivery::health::Health,
    http::methods::{self, readable},
    monitoring::{
        dashboard,
        prometheus::{Exposition, Metrics},
    },
};

/// The routes of the admin address. Need `Data<Health>`, `Data<Metrics>` and
/// `Data<Dashboard>`.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(readable("/health/live", live))
        .service(readable("/health/ready", ready))
        .service(readable("/metrics", measured))
        .service(readable("/", dashboard::page))
        .service(readable("/overview", dashboard::overview))
        .service(readable("/database", dashboard::database));
}

/// The response for unknown paths.
pub async fn not_found(request: HttpRequest) -> HttpResponse {
    let detail = "not found: the admin address serves /, /health/live, /health/ready and /metrics";
    methods::missing(&request, detail)
}

/// The process is running and responds. It should not be restarted because the database
/// is unavailable: streams stay open, and it reconnects by itself.
async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(serde_json::json!({ "status": "live" }))
}

/// Whether the bridge is listening to the database and may receive clients.
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

/// The metrics, in the format that the client prefers.
async fn measured(request: HttpRequest, metrics: web::Data<Metrics>) -> HttpResponse {
    let exposition = Exposition::of(&request);
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::VARY, "accept"))
        .content_type(exposition.content_type())
        .body(metrics.text(exposition))
}
