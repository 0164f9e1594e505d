//! The host to which a request is addressed.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{RequestHead, ServiceRequest, ServiceResponse},
    http::{StatusCode, Version, header::HOST, uri::Authority},
    middleware::Next,
};

use crate::{auth::problem::Problem, runtime::loopback::is_loopback_host};

/// The host to which a request is addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// HTTP/1.0 allows requests without a host.
    Missing,
    /// A host, with a port if it is not the default.
    Named(Authority),
    /// An invalid value, or several different ones.
    Unclear,
}

impl Host {
    /// The host in the request's target (HTTP/2, absolute form) and in all its `Host`
    /// headers, which must agree.
    pub fn of(head: &RequestHead) -> Self {
        let in_header = head.headers.get_all(HOST).map(|host| host.to_str().ok());
        let in_target = head.uri.authority().map(|host| Some(host.as_str()));
        let mut host = Self::Missing;
        for named in in_header.chain(in_target) {
            let Some(named) = named.and_then(parse) else {
                return Self::Unclear;
            };
            match &host {
                // Authorities compare without regard to case.
                Self::Named(other) if *other != named => return Self::Unclear,
                _ => host = Self::Named(named),
            }
        }
        host
    }
}

fn parse(text: &str) -> Option<Authority> {
    // A host with credentials is invalid here.
    if text.contains('@') {
        return None;
    }
    text.parse().ok()
}

/// Accepts a request only if it is addressed to a loopback host, and answers 403
/// otherwise.
///
/// A web page can make its own name resolve to 127.0.0.1 and then access a server there
/// as its own origin (DNS rebinding); its requests still carry that name. Forwarding
/// headers are ignored, because a page can set them. A request over HTTP/1.0 without a
/// host is accepted: browsers never send one, but health checks do.
pub async fn loopback_only(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let is_here = match Host::of(request.head()) {
        Host::Missing => request.version() < Version::HTTP_11,
        Host::Named(host) => is_loopback_host(host.host()),
        Host::Unclear => false,
    };
    if is_here {
        return next.call(request).await;
    }
    let detail = "this server listens on a loopback address and accepts only requests with the \
                  Host localhost, 127.0.0.1 or [::1]: use one of these (a proxy must set Host to \
                  it), or listen on another address";
    Err(Problem::new(StatusCode::FORBIDDEN, detail).into())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn loopback(host: &str) -> bool {
        parse(host).is_some_and(|host| is_loopback_host(host.host()))
    }

    #[test]
    fn only_names_and_numbers_of_this_machine_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(loopback(host), "{host}");
        }
        for host in [
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "[::2]",
            "",
            "localhost@example.org",
            "evil@localhost",
            "localhost/x",
            "http://localhost/",
            "localhost, localhost",
            "0.0.0.0",
        ] {
            assert!(!loopback(host), "{host}");
        }
    }

    #[test]
    fn a_host_is_one_however_often_it_is_named() {
        let host = |target: &str, headers: &[&str]| {
            let request = TestRequest::default().uri(target);
            let request = headers.iter().fold(request, |request, host| {
                request.append_header((HOST, *host))
            });
            Host::of(request.to_srv_request().head())
        };
        let named = |host: &str| Host::Named(host.parse().expect("an authority"));
        assert_eq!(host("/", &[]), Host::Missing);
        for (target, headers) in [
            ("/", &["A.example:1"][..]),
            ("http://a.example:1/", &[]),
            ("http://a.example:1/", &["a.Example:1"]),
            ("/", &["a.example:1", "a.example:1"]),
        ] {
            assert_eq!(host(target, headers), named("a.example:1"), "{headers:?}");
        }
        for (target, headers) in [
            ("/", &[""][..]),
            ("/", &["a.example", "b.example"]),
            ("/", &["a.example", ""]),
            ("/", &["a.example, a.example"]),
            ("/", &["\u{e9}.example"]),
            ("http://a.example/", &["b.example"]),
            ("http://a.example/", &["a.example:1"]),
        ] {
            assert_eq!(host(target, headers), Host::Unclear, "{target} {headers:?}");
        }
    }
}
