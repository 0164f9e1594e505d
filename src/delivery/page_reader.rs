//! Reads pages of the table. A page is one statement, so that its rows and its snapshot
//! belong together.

mod backlog;
mod bell;
mod changes;
mod disconnections;
mod first;
mod head;
mod rows;
mod size;
mod tail;
mod topics;
mod user;

pub use self::{
    backlog::{Backlog, BacklogPage, REPLAY_ROWS, SKIPPED_ROWS_BEFORE_NOTING, backlog_page},
    bell::{BellGeneration, BellState, fall_asleep},
    changes::membership_changes,
    disconnections::{Disconnections, disconnections},
    first::{FirstPage, FirstStart, FirstWanted, first_page},
    head::{incarnation, read_incarnation},
    rows::{Flaw, UnusableRows},
    size::{MOST_BEGUN, PageSize},
    tail::{Run, TailPage, TailStart, TailStatements, tail_page, tail_start},
    topics::{Cursor, FirstReading, MOST_TOPICS, PageTopics, TopicPage, topic_page},
    user::{OwnPage, UserPage, user_page, user_page_on_replica},
};
