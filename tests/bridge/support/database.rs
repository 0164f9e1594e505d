//! One private PostgreSQL for the test process, and one database per test. NOTIFY is per database,
//! so tests don't receive each other's notifications.
//!
//! No connection is a superuser's unless a test requests it: each party logs in as a member of its
//! own group from `sql/roles.sql` and of no other.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use private_postgres::{Cluster, PostgresBinaries};
use tidings::postgres::{
    connect::DatabaseUrl,
    schema::{self, SchemaName},
};
use tokio::{
    sync::{OnceCell, oneshot},
    time::{MissedTickBehavior, interval},
};
use tokio_postgres::{Client, NoTls};

use super::{
    bridge::ASKS_AGAIN,
    proxy::{Proxy, Target},
};

/// Created once; each test's database is a copy of one of these.
const EMPTY_TEMPLATE: &str = "tidings_empty";
const MIGRATED_TEMPLATE: &str = "tidings_migrated";

/// The login roles. Each is a member of one group.
const SUPERUSER: &str = "tidings";
const OWNER: &str = "migrator";
const BRIDGE: &str = "bridge";
const APPLICATION: &str = "application";
const MONITOR: &str = "dashboard";
pub const LOGINS: [(&str, &str); 4] = [
    (OWNER, "tidings_owner"),
    (BRIDGE, "tidings_bridge"),
    (APPLICATION, "tidings_writer, tidings_issuer"),
    (MONITOR, "tidings_monitor"),
];

/// The cluster that most tests share. It is stopped and removed when the process ends.
pub fn shared_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        // On a separate thread with a runtime that outlives every test's runtime.
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

/// A cluster for one test, which may stop and break it.
pub async fn start_cluster() -> Cluster {
    Cluster::temporary(&[("max_connections", "300")])
        .await
        .expect("a private PostgreSQL")
}

/// The same, but it flushes its WAL only when it must, so a crash loses every commit that didn't
/// wait for the flush.
pub async fn start_forgetful_cluster() -> Cluster {
    Cluster::temporary(&[("max_connections", "300"), ("wal_writer_delay", "10s")])
        .await
        .expect("a private PostgreSQL")
}

/// A database for one test. Each party connects with its own role, or all of them with the same one
/// ([`as_role`](Self::as_role)).
#[derive(Clone, Debug)]
pub struct Database {
    /// The superuser's connection string.
    connection_string: String,
    /// The role that all parties use, if they don't each use their own.
    role: Option<String>,
}

impl Database {
    /// A copy of a migrated database.
    pub async fn migrated() -> Self {
        let cluster = Self::templates().await;
        Self::copy(cluster, &unused_name(), MIGRATED_TEMPLATE).await
    }

    /// An empty database that is ready for `tidings migrate`.
    pub async fn empty() -> Self {
        let cluster = Self::templates().await;
        Self::copy(cluster, &unused_name(), EMPTY_TEMPLATE).await
    }

