//! The results of one run: printed, and written to files.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use crate::{
    gallery,
    goal::{self, Verdict},
    machine::Machine,
    report::{Counts, Section},
    table,
};

#[derive(Debug, Clone, Serialize)]
pub struct Results {
    machine: Machine,
    goals: Vec<Verdict>,
    sections: Vec<Section>,
}

impl Results {
    /// Compares the measurements with the goals.
    pub fn new(machine: Machine, sections: Vec<Section>) -> Self {
        let goals = goal::verdicts(&sections);
        Self {
            machine,
            goals,
            sections,
        }
    }

    /// Every event that any figure is based on, counted once: several figures of one run
    /// share events.
    pub fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for section in &self.sections {
            let mut seen = Vec::new();
            for figure in &section.figures {
                let run = (&figure.subject, &figure.at, figure.counts);
                if let Some(counts) = figure.counts
                    && !seen.contains(&run)
                {
                    all = all.and(counts);
                    seen.push(run);
                }
            }
        }
        all
    }

    /// Prints the machine and every section.
    pub fn print(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(to, "{}", self.machine)?;
        for section in &self.sections {
            writeln!(to, "\n{}: {}", section.name, section.title)?;
            writeln!(to, "{}\n", section.setting)?;
            write!(to, "{}", table::section(section, &self.goals))?;
        }
        if !self.goals.is_empty() {
            write!(to, "\n{}", table::goals(&self.goals))?;
        }
        writeln!(to, "\n{}", self.summary())
    }

    /// Writes `results.json`, `results.md` and the charts.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(folder.join("results.json"), json)?;
        let charts = gallery::draw(&self.sections, folder)?;
        fs::write(folder.join("results.md"), self.markdown(&charts))
    }

    fn summary(&self) -> String {
        let counts = self.counts();
        let [expected, missing, repeated, wrong] = [
            counts.expected,
            counts.missing,
            counts.repeated,
            counts.wrong_user,
        ]
        .map(table::grouped);
        format!(
            "{expected} events were expected: {missing} missing, {repeated} repeated, \
             {wrong} for the wrong user."
        )
    }

    fn markdown(&self, charts: &[gallery::Drawn]) -> String {
        let mut text = format!(
            "# Benchmark\n\nWritten by `make bench`.\n\n{}\n\n{}\n",
            self.machine,
            self.summary()
        );
        if !self.goals.is_empty() {
            text += &format!("\n{}", table::goals(&self.goals));
        }
        for section in &self.sections {
            text += &format!("\n## {}\n\n{}\n\n", section.title, section.setting);
            text += &table::section(section, &self.goals);
            for chart in charts.iter().filter(|chart| chart.section == section.name) {
                text += &format!("\n![{}]({})\n", chart.title, chart.file);
            }
        }
        text
    }
}
