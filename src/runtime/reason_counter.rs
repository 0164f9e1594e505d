//! A metric that counts events by their reason.

use std::marker::PhantomData;

use prometheus_client::metrics::{counter::Counter, family::Family};

/// The label `reason`, as the metrics export it.
pub type Label = [(&'static str, &'static str); 1];

pub trait Reason: Copy {
    /// All reasons, so that each is exported as 0 before its first event.
    fn all() -> impl Iterator<Item = Self>;

    /// The value of the label.
    fn name(self) -> &'static str;
}

#[derive(Clone, Debug)]
pub struct ReasonCounter<R> {
    counters: Family<Label, Counter>,
    reason: PhantomData<R>,
}

impl<R: Reason> Default for ReasonCounter<R> {
    fn default() -> Self {
        let counter = Self {
            counters: Family::default(),
            reason: PhantomData,
        };
        for reason in R::all() {
            // Creating it is enough.
            drop(counter.counters.get_or_create(&[("reason", reason.name())]));
        }
        counter
    }
}

impl<R: Reason> ReasonCounter<R> {
    pub fn count(&self, reason: R) {
        self.counters
            .get_or_create(&[("reason", reason.name())])
            .inc();
    }

    pub fn of(&self, reason: R) -> u64 {
        self.counters
            .get_or_create(&[("reason", reason.name())])
            .get()
    }

    /// The counters, to be registered.
    pub fn family(&self) -> Family<Label, Counter> {
        self.counters.clone()
    }
}
