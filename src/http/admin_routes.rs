//! What probes and monitors ask for, on an address of its own.

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
/// `Data<Operator>`.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(readable("/health/live", live))
        .service(readable("/health/ready", ready))
        .service(readable("/metrics", measured))
        .service(readable("/", dashboard::page))
        .service(readable("/overview", dashboard::overview))
        .service(readable("/database", dashboard::database));
}

/// The response for paths without a resource.
pub async fn not_found(request: HttpRequest) -> HttpResponse {
    let detail = "there is nothing here: this is the admin address, which has /, /health/live, \
                  /health/ready and /metrics";
    methods::missing(&request, detail)
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

/// The metrics, in the format that the client prefers.
async fn measured(request: HttpRequest, metrics: web::Data<Metrics>) -> HttpResponse {
    let exposition = Exposition::of(&request);
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::VARY, "accept"))
        .content_type(exposition.content_type())
        .body(metrics.text(exposition))
}
