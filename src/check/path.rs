//! Whether the URLs lead to a database where a bridge can listen, read and write.

use super::{
    finding::{Finding, Fix, Subject},
    rights::{self, Who},
};
use crate::{
    postgres::{
        connect::{Borrowed, DatabaseUrl, Queries},
        listen_probe::{self, DirectError},
        schema::{SchemaError, SchemaName},
    },
    runtime::error_chain::ErrorChain,
};

const LISTENS: &str = "a dedicated session on the primary for LISTEN: without it, rows are found \
                       only by polling, or never";

/// What keeps the listener from receiving notifications.
pub async fn direct(url: &DatabaseUrl) -> Option<Finding> {
    let error = listen_probe::prove(url).await.err()?;
    let (found, fix) = match &error {
        DirectError::Connect(error) => (
            format!("can't connect to {url}: {}", ErrorChain(error)),
            "start PostgreSQL there, or correct DATABASE_URL".to_owned(),
        ),
        DirectError::Postgres(_) => (
            format!("LISTEN or NOTIFY fails at {url}: {}", ErrorChain(&error)),
            "allow this role to connect, LISTEN and NOTIFY there".to_owned(),
        ),
        DirectError::Standby(_) => (
            format!("{url} is a standby, which allows neither LISTEN nor writes"),
            "point DATABASE_URL at the primary, or list all hosts in it (host=a,b), so that the \
             bridge finds the primary"
                .to_owned(),
        ),
        DirectError::Unheard(_) => (
            format!(
                "notifications don't arrive through {url}: it goes through a pooler in \
                 transaction mode (PgBouncer's pool_mode=transaction)"
            ),
            "point TIDINGS_DIRECT_DATABASE_URL directly at Postgres; DATABASE_URL can stay \
             unchanged"
                .to_owned(),
        ),
    };
    Some(Finding::wrong(
        Subject::Path,
        found,
        LISTENS,
        Fix::Advice(fix),
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
        let expected = "the same database as TIDINGS_DIRECT_DATABASE_URL: the bridge must read \
                        rows from the database on which it listens";
        let fix = "point both at the same database on the same primary";
        Finding::wrong(Subject::Path, found, expected, Fix::Advice(fix.to_owned()))
    };
    let client = match Borrowed::to_read(url).await {
        Ok(connected) => connected,
        Err(error) => {
            return Ok(vec![wrong(format!(
                "DATABASE_URL: can't connect to {url}: {}",
                ErrorChain(&error)
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

struct SessionIdentity {
    place: String,
    role: String,
}

async fn identity(client: &Borrowed) -> Result<SessionIdentity, SchemaError> {
    let query = include_str!("../../sql/server_identity.sql");
    let row = client.query_typed_one(query, &[]).await?;
    Ok(SessionIdentity {
        place: row.try_get("place")?,
        role: row.try_get("role")?,
    })
}
