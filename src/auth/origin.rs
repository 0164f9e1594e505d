//! Checks which pages may read streams.
//!
//! A browser sends cookies with every request to their host, whichever page made it. It
//! hides the response from a page of another origin, but by then the rows are marked as
//! sent. So such a request must not open a stream at all.

use std::{fmt, str::FromStr};

use actix_cors::Cors;
use actix_web::{
    Error, HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderValue},
        uri::Authority,
    },
    middleware::Next,
    web,
};

use crate::auth::{
    client_addr::Proxies,
    host::Host,
    problem::Problem,
    rejections::{RejectReason, Rejections},
    scheme::Scheme,
};

/// The header in which a browser reports where a request comes from, even if it sends no
/// origin (for an image or a script).
const FETCH_SITE: &str = "sec-fetch-site";

/// How long a browser may cache the response to a preflight request. Chromium caches it
/// no longer than this.
const PREFLIGHT_SECONDS: usize = 7_200;

/// How many bytes of an origin are logged: a host name has at most 253.
const LOGGED_BYTES: usize = 300;

/// The origins, besides the stream's own, whose pages may read streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl FromStr for Origins {
    type Err = String;

    /// Parses exact origins, separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim);
        let origins = parts.filter(|part| !part.is_empty()).map(origin);
        origins.collect::<Result<_, _>>().map(Self)
    }
}

/// Parses an origin, and returns it as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    let because = match text {
        "*" => "it would let any page read streams with its visitor's cookie; list the origins",
        "null" => "it is the origin of files and sandboxed frames, which anyone can create",
        _ => match normalised(text) {
            Some(origin) if !has_scheme(&origin, &FORBIDDEN_SCHEMES) => return Ok(origin),
            _ if has_scheme(text, &["file"]) => {
                "it is the origin of every file, whoever created it"
            }
            _ if has_scheme(text, &["ws", "wss"]) => {
                "browsers send the page's origin, which begins with http or https"
            }
            _ if has_scheme(text, &FORBIDDEN_SCHEMES) => {
                "pages with such an address have no origin of their own"
            }
            _ => {
                "it must be a scheme and a host, with a port unless it is the default, and \
                 nothing else, such as https://app.example.org or capacitor://localhost"
            }
        },
    };
    Err(format!("{text:?} can't be allowed: {because}"))
}

/// Schemes that can't be allowed, because no origin has them or any file could have them.
const FORBIDDEN_SCHEMES: [&str; 8] = [
    "about",
    "blob",
    "data",
    "file",
    "ftp",
    "javascript",
    "ws",
    "wss",
];

fn has_scheme(text: &str, schemes: &[&str]) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        schemes
            .iter()
            .any(|other| other.eq_ignore_ascii_case(scheme))
    })
}

