//! Anything that sends Server-Sent Events and can be put under load.

use std::net::SocketAddr;

/// Builds the request head for the stream of a user, optionally with the id of the last
/// event.
pub type Request = Box<dyn Fn(&str, Option<&str>) -> String + Send + Sync>;

/// How to open a stream.
pub struct Subject {
    pub address: SocketAddr,
    /// Builds the request.
    pub request: Request,
    /// When a stream counts as live.
    pub live: Live,
}

/// When rows that are committed from now on reach a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// As soon as the response has begun.
    Head,
    /// When an event of this name has arrived.
    Event(&'static str),
}

/// The recipients: users with a common name prefix, numbered from 0.
///
/// Row `k` of a run is for user `k` modulo their number, so that the text of an event
/// identifies its user, and a user can determine which rows are missing.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    /// The prefix of their names.
    pub name: &'static str,
    pub count: u64,
}

impl Users {
    /// The name of one of them.
    pub fn name(self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    /// The name of a subscriber of a topic that has the name of one of them.
    pub fn subscriber(self, number: u64) -> String {
        format!("{}-subscriber-{number}", self.name)
    }

    /// The user that this row is for.
    pub fn of(self, row: u64) -> u64 {
        row % self.count
    }

    /// How many of the first `rows` rows are for this user.
    pub fn share(self, user: u64, rows: u64) -> u64 {
        rows / self.count + u64::from(user < rows % self.count)
    }
}

/// What precedes the row's number in its text.
const MARK: &str = "row=";

/// The text of a row: its number, in a text of typical length.
pub fn text(row: u64) -> String {
    format!("Your build of the branch main is green: 214 tests passed in 38 s. {MARK}{row}")
}

/// The number of the row in an event, however its text was wrapped.
pub fn row_of(data: &[u8]) -> Option<u64> {
    let mark = MARK.as_bytes();
    let at = data.windows(mark.len()).rposition(|part| part == mark)?;
    let digits = data.get(at + mark.len()..)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit());
    let digits = digits.get(..end.unwrap_or(digits.len()))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
