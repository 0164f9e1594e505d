//! Authentication: who sends a request, from where, and how it is rejected.
//!
//! May use: `delivery` (a ticket is as old as the listener's last page), and the layers
//! below.

pub(crate) mod authenticator;
pub(crate) mod client_addr;
pub(crate) mod cookie;
pub(crate) mod host;
pub(crate) mod jwks;
pub mod jwt;
pub(crate) mod jwt_key;
pub(crate) mod origin;
pub(crate) mod problem;
pub(crate) mod rejections;
pub(crate) mod scheme;
pub(crate) mod ticket;
pub(crate) mod user_header;
