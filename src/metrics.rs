//! What a monitor reads, in the OpenMetrics text format.

use std::sync::Arc;

use prometheus_client::{encoding::text, metrics::gauge::Gauge, registry::Registry};

use crate::{hub::Hub, refusals::Refusals};

/// The type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: Gauge,
    hub: Arc<Hub>,
}

impl Metrics {
    /// Of this hub, and of those who did not get there.
    pub fn new(hub: Arc<Hub>, refusals: &Refusals) -> Self {
        let mut registry = Registry::with_prefix("tidings");
        let connections = Gauge::default();
        registry.register("connections", "Streams that are open", connections.clone());
        registry.register(
            "refused",
            "Requests and sockets that were turned away, by reason",
            refusals.counted(),
        );
        Self {
            registry,
            connections,
            hub,
        }
    }

    /// All of it, as it is now.
    pub fn text(&self) -> String {
        let connections = i64::try_from(self.hub.connections());
        self.connections.set(connections.unwrap_or(i64::MAX));
        let mut text = String::new();
        let written = text::encode(&mut text, &self.registry);
        debug_assert!(written.is_ok(), "a string takes everything");
        text
    }
}
