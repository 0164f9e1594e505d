//! Output for people: colours where they are wanted, and readable numbers.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    check::{Finding, Report, Severity},
    runtime::escape,
};

/// How often to check whether standard output still has a reader: soon enough for a
/// person who waits for the shell's prompt.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The escape sequences of [`Colour`], the only ones that a [`Screen`] lets through.
const SEQUENCES: [&str; 5] = ["\x1b[1;31m", "\x1b[33m", "\x1b[32m", "\x1b[2m", "\x1b[0m"];

/// Output for people, such as standard output: passes on text and our own colours, and
/// escapes everything else that a terminal would execute.
#[derive(Debug)]
pub struct Screen<W>(W);

impl<W: Write> Screen<W> {
    pub fn new(output: W) -> Self {
        Self(output)
    }
}

impl<W: Write> Write for Screen<W> {
    /// Accepts all bytes. They are whole characters and sequences, because they are what
    /// one `write!` formats at a time.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut rest = text.as_ref();
        while let Some(at) = rest.find('\x1b') {
            let (before, sequence) = rest.split_at(at);
            self.0.write_all(escape::lines(before).as_bytes())?;
            let own = SEQUENCES.iter().find(|own| sequence.starts_with(**own));
            rest = match own {
                Some(own) => {
                    self.0.write_all(own.as_bytes())?;
                    &sequence[own.len()..]
                }
                None => {
                    self.0.write_all(escape::line("\x1b").as_bytes())?;
                    &sequence[1..]
                }
            };
        }
        self.0.write_all(escape::lines(rest).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Resolves when standard output has no reader any more, as in
/// `tidings tail alice | head -1`: the next write would fail, but there may be none for
/// hours.
pub async fn closed_stdout() {
    loop {
        sleep(POLL_INTERVAL).await;
        let stdout = io::stdout();
        let mut files = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        let is_gone = matches!(poll(&mut files, PollTimeout::ZERO), Ok(1))
            && files[0]
                .revents()
                .is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
        if is_gone {
            return;
        }
    }
}

/// Prints JSON, indented.
pub fn print_json(output: &mut impl Write, value: &Value) -> io::Result<()> {
    writeln!(output, "{}", escape::json(&format!("{value:#}")))
}

/// Whether to print escape sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    On,
    Off,
}

impl Colour {
    /// `On` if standard output is a terminal and its user has not disabled colours
    /// (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !unwanted {
            Self::On
        } else {
            Self::Off
        }
    }

    /// For errors.
    pub fn alarm(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For hints.
    pub fn notice(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For success.
    pub fn calm(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For secondary text.
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

pub fn print_report(output: &mut impl Write, report: &Report, colour: Colour) -> io::Result<()> {
    for finding in &report.findings {
        print_finding(output, finding, colour)?;
    }
    for unseen in &report.unseen {
        let unseen = escape::line(unseen);
        writeln!(output, "{} {unseen}", colour.faint("not checked:"))?;
    }
    Ok(())
}

fn print_finding(output: &mut impl Write, finding: &Finding, colour: Colour) -> io::Result<()> {
    let word = match finding.severity {
        Severity::Problem => colour.alarm("problem:"),
        Severity::Hint => colour.notice("hint:"),
    };
    // Findings name roles and programs, whose names may contain escape sequences.
    let fix = finding.fix.to_string();
    let [found, expected, fix] = [&finding.found, &finding.expected, &fix].map(|s| escape::line(s));
    writeln!(output, "{word} {found}")?;
    writeln!(output, "  {} {expected}", colour.faint("expected:"))?;
    writeln!(output, "  {} {fix}", colour.faint("fix:"))
}

/// A number with a comma at each thousand.
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

/// A number of bytes, in the smallest unit that keeps it below 10,240, as
/// `pg_size_pretty` does.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub i64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
        let (mut amount, mut unit) = (self.0, 0);
        while amount >= 10_240 && unit + 1 < UNITS.len() {
            amount /= 1024;
            unit += 1;
        }
        write!(f, "{amount} {}", UNITS[unit])
    }
}

/// A duration in seconds, shown in its two largest units.
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
    fn a_screen_shows_our_colours_and_no_other_sequence() {
        let mut shown = Vec::new();
        let mut screen = Screen::new(&mut shown);
        let (on, hostile) = (Colour::On, "\x1b[1;32m\x1b]0;t\x07\u{9b}2J\r");
        let words = [on.alarm("a"), on.notice("b"), on.calm("c"), on.faint("d")];
        for word in &words {
            writeln!(screen, "{word:12}\t{hostile}").expect("a write");
        }
        let escaped = r"\u{1b}[1;32m\u{1b}]0;t\u{7}\u{9b}2J\r";
        let expected = words.map(|word| format!("{word:12}\t{escaped}\n")).concat();
        assert_eq!(String::from_utf8_lossy(&shown), expected);
    }

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