    async fn templates() -> &'static Cluster {
        static MADE: OnceCell<()> = OnceCell::const_new();
        let cluster = tokio::task::spawn_blocking(shared_cluster)
            .await
            .expect("a cluster");
        let make = || async {
            Self::create(cluster, EMPTY_TEMPLATE).await;
            let migrated = Self::copy(cluster, MIGRATED_TEMPLATE, EMPTY_TEMPLATE).await;
            migrated.migrate().await;
        };
        MADE.get_or_init(make).await;
        cluster
    }

    /// An empty database in another cluster.
    pub async fn empty_in(cluster: &Cluster) -> Self {
        Self::create(cluster, &unused_name()).await
    }

    /// A database without the schema privileges that `sql/roles.sql` sets up, in a cluster that may
    /// not have the roles yet.
    ///
    /// Before PostgreSQL 15, every role may create objects in `public`, which `tidings check`
    /// reports. Here that privilege is revoked, as in version 15 and later.
    pub async fn bare(cluster: &Cluster, name: &str) -> Self {
        let database = Self::copy(cluster, name, "template0").await;
        let close = "revoke create on schema public from public";
        database.superuser().execute(close).await;
        database
    }

    /// A migrated database in another cluster.
    pub async fn migrated_in(cluster: &Cluster) -> Self {
        let database = Self::empty_in(cluster).await;
        database.migrate().await;
        database
    }

    /// An empty database with this name. The first one in a cluster also creates the roles.
    pub async fn create(cluster: &Cluster, name: &str) -> Self {
        let database = Self::bare(cluster, name).await;
        database.prepare("public").await;
        let superuser = database.superuser().connect().await;
        for (login, groups) in LOGINS {
            let exists = "select to_regrole($1) is not null";
            let row = superuser.query_one(exists, &[&login]).await.expect(login);
            if !row.get::<_, bool>(0) {
                let create = format!("create role {login} login in role {groups}");
                superuser.batch_execute(&create).await.expect(login);
            }
        }
        database
    }

    /// A copy of `template`.
    pub async fn copy(cluster: &Cluster, name: &str, template: &str) -> Self {
        let admin = connect(&cluster.url("postgres")).await;
        let create = format!("create database {name} template {template}");
        admin.batch_execute(&create).await.expect("a database");
        Self::at(cluster.url(name))
    }

    /// Prepares a schema for the roles, as a DBA does.
    pub async fn prepare(&self, schema: &str) {
        let said = self.superuser().run_roles(schema).await;
        assert!(said.is_ok(), "{said:?}");
    }

    /// Runs `sql/roles.sql` and returns the output of psql, as an error if it failed.
    pub async fn run_roles(&self, schema: &str) -> Result<String, String> {
        self.run_roles_with(&[&format!("schema={schema}")]).await
    }

    /// The same with these psql variables.
    pub async fn run_roles_with(&self, variables: &[&str]) -> Result<String, String> {
        let mut psql = Command::new(psql());
        psql.args(["-X", "-q", "-d", &self.string_of(APPLICATION)])
            .args(variables.iter().flat_map(|variable| ["-v", *variable]))
            .args(["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/sql/roles.sql")]);
        let running = tokio::task::spawn_blocking(move || psql.output());
        let output = running.await.expect("no panic").expect("psql");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(said),
        }
    }

    /// The same database through another Unix socket.
    pub fn through(&self, folder: &Path) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        self.reached_at(format!("host={} {rest}", folder.display()))
    }

    /// The same database, with all parties connecting as this role.
    pub fn as_role(&self, role: &str) -> Self {
        Self {
            role: Some(role.to_owned()),
            ..self.clone()
        }
    }

    /// The same database, with all parties connecting as the owner of its objects: for migrating,
    /// forging and altering.
    pub fn owner(&self) -> Self {
        self.as_role(OWNER)
    }

    /// The same database, with all parties connecting as the bridge.
    pub fn bridge(&self) -> Self {
        self.as_role(BRIDGE)
    }

    /// The same database, with all parties connecting as the monitoring role.
    pub fn monitor(&self) -> Self {
        self.as_role(MONITOR)
    }

    /// The same database, with all parties connecting as the superuser.
    pub fn superuser(&self) -> Self {
        self.as_role(SUPERUSER)
    }

    /// The same database over TCP.
    pub fn at_host(&self, host: &str) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        self.reached_at(format!("host={host} {rest}"))
    }

    /// The same database through a network that a test can break.
    pub async fn over_network(&self) -> (Proxy, Self) {
        let (host, rest) = self
            .connection_string
            .split_once(" port=5432 ")
            .expect("a port");
        let folder = host.strip_prefix("host=").expect("a folder");
        let socket = Path::new(folder).join(".s.PGSQL.5432");
        let network = Proxy::to(Target::Unix(socket)).await;
        let address = network.address();
        let reached = format!("host={} port={} {rest}", address.ip(), address.port());
        (network, self.reached_at(reached))
    }

    fn reached_at(&self, connection_string: String) -> Self {
        Self {
            connection_string,
            role: self.role.clone(),
        }
    }

    /// Any database, from its connection string.
    pub fn at(connection_string: String) -> Self {
        Self {
            connection_string,
            role: None,
        }
    }

    /// Migrates the schema `public` to the current version.
    pub async fn migrate(&self) {
        let owner = self.url_of(OWNER);
        let migrated = schema::migrate(&owner, &SchemaName::public(), schema::LOCK_LIMIT).await;
        migrated.expect("the migrations");
    }

    /// The URL that the bridge uses.
    pub fn url(&self) -> DatabaseUrl {
        self.url_of(BRIDGE)
    }

    /// The connection string for a bridge's command line.
    pub fn connection_string(&self) -> String {
        self.string_of(BRIDGE)
    }

    /// The connection string for an application.
    pub fn application_string(&self) -> String {
        self.string_of(APPLICATION)
    }

    fn url_of(&self, party: &str) -> DatabaseUrl {
        self.string_of(party).parse().expect("a connection string")
    }

    fn string_of(&self, party: &str) -> String {
        let user = format!("user={}", self.role.as_deref().unwrap_or(party));
        let superuser = format!("user={SUPERUSER}");
        self.connection_string.replace(&superuser, &user)
    }

    pub fn name(&self) -> &str {
        let (_, name) = self
            .connection_string
            .split_once("dbname=")
            .expect("a name");
        name.split(' ').next().unwrap_or(name)
    }

    /// A connection of the application.
    pub async fn connect(&self) -> Client {
        connect(&self.application_string()).await
    }

    /// The same, for when the server may be unavailable.
    pub async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        try_connect(&self.application_string()).await
    }

    /// Waits until the server accepts connections again.
    pub async fn until_accepts(&self) {
        let trying = async {
            while self.try_connect().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(super::PATIENCE, trying).await;
        outcome.expect("the server takes connections again");
    }

    /// Runs `work` as the application and waits until it is done.
    pub async fn execute(&self, work: &str) {
        self.connect().await.batch_execute(work).await.expect(work);
    }

    /// The version of the server, such as `15_00_18`.
    pub async fn server_version(&self) -> i32 {
        let query = "select current_setting('server_version_num')::int";
        let superuser = self.superuser().connect().await;
        superuser.query_one(query, &[]).await.expect(query).get(0)
    }

    /// The ids that the query selects when the owner runs it.
    pub async fn ids(&self, query: &str) -> Vec<i64> {
        let owner = connect(&self.string_of(OWNER)).await;
        let rows = owner.query(query, &[]).await.expect(query);
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Polls until the query returns true when the owner runs it.
    pub async fn until(&self, query: &str) {
        let client = connect(&self.string_of(OWNER)).await;
        let asking = async {
            // Many tests poll at the same time, some of them for seconds.
            let mut pace = interval(ASKS_AGAIN);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !client
                .query_one(query, &[])
                .await
                .expect(query)
                .get::<_, bool>(0)
            {
                pace.tick().await;
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

/// A connection, or the error that Postgres returned.
pub async fn try_connect(connection_string: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(connection_string, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The server's own psql if it has one, otherwise the one in `PATH`.
pub fn psql() -> PathBuf {
    let binaries = PostgresBinaries::find().expect("a PostgreSQL");
    binaries.psql().unwrap_or_else(|| "psql".into())
}

fn unused_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
