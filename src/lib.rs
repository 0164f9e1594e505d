//! Tidings delivers rows of a Postgres table to browsers as events.
//!
//! ```text
//!  app ── INSERT ──▶ notifications ──(doorbell)──▶ listener ──▶ hub ──▶ stream ──▶ browser
//!                         ▲   │                                            │
//!                         │   └── catch-up (reader) ───────────────────────┤
//!                         └────────────── marker ◀─────── written ◀────────┘
//! ```
//!
//! Data flows one way. The listener and the streams meet only in the hub, which knows
//! neither the database nor HTTP. No row is lost; a row is delivered twice only across a
//! disconnect.
//!
//! A folder is a layer, and uses only the layers below it in this list.

pub mod cli;

pub mod app;

pub mod http;

pub mod check;
pub mod monitoring;

pub mod config;

pub mod auth;

pub mod delivery;

pub mod fanout;

pub mod postgres;

pub mod domain;

pub mod tls;

pub(crate) mod runtime;
