//! Tidings turns rows of a Postgres table into browser events.
//!
//! ```text
//!  app ── INSERT ──▶ notifications ──(doorbell)──▶ listener ──▶ hub ──▶ stream ──▶ browser
//!                         ▲   │                                            │
//!                         │   └── catch-up (reader) ───────────────────────┤
//!                         └────────────── marker ◀─────── written ◀────────┘
//! ```
//!
//! Data moves one way. The listener and the streams meet only in the hub, and
//! the hub knows neither database nor HTTP. Nothing is lost; a row comes twice
//! only around a broken connection.
//!
//! A folder is a layer: it uses only those that stand below it here.

pub mod cli;

pub mod app;

pub mod http;

pub mod check;
pub mod monitoring;

pub mod config;

pub mod auth;

pub mod delivery;

pub mod postgres;

pub mod domain;

pub(crate) mod runtime;
pub mod tls;
