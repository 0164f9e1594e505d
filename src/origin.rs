//! Whose pages may read streams.
//!
//! A browser sends cookies with every request to their host, whatever page made
//! it. It keeps the answer from pages of others, but by then their rows are
//! marked as sent: so such a request must not open a stream at all.

use std::str::FromStr;

use actix_cors::Cors;
use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap},
        uri::Authority,
    },
    middleware::Next,
    web,
};

use crate::{
    client::Proxies,
    problem::Problem,
    refusals::{Reason, Refusals},
};

/// What a browser says of where a request comes from, also where it sends no
/// origin (an image, a script).
const FETCH_SITE: &str = "sec-fetch-site";

/// How long a browser may remember the answer to its question whether it may
/// ask. Chromium remembers it no longer than this.
const PREFLIGHT_SECONDS: usize = 7_200;

/// The origins, beside the stream's own, whose pages may read streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl FromStr for Origins {
    type Err = String;

    /// Exact origins, with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim);
        let origins = parts.filter(|part| !part.is_empty()).map(origin);
        origins.collect::<Result<_, _>>().map(Self)
    }
}

/// An origin of the list, as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    let because = match text {
        "*" => "it would let every page read with its visitor's cookie; list the origins",
        "null" => "it is the origin of files and sandboxed frames, which can be anybody's",
        _ => match normalised(text) {
            Some(origin) => return Ok(origin),
            None => {
                "it must be a scheme and a host, with a port if that is not the default, and \
                 nothing after it: https://app.example.org"
            }
        },
    };
    Err(format!("{text:?} can't be allowed: {because}"))
}

/// The only form that browsers send: lower case, without the default port.
fn normalised(origin: &str) -> Option<String> {
    let (scheme, authority) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority: Authority = authority.parse().ok()?;
    let host = authority.host().to_ascii_lowercase();
    let port = authority.port_u16();
    let rest = &authority.as_str()[host.len().min(authority.as_str().len())..];
    let is_whole = !host.is_empty() && (rest.is_empty() || port.is_some_and(|port| port > 0));
    let is_bare = !authority.as_str().contains('@') && !host.contains('*');
    (is_whole && is_bare).then(|| match port {
        Some(port) if port != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

impl Origins {
    /// Answers what browsers ask before they let a page read, and tells them
    /// that it may.
    pub fn cors(&self) -> Cors {
        let cors = Cors::default()
            .allowed_methods([Method::GET])
            .allowed_headers([
                header::AUTHORIZATION.as_str(),
                header::CACHE_CONTROL.as_str(),
                "last-event-id",
            ])
            .expose_headers([header::RETRY_AFTER])
            .supports_credentials()
            .max_age(PREFLIGHT_SECONDS);
        self.0
            .iter()
            .fold(cors, |cors, origin| cors.allowed_origin(origin))
    }

    /// Whether a request is no page's of somebody else.
    fn allow(&self, headers: &HeaderMap, host: Option<&str>) -> bool {
        let mut origins = headers.get_all(header::ORIGIN);
        match (origins.next(), origins.next()) {
            (None, _) => headers
                .get_all(FETCH_SITE)
                .all(|site| site == "same-origin" || site == "none"),
            (Some(origin), None) => origin
                .to_str()
                .is_ok_and(|origin| self.list(origin) || is_own(origin, host)),
            (Some(_), Some(_)) => false,
        }
    }

    fn list(&self, origin: &str) -> bool {
        self.0.iter().any(|listed| listed == origin)
    }
}

/// Whether an origin is that of the host which was asked. A proxy in front may
/// have changed the scheme.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    let Some((scheme, _)) = origin.split_once("://") else {
        return false;
    };
    let own = host.and_then(|host| normalised(&format!("{scheme}://{host}")));
    own.is_some() && own == normalised(origin)
}

/// Lets a request pass unless a page of somebody else made it. Needs
/// `Data<Origins>`, `Data<Proxies>` and `Data<Refusals>`.
///
/// # Errors
///
/// 403, before anybody asks who it is.
pub async fn check(
    origins: web::Data<Origins>,
    proxies: web::Data<Proxies>,
    refusals: web::Data<Refusals>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let headers = request.headers();
    // HTTP/2 names the host in the target.
    let host = match headers.get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => request.uri().authority().map(Authority::as_str),
    };
    if origins.allow(headers, host) {
        return next.call(request).await;
    }
    refusals.count(Reason::Origin, proxies.client_of(request.request()));
    let detail = "pages of this origin may not read the stream; whoever runs it can allow them, in \
                  TIDINGS_CORS_ORIGINS";
    Err(Problem::new(StatusCode::FORBIDDEN, detail).into())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_static(name);
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn origins_are_listed_as_browsers_write_them() {
        let origins: Origins =
            "https://App.Example.org:443, http://localhost:3000,HTTP://[::1]:80,"
                .parse()
                .expect("origins");
        let expected = [
            "https://app.example.org",
            "http://localhost:3000",
            "http://[::1]",
        ];
        assert_eq!(origins.0, expected);
    }

    #[test]
    fn what_is_no_origin_or_anybodys_is_refused_with_an_explanation() {
        for text in [
            "*",
            "null",
            "https://*.example.org",
            "https://app.example.org/",
            "https://app.example.org/path",
            "https://app.example.org?x",
            "https://app.example.org#x",
            "https://user@app.example.org",
            "https://app.example.org:",
            "https://app.example.org:x",
            "https://app.example.org:99999",
            "https://app.example.org:0",
            "https://",
            "https://:443",
            "https://b\u{fc}cher.example",
            "app.example.org",
            "file:///x",
            "wss://app.example.org",
        ] {
            let error = text.parse::<Origins>().expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!("".parse(), Ok(Origins::default()));
    }

    #[test]
    fn a_request_passes_unless_a_page_of_somebody_else_made_it() {
        let origins: Origins = "https://app.example.org".parse().expect("an origin");
        let host = Some("tidings.example.org");
        for lines in [
            &[][..],
            &[("origin", "https://app.example.org")],
            &[
                ("origin", "https://app.example.org"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("origin", "https://tidings.example.org")],
            &[("origin", "http://tidings.example.org")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert!(origins.allow(&headers(lines), host), "{lines:?}");
        }
        for lines in [
            &[("origin", "https://evil.example.org")][..],
            &[("origin", "http://app.example.org")],
            &[("origin", "https://app.example.org:8443")],
            &[("origin", "https://app.example.org.evil.example")],
            &[("origin", "https://tidings.example.org:8443")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "tidings.example.org")],
            &[
                ("origin", "https://app.example.org"),
                ("origin", "https://evil.example.org"),
            ],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
        ] {
            assert!(!origins.allow(&headers(lines), host), "{lines:?}");
        }
        let own = headers(&[("origin", "http://localhost:8080")]);
        assert!(origins.allow(&own, Some("LOCALHOST:8080")));
        assert!(!origins.allow(&own, Some("localhost")));
        assert!(!origins.allow(&own, None));
        let own = headers(&[("origin", "https://tidings.example.org")]);
        assert!(origins.allow(&own, Some("tidings.example.org:443")));
    }
}
