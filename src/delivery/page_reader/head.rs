//! What the first row of a page says about the server in which it was read.

use tokio_postgres::{Error, Row};

use crate::{
    domain::{
        durable_floor::Log,
        history::{Incarnation, Since},
    },
    postgres::{
        pool::{Pool, QueryError, READ_LIMIT, first_row},
        queries::Sql,
    },
};

/// The incarnation of the server in which the pool's queries run. Fails on a standby.
pub async fn incarnation(pool: &Pool, sql: &Sql) -> Result<Incarnation, QueryError> {
    let rows = pool.query(READ_LIMIT, &sql.incarnation, &[]);
    Ok(read_incarnation(first_row(&rows.await?))?)
}

/// The incarnation of the server in which a statement ran, from its columns `timeline`
/// and `since`. After a crash, until a bridge begins the next incarnation, it is one that
/// equals no other.
pub fn read_incarnation(head: &Row) -> Result<Incarnation, Error> {
    Ok(Incarnation {
        timeline: head.try_get("timeline")?,
        since: head
            .try_get::<_, Option<_>>("since")?
            .unwrap_or(Since::NONE),
    })
}

pub(super) fn read_log(row: &Row) -> Result<Log, Error> {
    Ok(Log {
        inserted: row.try_get("inserted")?,
        flushed: row.try_get("flushed")?,
    })
}
