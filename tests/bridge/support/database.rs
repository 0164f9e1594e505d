//! One private PostgreSQL for the test process, one database a test: NOTIFY is
//! per database, so tests don't hear each other.
//!
//! Nobody is superuser here unless a test says so: each party logs in as a member
//! of its group of `sql/roles.sql`, and of no other.

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

/// Made once; each test's database is a copy of one of them.
const EMPTY_TEMPLATE: &str = "tidings_empty";
const MIGRATED_TEMPLATE: &str = "tidings_migrated";

/// Who logs in, and the groups that each is a member of.
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

/// A database of a test's own. Each party enters it as itself, or all of them as
/// somebody else ([`as_role`](Self::as_role)).
#[derive(Clone, Debug)]
pub struct Database {
    /// As the superuser.
    connection_string: String,
    /// Who everybody is, if not each themself.
    role: Option<String>,
}

impl Database {
    /// A copy of a migrated database.
    pub async fn migrated() -> Self {
        let cluster = Self::templates().await;
        Self::copy(cluster, &unused_name(), MIGRATED_TEMPLATE).await
    }

    /// A database with nothing in it, but ready for `tidings migrate`.
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

    /// A database with nothing in it, in another cluster.
    pub async fn empty_in(cluster: &Cluster) -> Self {
        Self::create(cluster, &unused_name()).await
    }

    /// A database that nobody has prepared, in a cluster that may have no roles
    /// yet.
    ///
    /// Before PostgreSQL 15 everybody may create something in `public`, which
    /// `tidings check` has to say about: here it is as from 15 on.
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

    /// A database with nothing in it, of this name. A cluster's first one brings the roles.
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

    /// Runs `sql/roles.sql`, and returns what psql said: as an error, if it
    /// failed.
    pub async fn run_roles(&self, schema: &str) -> Result<String, String> {
        self.run_roles_with(&[&format!("schema={schema}")]).await
    }

    /// The same with these variables.
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

    /// The same database, reached by another socket.
    pub fn through(&self, folder: &Path) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        self.reached_at(format!("host={} {rest}", folder.display()))
    }

    /// The same database, where everybody is this role.
    pub fn as_role(&self, role: &str) -> Self {
        Self {
            role: Some(role.to_owned()),
            ..self.clone()
        }
    }

    /// The same database, where everybody is the owner of what is in it: to
    /// migrate, to forge, to alter.
    pub fn owner(&self) -> Self {
        self.as_role(OWNER)
    }

    /// The same database, where everybody is the bridge.
    pub fn bridge(&self) -> Self {
        self.as_role(BRIDGE)
    }

    /// The same database, where everybody is somebody who watches.
    pub fn monitor(&self) -> Self {
        self.as_role(MONITOR)
    }

    /// The same database, where nothing is forbidden to anybody.
    pub fn superuser(&self) -> Self {
        self.as_role(SUPERUSER)
    }

    /// The same database, reached by TCP.
    pub fn at_host(&self, host: &str) -> Self {
        let (_, rest) = self
            .connection_string
            .split_once(' ')
            .expect("more than a host");
        self.reached_at(format!("host={host} {rest}"))
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
        let reached = format!("host={} port={} {rest}", address.ip(), address.port());
        (network, self.reached_at(reached))
    }

    fn reached_at(&self, connection_string: String) -> Self {
        Self {
            connection_string,
            role: self.role.clone(),
        }
    }

    /// Any database, reached in any way.
    pub fn at(connection_string: String) -> Self {
        Self {
            connection_string,
            role: None,
        }
    }

    /// Brings the schema public up to date.
    pub async fn migrate(&self) {
        let owner = self.url_of(OWNER);
        let migrated = schema::migrate(&owner, &SchemaName::public(), schema::LOCK_LIMIT).await;
        migrated.expect("the migrations");
    }

    /// As the bridge takes it.
    pub fn url(&self) -> DatabaseUrl {
        self.url_of(BRIDGE)
    }

    /// As the command line of a bridge takes it.
    pub fn connection_string(&self) -> String {
        self.string_of(BRIDGE)
    }

    /// As an application takes it.
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

    /// What the server calls it.
    pub fn name(&self) -> &str {
        let (_, name) = self
            .connection_string
            .split_once("dbname=")
            .expect("a name");
        name.split(' ').next().unwrap_or(name)
    }

    /// An application's connection.
    pub async fn connect(&self) -> Client {
        connect(&self.application_string()).await
    }

    /// The same, while the server may be away.
    pub async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        try_connect(&self.application_string()).await
    }

    /// Waits until the server takes connections again.
    pub async fn until_accepts(&self) {
        let trying = async {
            while self.try_connect().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(super::PATIENCE, trying).await;
        outcome.expect("the server takes connections again");
    }

    /// Runs an application's `work` in this database and waits until it is done.
    pub async fn execute(&self, work: &str) {
        self.connect().await.batch_execute(work).await.expect(work);
    }

    /// The version of the server, such as `15_00_18`.
    pub async fn server_version(&self) -> i32 {
        let query = "select current_setting('server_version_num')::int";
        let superuser = self.superuser().connect().await;
        superuser.query_one(query, &[]).await.expect(query).get(0)
    }

    /// The ids that the query selects, in the eyes of the owner.
    pub async fn ids(&self, query: &str) -> Vec<i64> {
        let owner = connect(&self.string_of(OWNER)).await;
        let rows = owner.query(query, &[]).await.expect(query);
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the query answers true, in the eyes of the owner, asking anew
    /// all the while.
    pub async fn until(&self, query: &str) {
        let client = connect(&self.string_of(OWNER)).await;
        let asking = async {
            // Many tests ask side by side, some for seconds.
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

/// A connection, or why Postgres gives none.
pub async fn try_connect(connection_string: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(connection_string, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The server's own psql, or else any.
pub fn psql() -> PathBuf {
    let binaries = PostgresBinaries::find().expect("a PostgreSQL");
    binaries.psql().unwrap_or_else(|| "psql".into())
}

fn unused_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
