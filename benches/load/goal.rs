//! The goals that the figures must reach.

use serde::Serialize;

use crate::report::{Figure, Section, at, measure, subject};

/// Whether higher or lower values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// A rate.
    Higher,
    /// A cost.
    Lower,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// Reached the aim.
    Aim,
    /// Reached what is required.
    Must,
    /// Below what is required.
    Missed,
}

/// A goal and the measured value.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The section that contains the figure.
    pub section: &'static str,
    /// The goal's name.
    pub goal: &'static str,
    /// In the goal's unit.
    pub value: f64,
    pub unit: &'static str,
    pub better: Better,
    /// The required minimum or maximum.
    pub must: f64,
    /// The aim, which is stricter than `must`.
    pub aim: f64,
    pub reached: Reached,
    /// Index of the figure within its section.
    #[serde(skip)]
    pub figure: usize,
}

/// Selects one figure of a section.
#[derive(Clone, Copy)]
struct Pick {
    subject: &'static str,
    measure: &'static str,
    sizes: &'static [(&'static str, f64)],
}

impl Pick {
    fn place(self, section: &Section) -> Option<usize> {
        section.figures.iter().position(|figure| self.is(figure))
    }

    fn is(self, figure: &Figure) -> bool {
        figure.subject == self.subject
            && figure.measure == self.measure
            && self
                .sizes
                .iter()
                .all(|(axis, size)| figure.size(axis) == Some(*size))
    }
}

/// How a figure is compared with its goal.
#[derive(Clone, Copy)]
enum Scale {
    /// In a unit: `divisor` of the figure's unit are one of the goal's.
    Unit { divisor: f64, name: &'static str },
    /// As a multiple of this figure of the same section.
    Times(Pick),
}

struct Goal {
    section: &'static str,
    name: &'static str,
    figure: Pick,
    scale: Scale,
    better: Better,
    must: f64,
    aim: f64,
}

const fn of(
    subject: &'static str,
    measure: &'static str,
    sizes: &'static [(&'static str, f64)],
) -> Pick {
    Pick {
        subject,
        measure,
        sizes,
    }
}

const WRITERS: Pick = of(
    subject::TIDINGS,
    measure::INSERTED,
    &[(at::WRITERS, 32.0), (at::STREAMS, 1000.0)],
);

const CORE: Scale = Scale::Unit {
    divisor: 1.0,
    name: "% of a core",
};

