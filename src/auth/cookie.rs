//! The cookie that carries a token, parsed as RFC 6265 defines the header `Cookie`.

use std::str::FromStr;

use actix_web::http::header::{self, HeaderMap};

/// The name of the cookie that carries a token where no header can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(String);

impl FromStr for CookieName {
    type Err = &'static str;

    /// Accepts a token of RFC 6265. A prefix such as `__Host-` is part of the name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_token =
            |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
        if !text.is_empty() && text.bytes().all(is_token) {
            Ok(Self(text.to_owned()))
        } else {
            Err("it must be a cookie name: letters, digits, - and _, such as __Host-tidings")
        }
    }
}

impl Default for CookieName {
    fn default() -> Self {
        Self("tidings_token".to_owned())
    }
}

impl CookieName {
    /// The values of all cookies of exactly this name, in the order in which they were sent.
    ///
    /// The header is split as bytes, and nothing is decoded. Browsers enforce the rules of
    /// `__Host-` and `__Secure-` for names that begin with exactly these bytes. A cookie whose
    /// name is the same only after decoding, or after removing Unicode whitespace, is not subject
    /// to those rules: any subdomain can set it, so it is a different cookie. The content of
    /// other cookies is irrelevant.
    ///
    /// Over HTTP/2 the pairs may be spread over several header fields (RFC 9113, section 8.2.3).
    pub fn values<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
        headers
            .get_all(header::COOKIE)
            // A semicolon separates cookies even inside quotes (RFC 6265, section 4.1.1).
            .flat_map(|field| field.as_bytes().split(|byte| *byte == b';'))
            .filter_map(pair)
            .filter(|(name, _)| *name == self.0.as_bytes())
            .map(|(_, value)| value)
    }
}

/// The name and the value of a cookie; `None` without a `=`. Whitespace between the name
/// and the `=` is part of the name, because browsers never send any there.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii();
    let at = text.iter().position(|byte| *byte == b'=')?;
    Some((&text[..at], unquoted(text[at + 1..].trim_ascii())))
}

/// Removes the quotes around a value. Some libraries quote every value.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inside @ .., b'"'] => inside,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn values(name: &str, fields: &[&[u8]]) -> Vec<String> {
        let name: CookieName = name.parse().expect("a name");
        let mut headers = HeaderMap::new();
        for field in fields {
            let field = HeaderValue::from_bytes(field).expect("a field");
            headers.append(header::COOKIE, field);
        }
        let values = name.values(&headers);
        values
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    #[test]
    fn a_name_is_compared_byte_for_byte() {
        for field in [
            "%5F%5FHost-t=x",
            "__Host%2Dt=x",
            "\u{a0}__Host-t=x",
            "\u{2003}__Host-t=x",
            "\u{feff}__Host-t=x",
            "__Host-t\u{a0}=x",
            "__Host-t =x",
            "__host-t=x",
            "__Host-t",
            "=__Host-t=x",
            "a=__Host-t=x",
            "a=\"__Host-t=x\"",
            "\"__Host-t\"=x",
            "__Host-t2=x",
            "",
            ";;=;",
        ] {
            assert_eq!(values("__Host-t", &[field.as_bytes()]), [""; 0], "{field}");
        }
    }

    #[test]
    fn pairs_are_found_in_every_field_whatever_else_is_there() {
        for (fields, expected) in [
            (&[&b"t=x"[..]][..], &["x"][..]),
            (&[b"a=1; t=x; b=2"], &["x"]),
            (&[b"a=1;t=x;b=2"], &["x"]),
            (&[b" a=1 ;\t t=x \t; "], &["x"]),
            (&[b"t= x "], &["x"]),
            (&[b"a", b"t=x", b"b=2"], &["x"]),
            (&[b"t=x; t=y", b"t=z"], &["x", "y", "z"]),
            (&[b"t=\"x\""], &["x"]),
            (&[b"t=\"x"], &["\"x"]),
            (&[b"t=\""], &["\""]),
            (&[b"t="], &[""]),
            (&[b"t=\"\""], &[""]),
            (&[b"t=x=y"], &["x=y"]),
            (&[b"t=%78"], &["%78"]),
            // A quoted semicolon is a separator too.
            (&[b"a=\"1; t=x\""], &["x\""]),
            (&[b"a=\xff\xfe; \xc3=\x80; t=x; =; \xff"], &["x"]),
            (&[b"t=\xff"], &["\u{fffd}"]),
        ] {
            assert_eq!(values("t", fields), expected, "{fields:?}");
        }
    }
}
