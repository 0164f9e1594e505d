//! The texts of the bridge's queries, one per file in `sql/`.
//!
//! They name the schema by a psql variable. So each can be tried in psql
//! (`psql -v schema=public`), and no session state decides which table is meant.

use crate::postgres::{crash_sign::CrashSign, schema::SchemaName};

/// Replaces the tables of drained floors with empty floors, for a role that may not read
/// them.
const WITHOUT_DRAINED: [(&str, &str); 2] = [
    (
        ":\"schema\".tidings_drained as",
        "(select null::text as user_id, '0'::xid8 as xid, 0::bigint as system_identifier) as",
    ),
    (
        ":\"schema\".tidings_reopened as",
        "(select '0'::xid8 as xid) as",
    ),
];

/// The query texts, for one schema.
#[derive(Debug)]
pub struct Sql {
    /// The sign of a crash that the texts use.
    pub sign: CrashSign,
    /// The position at which a bridge starts.
    pub tail_start: String,
    /// New rows of all users.
    pub tail_page: String,
    /// New rows of one user.
    pub user_page: String,
    /// The first page of a user without a position.
    pub backlog_page: String,
    /// The same, for a role that may not read the user's drained floor.
    pub backlog_page_without_drained: String,
    /// Stores a user's drained floor.
    pub drain: String,
    /// The same, for a user whose streams have been open for a long time.
    pub drain_live: String,
    /// Stores what this bridge is doing, for the SQL views.
    pub report: String,
    /// Sets `sent_at`.
    pub mark_sent: String,
    /// Unmarked rows that returning clients have received.
    pub acknowledged: String,
    /// Whether the doorbell's trigger is installed and enabled.
    pub doorbell: String,
    /// Which streams must end.
    pub disconnections: String,
    /// The incarnation of the server.
    pub incarnation: String,
    /// Starts an incarnation if a crash has ended the previous one.
    pub begin_incarnation: String,
    /// Makes writers ring the doorbell.
    pub fall_asleep: String,
    /// Makes writers stop ringing.
    pub wake: String,
    /// The user of a ticket.
    pub ticket: String,
    /// Restamps rows restored from another cluster.
    pub restamp_restored_rows: String,
}

impl Sql {
    /// Fills in the schema, using the default sign of crashes.
    pub fn new(schema: &SchemaName) -> Self {
        Self::going_by(CrashSign::default(), schema)
    }

    /// Fills in the schema, using this sign of crashes.
    pub fn going_by(sign: CrashSign, schema: &SchemaName) -> Self {
        let fill = |text: &str| schema.fill(&sign.adapt(text));
        let backlog_page = include_str!("../../sql/backlog_page.sql");
        let without_drained = WITHOUT_DRAINED
            .iter()
            .fold(backlog_page.to_owned(), |text, (table, nothing)| {
                text.replace(table, nothing)
            });
        Self {
            sign,
            tail_start: fill(include_str!("../../sql/tail_start.sql")),
            tail_page: fill(include_str!("../../sql/tail_page.sql")),
            user_page: fill(include_str!("../../sql/user_page.sql")),
            backlog_page: fill(backlog_page),
            backlog_page_without_drained: fill(&without_drained),
            drain: fill(include_str!("../../sql/drain.sql")),
            drain_live: fill(include_str!("../../sql/drain_live.sql")),
            report: fill(include_str!("../../sql/report.sql")),
            mark_sent: fill(include_str!("../../sql/mark_sent.sql")),
            acknowledged: fill(include_str!("../../sql/acknowledged.sql")),
            doorbell: fill(include_str!("../../sql/doorbell.sql")),
            disconnections: fill(include_str!("../../sql/disconnections.sql")),
            incarnation: fill(include_str!("../../sql/incarnation.sql")),
            begin_incarnation: fill(include_str!("../../sql/begin_incarnation.sql")),
            fall_asleep: fill(include_str!("../../sql/fall_asleep.sql")),
            wake: fill(include_str!("../../sql/wake.sql")),
            ticket: fill(include_str!("../../sql/ticket.sql")),
            restamp_restored_rows: fill(include_str!("../../sql/restamp_restored_rows.sql")),
        }
    }
}
