//! One private PostgreSQL for the test process, one database a test: NOTIFY is
//! per database, so tests don't hear each other.

use std::{
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use tidings::{cluster::Cluster, database::DatabaseUrl, schema, schema::SchemaName};
use tokio::sync::{OnceCell, oneshot};
use tokio_postgres::{Client, NoTls};

use super::proxy::{Proxy, Target};

/// Migrated once; each test's database is a copy of it.
const TEMPLATE: &str = "tidings_template";

/// The cluster that most tests share. It is stopped and removed when the
/// process ends.
pub fn shared_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        // On a thread whose runtime outlives every test's.
        let (sender, receiver) = oneshot::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let _ = sender.send(start_cluster().await);
                std::future::pending::<()>().await;
            });
        });
        receiver.blocking_recv().expect("a cluster")
    })
}

/// A cluster of a test's own, which it may stop and break.
pub async fn start_cluster() -> Cluster {
    Cluster::temporary(&[("max_connections", "300")])
        .await
        .expect("a private PostgreSQL")
}

/// The same, and it writes its log only when it must: a crash forgets what
/// nobody waited for.
pub async fn start_forgetful_cluster() -> Cluster {
    Cluster::temporary(&[("max_connections", "300"), ("wal_writer_delay", "10s")])
        .await
        .expect("a private PostgreSQL")
}

/// A database of a test's own.
#[derive(Clone, Debug)]
pub struct Database {
    connection_string: String,
}

impl Database {
    /// A copy of a migrated database.
    pub async fn migrated() -> Self {
        static MIGRATED: OnceCell<()> = OnceCell::const_new();
        let cluster = tokio::task::spawn_blocking(shared_cluster)
            .await
            .expect("a cluster");
        MIGRATED
            .get_or_init(|| async {
                let template = Self::create(cluster, TEMPLATE, "template1").await;
                template.migrate().await;
            })
            .await;
        Self::create(cluster, &unused_name(), TEMPLATE).await
    }

    /// A database without anything in it.
    pub async fn empty() -> Self {
        let cluster = tokio::task::spawn_blocking(shared_cluster)
            .await
            .expect("a cluster");
        Self::empty_in(cluster).await
    }

    /// The same, in another cluster.
    pub async fn empty_in(cluster: &Cluster) -> Self {
        Self::create(cluster, &unused_name(), "template0").await
    }

    /// The same database, reached by another socket.
    pub fn through(&self, folder: &Path) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        Self {
            connection_string: format!("host={} {rest}", folder.display()),
        }
    }

    /// The same database, as somebody else.
    pub fn as_role(&self, role: &str) -> Self {
        let role = format!("user={role}");
        Self {
            connection_string: self.connection_string.replace("user=tidings", &role),
        }
    }

    /// The same database, reached by TCP.
    pub fn at_host(&self, host: &str) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        Self {
            connection_string: format!("host={host} {rest}"),
        }
    }

    /// The same database, reached over a network that a test can break.
    pub async fn over_network(&self) -> (Proxy, Self) {
        let (host, rest) = self
            .connection_string
            .split_once(" port=5432 ")
            .expect("a port");
        let folder = host.strip_prefix("host=").expect("a folder");
        let socket = Path::new(folder).join(".s.PGSQL.5432");
        let network = Proxy::to(Target::Unix(socket)).await;
        let address = network.address();
        let connection_string = format!("host={} port={} {rest}", address.ip(), address.port());
        (network, Self { connection_string })
    }

    /// Any database, reached in any way.
    pub fn at(connection_string: String) -> Self {
        Self { connection_string }
    }

    /// A copy of `template`.
    pub async fn create(cluster: &Cluster, name: &str, template: &str) -> Self {
        let admin = connect(&cluster.url("postgres")).await;
        let create = format!("create database {name} template {template}");
        admin.batch_execute(&create).await.expect("a database");
        Self {
            connection_string: cluster.url(name),
        }
    }

    /// Brings the schema public up to date.
    pub async fn migrate(&self) {
        schema::migrate(&self.url(), &SchemaName::public())
            .await
            .expect("the migrations");
    }

    /// As the bridge takes it.
    pub fn url(&self) -> DatabaseUrl {
        self.connection_string.parse().expect("a connection string")
    }

    /// As the command line takes it.
    pub fn connection_string(&self) -> &str {
        &self.connection_string
    }

    /// An application's connection, as the superuser.
    pub async fn connect(&self) -> Client {
        connect(&self.connection_string).await
    }

    /// The same, while the server may be away.
    pub async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.connection_string, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Waits until the server takes connections again.
    pub async fn until_accepts(&self) {
        let trying = async {
            while tokio_postgres::connect(&self.connection_string, NoTls)
                .await
                .is_err()
            {
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(super::PATIENCE, trying).await;
        outcome.expect("the server takes connections again");
    }

    /// Runs `work` in this database and waits until it is done.
    pub async fn execute(&self, work: &str) {
        self.connect().await.batch_execute(work).await.expect(work);
    }

    /// The ids that the query selects.
    pub async fn ids(&self, query: &str) -> Vec<i64> {
        let rows = self.connect().await.query(query, &[]).await.expect(query);
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the query answers true, asking anew all the while.
    pub async fn until(&self, query: &str) {
        let client = self.connect().await;
        let asking = async {
            while !client
                .query_one(query, &[])
                .await
                .expect(query)
                .get::<_, bool>(0)
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(super::PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("never: {query}"));
    }
}

async fn connect(connection_string: &str) -> Client {
    try_connect(connection_string).await.expect("a connection")
}

/// A connection, or why Postgres gives none.
pub async fn try_connect(connection_string: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(connection_string, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn unused_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
