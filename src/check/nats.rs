//! Whether bridges can exchange messages through NATS.

use tokio_postgres::types::Type;

use super::finding::{Finding, Fix, Subject};
use crate::{
    delivery::feed::FeedPlace,
    fanout::{self, NatsServers, ProbeFlaw},
    postgres::{
        connect::{Borrowed, Queries},
        schema::{SchemaError, SchemaName},
    },
};

const EXPECTED: &str = "each server passes messages on to the bridges at all of them: without \
                        messages, each bridge polls the database for itself";

/// What keeps bridges of this table from exchanging messages.
pub(super) async fn flaws(
    client: &Borrowed,
    servers: Option<&NatsServers>,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let Some(servers) = servers else {
        return Ok(Vec::new());
    };
    let query = include_str!("../../sql/feed_place.sql");
    let table = schema.qualified("notifications");
    let row = client
        .query_typed_one(query, &[(&table, Type::TEXT)])
        .await?;
    // Without a table, other findings say so.
    let Some(table) = row.try_get("table_oid")? else {
        return Ok(Vec::new());
    };
    let place = FeedPlace {
        system_identifier: row.try_get("system_identifier")?,
        database: row.try_get("database_oid")?,
        table,
    };
    let subject = format!("{}.check", place.subject());
    let flaws = fanout::probe(servers, &subject).await;
    Ok(flaws.into_iter().map(|flaw| finding(flaw, place)).collect())
}

fn finding(flaw: ProbeFlaw, place: FeedPlace) -> Finding {
    let (found, fix) = match flaw {
        ProbeFlaw::Unreachable { server, reason } => (
            format!("the NATS server {server} can't be used: {reason}"),
            "start it, or correct TIDINGS_NATS_URL and its files".to_owned(),
        ),
        ProbeFlaw::Denied { server } => (
            format!("a message that was sent to the NATS server {server} does not come back"),
            format!(
                "permit the bridges' user to publish and to subscribe on {}.*",
                place.subject()
            ),
        ),
        ProbeFlaw::Apart { from, to } => (
            format!("messages that are sent to the NATS server {from} don't arrive at {to}"),
            "connect the servers of TIDINGS_NATS_URL with routes, so that they are one cluster"
                .to_owned(),
        ),
    };
    Finding::wrong(Subject::Nats, found, EXPECTED, Fix::Advice(fix))
}
