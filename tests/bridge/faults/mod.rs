//! Promise 4: nothing is lost, whatever breaks, and rows come twice only around
//! what broke. Each test keeps an account, from which the table in
//! `docs/reliability.md` is made.

mod bridges;
mod client;
mod crash;
mod disk;
mod failover;
mod frozen;
mod incarnation;
mod limits;
mod load;
mod moved;
mod network;
mod pooler;
mod postgres;
mod readiness;
mod restore;
mod rolling;
mod soak;
mod standby;
mod subscription;
mod undeliverable;
mod visibility;
