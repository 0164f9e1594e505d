//! Whether the clocks of the database and of this machine agree.

use std::time::{Duration, SystemTime};

use super::finding::{Finding, Fix, Subject};
use crate::{
    config::Thresholds,
    postgres::{
        connect::{Borrowed, Queries},
        schema::SchemaError,
    },
};

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|error| error.duration())
}

/// Compares the clocks. The database is assumed to have read its clock halfway between
/// the request and the response, so half the round trip is tolerated.
pub(super) async fn skew(
    client: &Borrowed,
    thresholds: &Thresholds,
) -> Result<Option<Finding>, SchemaError> {
    let asked = SystemTime::now();
    let query = include_str!("../../sql/clock.sql");
    let row = client.query_typed_one(query, &[]).await?;
    let theirs: SystemTime = row.try_get("now")?;
    let way = asked.elapsed().unwrap_or_default() / 2;
    let ours = asked + way + thresholds.clock_ahead;
    let skew = apart(ours, theirs);
    if skew <= thresholds.max_clock_skew + way {
        return Ok(None);
    }
    let behind = if ours > theirs { "behind" } else { "ahead of" };
    Ok(Some(Finding::wrong(
        Subject::Clock,
        format!(
            "the clock of the database is {:.1} s {behind} this machine's",
            skew.as_secs_f64()
        ),
        format!(
            "at most {} s: tokens are checked against this machine's clock, tickets and expiry \
             against the database's",
            thresholds.max_clock_skew.as_secs_f64()
        ),
        Fix::Command("timedatectl set-ntp true   # on both machines".to_owned()),
    )))
}
