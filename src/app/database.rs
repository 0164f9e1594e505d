//! The database at startup: reached, checked, and migrated if allowed.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{Parts, StartError};
use crate::{
    check,
    config::{BridgeOptions, MigratePolicy, RetentionOptions},
    postgres::{
        connect::DatabaseUrl,
        crash_sign::CrashSign,
        database::Database,
        listen_probe::{self, DirectError},
        memberships::{MembershipError, MembershipSource},
        pool::{Pool, PoolMode, QueryError},
        pruner::{Pruned, Pruner},
        queries::Sql,
        schema::{self, SchemaError},
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain},
};

/// How long to retry at startup while the database can't be reached: services that are
/// started together come up in any order.
const START_LIMIT: Duration = Duration::from_secs(30);

/// First and longest wait between two attempts at startup.
const START_FIRST: Duration = Duration::from_millis(200);
const START_LONGEST: Duration = Duration::from_secs(3);

impl Database {
    /// Checks that the database can be used, and migrates it if allowed. Retries for
    /// [`START_LIMIT`] while it can't be reached.
    pub(super) async fn open(parts: &Parts, options: &BridgeOptions) -> Result<Self, StartError> {
        let (direct_url, sessions) = match &parts.direct_url {
            Some(url) => (url, PoolMode::Transaction),
            None => (&parts.url, PoolMode::Session),
        };
        let schema = &parts.schema;
        retry_while_starting(direct_url, DirectError::is_passing, || {
            listen_probe::prove(direct_url)
        })
        .await?;
        retry_while_starting(direct_url, SchemaError::is_passing, async || {
            let may_migrate = parts.migrate == MigratePolicy::Auto;
            schema::prepare(direct_url, schema, may_migrate).await?;
            check::warn_of_readers(direct_url, schema).await
        })
        .await?;
        let sign = retry_while_starting(direct_url, SchemaError::is_passing, || {
            CrashSign::of_listener(direct_url, schema)
        })
        .await?;
        let size = options.pool_size.into();
        let pool = Pool::new(&parts.url, sessions, size, Handle::current())?;
        let sign = retry_while_starting(&parts.url, QueryError::is_passing, || {
            sign.and_of_pool(&pool, schema)
        })
        .await?;
        if sign == CrashSign::Statistics {
            warn!(
                "this role may not use the table tidings_incarnation, so a reset of the server's \
                 statistics looks like a crash of Postgres; `tidings check` prints the missing \
                 GRANT"
            );
        }
        let memberships = retry_while_starting(&parts.url, MembershipError::is_passing, || {
            MembershipSource::find(&parts.url, options.memberships.as_ref())
        })
        .await?;
        Ok(Self {
            url: parts.url.clone(),
            direct_url: direct_url.clone(),
            schema: schema.clone(),
            sql: Arc::new(Sql::with_memberships(sign, schema, memberships)),
            pool,
        })
    }

    /// Queries through the pool, and retries while the database can't be reached.
    pub(super) async fn ask<T>(
        &self,
        query: impl AsyncFn() -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        retry_while_starting(&self.url, QueryError::is_passing, query).await
    }

    /// The task that removes old rows, if it is configured.
    pub(super) fn pruner(&self, options: &RetentionOptions, pruned: Arc<Pruned>) -> Option<Pruner> {
        let retentions = options.retentions()?;
        Some(Pruner {
            url: self.direct_url.clone(),
            schema: self.schema.clone(),
            retentions,
            every: options.prune_every,
            pruned,
        })
    }
}

/// Retries while `attempt` fails because the database can't be reached, for at most
/// [`START_LIMIT`].
async fn retry_while_starting<T, E: Error + 'static>(
    url: &DatabaseUrl,
    is_passing: impl Fn(&E) -> bool,
    attempt: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    let give_up = Instant::now() + START_LIMIT;
    let mut backoff = Backoff::new(START_FIRST, START_LONGEST);
    loop {
        let error = match attempt().await {
            Err(error) if is_passing(&error) => error,
            outcome => return outcome,
        };
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(error);
        }
        let error = ErrorChain(&error);
        warn!(
            %error, database = %url,
            "can't reach the database at {url}, retrying for {} s more: {error}",
            left.as_secs()
        );
        sleep(backoff.next_delay()).await;
    }
}
