//! Whether bridges are connected and ready.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::finding::{Finding, Fix, Subject};
use crate::{
    config::Thresholds,
    delivery::health::ReadinessStatus,
    postgres::{
        connect::{Borrowed, Queries},
        schema::{SchemaError, SchemaName},
    },
};

/// A bridge reports every ten seconds. One that has not reported for this long hangs, or
/// can't write.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Time limit for counting pending rows, which takes longer the more users there are
/// (`V12__seen_from_sql.sql`).
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// What is wrong with the connected bridges, or that none is connected; and what could
/// not be checked.
pub(super) async fn bridges(
    client: &Borrowed,
    schema: &SchemaName,
    thresholds: &Thresholds,
) -> Result<(Vec<Finding>, Option<String>), SchemaError> {
    let connected = schema.fill(include_str!("../../sql/bridges_readiness.sql"));
    let connected = match client.query_typed(&connected, &[]).await {
        Ok(connected) => connected,
        Err(error) if is_out_of_sight(&error) => {
            let unseen = "which bridges are connected: this role may not read tidings_bridges, or \
                          the schema is too old";
            return Ok((Vec::new(), Some(unseen.to_owned())));
        }
        Err(error) => return Err(error.into()),
    };
    if connected.is_empty() {
        return nobody(client, schema, thresholds).await;
    }
    let mut findings = Vec::new();
    for row in &connected {
        let (address, silent): (String, f64) = (row.try_get("address")?, row.try_get("silent")?);
        let readiness: Option<String> = row.try_get("readiness")?;
        let silent = Duration::try_from_secs_f64(silent).unwrap_or_default();
        if silent > SILENT_FOR {
            let silent = humantime::format_duration(Duration::from_secs(silent.as_secs()));
            findings.push(Finding::wrong(
                Subject::Bridges,
                format!("the bridge at {address} is connected but has not reported for {silent}"),
                "a report every 10 s: a bridge that doesn't report hangs, or its role can't write",
                Fix::Advice(
                    "check its log and GET /health/ready on its admin address; restart it if it \
                     doesn't respond"
                        .to_owned(),
                ),
            ));
        } else if let Some(readiness) = readiness.filter(|readiness| is_trouble(readiness)) {
            let reason: Option<String> = row.try_get("reason")?;
            let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            findings.push(Finding::wrong(
                Subject::Bridges,
                format!("the bridge at {address} is not ready ({readiness}){reason}"),
                "a bridge that is ready: otherwise it doesn't deliver all rows, or can't mark the \
                 rows that it has delivered, so they are sent again",
                Fix::Advice(
                    "fix what the reason and the other findings name (see \
                     docs/operations/runbooks.md); the bridge then recovers by itself"
                        .to_owned(),
                ),
            ));
        }
    }
    Ok((findings, None))
}

/// No bridge is connected: checks whether rows are waiting for one.
async fn nobody(
    client: &Borrowed,
    schema: &SchemaName,
    thresholds: &Thresholds,
) -> Result<(Vec<Finding>, Option<String>), SchemaError> {
    let pending = schema.fill(include_str!("../../sql/pending.sql"));
    let pending = match client.query_one_within(COUNT_LIMIT, &pending).await {
        Ok(pending) => pending,
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            let limit = COUNT_LIMIT.as_secs();
            let unseen = format!(
                "how many rows are waiting while no bridge is connected: counting them takes \
                 longer than {limit} s"
            );
            return Ok((Vec::new(), Some(unseen)));
        }
        Err(error) if is_out_of_sight(&error) => {
            let unseen = "how many rows are waiting while no bridge is connected: this role may \
                          not read them";
            return Ok((Vec::new(), Some(unseen.to_owned())));
        }
        Err(error) => return Err(error.into()),
    };
    let (rows, age): (i64, Option<f64>) = (pending.try_get("pending")?, pending.try_get("age")?);
    let age = Duration::try_from_secs_f64(age.unwrap_or_default()).unwrap_or_default();
    if rows == 0 || age < thresholds.max_wait {
        return Ok((Vec::new(), None));
    }
    let found = format!(
        "no bridge is connected, and {rows} rows are waiting, the oldest for {}",
        humantime::format_duration(Duration::from_secs(age.as_secs()))
    );
    let expected = format!(
        "a connected bridge: without one, nothing is delivered. Rows may wait for less than {}, \
         so that a bridge can restart",
        humantime::format_duration(thresholds.max_wait)
    );
    let fix = Fix::Command("tidings serve   # or: systemctl start tidings".to_owned());
    let finding = Finding::wrong(Subject::Bridges, found, expected, fix);
    Ok((vec![finding], None))
}

/// Whether this status of `/health/ready` needs attention. A newer bridge may report one
/// that is unknown here.
fn is_trouble(readiness: &str) -> bool {
    let mut fine = [ReadinessStatus::Ready, ReadinessStatus::Draining].into_iter();
    fine.all(|status| status.name() != readiness)
}

/// Whether this role may not read the object, or the object doesn't exist. Other checks
/// report both.
pub(super) fn is_out_of_sight(error: &tokio_postgres::Error) -> bool {
    let codes = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INVALID_SCHEMA_NAME,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}
