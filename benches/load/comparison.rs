//! Tidings and its peers side by side: a table, the same as JSON, and a chart.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use crate::{
    chart::{self, Bar},
    machine::Machine,
    report::{Figure, at, measure},
    sections::peers::{Findings, without_trigger},
    table,
    trials::Trial,
};

/// One row of the table.
struct Line {
    said: &'static str,
    measure: &'static str,
    at: Option<(&'static str, f64)>,
    /// Whether the chart includes it.
    drawn: bool,
}

const LINES: [Line; 8] = [
    Line {
        said: "INSERT to event at 100 rows/s, p50",
        measure: measure::P50,
        at: Some((at::RATE, 100.0)),
        drawn: false,
    },
    Line {
        said: "the same, p99",
        measure: measure::P99,
        at: Some((at::RATE, 100.0)),
        drawn: false,
    },
    Line {
        said: "INSERT to event at 1,000 rows/s, p50",
        measure: measure::P50,
        at: Some((at::RATE, 1_000.0)),
        drawn: false,
    },
    Line {
        said: "the same, p99",
        measure: measure::P99,
        at: Some((at::RATE, 1_000.0)),
        drawn: false,
    },
    Line {
        said: "flood of 20,000 rows, delivered",
        measure: measure::DELIVERED,
        at: None,
        drawn: true,
    },
    Line {
        said: "INSERTs over 32 connections",
        measure: measure::INSERTED,
        at: None,
        drawn: true,
    },
    Line {
        said: "memory per idle stream, of 10,000",
        measure: measure::IDLE_STREAM,
        at: None,
        drawn: true,
    },
    Line {
        said: "10,000 streams return at once, all caught up",
        measure: measure::CAUGHT_UP,
        at: None,
        drawn: true,
    },
];

/// Number of streams, unless a cell says otherwise.
const MANY: f64 = 10_000.0;

const SETTING: &str = "\
1,000 streams for latency, flood and INSERTs, 10,000 for memory and for reconnecting, each of a \
different user. Events that hadn't arrived two minutes later, or that arrived twice, are counted \
next to each figure. Latency is measured from when an INSERT was due. The memory of a peer is that \
of all its processes, with shared memory counted once.";

/// The findings of all contenders, and the machine they were measured on.
#[derive(Debug, Serialize)]
pub struct Comparison {
    machine: Machine,
    contenders: Vec<Findings>,
}

impl Comparison {
    pub fn new(machine: Machine, contenders: Vec<Findings>) -> Self {
        Self {
            machine,
            contenders,
        }
    }

    /// Prints the machine and the table.
    pub fn print(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "{}\n\n{SETTING}\n\n{}", self.machine, self.table())
    }

    /// Writes `peers.json`, `peers.md` and `peers.svg`.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(folder.join("peers.json"), json)?;
        chart::bars(
            &folder.join("peers.svg"),
            "Delivered and inserted: more is better; memory and catching up: less is better",
            &self.bars(),
        )?;
        let text = format!(
            "# Tidings and its peers\n\nWritten by `make bench-peers`; the peers are described in \
             [benches/peers](../../benches/peers/README.md).\n\n{}\n\n{SETTING}\n\n{}\n\
             ![The figures as bars](peers.svg)\n",
            self.machine,
            self.table()
        );
        fs::write(folder.join("peers.md"), text)
    }

    fn table(&self) -> String {
        let names = self.contenders.iter().map(|one| one.contender.to_owned());
        let head: Vec<String> = [String::new()].into_iter().chain(names).collect();
        let cells = |said: &str, cell: &dyn Fn(&Findings) -> String| -> Vec<String> {
            let cells = self.contenders.iter().map(cell);
            [said.to_owned()].into_iter().chain(cells).collect()
        };
        let measured = LINES
            .iter()
            .map(|line| cells(line.said, &|one| line.cell(one)));
        let tried = Trial::ALL.map(|trial| {
            let outcome = move |one: &Findings| one.trials.get(&trial).map(ToString::to_string);
            cells(trial.question(), &|one| outcome(one).unwrap_or_default())
        });
        let rows: Vec<Vec<String>> = measured.chain(tried).collect();
        table::lay_out(&head, &rows, &vec![false; head.len()])
    }

    /// Each group has its own scale, so every group's longest bar has the same width.
    fn bars(&self) -> Vec<Bar> {
        let drawn = LINES.iter().filter(|line| line.drawn);
        let bars = drawn.flat_map(|line| {
            let found = self.contenders.iter().enumerate();
            let found = found.filter_map(|(kind, one)| Some((kind, one, line.figure(one)?)));
            // Figures of a tenth of the streams aren't comparable with those of all of
            // them.
            let found = found.filter(|(_, _, figure)| {
                let streams = figure.size(at::STREAMS).unwrap_or(MANY);
                figure.measure != measure::CAUGHT_UP || streams >= MANY
            });
            let found: Vec<_> = found.collect();
            let values = found.iter().map(|(_, _, figure)| figure.value);
            let longest = values.fold(0.0, f64::max);
            found.into_iter().map(move |(kind, one, figure)| Bar {
                name: match kind {
                    0 => format!("{}: {}", line.measure, one.contender),
                    _ => one.contender.to_owned(),
                },
                value: figure.value / longest,
                said: table::amount(figure.value, figure.unit),
                kind,
            })
        });
        bars.collect()
    }
}

impl Line {
    fn figure<'a>(&self, of: &'a Findings) -> Option<&'a Figure> {
        of.figures.iter().find(|figure| {
            let fits = self
                .at
                .is_none_or(|(axis, size)| figure.size(axis) == Some(size));
            figure.subject == of.contender && figure.measure == self.measure && fits
        })
    }

    fn cell(&self, of: &Findings) -> String {
        let Some(figure) = self.figure(of) else {
            return String::new();
        };
        let mut said = vec![table::amount(figure.value, figure.unit)];
        if let Some(streams) = figure.size(at::STREAMS).filter(|size| *size < MANY) {
            said.push(format!("with {}", table::whole(streams)));
        }
        let baseline = without_trigger(of.contender);
        if let Some(without) = of.figures.iter().find(|one| one.subject == baseline)
            && figure.measure == measure::INSERTED
        {
            let ratio = figure.value / without.value;
            said.push(format!("{ratio:.2} times that without a trigger"));
        }
        if let Some(counts) = figure.counts {
            let wrong = [
                (counts.missing, "missing"),
                (counts.repeated, "repeated"),
                (counts.wrong_user, "for the wrong user"),
            ];
            let wrong = wrong.into_iter().filter(|(count, _)| *count > 0);
            said.extend(wrong.map(|(count, what)| format!("**{count} {what}**")));
        }
        said.join(", ")
    }
}
