//! The servers, from the socket to the handler: connections, routes, limits.
//!
//! May use: `monitoring` and the layers below.

pub mod acceptor;
pub mod admin_routes;
pub mod admission;
pub mod demo;
pub mod detached_stream;
pub mod draining;
pub mod http2;
pub mod inherited_sockets;
pub mod methods;
pub mod read_rate;
pub mod retry_later;
pub mod servers;
pub mod sockets;
pub mod stream_query;
pub mod stream_route;
pub mod transport;
pub mod write_deadline;
