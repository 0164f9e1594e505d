//! Whether a client connected by http or https, also if a proxy in front terminates TLS.

use std::{fmt, str};

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
};

use crate::auth::client_addr::{Proxies, hop};

/// The header in which a proxy passes on the scheme of the request that it received.
const FORWARDED_PROTO: &str = "x-forwarded-proto";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl Scheme {
    /// The scheme that the client of a request used. `own` is the scheme of the port that
    /// accepted it.
    ///
    /// Only a trusted proxy can override it, with `X-Forwarded-Proto` or, where that
    /// header is missing, `Forwarded` (RFC 7239). Of several values, the one from the
    /// farthest trusted proxy counts. A value other than http and https is ignored.
    pub fn of(request: &HttpRequest, own: Self, proxies: &Proxies) -> Self {
        if !proxies.handed_over(request) {
            return own;
        }
        let headers = request.headers();
        let named = if headers.contains_key(FORWARDED_PROTO) {
            in_forwarded_proto(headers, proxies.hops(request))
        } else {
            in_forwarded(headers, proxies)
        };
        named.unwrap_or(own)
    }

    pub fn other(self) -> Self {
        match self {
            Self::Http => Self::Https,
            Self::Https => Self::Http,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        if text.eq_ignore_ascii_case("https") {
            Some(Self::Https)
        } else if text.eq_ignore_ascii_case("http") {
            Some(Self::Http)
        } else {
            None
        }
    }
}

/// Each proxy has appended one value, as it did to `X-Forwarded-For`, or the outermost
/// one has set a single value.
fn in_forwarded_proto(headers: &HeaderMap, hops: usize) -> Option<Scheme> {
    let lines: Vec<_> = headers.get_all(FORWARDED_PROTO).collect();
    // As bytes: invalid text from a client must not hide what a proxy appended to it.
    let values = lines
        .iter()
        .rev()
        .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let farthest = values.take(hops.max(1)).last()?;
    Scheme::parse(str::from_utf8(farthest).ok()?)
}

/// Each proxy has appended one element, with its client's address and the scheme.
fn in_forwarded(headers: &HeaderMap, proxies: &Proxies) -> Option<Scheme> {
    let lines: Vec<_> = headers.get_all(header::FORWARDED).collect();
    let elements = lines.iter().rev().flat_map(|line| {
        let line = String::from_utf8_lossy(line.as_bytes());
        let elements: Vec<_> = split_unquoted(&line, ',').map(str::to_owned).collect();
        elements.into_iter().rev()
    });
    let mut scheme = None;
    for element in elements {
        let parameter = |wanted: &str| {
            let mut pairs = split_unquoted(&element, ';').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))?;
            Some(value.trim().trim_matches('"'))
        };
        scheme = parameter("proto").and_then(Scheme::parse);
        // An untrusted client could have written everything before this element.
        let asker = parameter("for").and_then(hop);
        if !asker.is_some_and(|asker| proxies.trust(asker)) {
            break;
        }
    }
    scheme
}