/// The form that browsers send: lower case, without the default port. Pages of extensions
/// and apps have their own schemes (`chrome-extension`, `capacitor`, `tauri`), and
/// origins of the same form.
fn normalised(origin: &str) -> Option<String> {
    let (scheme, authority) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    // RFC 3986, section 3.1.
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !is_scheme {
        return None;
    }
    let default_port = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let authority: Authority = authority.parse().ok()?;
    let host = authority.host().to_ascii_lowercase();
    let port = authority.port_u16();
    let rest = &authority.as_str()[host.len().min(authority.as_str().len())..];
    let is_whole = !host.is_empty() && (rest.is_empty() || port.is_some_and(|port| port > 0));
    let is_bare = !authority.as_str().contains('@') && !host.contains('*');
    (is_whole && is_bare).then(|| match port {
        Some(port) if Some(port) != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

impl Origins {
    /// The CORS middleware: answers preflight requests, and allows pages of the listed
    /// origins to read responses.
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
        let origins = self.clone();
        cors.allowed_origin_fn(move |origin, _| origins.list(origin))
    }

    /// Accepts a request for this scheme and host unless a page of another origin made
    /// it.
    fn judge(&self, headers: &HeaderMap, scheme: Scheme, host: &Host) -> Result<(), Refused> {
        let mut origins = headers.get_all(header::ORIGIN);
        let origin = match (origins.next(), origins.next()) {
            (None, _) => {
                let is_ours = |site: &HeaderValue| site == "same-origin" || site == "none";
                return match headers.get_all(FETCH_SITE).all(is_ours) {
                    true => Ok(()),
                    false => Err(Refused::Origin),
                };
            }
            (Some(origin), None) => origin,
            (Some(_), Some(_)) => return Err(Refused::Origin),
        };
        if self.list(origin) {
            return Ok(());
        }
        let origin = origin.to_str().ok().and_then(normalised);
        let own = |scheme| match host {
            Host::Named(host) => normalised(&format!("{scheme}://{host}")),
            Host::Missing | Host::Unclear => None,
        };
        if origin.is_none() {
            Err(Refused::Origin)
        } else if origin == own(scheme) {
            Ok(())
        } else if origin == own(scheme.other()) {
            Err(Refused::Scheme(scheme))
        } else {
            Err(Refused::Origin)
        }
    }

    /// Whether an origin is in the list. Case is ignored, because browsers don't
    /// normalise it after schemes that they don't know.
    fn list(&self, origin: &HeaderValue) -> bool {
        let is_listed = |listed: &String| listed.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
        self.0.iter().any(is_listed)
    }
}

/// Whether a request over `scheme` was made by a page of its own host, or by no page.
pub fn is_same_origin(request: &HttpRequest, scheme: Scheme) -> bool {
    let host = Host::of(request.head());
    let judged = Origins::default().judge(request.headers(), scheme, &host);
    judged.is_ok()
}

/// Why a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// A page of another origin made it.
    Origin,
    /// A page of this host made it, but the page was loaded by the other scheme. An
    /// attacker in the network can replace a page that is loaded by http.
    Scheme(Scheme),
}

impl Refused {
    fn detail(self) -> String {
        match self {
            Self::Origin => "pages of this origin may not read the stream; the operator can \
                             allow the origin in TIDINGS_CORS_ORIGINS"
                .to_owned(),
            Self::Scheme(asked) => {
                let page = asked.other();
                format!(
                    "the page was loaded over {page} but requested the stream over {asked}, so \
                     their origins differ; if a proxy terminates TLS, have it send \
                     X-Forwarded-Proto and list it in TIDINGS_TRUSTED_PROXIES, or list the page's \
                     origin in TIDINGS_CORS_ORIGINS"
                )
            }
        }
    }
}

/// Middleware that rejects requests from pages of other origins with 403, before the user
/// is identified. Needs `Data<Origins>`, `Data<Proxies>`, `Data<Rejections>`, and the
/// port's `Data<Scheme>`.
pub async fn check(
    origins: web::Data<Origins>,
    proxies: web::Data<Proxies>,
    rejections: web::Data<Rejections>,
    own: web::Data<Scheme>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let scheme = Scheme::of(request.request(), **own, &proxies);
    let host = Host::of(request.head());
    match origins.judge(request.headers(), scheme, &host) {
        Ok(()) => next.call(request).await,
        Err(refused) => {
            let client = proxies.client_of(request.request());
            let origin = SentOrigin(request.headers());
            rejections.count_because(RejectReason::Origin, client, &origin);
            Err(Problem::new(StatusCode::FORBIDDEN, refused.detail()).into())
        }
    }
}

/// The origin in a request, for the log. Clients choose its length.
struct SentOrigin<'a>(&'a HeaderMap);

