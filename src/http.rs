//! The servers, from the socket to the handler: connections, routes, limits.
//!
//! May use: `monitoring` and the layers below.

pub(crate) mod acceptor;
pub(crate) mod admin_routes;
pub(crate) mod admission;
pub(crate) mod demo;
pub(crate) mod detached_stream;
pub(crate) mod draining;
pub mod http2;
pub mod inherited_sockets;
pub(crate) mod methods;
pub(crate) mod read_rate;
pub(crate) mod retry_later;
pub(crate) mod servers;
pub(crate) mod sockets;
pub(crate) mod stream_query;
pub mod stream_route;
pub(crate) mod transport;
pub(crate) mod write_deadline;
