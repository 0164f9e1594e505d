//! How things are shown to people: in colour where that is wanted, and in numbers
//! that can be read.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use crate::check::{Finding, Report, Severity};

/// Whether escape sequences are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// They are.
    On,
    /// Nothing but text.
    Off,
}

impl Colour {
    /// On a terminal, unless its user wants none (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !unwanted {
            Self::On
        } else {
            Self::Off
        }
    }

    /// A word that nobody should miss.
    pub fn alarm(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// A word that may be looked at.
    pub fn notice(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// The word for nothing to do.
    pub fn calm(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What stands beside what matters.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::On => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

/// Prints what was found.
///
/// # Errors
///
/// If nobody reads it.
pub fn print_report(output: &mut impl Write, report: &Report, colour: Colour) -> io::Result<()> {
    for finding in &report.findings {
        print_finding(output, finding, colour)?;
    }
    for unseen in &report.unseen {
        writeln!(output, "{} {unseen}", colour.faint("unseen:"))?;
    }
    Ok(())
}

fn print_finding(output: &mut impl Write, finding: &Finding, colour: Colour) -> io::Result<()> {
    let word = match finding.severity {
        Severity::Wrong => colour.alarm("wrong:"),
        Severity::Hint => colour.notice("hint:"),
    };
    writeln!(output, "{word} {}", finding.found)?;
    writeln!(
        output,
        "  {} {}",
        colour.faint("expected:"),
        finding.expected
    )?;
    writeln!(output, "  {} {}", colour.faint("mend:"), finding.cure)
}

/// A count, with a comma at each thousand.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub i64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.unsigned_abs().to_string();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        for (index, digit) in digits.char_indices() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Bytes, in a unit that leaves three digits or four.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub i64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
        let (mut amount, mut unit) = (self.0, 0);
        // As pg_size_pretty does.
        while amount >= 10_240 && unit + 1 < UNITS.len() {
            amount /= 1024;
            unit += 1;
        }
        write!(f, "{amount} {}", UNITS[unit])
    }
}

/// A time span in its two largest units.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.max(0.0) as u64;
        let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
        let parts: Vec<&str> = text.split(' ').take(2).collect();
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read() {
        let counts = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ];
        for (count, expected) in counts {
            assert_eq!(Count(count).to_string(), expected);
        }
        assert_eq!(Bytes(8_192).to_string(), "8192 bytes");
        assert_eq!(Bytes(5 << 30).to_string(), "5120 MB");
        assert_eq!(Span(3_725.0).to_string(), "1h 2m");
        assert_eq!(Span(0.4).to_string(), "0s");
    }
}
