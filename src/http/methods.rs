//! Resources that support GET and HEAD, and the response to other methods.

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError,
    http::{
        StatusCode,
        header::{ALLOW, HeaderValue},
    },
    web,
};

use crate::auth::problem::Problem;

const READ: &str = "GET, HEAD";

/// A resource at `path` whose `handler` answers GET and HEAD; for HEAD the server sends
/// no body. Every other method gets a 405.
pub fn readable<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(web::to(|request| not_allowed(request, READ)))
}

/// The same with POST.
pub fn postable<F, Args, P, PostArgs>(path: &str, read: F, post: P) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
    P: Handler<PostArgs>,
    PostArgs: FromRequest + 'static,
    P::Output: Responder + 'static,
{
    readable(path, read)
        .route(web::post().to(post))
        .default_service(web::to(|request| not_allowed(request, "GET, HEAD, POST")))
}

/// The response for an unknown path: a 404 with this detail. `OPTIONS *` and CONNECT have
/// no path and get a 405.
pub fn missing(request: &HttpRequest, detail: &str) -> HttpResponse {
    if matches!(request.path(), "*" | "") {
        return method_not_allowed(request, READ);
    }
    Problem::new(StatusCode::NOT_FOUND, detail).error_response()
}

async fn not_allowed(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    method_not_allowed(&request, allowed)
}

/// See RFC 9110, section 15.5.6.
fn method_not_allowed(request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let method = request.method();
    let detail = format!("{method} is not supported here: use one of {allowed}");
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).error_response();
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(ALLOW, allowed);
    response
}
