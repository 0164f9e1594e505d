//! What accumulates at runtime: unread notifications, dead rows, and rows that are not
//! frozen.

use std::time::Duration;

use tokio_postgres::{Row, error::SqlState, types::Type};

use super::finding::{Finding, Fix, Subject};
use crate::{
    config::Thresholds,
    postgres::{
        connect::{Borrowed, Queries},
        schema::{SchemaError, SchemaName},
    },
};

/// Autovacuum is behind if the dead rows reach this multiple of the number at which it
/// starts. Fewer may accumulate between two of its rounds.
const BEHIND: f64 = 3.0;

/// Rows should be frozen before they are this multiple of `autovacuum_freeze_max_age`
/// old: at `autovacuum_freeze_max_age`, autovacuum freezes them even if it is disabled.
const UNFROZEN: f64 = 1.5;

/// Whether the notification queue is too full, and what keeps it from being emptied; or
/// that this role can't see it.
pub(super) async fn queue(
    client: &Borrowed,
    thresholds: &Thresholds,
) -> Result<(Option<Finding>, Option<String>), SchemaError> {
    let query = include_str!("../../sql/queue.sql");
    let row = match client.query_typed_one(query, &[]).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let unseen = "how full the notification queue is: this role may not call \
                          pg_notification_queue_usage()";
            return Ok((None, Some(unseen.to_owned())));
        }
        row => row?,
    };
    let percent = row.try_get::<_, f64>("usage")? * 100.0;
    if percent <= thresholds.max_queue {
        return Ok((None, None));
    }
    let holder: Option<String> = row.try_get("holder")?;
    let fix = match (row.try_get("fix")?, &holder) {
        (Some(fix), Some(_)) => Fix::Sql(fix),
        _ => Fix::Advice(
            "end the session that listens but doesn't read, or that is in a transaction: the \
             server's log names it when the queue is half full"
                .to_owned(),
        ),
    };
    let holder = holder.map_or_else(String::new, |holder| {
        format!("; the oldest transaction, which may be the cause, is {holder}")
    });
    let finding = Finding::wrong(
        Subject::Queue,
        format!("the server's notification queue is {percent:.4} % full{holder}"),
        format!(
            "at most {} %: a queue that is read empties within milliseconds. Above 50 %, INSERTs \
             don't send NOTIFY, so rows are found up to a second late; at 100 %, every commit \
             that sends NOTIFY fails, in all applications on the server",
            thresholds.max_queue
        ),
        fix,
    );
    Ok((Some(finding), None))
}

/// What keeps VACUUM from removing dead rows, and what this role could not see.
pub(super) async fn horizon(
    client: &Borrowed,
    thresholds: &Thresholds,
) -> Result<(Vec<Finding>, Option<String>), SchemaError> {
    let rows = client
        .query_typed(
            include_str!("../../sql/horizon.sql"),
            &[
                (&thresholds.max_transaction.as_secs_f64(), Type::FLOAT8),
                (&thresholds.max_held, Type::INT8),
            ],
        )
        .await?;
    let expected = format!(
        "transactions of at most {}, and slots that hold back at most {} transactions: VACUUM \
         removes nothing newer than the oldest of them",
        humantime::format_duration(thresholds.max_transaction),
        thresholds.max_held
    );
    let mut findings = Vec::new();
    let mut unseen = None;
    for row in &rows {
        match row.try_get::<_, &str>("kind")? {
            "unseen" => unseen = Some(row.try_get("what")?),
            kind => findings.push(Finding::wrong(
                Subject::Horizon,
                held(row)?,
                expected.clone(),
                match kind {
                    "transaction" => Fix::Sql(row.try_get("fix")?),
                    _ => Fix::Advice(row.try_get("fix")?),
                },
            )),
        }
    }
    Ok((findings, unseen))
}

fn held(row: &Row) -> Result<String, tokio_postgres::Error> {
    let what: String = row.try_get("what")?;
    let since = match row.try_get::<_, Option<f64>>("seconds")? {
        Some(seconds) => {
            let open = Duration::from_secs(seconds.max(0.0) as u64);
            format!("for {}", humantime::format_duration(open))
        }
        None => format!("for {} transactions", row.try_get::<_, i64>("held")?),
    };
    Ok(format!("{what} has held VACUUM back {since}"))
}

/// Whether autovacuum removes dead rows and freezes old ones in time.
pub(super) async fn vacuum(
    client: &Borrowed,
    schema: &SchemaName,
    thresholds: &Thresholds,
) -> Result<Vec<Finding>, SchemaError> {
    let rows = client
        .query_typed(
            include_str!("../../sql/vacuum.sql"),
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    let mut findings = Vec::new();
    let mut add = |found, expected: String, fix| {
        findings.push(Finding::wrong(
            Subject::Vacuum,
            found,
            expected,
            Fix::Sql(fix),
        ));
    };
    for (index, row) in rows.iter().enumerate() {
        let table: String = row.try_get("table")?;
        let (dead, waits): (i64, f64) = (row.try_get("dead")?, row.try_get("waits_for")?);
        let on = "autovacuum on: each row that is sent leaves a dead row behind".to_owned();
        if index == 0 && !row.try_get::<_, bool>("server_on")? {
            add(
                "autovacuum is off for the whole server".to_owned(),
                on.clone(),
                "alter system reset autovacuum; alter system reset track_counts; \
                 select pg_reload_conf();"
                    .to_owned(),
            );
        }
        if !row.try_get::<_, bool>("table_on")? {
            let reset = format!("alter table {table} reset (autovacuum_enabled);");
            add(format!("autovacuum is off for {table}"), on, reset);
        }
        if dead >= thresholds.max_dead_rows && dead as f64 >= BEHIND * waits {
            add(
                format!("autovacuum is behind: {table} has {dead} dead rows"),
                format!("autovacuum checks once a minute, and starts at {waits:.0} dead rows"),
                format!("vacuum (analyze) {table};"),
            );
        }
        let (age, freeze): (i64, i64) = (row.try_get("age")?, row.try_get("freeze_age")?);
        if age as f64 > UNFROZEN * freeze as f64 {
            add(
                format!("{table} contains rows that are {age} transactions old and not frozen"),
                format!(
                    "autovacuum freezes rows at an age of {freeze}; at 2 billion, nothing can be \
                     written any more"
                ),
                format!("vacuum (freeze) {table};"),
            );
        }
    }
    Ok(findings)
}
