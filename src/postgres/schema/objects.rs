//! The objects that migrations create.

/// The kind of object that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObjectKind {
    /// A table, a view, or a sequence of its own.
    Relation,
    /// One or more functions, or a procedure.
    Function,
    /// An index or sequence of a table.
    Part,
}

/// The names that migrations use in the schema, each with the version that creates it.
/// Any other object with one of these names is not ours and is never touched.
pub(super) const NAMES: &[(i32, ObjectKind, &str)] = &[
    (1, ObjectKind::Relation, "notifications"),
    (1, ObjectKind::Part, "notifications_id_seq"),
    (1, ObjectKind::Part, "notifications_pkey"),
    (1, ObjectKind::Part, "notifications_xid_id"),
    (1, ObjectKind::Part, "notifications_user_id_xid_id"),
    (2, ObjectKind::Function, "tidings_ring_doorbell"),
    (3, ObjectKind::Function, "send_notification"),
    (4, ObjectKind::Relation, "tidings_pruned"),
    (4, ObjectKind::Part, "tidings_pruned_pkey"),
    (5, ObjectKind::Relation, "stream_tickets"),
    (5, ObjectKind::Part, "stream_tickets_pkey"),
    (5, ObjectKind::Part, "stream_tickets_user_id"),
    (5, ObjectKind::Part, "stream_tickets_expires_at"),
    (5, ObjectKind::Function, "create_stream_ticket"),
    (6, ObjectKind::Relation, "tidings_disconnections"),
    (6, ObjectKind::Part, "tidings_disconnections_id_seq"),
    (6, ObjectKind::Part, "tidings_disconnections_pkey"),
    (6, ObjectKind::Part, "tidings_disconnections_xid"),
    (6, ObjectKind::Part, "tidings_disconnections_created_at"),
    (6, ObjectKind::Function, "tidings_disconnections_since"),
    (6, ObjectKind::Function, "disconnect_user"),
    (6, ObjectKind::Function, "tidings_end_ticket_streams"),
    (7, ObjectKind::Function, "tidings_pruned_through"),
    (8, ObjectKind::Relation, "tidings_bell"),
    (9, ObjectKind::Relation, "tidings_drained"),
    (9, ObjectKind::Part, "tidings_drained_pkey"),
    (9, ObjectKind::Relation, "tidings_reopened"),
    (9, ObjectKind::Part, "tidings_reopened_pkey"),
    (9, ObjectKind::Function, "tidings_reopen"),
    (10, ObjectKind::Part, "notifications_expires_at"),
    (10, ObjectKind::Function, "tidings_prune_batch"),
    (10, ObjectKind::Function, "tidings_prune"),
    (11, ObjectKind::Relation, "tidings_activity"),
    (11, ObjectKind::Part, "tidings_activity_pkey"),
    (11, ObjectKind::Relation, "tidings_bridges_seen"),
    (11, ObjectKind::Part, "tidings_bridges_seen_pkey"),
    (11, ObjectKind::Function, "tidings_report"),
    (12, ObjectKind::Function, "tidings_pending_users"),
    (12, ObjectKind::Relation, "tidings_pending"),
    (12, ObjectKind::Relation, "tidings_pending_total"),
    (12, ObjectKind::Relation, "tidings_throughput"),
    (12, ObjectKind::Relation, "tidings_delay"),
    (12, ObjectKind::Relation, "tidings_bridges"),
    (12, ObjectKind::Relation, "tidings_size"),
    (12, ObjectKind::Relation, "tidings_queue"),
    (13, ObjectKind::Function, "tidings_disconnections_page"),
    (13, ObjectKind::Function, "tidings_prune_disconnections"),
    (13, ObjectKind::Function, "disconnect_everyone"),
    (13, ObjectKind::Part, "tidings_disconnections_xid_id"),
    (13, ObjectKind::Part, "tidings_disconnections_everyone"),
    (15, ObjectKind::Relation, "tidings_incarnation"),
    (15, ObjectKind::Part, "tidings_incarnation_pkey"),
    (15, ObjectKind::Function, "tidings_report_readiness"),
    (16, ObjectKind::Relation, "tidings_prune_failures"),
    (16, ObjectKind::Part, "tidings_prune_failures_pkey"),
    (16, ObjectKind::Part, "tidings_prune_failures_retry_at"),
    (16, ObjectKind::Function, "tidings_prune_rows"),
    (17, ObjectKind::Function, "tidings_restamp"),
    (23, ObjectKind::Relation, "tidings_adopted"),
    (23, ObjectKind::Part, "tidings_adopted_pkey"),
    (23, ObjectKind::Part, "tidings_adopted_ref_prefix"),
    (23, ObjectKind::Function, "tidings_adopt"),
    (23, ObjectKind::Function, "tidings_unadopt"),
    (23, ObjectKind::Function, "tidings_mark_adopted"),
];

/// The names in `NAMES`.
pub fn names() -> impl Iterator<Item = (i32, &'static str)> {
    NAMES.iter().map(|&(version, _, name)| (version, name))
}
