//! Where a stream starts: with the backlog, or after a last event id.

use crate::domain::{
    history::History,
    position::{EventId, UnusableId},
};

/// Where a client wants to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With unsent rows, preceded by the last rows that the client asked for.
    Backlog {
        /// How many of the user's last rows, sent or not.
        replay: u32,
    },
    /// After the rows that the client already received, given by its `Last-Event-ID`.
    Resume(String),
}

impl Start {
    /// The name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backlog { .. } => "backlog",
            Self::Resume(_) => "resume",
        }
    }
}

/// Where a stream starts, once the id has been parsed.
pub enum Opening {
    /// With unsent rows, preceded by the user's last rows.
    Backlog { replay: u32 },
    /// After the position in this id.
    Resume(EventId<'static>),
    /// With unsent rows: the id can't be used.
    Gap(UnusableId),
}

impl Opening {
    /// Parses the client's id, which has to be of this history.
    pub fn read(start: &Start, history: History) -> Self {
        match start {
            Start::Backlog { replay } => Self::Backlog { replay: *replay },
            Start::Resume(id) => match EventId::parse(id, history) {
                Ok(id) => Self::Resume(id),
                Err(reason) => Self::Gap(reason),
            },
        }
    }
}
