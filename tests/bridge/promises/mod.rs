//! What Tidings promises, each under its own name, in the order of docs/reliability.md.
//! The fourth, that nothing is lost whatever breaks, is `faults` and `model`.

mod backlog;
mod bounded;
mod live;
mod order;
mod resume;
mod sent;
mod settled;
mod writers;