impl fmt::Display for SentOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(header::ORIGIN) {
            None => f.write_str("no origin, but another site's page"),
            Some(origin) => {
                let origin = &origin.as_bytes()[..origin.len().min(LOGGED_BYTES)];
                f.write_str(&String::from_utf8_lossy(origin))
            }
        }
    }
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
            "https://App.Example.org:443, http://localhost:3000,HTTP://[::1]:80,\
             capacitor://localhost,Ionic://localhost , tauri://localhost:1430, app://-,\
             chrome-extension://abcdefghijklmnopabcdefghijklmnop,\
             safari-web-extension://2E1B5A5F-0B5A-4F3B-9C0A-8F0A5B5C5D5E"
                .parse()
                .expect("origins");
        let expected = [
            "https://app.example.org",
            "http://localhost:3000",
            "http://[::1]",
            "capacitor://localhost",
            "ionic://localhost",
            "tauri://localhost:1430",
            "app://-",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "safari-web-extension://2e1b5a5f-0b5a-4f3b-9c0a-8f0a5b5c5d5e",
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
            "file://",
            "FILE://host",
            "wss://app.example.org",
            "data:text/html",
            "blob:https://app.example.org/x",
            "javascript://app",
            "capacitor://",
            "capacitor:localhost",
            "capacitor://localhost/",
            "chrome-extension://*",
            "://localhost",
            "1app://localhost",
            "a_b://localhost",
            "capacitor://localhost:0",
        ] {
            let error = text.parse::<Origins>().expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!("".parse(), Ok(Origins::default()));
    }

    #[test]
    fn a_request_passes_unless_a_page_of_somebody_else_made_it() {
        let origins = "https://app.example.org,capacitor://localhost";
        let origins: Origins = origins.parse().expect("origins");
        let judge = |lines: &[(&'static str, &'static str)], scheme, host: &str| {
            let host = match host {
                "" => Host::Missing,
                host => Host::Named(host.parse().expect("an authority")),
            };
            origins.judge(&headers(lines), scheme, &host)
        };
        let host = "tidings.example.org";
        for lines in [
            &[][..],
            &[("origin", "https://app.example.org")],
            &[("origin", "HTTPS://App.Example.org")],
            &[("origin", "capacitor://localhost")],
            &[
                ("origin", "https://app.example.org"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[("origin", "https://tidings.example.org")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(judge(lines, Scheme::Https, host), Ok(()), "{lines:?}");
        }
        for lines in [
            &[("origin", "https://evil.example.org")][..],
            &[("origin", "http://app.example.org")],
            &[("origin", "https://app.example.org:8443")],
            &[("origin", "https://app.example.org.evil.example")],
            &[("origin", "https://tidings.example.org:8443")],
            &[("origin", "capacitor://tidings.example.org")],
            &[("origin", "capacitor://localhost.example.org")],
            &[("origin", "ionic://localhost")],
            &[("origin", "https://localhost")],
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
            let refused = judge(lines, Scheme::Https, host);
            assert_eq!(refused, Err(Refused::Origin), "{lines:?}");
        }
        let own = [("origin", "http://localhost:8080")];
        assert_eq!(judge(&own, Scheme::Http, "LOCALHOST:8080"), Ok(()));
        for host in ["localhost", ""] {
            let refused = judge(&own, Scheme::Http, host);
            assert_eq!(refused, Err(Refused::Origin), "{host}");
        }
        let own = [("origin", "https://tidings.example.org")];
        assert_eq!(
            judge(&own, Scheme::Https, "tidings.example.org:443"),
            Ok(())
        );
    }

    #[test]
    fn a_page_of_the_same_host_and_another_scheme_is_of_another_origin() {
        let origins = Origins::default();
        for (origin, scheme, host) in [
            ("http://a.example", Scheme::Https, "a.example"),
            ("https://a.example", Scheme::Http, "a.example"),
            ("http://a.example:80", Scheme::Https, "a.example"),
            ("http://a.example:8080", Scheme::Https, "a.example:8080"),
        ] {
            let host = Host::Named(host.parse().expect("an authority"));
            let refused = origins.judge(&headers(&[("origin", origin)]), scheme, &host);
            assert_eq!(refused, Err(Refused::Scheme(scheme)), "{origin}");
        }
    }
}
