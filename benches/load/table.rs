//! Figures as a table: Markdown with aligned columns, readable in a terminal and in a
//! browser.

use crate::{
    goal::{Reached, Verdict},
    report::{Counts, Figure, Section, Unit},
};

const HEAD: [&str; 8] = [
    "measure",
    "subject",
    "at",
    "value",
    "events",
    "missing",
    "repeated",
    "wrong user",
];

/// Whether a column contains numbers, which are right-aligned.
const NUMBERS: [bool; 9] = [false, false, false, true, true, true, true, true, false];

/// A section's figures, each with its goal.
pub fn section(section: &Section, verdicts: &[Verdict]) -> String {
    let verdicts: Vec<_> = verdicts
        .iter()
        .filter(|verdict| verdict.section == section.name)
        .collect();
    let rows = section.figures.iter().enumerate().map(|(place, figure)| {
        let mut row = cells(figure);
        let goals = verdicts.iter().filter(|verdict| verdict.figure == place);
        row.push(goals.map(|goal| brief(goal)).collect::<Vec<_>>().join("; "));
        row
    });
    let head = HEAD.iter().copied().chain(["goal"]).map(str::to_owned);
    lay_out(
        &head.collect::<Vec<_>>(),
        &rows.collect::<Vec<_>>(),
        &NUMBERS,
    )
}

/// The table of all goals.
pub fn goals(verdicts: &[Verdict]) -> String {
    let head = ["figure", "measured", "required", "target", "reached"].map(str::to_owned);
    let row = |goal: &Verdict| {
        vec![
            goal.goal.to_owned(),
            format!("{:.2} {}", goal.value, goal.unit),
            goal.must.to_string(),
            goal.aim.to_string(),
            outcome(goal.reached).to_owned(),
        ]
    };
    let rows: Vec<_> = verdicts.iter().map(row).collect();
    lay_out(&head, &rows, &[false, true, true, true, false])
}

fn brief(goal: &Verdict) -> String {
    let Verdict {
        value,
        unit,
        must,
        aim,
        ..
    } = goal;
    let outcome = outcome(goal.reached);
    format!("{value:.2} {unit}, required {must}, target {aim}: {outcome}")
}

fn outcome(reached: Reached) -> &'static str {
    match reached {
        Reached::Aim => "yes, the target",
        Reached::Must => "yes",
        Reached::Missed => "**no**",
    }
}

fn cells(figure: &Figure) -> Vec<String> {
    let sizes = figure.at.iter();
    let sizes = sizes.map(|(axis, size)| format!("{} {axis}", whole(*size)));
    let mut cells = vec![
        figure.measure.clone(),
        figure.subject.clone(),
        sizes.collect::<Vec<_>>().join(", "),
        amount(figure.value, figure.unit),
    ];
    cells.extend(figure.counts.map_or_else(Default::default, counted));
    cells
}

fn counted(counts: Counts) -> [String; 4] {
    let Counts {
        expected,
        missing,
        repeated,
        wrong_user,
        ..
    } = counts;
    [expected, missing, repeated, wrong_user].map(grouped)
}

/// A value with its unit, in as many digits as are meaningful.
pub fn amount(value: f64, unit: Unit) -> String {
    const KIBIBYTE: f64 = 1024.0;
    const MEBIBYTE: f64 = KIBIBYTE * KIBIBYTE;
    match unit {
        Unit::PerSecond => format!("{}/s", whole(value)),
        Unit::Seconds => format!("{} s", digits(value)),
        Unit::Milliseconds => format!("{} ms", digits(value)),
        Unit::Microseconds => format!("{} µs", digits(value)),
        Unit::Bytes if value.abs() >= MEBIBYTE => format!("{} MiB", digits(value / MEBIBYTE)),
        Unit::Bytes => format!("{} KiB", digits(value / KIBIBYTE)),
        Unit::PercentOfCore => format!("{} %", digits(value)),
        Unit::Count => whole(value),
    }
}

/// Three digits, or all digits before the decimal point.
fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => whole(value),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A size, in groups of three digits.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are neither negative nor beyond what counts"
)]
pub fn whole(value: f64) -> String {
    grouped(value.round() as u64)
}

/// A number in groups of three digits.
pub fn grouped(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
    }
}

/// Any cells, in columns as wide as their widest; numbers are right-aligned.
pub fn lay_out(head: &[String], rows: &[Vec<String>], numbers: &[bool]) -> String {
    let width = |column: usize| {
        let rows = rows.iter().map(Vec::as_slice).chain([head]);
        let cells = rows.filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns: Vec<(usize, bool)> = numbers
        .iter()
        .enumerate()
        .map(|(column, number)| (width(column), *number))
        .collect();
    let line = |row: &[String]| {
        let cells = columns.iter().enumerate().map(|(column, (width, number))| {
            let cell = row.get(column).map_or("", String::as_str);
            match number {
                true => format!(" {cell:>width$} |"),
                false => format!(" {cell:<width$} |"),
            }
        });
        format!("|{}\n", cells.collect::<String>())
    };
    let rule = columns.iter().map(|(width, number)| match number {
        true => format!(" {}: |", "-".repeat(width.saturating_sub(1))),
        false => format!(" {} |", "-".repeat(*width)),
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    let rows = rows.iter().map(|row| line(row));
    [line(head), rule].into_iter().chain(rows).collect()
}
