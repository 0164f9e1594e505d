//! Whether returning clients can be served from the replicas.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{
    Row,
    types::{PgLsn, Type},
};

use super::finding::{Finding, Fix, Subject};
use crate::{
    domain::history::Since,
    postgres::{
        connect::{Borrowed, DatabaseUrl, Queries},
        schema::{SchemaError, SchemaName},
    },
    runtime::error_chain::ErrorChain,
};

/// How long a replica may take to replay what is written now. A bridge waits for less, but a
/// replica that is always this far behind is of no use to it.
const REPLAY_LIMIT: Duration = Duration::from_secs(2);
const REPLAY_POLL: Duration = Duration::from_millis(100);

const EXPECTED: &str = "a standby that follows the primary closely: returning clients are served by \
                        the primary as long as it doesn't";

/// What keeps each of these replicas from being used.
pub(super) async fn unfit(
    primary: &Borrowed,
    replicas: &[DatabaseUrl],
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let mut findings = Vec::new();
    if replicas.is_empty() {
        return Ok(findings);
    }
    let query = schema.fill(include_str!("../../sql/replica_point.sql"));
    let point = primary.query_typed_one(&query, &[]).await?;
    for url in replicas {
        let finding = |(found, fix): (String, &str)| {
            let found = format!("the replica {url} {found}");
            Finding::wrong(
                Subject::Replica,
                found,
                EXPECTED,
                Fix::Advice(fix.to_owned()),
            )
        };
        findings.extend(flaw(url, &point, schema).await.map(finding));
    }
    Ok(findings)
}

/// What is wrong with a replica, and how to correct it.
async fn flaw(
    url: &DatabaseUrl,
    point: &Row,
    schema: &SchemaName,
) -> Option<(String, &'static str)> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        (
            format!("can't be read: {}", ErrorChain(error)),
            "start it, or correct TIDINGS_REPLICA_DATABASE_URL; the bridge's role and its \
             privileges come from the primary, but the replica's pg_hba.conf must admit it",
        )
    };
    let client = match Borrowed::to_read(url).await {
        Ok(client) => client,
        Err(error) => return Some(failed(&error)),
    };
    let begin = Instant::now();
    loop {
        match state(&client, point, schema).await {
            Err(error) => return Some(failed(&error)),
            Ok(State::Behind(_)) if begin.elapsed() < REPLAY_LIMIT => sleep(REPLAY_POLL).await,
            Ok(state) => return state.flaw(),
        }
    }
}

/// What a replica says of itself.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Fit,
    NoStandby,
    OtherCluster,
    OtherHistory,
    Paused,
    /// By this many bytes of the log.
    Behind(i64),
}

impl State {
    fn flaw(self) -> Option<(String, &'static str)> {
        let (found, fix) = match self {
            Self::Fit => return None,
            Self::NoStandby => (
                "is no standby: it was promoted, or is a primary".to_owned(),
                "point DATABASE_URL at the primary and TIDINGS_REPLICA_DATABASE_URL at its standbys",
            ),
            Self::OtherCluster => (
                "belongs to another cluster".to_owned(),
                "correct TIDINGS_REPLICA_DATABASE_URL",
            ),
            Self::OtherHistory => (
                "follows another primary, such as one that was replaced in a failover".to_owned(),
                "let it follow the present primary (primary_conninfo), or take it out of \
                 TIDINGS_REPLICA_DATABASE_URL",
            ),
            Self::Paused => (
                "has paused its replay".to_owned(),
                "execute `select pg_wal_replay_resume()` there as a superuser",
            ),
            Self::Behind(bytes) => (
                format!(
                    "is {bytes} bytes of the log behind after {} s",
                    REPLAY_LIMIT.as_secs()
                ),
                "look for its cause in pg_stat_replication on the primary: the network, the disk, or \
                 a long query there that max_standby_streaming_delay lets wait",
            ),
        };
        Some((found, fix))
    }
}

async fn state(
    client: &Borrowed,
    point: &Row,
    schema: &SchemaName,
) -> Result<State, tokio_postgres::Error> {
    let (inserted, cluster): (PgLsn, i64) = (
        point.try_get("inserted")?,
        point.try_get("system_identifier")?,
    );
    let (timeline, since): (Option<i32>, Option<Since>) =
        (point.try_get("timeline")?, point.try_get("since")?);
    let query = schema.fill(include_str!("../../sql/replica_state.sql"));
    let row = client
        .query_typed_one(
            &query,
            &[
                (&inserted, Type::PG_LSN),
                (&cluster, Type::INT8),
                (&timeline, Type::INT4),
                (&since, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    let is = |column| row.try_get::<_, bool>(column);
    let behind: Option<i64> = row.try_get("behind")?;
    Ok(if !is("is_standby")? {
        State::NoStandby
    } else if !is("is_of_cluster")? {
        State::OtherCluster
    } else if is("is_paused")? {
        State::Paused
    } else {
        match behind {
            Some(0) if is("is_of_history")? => State::Fit,
            Some(0) => State::OtherHistory,
            bytes => State::Behind(bytes.unwrap_or(0)),
        }
    })
}
