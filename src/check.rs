//! `tidings check`: reports what is wrong, what was expected instead, and how to fix it.
//!
//! Each submodule checks one thing and is independent of the others. The checks only
//! read, and leave nothing behind in the session, which may belong to a pooler.

mod adopted;
mod bridges;
mod clock;
mod configuration;
mod finding;
mod locks;
mod marks;
mod memberships;
mod nats;
mod path;
mod prune;
mod replicas;
mod rights;
mod running;
mod schema;
mod triggers;
mod visibility;

use tracing::warn;

pub use self::{
    configuration::configuration,
    finding::{Finding, Fix, Report, Severity, Subject},
    path::direct,
};
use crate::{
    config::Thresholds,
    fanout::NatsServers,
    postgres::{
        connect::{Borrowed, DatabaseUrl},
        memberships::RelationName,
        schema::{SchemaError, SchemaName},
    },
};

/// The database and schema to check.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// For the listener and migrations.
    pub direct: &'a DatabaseUrl,
    /// For reading pages and writing marks, if that is another URL.
    pub pooled: Option<&'a DatabaseUrl>,
    pub schema: &'a SchemaName,
    /// The replicas of the database.
    pub replicas: &'a [DatabaseUrl],
    /// Through which bridges share what they read.
    pub nats: Option<&'a NatsServers>,
    /// The relation that memberships are read from, if it isn't the built-in table.
    pub memberships: Option<&'a RelationName>,
}

/// Runs all checks, for the roles that the URLs name.
///
/// # Errors
///
/// [`SchemaError`], if a check can't be completed.
pub async fn examine(
    place: Installation<'_>,
    thresholds: &Thresholds,
) -> Result<Report, SchemaError> {
    let mut report = Report::default();
    report.findings.extend(path::direct(place.direct).await);
    let client = match Borrowed::to_read(place.direct).await {
        Ok(connected) => connected,
        // This error is already among the findings.
        Err(_) if report.wrong() > 0 => {
            report
                .unseen
                .push("everything that needs a connection to the database".to_owned());
            return Ok(report);
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(url) = place.pooled {
        report
            .findings
            .extend(path::pooled(&client, url, place.schema).await?);
    }
    let missing = rights::missing(&client, place.schema).await?;
    let own = missing
        .into_iter()
        .filter_map(|(who, missing)| (who == rights::Who::Bridge).then_some(missing));
    report.findings.extend(own);
    report
        .findings
        .extend(rights::foreign(&client, place.schema).await?);
    report
        .findings
        .extend(rights::over_privileged(&client, place.schema).await?);
    report
        .findings
        .extend(nats::flaws(&client, place.nats, place.schema).await?);
    report
        .findings
        .extend(replicas::unfit(&client, place.replicas, place.schema).await?);
    if let Some(name) = place.memberships {
        let url = place.pooled.unwrap_or(place.direct);
        report
            .findings
            .extend(memberships::relation(url, name, place.schema).await?);
    }
    let state = state(&client, place.schema, thresholds).await?;
    report.findings.extend(state.findings);
    report.unseen.extend(state.unseen);
    Ok(report)
}

/// Checks the schema and the running state. The result doesn't depend on the session's
/// role being the bridge's.
///
/// # Errors
///
/// [`SchemaError`], if a check can't be completed.
pub async fn state(
    client: &Borrowed,
    schema: &SchemaName,
    thresholds: &Thresholds,
) -> Result<Report, SchemaError> {
    let mut report = Report::default();
    report
        .findings
        .extend(schema::misfit(client, schema).await?);
    report
        .findings
        .extend(schema::stranger(client, schema).await?);
    let missing = rights::missing(client, schema).await?;
    let writers = missing
        .into_iter()
        .filter_map(|(who, missing)| (who == rights::Who::Writers).then_some(missing));
    report.findings.extend(writers);
    report
        .findings
        .extend(triggers::gone(client, schema).await?);
    report
        .findings
        .extend(memberships::half_watched(client, schema).await?);
    let (adopted, unseen) = adopted::tables(client, schema).await?;
    report.findings.extend(adopted);
    report.unseen.extend(unseen);
    report
        .findings
        .extend(visibility::hidden(client, schema).await?);
    let (bridges, unseen) = bridges::bridges(client, schema, thresholds).await?;
    report.findings.extend(bridges);
    report.unseen.extend(unseen);
    report.findings.extend(marks::locks(client, schema).await?);
    report
        .findings
        .extend(marks::obstacles(client, schema).await?);
    report
        .findings
        .extend(locks::strangers(client, schema).await?);
    report
        .findings
        .extend(prune::obstacles(client, schema).await?);
    report
        .findings
        .extend(clock::skew(client, thresholds).await?);
    let (queue, unseen) = running::queue(client, thresholds).await?;
    report.findings.extend(queue);
    report.unseen.extend(unseen);
    let (held, unseen) = running::horizon(client, thresholds).await?;
    report.findings.extend(held);
    report.unseen.extend(unseen);
    report
        .findings
        .extend(running::vacuum(client, schema, thresholds).await?);
    Ok(report)
}

/// Logs a warning for each privilege that lets other roles read notifications, or create
/// objects in the schema.
///
/// # Errors
///
/// [`SchemaError`], if the check can't be completed.
pub async fn warn_of_readers(url: &DatabaseUrl, schema: &SchemaName) -> Result<(), SchemaError> {
    let client = Borrowed::to_read(url).await?;
    let findings = rights::foreign(&client, schema).await?;
    for finding in &findings {
        let Finding { found, fix, .. } = finding;
        match finding.topic {
            Subject::Read => {
                warn!("{found}, so it can read notifications; if this is not intended: {fix}");
            }
            Subject::Create => warn!(
                "{found}, so it can create objects next to those of Tidings; if this is not \
                 intended: {fix}"
            ),
            _ => {}
        }
    }
    Ok(())
}
