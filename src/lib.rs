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
//! The modules stand in the order in which a notification passes them.

pub mod escape;
pub mod history;
pub mod identity;
pub mod notification;
pub mod snapshot;

pub mod clock;
pub mod position;
pub mod safe_floor;

pub mod certificates;
pub mod check;
pub mod crash_sign;
pub mod database;
pub mod direct;
pub mod pool;
pub mod schema;
pub mod sql;
pub mod visibility;

pub mod batch;
pub mod reader;

pub mod activity;
pub mod alarm;
pub mod catch_up;
pub mod disconnected;
pub mod drained;
pub mod ends;
pub mod handed_out;
pub mod health;
pub mod hub;
pub mod listener;
pub mod mailbox;
pub mod marker;
pub mod prune;
pub mod prune_failure;
pub mod pruner;
pub mod rarely;
pub mod report;
pub mod retention;
pub mod sse;
pub mod stream;

pub mod activation;
pub mod admin;
pub mod admission;
pub mod authenticator;
pub mod client;
pub mod cookie;
pub mod deferral;
pub mod field;
pub mod gate;
pub mod host;
pub mod http;
pub mod http2;
pub mod key;
pub mod key_set;
pub mod line;
pub mod metrics;
pub mod operator;
pub mod origin;
pub mod pace;
pub mod parameters;
pub mod port;
pub mod problem;
pub mod process;
pub mod refusals;
pub mod resource;
pub mod scheme;
pub mod servers;
pub mod sockets;
pub mod stall;
pub mod survey;
pub mod tally;
pub mod ticket;
pub mod tls;
pub mod token;
pub mod transport;
pub mod user_header;
pub mod vitals;

pub mod app;
pub mod backoff;
pub mod config;
pub mod errand;
pub mod explanation;
pub mod manual;
pub mod probe;
pub mod reload;
pub mod settings;
pub mod shutdown;
pub mod status;
pub mod tail;
pub mod tasks;
pub mod telemetry;
pub mod terminal;
pub mod uninstall;

pub mod cluster;
pub mod demo;
pub mod dev;
