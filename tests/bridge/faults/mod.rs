//! Promise 4: nothing is lost, whatever breaks, and rows come twice only around
//! what broke. Each test keeps an account, from which the table in
//! `docs/reliability.md` is made.

mod crash;
mod frozen;
mod readiness;
mod resume;
mod bridges;
mod client;
mod load;
mod network;
mod postgres;
mod failover;
mod incarnation;
mod pooler;
mod restore;
mod standby;
mod subscription;
mod disk;
mod limits;
mod overload;
mod soak;
