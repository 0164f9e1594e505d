//! The URL of a key set.

use std::{fmt, str::FromStr};

use reqwest::Url;

use crate::runtime::loopback::is_loopback_host;

/// The URL of a key set. `Display` and `Debug` leave out the query and the password,
/// which may be secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JwksUrl(Url);

impl FromStr for JwksUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "it must be a URL, such as https://host/path")?;
        let url = Self(url);
        match url.0.scheme() {
            "https" => Ok(url),
            "http" if url.is_this_machine() => Ok(url),
            "http" => Err(
                "over http, anyone on the network path could replace the keys: use https \
                 (http is accepted only for this machine: localhost, 127.0.0.1, [::1])",
            ),
            _ => Err("it must begin with https://"),
        }
    }
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or_default();
        write!(f, "{}://{host}", self.0.scheme())?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl JwksUrl {
    /// The URL to fetch, with its secrets.
    pub(super) fn whole(&self) -> Url {
        self.0.clone()
    }

    /// Whether the host is this machine, so that the response can't be altered on the
    /// network.
    pub(super) fn is_this_machine(&self) -> bool {
        self.0.host_str().is_some_and(is_loopback_host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_or_of_this_machine_and_shows_no_secret() {
        for (text, shown) in [
            (
                "https://user:hunter2@id.example.org/a/keys?key=hunter2#x",
                "https://id.example.org/a/keys",
            ),
            ("http://localhost:8080/keys", "http://localhost:8080/keys"),
            ("http://127.1:8080", "http://127.0.0.1:8080/"),
            ("http://[::1]/keys", "http://[::1]/keys"),
            (
                "http://[::ffff:127.0.0.1]/keys",
                "http://[::ffff:7f00:1]/keys",
            ),
        ] {
            let url: JwksUrl = text.parse().expect(text);
            assert_eq!(
                (url.to_string(), format!("{url:?}")),
                (shown.to_owned(), shown.to_owned())
            );
        }
        for text in [
            "http://id.example.org/keys",
            "http://localhost.example.org/",
            "http://127.0.0.1.example.org/",
            "http://localhost@id.example.org/",
            "http://10.0.0.1/",
            "http://0.0.0.0/",
            "ftp://localhost/",
            "keys.json",
            "",
        ] {
            assert!(text.parse::<JwksUrl>().is_err(), "{text}");
        }
    }
}