/// Splits a text at separators outside of quoted strings. In a quoted string, a backslash
/// escapes the next character (RFC 9110, section 5.6.4).
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |character| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match character {
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return character == separator && !is_quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn scheme(peer: &str, own: Scheme, lines: &[(&'static str, &str)]) -> Scheme {
        let proxies: Proxies = "10.0.0.0/8,fd00::/8".parse().expect("proxies");
        let peer = format!("{peer}:1").parse().expect("an address");
        let request = lines
            .iter()
            .fold(TestRequest::get().peer_addr(peer), |request, line| {
                request.append_header(*line)
            });
        Scheme::of(&request.to_http_request(), own, &proxies)
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        use Scheme::{Http, Https};
        for line in [("x-forwarded-proto", "https"), ("forwarded", "proto=https")] {
            assert_eq!(scheme("10.0.0.1", Http, &[line]), Https, "{line:?}");
            assert_eq!(scheme("203.0.113.9", Http, &[line]), Http, "{line:?}");
        }
        let line = ("x-forwarded-proto", "http");
        assert_eq!(scheme("10.0.0.1", Https, &[line]), Http);
        assert_eq!(scheme("203.0.113.9", Https, &[line]), Https);
        // Without a header, the connection's own scheme counts.
        assert_eq!(scheme("10.0.0.1", Http, &[]), Http);
        assert_eq!(scheme("10.0.0.1", Https, &[]), Https);
    }

    #[test]
    fn of_several_values_the_farthest_trusted_proxys_counts() {
        const PROTO: &str = "x-forwarded-proto";
        const FOR: &str = "x-forwarded-for";
        const FORWARDED: &str = "forwarded";
        for lines in [
            &[(PROTO, "HTTPS")][..],
            &[(PROTO, " https\t")],
            // The peer's value comes after its client's.
            &[(PROTO, "http, https")],
            &[(PROTO, "http"), (PROTO, "https")],
            &[(PROTO, "http, https"), (FOR, "10.9.9.9, 198.51.100.7")],
            // Two trusted proxies, of which the outer one terminates TLS.
            &[(PROTO, "https, http"), (FOR, "198.51.100.7, 10.2.3.4")],
            &[(PROTO, "https"), (FOR, "198.51.100.7, 10.2.3.4")],
            &[
                (PROTO, "http, https, http"),
                (FOR, "198.51.100.7, 10.2.3.4"),
            ],
            &[(FORWARDED, "for=198.51.100.7;proto=https")],
            &[(FORWARDED, "for=198.51.100.7; Proto=\"HTTPS\" ;by=10.0.0.1")],
            &[(FORWARDED, "proto=http, for=198.51.100.7;proto=https")],
            &[(
                FORWARDED,
                "for=198.51.100.7;proto=https, for=10.2.3.4;proto=http",
            )],
            &[(
                FORWARDED,
                "proto=http, for=\"[2001:db8::1]:4711\";proto=https, for=\"[fd00::1]\";proto=http",
            )],
            &[
                (FORWARDED, "for=198.51.100.7;proto=https"),
                (FORWARDED, "for=\"10.2.3.4:80\""),
            ],
            &[(FORWARDED, "for=\"_x,;proto=http\";proto=https")],
            &[(FORWARDED, "proto=http"), (PROTO, "https")],
            &[(PROTO, "\u{e9}, https")],
            &[(FORWARDED, "\u{e9}, for=\u{e9};proto=https")],
        ] {
            let scheme = scheme("10.0.0.1", Scheme::Http, lines);
            assert_eq!(scheme, Scheme::Https, "{lines:?}");
        }
        // Invalid values are ignored.
        for lines in [
            &[(PROTO, "")][..],
            &[(PROTO, "wss")],
            &[(PROTO, "https;")],
            &[(PROTO, "https\u{a0}")],
            &[(PROTO, "https,")],
            &[(FORWARDED, "https")],
            &[(FORWARDED, "proto")],
            &[(FORWARDED, "proto=https, for=198.51.100.7")],
            &[(FORWARDED, "\"proto=https")],
            &[(FORWARDED, "proto=\u{e9}")],
        ] {
            let scheme = scheme("10.0.0.1", Scheme::Http, lines);
            assert_eq!(scheme, Scheme::Http, "{lines:?}");
        }
    }

    #[test]
    fn separators_inside_quotes_are_no_separators() {
        let parts = |text| split_unquoted(text, ';').collect::<Vec<_>>();
        assert_eq!(parts("a;b=\"c;d\";e"), ["a", "b=\"c;d\"", "e"]);
        assert_eq!(parts(r#"a="\";";b"#), [r#"a="\";""#, "b"]);
        assert_eq!(parts("a=\";b"), ["a=\";b"]);
        assert_eq!(parts(""), [""]);
    }
}
