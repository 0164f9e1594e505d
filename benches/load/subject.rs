//! Anything that speaks Server-Sent Events and can be put under load.

use std::net::SocketAddr;

/// The head of the request for the stream of a user, who may have been here
/// before and come with the id of the last event.
pub type Request = Box<dyn Fn(&str, Option<&str>) -> String + Send + Sync>;

/// How one gets a stream of it.
pub struct Subject {
    /// Where it listens.
    pub address: SocketAddr,
    /// How one asks for a stream.
    pub request: Request,
    /// When a stream is one.
    pub live: Live,
}

/// When rows that are committed from now on reach a stream as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// As soon as the answer has begun.
    Head,
    /// When an event of this name has come.
    Event(&'static str),
}

/// Who is written to: users of one name, numbered from 0.
///
/// Row `k` of a run is for user `k` modulo their number, so that every event
/// tells by its text alone whose it is, and a user can tell which are missing.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    /// What their names begin with.
    pub name: &'static str,
    /// How many there are.
    pub count: u64,
}

impl Users {
    /// The name of one of them.
    pub fn name(self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    /// Whom this row is for.
    pub fn of(self, row: u64) -> u64 {
        row % self.count
    }

    /// How many of the first `rows` rows are for this user.
    pub fn share(self, user: u64, rows: u64) -> u64 {
        rows / self.count + u64::from(user < rows % self.count)
    }
}

/// What stands before the row's number in its text.
const MARK: &str = "row=";

/// The text of a row: about as long as such texts are, with its number.
pub fn text(row: u64) -> String {
    format!("Your build of the branch main is green: 214 tests passed in 38 s. {MARK}{row}")
}

/// The number of the row that an event brings, however its text was wrapped.
pub fn row_of(data: &[u8]) -> Option<u64> {
    let mark = MARK.as_bytes();
    let at = data.windows(mark.len()).rposition(|part| part == mark)?;
    let digits = data.get(at + mark.len()..)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit());
    let digits = digits.get(..end.unwrap_or(digits.len()))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
