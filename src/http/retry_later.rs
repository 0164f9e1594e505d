//! Responses to requests that are rejected for now, which make the client retry later.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, Accept, Header, HeaderValue, Quality},
    },
};
use bytes::BytesMut;

use crate::{auth::problem::Problem, delivery::sse, http::stream_query::RejectionForm};

/// A rejection of a request that may succeed later.
///
/// Browsers' `EventSource` and most libraries give up permanently on any status but 200,
/// and ignore `Retry-After`. So a request that accepts an event stream is answered with a
/// stream that says when to retry, and ends. Other requests, and those with
/// [`errors=status`](RejectionForm::Status), get the real status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryLater {
    status: StatusCode,
    detail: String,
    span: Duration,
}

impl RetryLater {
    /// `status` is for clients that can handle one. `detail` describes the problem on one
    /// line. Each client is asked to retry after a random time, a quarter to all of
    /// `span`: otherwise clients that were rejected together would return together.
    pub fn new(status: StatusCode, detail: impl Into<String>, span: Duration) -> Self {
        Self {
            status,
            detail: detail.into(),
            span,
        }
    }

    /// The response to `request`.
    pub fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let wanted = RejectionForm::wanted(request.query_string());
        let delay = self.span.mul_f64(rand::random_range(0.25..=1.0));
        if accepts_event_stream(request) && wanted == RejectionForm::Retry {
            let mut body = BytesMut::new();
            sse::put_deferral(&mut body, delay, &self.detail);
            return HttpResponse::Ok()
                .content_type(sse::CONTENT_TYPE)
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .body(body.freeze());
        }
        let mut response = Problem::new(self.status, self.detail.as_str()).error_response();
        // Whole seconds, rounded up.
        let seconds = HeaderValue::from(delay.as_millis().div_ceil(1_000).max(1) as u64);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        response
    }
}

/// Whether the request names this media type. `*/*` doesn't count, because every other
/// client sends it.
fn accepts_event_stream(request: &HttpRequest) -> bool {
    let Ok(accepted) = Accept::parse(request) else {
        return false;
    };
    accepted
        .iter()
        .any(|item| item.item.essence_str() == "text/event-stream" && item.quality > Quality::ZERO)
}

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, test::TestRequest};

    use super::*;

    const SPAN: Duration = Duration::from_secs(60);

    fn answer(query: &str, headers: &[(&'static str, &'static str)]) -> HttpResponse {
        let request = headers
            .iter()
            .fold(TestRequest::get().uri(query), |request, &header| {
                request.append_header(header)
            })
            .to_http_request();
        RetryLater::new(StatusCode::SERVICE_UNAVAILABLE, "it is full", SPAN).answer(&request)
    }

    fn header<'a>(answer: &'a HttpResponse, name: &str) -> &'a str {
        let value = answer.headers().get(name).expect(name);
        value.to_str().expect("text")
    }

    #[tokio::test]
    async fn a_client_that_accepts_a_stream_gets_one_that_says_when_to_retry_and_ends() {
        for headers in [
            &[("accept", "text/event-stream"), ("last-event-id", "7-A")][..],
            &[("accept", "text/event-stream, */*")],
            &[("accept", "text/event-stream;charset=utf-8;q=0.5")],
            &[
                ("accept", "application/json"),
                ("accept", "Text/Event-Stream"),
            ],
            &[
                ("accept", "text/event-stream"),
                ("authorization", "Bearer x"),
            ],
        ] {
            let answer = answer("/stream?errors=retry", headers);
            assert_eq!(answer.status(), StatusCode::OK, "{headers:?}");
            assert_eq!(
                header(&answer, "content-type"),
                "text/event-stream; charset=utf-8"
            );
            let body = to_bytes(answer.into_body()).await.expect("a body");
            let body = std::str::from_utf8(&body).expect("text");
            // No blank line: it would make the client forget its last id.
            let (retry, comment) = body.split_once('\n').expect("two lines");
            assert_eq!(comment, ": it is full\n");
            let delay: u64 = retry
                .strip_prefix("retry: ")
                .and_then(|delay| delay.parse().ok())
                .expect("a delay");
            assert!((15_000..=60_000).contains(&delay), "{delay}");
        }
    }

    #[tokio::test]
    async fn all_others_get_the_status_and_when_to_retry() {
        for (query, headers) in [
            ("/stream", &[][..]),
            ("/stream", &[("accept", "*/*")]),
            ("/stream", &[("accept", "text/*")]),
            ("/stream", &[("accept", "text/event-stream;q=0, */*")]),
            ("/stream", &[("accept", "?")]),
            ("/stream?errors=status", &[("accept", "text/event-stream")]),
        ] {
            let answer = answer(query, headers);
            assert_eq!(answer.status(), 503, "{query} {headers:?}");
            assert_eq!(header(&answer, "content-type"), "application/problem+json");
            let seconds: u64 = header(&answer, "retry-after").parse().expect("a number");
            assert!((15..=60).contains(&seconds), "{seconds}");
        }
    }
}
