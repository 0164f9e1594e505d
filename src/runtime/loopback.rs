//! Whether an address is this machine's own.

use std::net::IpAddr;

/// Whether an address can be reached from this machine only.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The same of a host, given by its name or its address. An IPv6 address may be in brackets.
pub fn is_loopback_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(is_loopback)
}
