//! The address of a request's client, also behind proxies.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::{self, FromStr},
};

use actix_web::{HttpRequest, http::header::HeaderMap};
use ipnet::{IpNet, Ipv6Net};

/// The header to which each proxy appends the address of its client.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The length of an IPv6 network prefix. A client that has one address has the whole
/// network, and could use another address for each request, so limits apply to the
/// network.
const NETWORK_BITS: u8 = 64;

/// The unit to which limits apply: an IPv4 address, or an IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self(Ipv6Net::new_assert(address, NETWORK_BITS).network().into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(network) => write!(f, "{network}/{NETWORK_BITS}"),
        }
    }
}

/// The addresses and networks of trusted proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl FromStr for Proxies {
    type Err = String;

    /// Parses addresses and networks, separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim);
        let networks = parts.filter(|part| !part.is_empty()).map(network);
        networks.collect::<Result<_, _>>().map(Self)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network: IpNet = text.parse().map_err(|_| {
        format!("{text:?} is neither an address (10.0.0.5) nor a network (10.0.0.0/8, fd00::/8)")
    })?;
    // It would never match: addresses are converted to IPv4 before they are compared.
    match network.addr() {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Err(format!("{text:?} must be written as an IPv4 network"))
        }
        _ => Ok(network.trunc()),
    }
}

impl Proxies {
    /// Whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A network that covers the whole internet, if there is one.
    pub fn boundless(&self) -> Option<IpNet> {
        let mut networks = self.0.iter().copied();
        networks.find(|network| network.prefix_len() == 0)
    }

    /// Whether this is the address of a trusted proxy.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether a trusted proxy sent the request. Only the peer's address counts, not the
    /// request's headers.
    pub fn handed_over(&self, request: &HttpRequest) -> bool {
        peer(request).is_some_and(|address| self.trust(address))
    }

    /// The client of a request.
    pub fn client_of(&self, request: &HttpRequest) -> Client {
        match peer(request) {
            Some(peer) => self.farthest(peer, request.headers()).0.into(),
            // The peer has already disconnected.
            None => IpAddr::from(Ipv4Addr::UNSPECIFIED).into(),
        }
    }

    /// How many entries of `X-Forwarded-For` are trusted. Each of them was appended by a
    /// trusted proxy.
    pub fn hops(&self, request: &HttpRequest) -> usize {
        peer(request).map_or(0, |peer| self.farthest(peer, request.headers()).1)
    }

    /// Whether a request has the header `X-Forwarded-For`, but its peer is not trusted.
    pub fn disbelieve(&self, request: &HttpRequest) -> bool {
        request.headers().contains_key(FORWARDED_FOR) && !self.handed_over(request)
    }

    /// The farthest address that is certain, and its distance from the peer. Each proxy
    /// appends the address of its client, so the entries are read from the end, for as
    /// long as the address that wrote them is trusted. Anyone could have written the
    /// entries before that.
    fn farthest(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, usize) {
        let lines: Vec<_> = headers.get_all(FORWARDED_FOR).collect();
        // As bytes: invalid text from a client must not hide what a proxy appended to it.
        let mut hops = lines
            .iter()
            .rev()
            .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
            .map(|hop| str::from_utf8(hop).ok());
        let (mut farthest, mut distance) = (peer, 0);
        while self.trust(farthest) {
            let Some(address) = hops.next().flatten().and_then(hop) else {
                break;
            };
            farthest = address;
            distance += 1;
        }
        (farthest, distance)
    }
}

/// Parses an address as proxies write it; some add the port.
pub fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

fn peer(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let proxies: Proxies = "10.0.0.0/8, 192.0.2.1,fd00::/8,".parse().expect("proxies");
        let peer = SocketAddr::new(peer.parse().expect("an address"), 1);
        let request = forwarded
            .iter()
            .fold(TestRequest::get().peer_addr(peer), |request, line| {
                request.append_header((FORWARDED_FOR, *line))
            })
            .to_http_request();
        proxies.client_of(&request).to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_no_proxy_of_ours_has() {
        for (peer, forwarded, expected) in [
            ("203.0.113.9", &[][..], "203.0.113.9"),
            // Entries from an untrusted peer are ignored.
            ("203.0.113.9", &["198.51.100.7"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
            (
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.7,10.2.3.4"],
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                &["198.51.100.7", "10.2.3.4", "192.0.2.1"],
                "198.51.100.7",
            ),
            ("10.0.0.1", &["10.3.3.3, 10.2.3.4"], "10.3.3.3"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7:5432"], "198.51.100.7"),
            ("fd00::1", &["[2001:db8:1:2:3::4]:443"], "2001:db8:1:2::/64"),
            ("fd00::1", &["[2001:db8:1:2:3::4]"], "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::1", &[], "2001:db8:1:2::/64"),
            // Invalid text from the client doesn't hide the proxy's entry.
            ("10.0.0.1", &["\u{e9}, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["\u{e9}", "198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["\"1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1,\t198.51.100.7\t"], "198.51.100.7"),
        ] {
            assert_eq!(client(peer, forwarded), expected, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_walk_at_the_hop_that_wrote_it() {
        for (forwarded, expected) in [
            (&["unknown"][..], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["198.51.100.7, "], "10.0.0.1"),
            (&["198.51.100.7, x, 10.2.3.4"], "10.2.3.4"),
            (&["198.51.100.7, \u{e9}"], "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", forwarded), expected, "{forwarded:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_with_an_explanation() {
        for text in [
            "proxy.internal",
            "10.0.0.0/33",
            "10.0.0.1:80",
            "*",
            "::ffff:10.0.0.0/104",
        ] {
            let error = text.parse::<Proxies>().expect_err(text);
            assert!(error.contains(text), "{error}");
        }
        assert!("".parse::<Proxies>().expect("none").is_empty());
        let proxies: Proxies = "10.0.0.0/8,::/0".parse().expect("proxies");
        assert_eq!(proxies.boundless().expect("one").to_string(), "::/0");
    }
}
