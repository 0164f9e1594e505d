//! What the inspection of the doorbell found.

use crate::postgres::{schema::SchemaName, visibility::HiddenRows};

/// The state of the trigger that sends NOTIFY, and whether the bridge can see all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// The trigger exists and is enabled.
    InOrder,
    /// The trigger was dropped. Contains the schema.
    Missing(SchemaName),
    /// The trigger is disabled. Contains the schema.
    Disabled(SchemaName),
    /// Logical replication inserts rows with transaction ids of another cluster.
    Bypassed { subscription: String },
    /// There are rows of another cluster, and the bridge isn't allowed to restamp them.
    Restored,
    /// Rows are hidden from the bridge, or it would not notice a crash.
    Hidden(HiddenRows),
}

impl Doorbell {
    /// The state's name in the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::InOrder => "in-order",
            Self::Missing(_) => "missing",
            Self::Disabled(_) => "disabled",
            Self::Bypassed { .. } => "bypassed",
            Self::Restored => "restored",
            Self::Hidden(_) => "hidden",
        }
    }

    /// The name in the deprecated log field `doorbell`.
    pub(super) fn former_name(&self) -> &'static str {
        match self {
            Self::InOrder => "hung",
            other => other.name(),
        }
    }

    /// What is wrong and how to fix it.
    pub(super) fn trouble(&self) -> Option<String> {
        match self {
            Self::InOrder => None,
            Self::Missing(schema) => Some(format!(
                "the trigger tidings_ring_doorbell is missing, so rows are found up to a second \
                 late: `create trigger tidings_ring_doorbell after insert on {} for each statement \
                 when (pg_sequence_last_value({}) is not null) execute function {}()`",
                schema.qualified("notifications"),
                schema.regclass("tidings_bell"),
                schema.qualified("tidings_ring_doorbell"),
            )),
            Self::Disabled(schema) => Some(format!(
                "the trigger tidings_ring_doorbell is disabled, so rows are found up to a second \
                 late: `alter table {} enable trigger tidings_ring_doorbell`",
                schema.qualified("notifications"),
            )),
            Self::Bypassed { subscription } => Some(format!(
                "the subscription {subscription} inserts rows with the publisher's transaction \
                 ids, which may be missed: remove the table from the publication, or drop the \
                 subscription to switch over"
            )),
            Self::Restored => Some(
                "the table contains rows of another cluster, which are not delivered: run `tidings \
                 migrate` as the table's owner"
                    .to_owned(),
            ),
            Self::Hidden(hidden) => Some(hidden.to_string()),
        }
    }
}
