//! Authentication: who sends a request, from where, and how it is rejected.
//!
//! May use: `delivery` (a ticket is as old as the listener's last page), and the layers
//! below.

pub mod authenticator;
pub mod client_addr;
pub mod cookie;
pub mod header_value;
pub mod host;
pub mod jwks;
pub mod jwt;
pub mod jwt_key;
pub mod origin;
pub mod problem;
pub mod rejections;
pub mod scheme;
pub mod ticket;
pub mod user_header;
