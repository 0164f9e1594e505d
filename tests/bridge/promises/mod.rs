//! The promises of Tidings, each in a module with its name, in the order of docs/reliability.md.
//! The fourth, that no fault loses a row, is tested in `faults` and `model`.

mod backlog;
mod bounded;
mod live;
mod order;
mod resume;
mod sent;
mod settled;
mod topics;
mod writers;
