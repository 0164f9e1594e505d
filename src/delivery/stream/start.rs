//! Where a stream begins.

use crate::domain::{
    history::History,
    position::{EventId, UnusableId},
};

/// Where a client wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is unsent, and the last rows that were asked for.
    Backlog {
        /// How many of the user's last rows, sent or not.
        replay: u32,
    },
    /// After what the connection before it was sent, by its `Last-Event-ID`.
    Resume(String),
}

impl Start {
    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backlog { .. } => "backlog",
            Self::Resume(_) => "resume",
        }
    }
}

/// Where a stream begins, once the id has been read.
pub enum Opening {
    /// With what is unsent, and these rows before it.
    Backlog {
        /// How many.
        replay: u32,
    },
    /// After the position in this id.
    Resume(EventId<'static>),
    /// With what is unsent: the id says nothing.
    Gap(UnusableId),
}

impl Opening {
    /// What the client means, if it is of this history.
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
