//! The settings that our sessions and transactions need.

use tokio_postgres::Client;

/// Settings that a database or a role may change for its applications, and that would
/// change what our statements mean, what they conflict with, or whether they work at all.
///
/// Only names in `pg_catalog` are resolved without a schema: in any other schema, another
/// user's function could take precedence over a Postgres function whose argument types
/// match less exactly. Where row-level security would hide rows, Postgres reports an
/// error instead.
///
/// Deliberately left to the database: `role`, which decides about privileges;
/// `synchronous_commit`, which decides how durable a mark is; and settings that only a
/// superuser may change (`session_replication_role`).
const PINNED: &[(&str, &str)] = &[
    ("search_path", "pg_catalog, pg_temp"),
    ("row_security", "off"),
    ("default_transaction_isolation", "'read committed'"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
    ("datestyle", "'ISO, MDY'"),
    ("intervalstyle", "'postgres'"),
    ("timezone", "'UTC'"),
    ("bytea_output", "'hex'"),
    ("extra_float_digits", "1"),
    ("lock_timeout", "0"),
    ("statement_timeout", "'60s'"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Settings that only exist from PostgreSQL 14 and 17 on; they are set to 0.
const PINNED_IF_KNOWN: [&str; 2] = ["idle_session_timeout", "transaction_timeout"];

/// The queries must stay on their indexes at any table size, also with plans made while
/// the table was empty or never analysed. Without these settings Postgres then reads the
/// whole table. The penalties that they put on other plans would trigger the JIT
/// compiler, which costs more than any of these queries.
///
/// The server need not finish a query that the bridge no longer waits for. A shorter
/// timeout, which the database may set for its applications, would only interrupt
/// delivery.
///
/// `tidings.marking`: our sessions' updates never make an earlier row deliverable again
/// (the trigger of `V9__drained.sql`).
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "'10s'"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("enable_indexscan", "on"),
    ("enable_indexonlyscan", "on"),
    ("enable_nestloop", "on"),
    ("enable_hashjoin", "on"),
    ("enable_mergejoin", "on"),
    ("enable_hashagg", "on"),
    ("enable_material", "on"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tidings.marking", "on"),
];

/// Begins a transaction independently of the database's defaults.
pub const BEGIN: &str = "begin isolation level read committed, read write, not deferrable;";

/// The same for reading only, which a standby also allows.
pub(super) const BEGIN_READING: &str =
    "begin isolation level read committed, read only, not deferrable;";

/// Limits how long the server keeps the session of a bridge that is frozen or gone. Such a
/// session would pin the notification queue of the whole cluster. The limits only work for
/// TCP. Whatever the session writes is written again if it is lost, so no commit waits for
/// the disk.
const LISTENER_SETTINGS: &str = "
    set tcp_keepalives_idle = 5;
    set tcp_keepalives_interval = 5;
    set tcp_keepalives_count = 2;
    set tcp_user_timeout = 10000;
    set synchronous_commit = off;
";

/// Applies the settings that the bridge's queries need to a session of our own.
pub async fn settle(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&settings(Scope::Session)).await
}

/// The same, plus the settings of the listener's session.
pub async fn settle_listener(client: &Client) -> Result<(), tokio_postgres::Error> {
    settle(client).await?;
    client.batch_execute(LISTENER_SETTINGS).await
}

/// How long a setting applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Until the session ends.
    Session,
    /// Until the transaction ends, for a pooler that lends a session per transaction.
    Transaction,
}

/// The statements for all settings that the bridge's queries need.
pub fn settings(scope: Scope) -> String {
    pinned(scope) + &set(scope, SETTINGS)
}

/// The statements for settings that must not depend on the database's defaults.
pub(super) fn pinned(scope: Scope) -> String {
    let is_local = scope == Scope::Transaction;
    let known = PINNED_IF_KNOWN.iter().map(|name| {
        format!(
            "select set_config('{name}', '0', {is_local}) \
             where current_setting('{name}', true) <> '0';"
        )
    });
    set(scope, PINNED) + &known.collect::<String>()
}

fn set(scope: Scope, settings: &[(&str, &str)]) -> String {
    let set = match scope {
        Scope::Session => "set",
        Scope::Transaction => "set local",
    };
    let lines = settings.iter();
    lines
        .map(|(name, value)| format!("{set} {name} = {value};"))
        .collect()
}
