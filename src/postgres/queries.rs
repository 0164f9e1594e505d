//! The queries of the bridge, one a file in `sql/`.
//!
//! They name the schema as a psql variable, so that each can be tried in psql
//! (`psql -v schema=public`), and so that no session state decides which
//! table is meant.

use crate::postgres::{crash_sign::CrashSign, schema::SchemaName};

/// What a role that may not read how far users are drained reads instead:
/// nothing is known of anybody.
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

/// The texts, for one schema.
#[derive(Debug)]
pub struct Sql {
    /// By what they notice that Postgres has crashed.
    pub sign: CrashSign,
    /// Where a bridge begins.
    pub tail_start: String,
    /// New rows of all users.
    pub tail_page: String,
    /// New rows of one user.
    pub user_page: String,
    /// What a user without a position gets first.
    pub backlog_page: String,
    /// The same, for a role that may not read how far the user is drained.
    pub backlog_page_without_drained: String,
    /// Notes how far a user is drained.
    pub drain: String,
    /// The same, of somebody whose streams have been open for long.
    pub drain_live: String,
    /// Tells what the bridge does.
    pub report: String,
    /// Sets `sent_at`.
    pub mark_sent: String,
    /// What returning clients have received, and is unmarked.
    pub acknowledged: String,
    /// Whether what rings the bell is in order.
    pub doorbell: String,
    /// Which streams are to end.
    pub disconnections: String,
    /// The incarnation of the server.
    pub incarnation: String,
    /// Begins one, if a crash has ended the one before.
    pub begin_incarnation: String,
    /// Has writers ring.
    pub fall_asleep: String,
    /// Has them leave the bell unrung.
    pub wake: String,
    /// Whose a ticket is.
    pub ticket: String,
    /// Takes over rows of another cluster.
    pub restamp_restored_rows: String,
}

impl Sql {
    /// Fills in the schema.
    pub fn new(schema: &SchemaName) -> Self {
        Self::going_by(CrashSign::default(), schema)
    }

    /// The same, with this sign of crashes.
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
