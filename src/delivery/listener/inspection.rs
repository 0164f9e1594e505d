//! Inspects whether the doorbell works and whether the bridge can see all rows.

use std::time::Duration;

use tokio_postgres::{Client, error::SqlState};
use tracing::{debug, info};

use super::session::{ListenError, Session};
use crate::{
    delivery::{
        adopted_marks::{AdoptedMarks, MarkedTable},
        bridge_count::BridgeCount,
        health::{Doorbell, Health},
    },
    postgres::{
        database::Database,
        visibility::{self, HiddenRows, Readers},
    },
    runtime::error_chain::ErrorChain,
};

/// The trigger that sends NOTIFY.
const TRIGGER: &str = "tidings_ring_doorbell";

/// How often the doorbell and the visibility of rows are inspected.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is informed of the results.
pub struct Inspected<'a> {
    pub health: &'a Health,
    pub adopted: &'a AdoptedMarks,
    pub bridges: &'a BridgeCount,
}

/// Checks that the trigger works and that no rows are hidden. Returns the time until the
/// next check. Rows that were meanwhile restored from another cluster are restamped, some
/// at a time.
pub async fn inspect(
    session: &Session,
    database: &Database,
    Inspected {
        health,
        adopted,
        bridges,
    }: Inspected<'_>,
) -> Result<Duration, ListenError> {
    let Database { schema, sql, .. } = database;
    let client = &session.client;
    let table = schema.qualified("notifications");
    let row = client
        .query_one(&session.doorbell, &[&table, &TRIGGER])
        .await?;
    let found: Option<u32> = row.try_get("table_oid")?;
    if found != Some(session.table) {
        return Err(ListenError::OtherTable);
    }
    let hidden = visibility::examine(client, schema, Readers::Session).await?;
    read_queue_usage(client, health).await?;
    adopted.set_tables(read_marked_tables(client, &sql.marked_tables).await?);
    count_bridges(client, &sql.bridge_count, bridges).await?;
    let fires: Option<i8> = row.try_get("trigger")?;
    let subscription: Option<String> = row.try_get("subscription")?;
    let mut doorbell = match (subscription, fires.map(|fires| fires as u8)) {
        (Some(subscription), _) => Doorbell::Bypassed { subscription },
        (None, None) => Doorbell::Missing(schema.clone()),
        (None, Some(b'O' | b'A')) => Doorbell::InOrder,
        (None, Some(_)) => Doorbell::Disabled(schema.clone()),
    };
    if let Some(hidden) = hidden.into_iter().find(HiddenRows::stops_delivery) {
        doorbell = Doorbell::Hidden(hidden);
    }
    let mut again = INTERVAL;
    if row.try_get("restored")? {
        match client.execute(&sql.restamp_restored_rows, &[]).await {
            Ok(rows) => {
                info!(rows, "restamped {rows} rows of another cluster");
                again = Duration::ZERO;
            }
            Err(error) => {
                let error = ErrorChain(&error);
                debug!(%error, "could not restamp rows of another cluster: {error}");
                doorbell = Doorbell::Restored;
            }
        }
    }
    health.inspected(doorbell);
    Ok(again)
}

/// Reads in which tables of applications rows are marked. Not every role may read it.
async fn read_marked_tables(client: &Client, query: &str) -> Result<Vec<MarkedTable>, ListenError> {
    match client.query_typed(query, &[]).await {
        Ok(rows) => {
            let tables = rows
                .iter()
                .map(|row| Ok((row.try_get("schema")?, row.try_get("name")?)));
            tables.collect()
        }
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let error = ErrorChain(&error);
            debug!(%error, "can't read which tables were adopted: {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Counts the bridges that are connected. Not every role may read it.
async fn count_bridges(
    client: &Client,
    query: &str,
    bridges: &BridgeCount,
) -> Result<(), ListenError> {
    match client.query_typed_one(query, &[]).await {
        Ok(row) => {
            let count: i64 = row.try_get("bridges")?;
            bridges.set(u32::try_from(count).unwrap_or(u32::MAX));
        }
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let error = ErrorChain(&error);
            debug!(%error, "can't count the bridges: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Reads how full the server's notification queue is. Not every role may read it.
async fn read_queue_usage(client: &Client, health: &Health) -> Result<(), ListenError> {
    let query = include_str!("../../../sql/queue_usage.sql");
    match client.query_typed_one(query, &[]).await {
        Ok(row) => health.queue_used(row.try_get("usage")?),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let error = ErrorChain(&error);
            debug!(%error, "can't read how full the notification queue is: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
