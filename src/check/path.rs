//! Whether the URLs lead to a database where a bridge can listen, read and write.

use super::{
    finding::{Cure, Finding, Topic},
    rights::{self, Who},
};
use crate::postgres::{
    connect::{Borrowed, DatabaseUrl, Queries},
    listen_probe::{self, DirectError},
    schema::{SchemaError, SchemaName},
};

const LISTENS: &str = "a session of its own on the primary, for LISTEN: without it rows are found \
                       only by looking, or never";

/// What keeps the listener from receiving notifications.
pub async fn direct(url: &DatabaseUrl) -> Option<Finding> {
    let error = listen_probe::prove(url).await.err()?;
    let (found, cure) = match &error {
        DirectError::Connect(error) => (
            format!("no connection to {url}: {error}"),
            "start PostgreSQL there, or correct DATABASE_URL".to_owned(),
        ),
        DirectError::Postgres(_) => (
            format!("{url} refuses to listen or to ring: {error}"),
            "let this role connect, LISTEN and NOTIFY there".to_owned(),
        ),
        DirectError::Standby(_) => (
            format!("{url} is a standby, where nobody can LISTEN or write"),
            "point DATABASE_URL at the primary, or name all hosts in it (host=a,b), and the \
             primary among them is found"
                .to_owned(),
        ),
        DirectError::Unheard(_) => (
            format!(
                "notifications don't arrive through {url}: a pooler is in front of it that lends \
                 sessions for one transaction at a time (PgBouncer's pool_mode=transaction)"
            ),
            "set TIDINGS_DIRECT_DATABASE_URL to Postgres itself; DATABASE_URL may stay as it is"
                .to_owned(),
        ),
    };
    Some(Finding::wrong(
        Topic::Path,
        found,
        LISTENS,
        Cure::Advice(cure),
    ))
}

/// What is wrong with the pooled URL: where it leads, and which privileges its role
/// lacks.
pub(super) async fn pooled(
    direct: &Borrowed,
    url: &DatabaseUrl,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let wrong = |found| {
        let expected = "the same database as TIDINGS_DIRECT_DATABASE_URL: what is heard of on one \
                        must be read on the same";
        let cure = "let both lead to the primary of the same server, and to the same database";
        Finding::wrong(Topic::Path, found, expected, Cure::Advice(cure.to_owned()))
    };
    let client = match Borrowed::to_read(url).await {
        Ok(connected) => connected,
        Err(error) => {
            return Ok(vec![wrong(format!(
                "DATABASE_URL: no connection to {url}: {error}"
            ))]);
        }
    };
    let (here, there) = (identity(direct).await?, identity(&client).await?);
    if here.place != there.place {
        return Ok(vec![wrong(format!(
            "DATABASE_URL ({url}) leads to another server or database, or to a standby"
        ))]);
    }
    if here.role == there.role {
        return Ok(Vec::new());
    }
    let missing = rights::missing(&client, schema).await?;
    let own = missing
        .into_iter()
        .filter_map(|(who, missing)| (who == Who::Bridge).then_some(missing));
    Ok(own.collect())
}

struct Identity {
    place: String,
    role: String,
}

async fn identity(client: &Borrowed) -> Result<Identity, SchemaError> {
    let query = include_str!("../../sql/server_identity.sql");
    let row = client.query_typed_one(query, &[]).await?;
    Ok(Identity {
        place: row.try_get("place")?,
        role: row.try_get("role")?,
    })
}
