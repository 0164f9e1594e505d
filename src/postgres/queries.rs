//! The texts of the bridge's queries, one per file in `sql/`.
//!
//! They name the schema by a psql variable. So each can be tried in psql
//! (`psql -v schema=public`), and no session state decides which table is meant. What
//! several queries have in common, or what depends on the role's privileges, is a file of
//! its own that they include by a variable
//! (`-v incarnation="$(cat sql/incarnation.sql)"`).

use crate::postgres::{crash_sign::CrashSign, memberships::MembershipSource, schema::SchemaName};

/// The query texts, for one schema.
#[derive(Debug)]
pub struct Sql {
    /// The sign of a crash that the texts use.
    pub sign: CrashSign,
    /// Where the texts read memberships.
    pub memberships: MembershipSource,
    /// The position at which a bridge starts.
    pub tail_start: String,
    /// New rows of all users.
    pub tail_page: String,
    /// The same, for a position without open transactions.
    pub tail_page_past_floor: String,
    /// New rows of one user.
    pub user_page: String,
    /// New rows of one user, from a replica.
    pub user_page_on_replica: String,
    /// Whether a replica has what such a page needs.
    pub replica_gate: String,
    /// Lets replicas prove that they follow the primary.
    pub record_history: String,
    /// Writes to disk what is in the log.
    pub flush_log: String,
    /// The first page of a user without a position.
    pub backlog_page: String,
    /// The same, for a role that may not read the user's drained floor.
    pub backlog_page_without_drained: String,
    /// New rows of one user and of the user's topics.
    pub topic_page: String,
    /// Memberships that changed.
    pub membership_changes: String,
    /// From where the last rows of a user and of the user's topics are replayed.
    pub replay_start: String,
    /// Advances where users without a position continue in the topics.
    pub write_cursors: String,
    /// Stores a user's drained floor.
    pub drain: String,
    /// The same, for a user whose streams have been open for a long time.
    pub drain_live: String,
    /// Stores what this bridge is doing, for the SQL views.
    pub report: String,
    /// Sets `sent_at`.
    pub mark_sent: String,
    /// Adopted tables whose rows are marked.
    pub marked_tables: String,
    /// Marks rows of such a table.
    pub mark_adopted: String,
    /// Unmarked rows that returning clients have received.
    pub acknowledged: String,
    /// Whether the doorbell's trigger is installed and enabled.
    pub doorbell: String,
    /// How many bridges are connected.
    pub bridge_count: String,
    /// The keys that seal messages between bridges.
    pub feed_keys: String,
    /// Makes this bridge the one that reads for the others.
    pub feed_lock: String,
    /// Lets another bridge do it.
    pub feed_unlock: String,
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
        Self::with_memberships(sign, schema, MembershipSource::BuiltIn)
    }

    /// The same, with memberships from this source.
    pub fn with_memberships(
        sign: CrashSign,
        schema: &SchemaName,
        memberships: MembershipSource,
    ) -> Self {
        let drained = include_str!("../../sql/drained.sql");
        let nothing_drained = include_str!("../../sql/nothing_drained.sql");
        let fill_from = |drained: &str, text: &str| {
            let text = text
                .replace(":drained", drained)
                .replace(":head", include_str!("../../sql/tail_head.sql"))
                .replace(":guarded", include_str!("../../sql/guarded.sql"))
                .replace(":columns", include_str!("../../sql/columns.sql"))
                .replace(":incarnation", sign.incarnation());
            schema.fill(&text)
        };
        let fill = |text: &str| fill_from(drained, text);
        // These only ask whether there are any.
        let of_user = memberships.query("$6", "1", "null::text[]");
        let user_page = include_str!("../../sql/user_page.sql").replace(":memberships", &of_user);
        let user_page_on_replica =
            include_str!("../../sql/user_page_on_replica.sql").replace(":memberships", &of_user);
        let backlog_page = include_str!("../../sql/backlog_page.sql").replace(
            ":memberships",
            &memberships.query("$1", "1", "null::text[]"),
        );
        let topic_page = include_str!("../../sql/topic_page.sql").replace(
            ":memberships",
            &memberships.query("$6", "$12", "$13::text[]"),
        );
        let replay_start = include_str!("../../sql/replay_start.sql")
            .replace(":memberships", &memberships.query("$1", "$3", "$4::text[]"));
        Self {
            sign,
            tail_start: fill(include_str!("../../sql/tail_start.sql")),
            tail_page: fill(include_str!("../../sql/tail_page.sql")),
            tail_page_past_floor: fill(include_str!("../../sql/tail_page_past_floor.sql")),
            user_page: fill(&user_page),
            user_page_on_replica: fill(&user_page_on_replica),
            replica_gate: fill(include_str!("../../sql/replica_gate.sql")),
            flush_log: fill(include_str!("../../sql/flush_log.sql")),
            record_history: fill(include_str!("../../sql/record_history.sql")),
            backlog_page: fill(&backlog_page),
            backlog_page_without_drained: fill_from(nothing_drained, &backlog_page),
            topic_page: fill(&topic_page),
            replay_start: fill(&replay_start),
            membership_changes: fill(memberships.changes()),
            write_cursors: fill(include_str!("../../sql/write_cursors.sql")),
            drain: fill(include_str!("../../sql/drain.sql")),
            drain_live: fill(include_str!("../../sql/drain_live.sql")),
            report: fill(include_str!("../../sql/report.sql")),
            mark_sent: fill(include_str!("../../sql/mark_sent.sql")),
            marked_tables: fill(include_str!("../../sql/marked_tables.sql")),
            mark_adopted: fill(include_str!("../../sql/mark_adopted.sql")),
            acknowledged: fill(include_str!("../../sql/acknowledged.sql")),
            doorbell: fill(include_str!("../../sql/doorbell.sql")),
            bridge_count: fill(include_str!("../../sql/bridge_count.sql")),
            feed_keys: fill(include_str!("../../sql/feed_keys.sql")),
            feed_lock: fill(include_str!("../../sql/feed_lock.sql")),
            feed_unlock: fill(include_str!("../../sql/feed_unlock.sql")),
            disconnections: fill(include_str!("../../sql/disconnections.sql")),
            incarnation: fill(sign.incarnation()),
            begin_incarnation: fill(include_str!("../../sql/begin_incarnation.sql")),
            fall_asleep: fill(include_str!("../../sql/fall_asleep.sql")),
            wake: fill(include_str!("../../sql/wake.sql")),
            ticket: fill(include_str!("../../sql/ticket.sql")),
            restamp_restored_rows: fill(include_str!("../../sql/restamp_restored_rows.sql")),
            memberships,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::memberships::UserKind;

    #[test]
    fn every_variable_is_filled_in() {
        let relation = |user| MembershipSource::Relation {
            name: "app.memberships".to_owned(),
            user,
        };
        for (sign, memberships) in [
            (CrashSign::Table, MembershipSource::BuiltIn),
            (CrashSign::Statistics, MembershipSource::BuiltIn),
            (CrashSign::Table, relation(UserKind::Text)),
            (CrashSign::Table, relation(UserKind::Integer)),
            (CrashSign::Table, relation(UserKind::Uuid)),
        ] {
            let sql = Sql::with_memberships(sign, &SchemaName::public(), memberships);
            let texts = format!("{sql:?}");
            let texts = texts.replace("::", " ");
            let left = texts.split(':').find(|piece| {
                piece.starts_with(char::is_lowercase)
                    || ["\\\"", "'\\\""]
                        .iter()
                        .any(|quote| piece.starts_with(quote))
            });
            assert_eq!(left, None);
        }
    }
}
