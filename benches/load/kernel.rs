//! Memory that the operating system uses for open connections.

use std::fs;

use crate::Result;

/// The page size on all systems that have these files.
const PAGE_BYTES: u64 = 4096;

/// A connection's socket, its file, and its entry in an epoll set.
const CACHES: [&str; 6] = [
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "eventpoll_epi",
    "tcp_bind_bucket",
];

/// Bytes in use for sockets: their structures, and the data queued in them. None where
/// that can't be read: on systems other than Linux, and without root.
pub fn socket_memory() -> Result<Option<u64>> {
    let Ok(slabs) = fs::read_to_string("/proc/slabinfo") else {
        return Ok(None);
    };
    let mut bytes = 0;
    for line in slabs.lines() {
        let mut words = line.split_whitespace();
        if words.next().is_some_and(|name| CACHES.contains(&name)) {
            let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            // Active objects, all objects, bytes per object, …
            if let [_, all, size, ..] = numbers.as_slice() {
                bytes += all * size;
            }
        }
    }
    let sockets = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP:"));
    let pages = tcp.and_then(|line| line.split_whitespace().next_back());
    let pages: u64 = pages.ok_or("no line of TCP")?.parse()?;
    Ok(Some(bytes + pages * PAGE_BYTES))
}
