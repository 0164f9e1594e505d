//! A replica: a hot standby from which pages can be read as the primary would have
//! returned them for one of its snapshots.

use std::{fmt, time::Duration};

use deadpool::managed::BuildError;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tokio_postgres::{Row, types::Type};

use crate::{
    domain::log_point::LogPoint,
    postgres::{
        connect::DatabaseUrl,
        pool::{Parameter, Pool, PoolMode, QueryError, first_row},
    },
};

/// How long a page waits until the replica has replayed what it needs, which normally
/// takes a few milliseconds. After that the primary is faster.
const REPLAY_LIMIT: Duration = Duration::from_millis(50);
const REPLAY_POLL: Duration = Duration::from_millis(4);

/// Time limit for a page, with the connection that it may have to open: a replica that is
/// slower than this doesn't make clients' returns faster.
const PAGE_LIMIT: Duration = Duration::from_secs(1);

/// A server that replicates the primary.
#[derive(Debug)]
pub struct Replica {
    url: DatabaseUrl,
    pool: Pool,
    /// Whether it has replayed enough; see `sql/replica_gate.sql`.
    gate: String,
}

/// Why a replica can't be used at the moment.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("it is no standby: it was promoted, or is a primary")]
    Promoted,
    #[error(
        "it doesn't follow this primary, or has not yet replayed that this bridge has started to \
         use it"
    )]
    OtherHistory,
    #[error("its replay is paused")]
    Paused,
    #[error("it lags behind the primary")]
    Behind,
    #[error("it can't be read")]
    Query(#[source] QueryError),
}

impl Unfit {
    /// The name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::OtherHistory => "other_history",
            Self::Paused => "paused",
            Self::Behind => "behind",
            Self::Query(_) => "failed",
        }
    }

    /// Whether the same page may succeed elsewhere or later, and others here.
    pub fn is_of_one_page(&self) -> bool {
        let Self::Query(error @ QueryError::Postgres(_)) = self else {
            return false;
        };
        error.is_of_data()
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Replica {
    /// A replica with at most `connections` connections, which are opened as needed.
    /// `gate` is `sql/replica_gate.sql` for the schema.
    ///
    /// # Errors
    ///
    /// As [`Pool::new`].
    pub fn new(
        url: DatabaseUrl,
        connections: usize,
        gate: String,
        runtime: Handle,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            // One connection of a pool is reserved for marks, of which there are none.
            pool: Pool::new(&url, PoolMode::Session, connections + 1, runtime)?,
            url,
            gate,
        })
    }

    /// Whether it follows the primary, and has replayed everything up to this point.
    ///
    /// # Errors
    ///
    /// [`Unfit`], if it can't be used.
    pub async fn prove(&self, point: &LogPoint) -> Result<(), Unfit> {
        let parameters = gate_parameters(point);
        let rows = self.pool.query(PAGE_LIMIT, &self.gate, &parameters).await;
        read_gate(&rows.map_err(Unfit::Query)?)
    }

    /// Executes a query that reads a page of this point's snapshot. Waits up to
    /// 50 ms until the replica has replayed all that it shows.
    ///
    /// # Errors
    ///
    /// [`Unfit`], if the page has to be read elsewhere.
    pub async fn query(
        &self,
        point: &LogPoint,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Unfit> {
        let give_up = Instant::now() + REPLAY_LIMIT;
        let gate = gate_parameters(point);
        loop {
            // In one session: a URL may lead to several servers.
            let both = self
                .pool
                .query_both(PAGE_LIMIT, (&self.gate, &gate), (query, parameters));
            let [proof, page] = both.await.map_err(Unfit::Query)?;
            match read_gate(&proof) {
                Ok(()) => return Ok(page),
                Err(Unfit::Behind) => self.replay(point, give_up).await?,
                Err(unfit) => return Err(unfit),
            }
        }
    }

    /// Waits until the replica has replayed up to this point.
    async fn replay(&self, point: &LogPoint, give_up: Instant) -> Result<(), Unfit> {
        loop {
            if Instant::now() + REPLAY_POLL >= give_up {
                return Err(Unfit::Behind);
            }
            sleep(REPLAY_POLL).await;
            match self.prove(point).await {
                Err(Unfit::Behind) => {}
                proof => return proof,
            }
        }
    }

    /// Closes idle connections, which may lead to another server than new ones.
    pub fn renew(&self) {
        self.pool.renew();
    }
}

fn gate_parameters(point: &LogPoint) -> [Parameter<'_>; 4] {
    let LogPoint {
        history, inserted, ..
    } = point;
    [
        (inserted, Type::PG_LSN),
        (&history.system_identifier, Type::INT8),
        (&history.incarnation.timeline, Type::INT4),
        (&history.incarnation.since, Type::TIMESTAMPTZ),
    ]
}

fn read_gate(rows: &[Row]) -> Result<(), Unfit> {
    let row = first_row(rows);
    let is = |column| {
        let value = row.try_get::<_, Option<bool>>(column);
        value.map_err(|error| Unfit::Query(error.into()))
    };
    // In this order: a server that is no standby has replayed nothing.
    if is("is_standby")? != Some(true) {
        return Err(Unfit::Promoted);
    }
    match (is("same")?, is("replayed")?, is("paused")?) {
        (Some(true), Some(true), _) => Ok(()),
        (_, Some(false), Some(true)) => Err(Unfit::Paused),
        (Some(true), _, _) => Err(Unfit::Behind),
        (_, _, _) => Err(Unfit::OtherHistory),
    }
}
