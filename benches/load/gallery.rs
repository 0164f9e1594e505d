//! The list of charts.

use std::{io, path::Path};

use crate::{
    chart::{self, Bar, Frame, Line, Scale},
    report::{Figure, Section, Unit, at, measure, subject},
    table,
};

pub struct Drawn {
    /// The section that it belongs to.
    pub section: &'static str,
    pub title: &'static str,
    /// Relative to the folder of the results.
    pub file: String,
}

/// A chart, drawn if its section was measured.
struct Chart {
    file: &'static str,
    section: &'static str,
    title: &'static str,
    kind: Kind,
}

enum Kind {
    /// Values along a size.
    Lines {
        along: &'static str,
        /// Label of the axis.
        said: &'static str,
        value: Value,
        /// Subject, measure and name of each line.
        lines: &'static [(&'static str, &'static str, &'static str)],
    },
    /// All figures of these measures, for every subject.
    Bars(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Value {
    /// As measured, divided by this.
    Measured {
        said: &'static str,
        divisor: f64,
        scale: Scale,
    },
    /// Cost relative to that at the smallest size. The cost of a rate is its reciprocal.
    Relative,
}

const COST: &[(&str, &str, &str)] = &[
    (subject::BOTH, measure::CPU_PER_ROW, "CPU time"),
    (subject::TIDINGS, measure::P50, "p50"),
    (subject::TIDINGS, measure::INSERTED, "INSERT"),
    (subject::TIDINGS, measure::MARKED, "flood"),
    (subject::TIDINGS, measure::CAUGHT_UP, "storm"),
];

const CHARTS: &[Chart] = &[
    Chart {
        file: "writers.svg",
        section: "writers",
        title: "Single-row INSERTs, one per transaction",
        kind: Kind::Lines {
            along: at::WRITERS,
            said: "inserting connections",
            value: Value::Measured {
                said: "rows committed per second",
                divisor: 1.0,
                scale: Scale::Linear,
            },
            lines: &[
                (subject::NO_TRIGGER, measure::INSERTED, subject::NO_TRIGGER),
                (subject::IDLE, measure::INSERTED, subject::IDLE),
                (
                    subject::TIDINGS,
                    measure::INSERTED,
                    "Tidings, 1,000 streams",
                ),
                (subject::NOTIFY, measure::INSERTED, subject::NOTIFY),
            ],
        },
    },
    Chart {
        file: "latency.svg",
        section: "latency",
        title: "From INSERT to event, 1,000 streams",
        kind: Kind::Lines {
            along: at::RATE,
            said: "rows per second",
            value: Value::Measured {
                said: "milliseconds",
                divisor: 1.0,
                scale: Scale::Logarithmic,
            },
            lines: &[
                (subject::TIDINGS, measure::P50, "Tidings p50"),
                (subject::TIDINGS, measure::P99, "Tidings p99"),
                (subject::TIDINGS, measure::P999, "Tidings p99.9"),
                (subject::FLOOR, measure::P50, "bare LISTEN p50"),
                (subject::FLOOR, measure::P99, "bare LISTEN p99"),
            ],
        },
    },
    Chart {
        file: "flood.svg",
        section: "flood",
        title: "200,000 rows at full speed, rows per second",
        kind: Kind::Bars(&[measure::DELIVERED, measure::MARKED]),
    },
    Chart {
        file: "memory.svg",
        section: "memory",
        title: "Memory per stream",
        kind: Kind::Lines {
            along: at::STREAMS,
            said: "open streams",
            value: Value::Measured {
                said: "KiB per stream",
                divisor: 1024.0,
                scale: Scale::Linear,
            },
            lines: &[
                (subject::TIDINGS, measure::IDLE_STREAM, "Tidings, idle"),
                (
                    subject::TIDINGS,
                    measure::USED_STREAM,
                    "Tidings, after traffic",
                ),
                (subject::KERNEL, measure::IDLE_STREAM, "kernel, idle"),
            ],
        },
    },
    Chart {
        file: "growth-rows.svg",
        section: "growth",
        title: "Cost as the table grows",
        kind: Kind::Lines {
            along: at::ROWS,
            said: "rows in the table",
            value: Value::Relative,
            lines: COST,
        },
    },
    Chart {
        file: "growth-users.svg",
        section: "growth",
        title: "Cost as the number of offline users grows, each with an unsent row",
        kind: Kind::Lines {
            along: at::AWAY,
            said: "offline users",
            value: Value::Relative,
            lines: COST,
        },
    },
    Chart {
        file: "growth-streams.svg",
        section: "growth",
        title: "Cost as the number of open streams grows",
        kind: Kind::Lines {
            along: at::STREAMS,
            said: "open streams",
            value: Value::Relative,
            lines: COST,
        },
    },
];

/// Draws all charts for which there are figures.
pub fn draw(sections: &[Section], folder: &Path) -> io::Result<Vec<Drawn>> {
    let mut drawn = Vec::new();
    for chart in CHARTS {
        let Some(section) = sections.iter().find(|one| one.name == chart.section) else {
            continue;
        };
        let path = folder.join(chart.file);
        if chart.draw(section, &path)? == Outcome::Drawn {
            drawn.push(Drawn {
                section: chart.section,
                title: chart.title,
                file: chart.file.to_owned(),
            });
        }
    }
    Ok(drawn)
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Drawn,
    NothingToShow,
}

impl Chart {
    fn draw(&self, section: &Section, path: &Path) -> io::Result<Outcome> {
        match &self.kind {
            Kind::Lines {
                along,
                said,
                value,
                lines,
            } => {
                let lines: Vec<Line> = lines
                    .iter()
                    .map(|(subject, measure, name)| Line {
                        name: (*name).to_owned(),
                        points: value.points(section, subject, measure, along),
                    })
                    // A line needs two points.
                    .filter(|line| line.points.len() > 1)
                    .collect();
                if lines.is_empty() {
                    return Ok(Outcome::NothingToShow);
                }
                let (value, scale, covers): (_, _, &[f64]) = match value {
                    Value::Measured { said, scale, .. } => (*said, *scale, &[]),
                    Value::Relative => (
                        "cost relative to the smallest size",
                        Scale::Logarithmic,
                        &[0.2, 5.0],
                    ),
                };
                let frame = Frame {
                    title: self.title,
                    along: said,
                    value,
                    scale,
                    covers,
                };
                chart::lines(path, &frame, &lines)?;
            }
            Kind::Bars(measures) => {
                let bars = bars(section, measures);
                if bars.is_empty() {
                    return Ok(Outcome::NothingToShow);
                }
                chart::bars(path, self.title, &bars)?;
            }
        }
        Ok(Outcome::Drawn)
    }
}

impl Value {
    fn points(
        self,
        section: &Section,
        subject: &str,
        measure: &str,
        along: &str,
    ) -> Vec<(f64, f64)> {
        let figures = section.figures.iter();
        let of_line = figures.filter(|one| one.subject == subject && one.measure == measure);
        let mut points: Vec<(f64, f64)> = of_line
            .filter_map(|figure| Some((figure.size(along)?, self.of(figure))))
            .filter(|(size, value)| *size > 0.0 && *value > 0.0)
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        match (self, points.first()) {
            (Self::Relative, Some((_, first))) => {
                let first = *first;
                points
                    .iter()
                    .map(|(size, value)| (*size, value / first))
                    .collect()
            }
            _ => points,
        }
    }

    fn of(self, figure: &Figure) -> f64 {
        match (self, figure.unit) {
            (Self::Measured { divisor, .. }, _) => figure.value / divisor,
            (Self::Relative, Unit::PerSecond) => figure.value.recip(),
            (Self::Relative, _) => figure.value,
        }
    }
}

/// Measure by measure, a colour for each subject.
fn bars(section: &Section, measures: &[&str]) -> Vec<Bar> {
    let mut subjects: Vec<&str> = Vec::new();
    for figure in &section.figures {
        if !subjects.contains(&figure.subject.as_str()) {
            subjects.push(&figure.subject);
        }
    }
    let of = |measure: &str| {
        let figures = section.figures.iter();
        let figures = figures.filter(|figure| figure.measure == measure);
        figures.collect::<Vec<_>>()
    };
    let figures = measures.iter().flat_map(|measure| of(measure));
    let bar = |figure: &Figure| {
        let kind = subjects.iter().position(|one| *one == figure.subject);
        Bar {
            name: name(figure, subjects.len()),
            value: figure.value,
            said: table::amount(figure.value, figure.unit),
            kind: kind.unwrap_or_default(),
        }
    };
    figures.map(bar).collect()
}

/// The name that distinguishes this bar from the others.
fn name(figure: &Figure, subjects: usize) -> String {
    let sizes = figure.at.iter();
    let sizes = sizes.map(|(axis, size)| format!("{} {axis}", table::whole(*size)));
    let subject = (subjects > 1).then(|| figure.subject.clone());
    let words = subject
        .into_iter()
        .chain([figure.measure.clone()])
        .chain(sizes);
    words.collect::<Vec<_>>().join(", ")
}