const GOALS: [Goal; 25] = [
    Goal {
        section: "writers",
        name: "INSERT throughput of 32 writers, relative to no trigger",
        figure: WRITERS,
        scale: Scale::Times(of(
            subject::NO_TRIGGER,
            measure::INSERTED,
            &[(at::WRITERS, 32.0)],
        )),
        better: Better::Higher,
        must: 0.8,
        aim: 0.95,
    },
    Goal {
        section: "writers",
        name: "INSERT throughput of 32 writers, relative to a plain NOTIFY trigger",
        figure: WRITERS,
        scale: Scale::Times(of(
            subject::NOTIFY,
            measure::INSERTED,
            &[(at::WRITERS, 32.0)],
        )),
        better: Better::Higher,
        must: 4.0,
        aim: 6.0,
    },
    Goal {
        section: "latency",
        name: "p50 of INSERT to event at 100 rows/s, relative to a bare LISTEN",
        figure: of(subject::TIDINGS, measure::P50, &[(at::RATE, 100.0)]),
        scale: Scale::Times(of(subject::FLOOR, measure::P50, &[(at::RATE, 100.0)])),
        better: Better::Lower,
        must: 1.6,
        aim: 1.25,
    },
    Goal {
        section: "latency",
        name: "p99 at 1,000 rows/s over 1,000 streams",
        figure: of(subject::TIDINGS, measure::P99, &[(at::RATE, 1000.0)]),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "ms",
        },
        better: Better::Lower,
        must: 3.0,
        aim: 1.5,
    },
    Goal {
        section: "flood",
        name: "events delivered and marked per second",
        figure: of(subject::TIDINGS, measure::MARKED, &[(at::BATCH, 1000.0)]),
        scale: Scale::Unit {
            divisor: 1000.0,
            name: "thousand/s",
        },
        better: Better::Higher,
        must: 40.0,
        aim: 80.0,
    },
    Goal {
        section: "memory",
        name: "memory (RSS) per idle stream at 10,000",
        figure: of(
            subject::TIDINGS,
            measure::IDLE_STREAM,
            &[(at::STREAMS, 10_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1024.0,
            name: "KiB",
        },
        better: Better::Lower,
        must: 14.0,
        aim: 8.0,
    },
    Goal {
        section: "memory",
        name: "CPU time of 10,000 idle streams",
        figure: of(subject::TIDINGS, measure::CPU, &[(at::STREAMS, 10_000.0)]),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "% of a core",
        },
        better: Better::Lower,
        must: 3.0,
        aim: 1.0,
    },
    Goal {
        section: "storm",
        name: "time until 10,000 reconnecting streams, with one missed row each, have caught up",
        figure: of(
            subject::TIDINGS,
            measure::CAUGHT_UP,
            &[(at::STREAMS, 10_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "s",
        },
        better: Better::Lower,
        must: 1.0,
        aim: 0.5,
    },
    Goal {
        section: "growth",
        name: "cost per notification at 5 million rows, relative to 10 thousand",
        figure: of(
            subject::BOTH,
            measure::CPU_PER_ROW,
            &[(at::ROWS, 5_000_000.0)],
        ),
        scale: Scale::Times(of(
            subject::BOTH,
            measure::CPU_PER_ROW,
            &[(at::ROWS, 10_000.0)],
        )),
        better: Better::Lower,
        must: 1.3,
        aim: 1.0,
    },
    Goal {
        section: "prune",
        name: "p99 at 1,000 rows/s over 1,000 streams while rows are removed, against not",
        figure: of(subject::PRUNING, measure::P99, &[]),
        scale: Scale::Times(of(subject::TIDINGS, measure::P99, &[])),
        better: Better::Lower,
        must: 2.0,
        aim: 1.2,
    },
    Goal {
        section: "topics",
        name: "one row to 10,000 subscribers of a topic, from commit to the last event",
        figure: of(
            subject::TIDINGS,
            measure::LAST_AFTER_COMMIT,
            &[(at::CONNECTIONS, 10_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1000.0,
            name: "s",
        },
        better: Better::Lower,
        must: 0.5,
        aim: 0.15,
    },
    Goal {
        section: "topics",
        name: "INSERT of a row for a topic, relative to one for a user",
        figure: of(subject::TOPIC_ROWS, measure::INSERT, &[]),
        scale: Scale::Times(of(subject::USER_ROWS, measure::INSERT, &[])),
        better: Better::Lower,
        must: 1.1,
        aim: 1.0,
    },
    Goal {
        section: "topics",
        name: "page of a user with 100 topics who resumes",
        figure: of(subject::POSTGRES, measure::PAGE, &[(at::TOPICS, 100.0)]),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "ms",
        },
        better: Better::Lower,
        must: 1.0,
        aim: 0.5,
    },
    Goal {
        section: "topics",
        name: "page of a user with 1,000 topics who resumes",
        figure: of(subject::POSTGRES, measure::PAGE, &[(at::TOPICS, 1_000.0)]),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "ms",
        },
        better: Better::Lower,
        must: 8.0,
        aim: 4.5,
    },
    Goal {
        section: "topics",
        name: "memory per stream for its 50 topics",
        figure: of(
            subject::TIDINGS,
            measure::TOPICS_MEMORY,
            &[(at::TOPICS, 50.0)],
        ),
        scale: Scale::Unit {
            divisor: 1024.0,
            name: "KiB",
        },
        better: Better::Lower,
        must: 2.5,
        aim: 1.2,
    },
    Goal {
        section: "topics",
        name: "memory per stream for its 1,000 topics",
        figure: of(
            subject::TIDINGS,
            measure::TOPICS_MEMORY,
            &[(at::TOPICS, 1_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1024.0,
            name: "KiB",
        },
        better: Better::Lower,
        must: 40.0,
        aim: 40.0,
    },
    Goal {
        section: "topics",
        name: "WAL for the cursors of 10,000 users after one row for a topic each",
        figure: of(
            subject::POSTGRES,
            measure::LATER_CURSORS,
            &[(at::STREAMS, 10_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1e6,
            name: "MB",
        },
        better: Better::Lower,
        must: 2.0,
        aim: 1.0,
    },
    Goal {
        section: "cluster",
        name: "PostgreSQL for each further bridge at 1,000 transactions of one row per second",
        figure: of(
            subject::POSTGRES,
            measure::FURTHER_BRIDGE,
            &[(at::BRIDGES, 10.0), (at::RATE, 1_000.0)],
        ),
        scale: CORE,
        better: Better::Lower,
        must: 3.0,
        aim: 1.5,
    },
    Goal {
        section: "cluster",
        name: "the same at 5,000 rows per second in 100 transactions",
        figure: of(
            subject::POSTGRES,
            measure::FURTHER_BRIDGE,
            &[(at::BRIDGES, 10.0), (at::RATE, 5_000.0)],
        ),
        scale: CORE,
        better: Better::Lower,
        must: 3.0,
        aim: 2.0,
    },
    Goal {
        section: "cluster",
        name: "with NATS, PostgreSQL for each further bridge at 1,000 transactions per second",
        figure: of(
            subject::POSTGRES_WITH_NATS,
            measure::FURTHER_BRIDGE,
            &[(at::BRIDGES, 10.0), (at::RATE, 1_000.0)],
        ),
        scale: CORE,
        better: Better::Lower,
        must: 0.6,
        aim: 0.3,
    },
    Goal {
        section: "cluster",
        name: "with NATS, the same at 5,000 rows per second in 100 transactions",
        figure: of(
            subject::POSTGRES_WITH_NATS,
            measure::FURTHER_BRIDGE,
            &[(at::BRIDGES, 10.0), (at::RATE, 5_000.0)],
        ),
        scale: CORE,
        better: Better::Lower,
        must: 0.6,
        aim: 0.3,
    },
    Goal {
        section: "cluster",
        name: "latency that NATS adds, p50 at 1,000 rows per second",
        figure: of(
            subject::WITH_NATS,
            measure::ADDED_P50,
            &[(at::BRIDGES, 10.0), (at::RATE, 1_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "ms",
        },
        better: Better::Lower,
        must: 1.0,
        aim: 0.5,
    },
    Goal {
        section: "cluster",
        name: "the same, p99",
        figure: of(
            subject::WITH_NATS,
            measure::ADDED_P99,
            &[(at::BRIDGES, 10.0), (at::RATE, 1_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "ms",
        },
        better: Better::Lower,
        must: 5.0,
        aim: 3.0,
    },
    Goal {
        section: "cluster",
        name: "tail query, per row",
        figure: of(subject::POSTGRES, measure::TAIL_ROW, &[]),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "µs",
        },
        better: Better::Lower,
        must: 3.0,
        aim: 2.5,
    },
    Goal {
        section: "cluster",
        name: "pages read for 20,000 streams that return within a minute",
        figure: of(
            subject::TIDINGS,
            measure::PAGES_READ,
            &[(at::STREAMS, 10_000.0)],
        ),
        scale: Scale::Unit {
            divisor: 1.0,
            name: "pages",
        },
        better: Better::Lower,
        must: 100.0,
        aim: 0.0,
    },
];

/// Judges the goals whose figures were measured in this run.
pub fn verdicts(sections: &[Section]) -> Vec<Verdict> {
    let judge = |goal: &Goal| {
        let section = sections.iter().find(|one| one.name == goal.section)?;
        goal.judge(section)
    };
    GOALS.iter().filter_map(judge).collect()
}

impl Goal {
    fn judge(&self, section: &Section) -> Option<Verdict> {
        let figure = self.figure.place(section)?;
        let measured = section.figures.get(figure)?;
        let (value, unit) = match self.scale {
            Scale::Unit { divisor, name } => (measured.value / divisor, name),
            Scale::Times(other) => {
                let other = section.figures.get(other.place(section)?)?;
                (measured.times(other), "times")
            }
        };
        // As precise as it is printed: 1.004 times counts as 1.0 times.
        let value = (value * 100.0).round() / 100.0;
        let reaches = |mark: f64| match self.better {
            Better::Higher => value >= mark,
            Better::Lower => value <= mark,
        };
        let reached = match (reaches(self.aim), reaches(self.must)) {
            (true, _) => Reached::Aim,
            (false, true) => Reached::Must,
            (false, false) => Reached::Missed,
        };
        Some(Verdict {
            section: self.section,
            goal: self.name,
            value,
            unit,
            better: self.better,
            must: self.must,
            aim: self.aim,
            reached,
            figure,
        })
    }
}
