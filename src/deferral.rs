//! Turned away for now: answers after which a client comes back.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
};
use bytes::BytesMut;

use crate::{problem::Problem, sse};

/// Why a request is turned away that may be let in another time.
///
/// A browser's `EventSource` gives up for good on any status but 200 and knows
/// nothing of `Retry-After`: it gets a stream that says when to come back, and
/// ends. Other clients can be told the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferral {
    status: StatusCode,
    detail: String,
    span: Duration,
}

impl Deferral {
    /// For those who can be told, it has this status; `detail` tells the reader
    /// what is wrong, on one line. They are asked to come back after a quarter
    /// to all of `span`, each after a time of their own: those who were turned
    /// away together would return together otherwise.
    pub fn new(status: StatusCode, detail: impl Into<String>, span: Duration) -> Self {
        Self {
            status,
            detail: detail.into(),
            span,
        }
    }

    /// The answer to `request`.
    pub fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let delay = self.span.mul_f64(rand::random_range(0.25..=1.0));
        if is_event_source(request) {
            let mut body = BytesMut::new();
            sse::put_come_back(&mut body, delay, &self.detail);
            return HttpResponse::Ok()
                .content_type("text/event-stream")
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .body(body.freeze());
        }
        let mut response = Problem::new(self.status, self.detail.as_str()).error_response();
        // Whole seconds, and no fewer than were meant.
        let seconds = HeaderValue::from(delay.as_millis().div_ceil(1_000).max(1) as u64);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        response
    }
}

/// Whether it is a browser's own `EventSource`, as far as can be told: that asks
/// for nothing but an event stream, and can't set the header `Authorization`.
fn is_event_source(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let mut accepted = headers.get_all(header::ACCEPT);
    let is_only = accepted
        .next()
        .is_some_and(|value| value == "text/event-stream");
    is_only && accepted.next().is_none() && !headers.contains_key(header::AUTHORIZATION)
}

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, test::TestRequest};

    use super::*;

    const SPAN: Duration = Duration::from_secs(60);

    fn answer(headers: &[(&'static str, &'static str)]) -> HttpResponse {
        let request = headers
            .iter()
            .fold(TestRequest::get(), |request, &header| {
                request.append_header(header)
            })
            .to_http_request();
        Deferral::new(StatusCode::SERVICE_UNAVAILABLE, "it is full", SPAN).answer(&request)
    }

    fn header<'a>(answer: &'a HttpResponse, name: &str) -> &'a str {
        let value = answer.headers().get(name).expect(name);
        value.to_str().expect("text")
    }

    #[tokio::test]
    async fn an_event_source_gets_a_stream_that_says_when_to_come_back_and_ends() {
        let answer = answer(&[("accept", "text/event-stream"), ("last-event-id", "7-A")]);
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header(&answer, "content-type"), "text/event-stream");
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

    #[tokio::test]
    async fn all_others_get_the_status_and_when_to_come_back() {
        for headers in [
            &[][..],
            &[("accept", "*/*")],
            &[("accept", "text/event-stream, */*")],
            &[("accept", "text/event-stream"), ("accept", "text/html")],
            &[
                ("accept", "text/event-stream"),
                ("authorization", "Bearer x"),
            ],
        ] {
            let answer = answer(headers);
            assert_eq!(answer.status(), 503, "{headers:?}");
            assert_eq!(header(&answer, "content-type"), "application/problem+json");
            let seconds: u64 = header(&answer, "retry-after").parse().expect("a number");
            assert!((15..=60).contains(&seconds), "{seconds}");
        }
    }
}
