//! Ports for programs that can't choose a free port and report it, for bridges that restart on the
//! same address, and for addresses where nothing listens.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

/// The machine's services use ports below this.
const LOWEST: u16 = 10_000;

/// The first port that the system assigns by itself: to programs that bind port 0, and to outgoing
/// connections of other tests, which would hold it until they end.
static EPHEMERAL: LazyLock<u16> = LazyLock::new(|| {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let lowest = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    lowest.filter(|&lowest| lowest > LOWEST).unwrap_or(32_768)
});

/// The next port to try. Other test processes probably start elsewhere.
static NEXT: LazyLock<AtomicU16> =
    LazyLock::new(|| AtomicU16::new(rand::random_range(LOWEST..*EPHEMERAL)));

/// An address of this machine where nothing listens and that nothing takes by accident.
pub fn free_address() -> SocketAddr {
    for _ in LOWEST..*EPHEMERAL {
        let next = |port| {
            Some(if port + 1 < *EPHEMERAL {
                port + 1
            } else {
                LOWEST
            })
        };
        let port = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let address = (Ipv4Addr::LOCALHOST, port.expect("a port")).into();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("every port from {LOWEST} to {} is taken", *EPHEMERAL);
}
