//! Promise 4: no rows are lost whatever breaks, and duplicates occur only across a disconnect. Each
//! test keeps an account; the table in `docs/reliability.md` is generated from these.

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
