//! The private PostgreSQL used for all measurements, and its databases.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use private_postgres::{Cluster, PostgresBinaries};
use tidings::postgres::schema::{self, SchemaName};
use tokio_postgres::{Client, NoTls};

use crate::{Result, process::Process};

/// As in production, a commit waits for the disk. By default this is switched off,
/// because the cluster is temporary.
///
/// The log is large enough for a whole run, so that a checkpoint happens between runs
/// ([`Server::settle`]) and not during one of those that are compared.
const SETTINGS: [(&str, &str); 7] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "8GB"),
    ("min_wal_size", "1GB"),
    ("checkpoint_timeout", "1h"),
    ("max_connections", "300"),
];

/// A running PostgreSQL. It is stopped and removed when this is dropped.
pub struct Server {
    cluster: Cluster,
    process: Process,
    databases: AtomicU32,
}

impl Server {
    pub async fn start() -> Result<Self> {
        let binaries = PostgresBinaries::find()?;
        let cluster = Cluster::temporary_of(&binaries, &SETTINGS).await?;
        let pid = cluster.postmaster_pid().ok_or("PostgreSQL ended")?;
        Ok(Self {
            cluster,
            process: Process::with_id(pid),
            databases: AtomicU32::new(0),
        })
    }

    /// Creates an empty database.
    pub async fn empty_database(&self) -> Result<Database> {
        let name = format!("load_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        admin
            .batch_execute(&format!("create database {name}"))
            .await?;
        Ok(Database::at(self.cluster.url(&name)))
    }

    /// Creates a database with the tables of Tidings.
    pub async fn database(&self) -> Result<Database> {
        let database = self.empty_database().await?;
        schema::migrate(
            &database.url.parse()?,
            &SchemaName::public(),
            schema::LOCK_LIMIT,
        )
        .await?;
        Ok(database)
    }

    /// A replica of it, with all its databases.
    pub async fn replica(&self) -> Result<Cluster> {
        Ok(self.cluster.standby().await?)
    }

    /// Writes pending changes to disk, so that the next measurement doesn't include that.
    pub async fn settle(&self) -> Result<()> {
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        Ok(admin.batch_execute("checkpoint").await?)
    }

    /// The processor time of all its processes so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.process.family_cpu()
    }

    /// The version that it reports.
    pub async fn version(&self) -> Result<String> {
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        Ok(admin.query_one("show server_version", &[]).await?.get(0))
    }

    /// Stops it in order.
    pub async fn stop(self) -> Result<()> {
        Ok(self.cluster.stop().await?)
    }
}

#[derive(Clone, Debug)]
pub struct Database {
    url: String,
}

impl Database {
    fn at(url: String) -> Self {
        Self { url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn name(&self) -> &str {
        self.url.rsplit_once("dbname=").map_or("", |(_, name)| name)
    }

    /// A connection, driven by a task of this runtime.
    pub async fn connect(&self) -> Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs a statement that returns no rows.
    pub async fn execute(&self, work: &str) -> Result<()> {
        Ok(self.connect().await?.batch_execute(work).await?)
    }

    /// Vacuums and analyzes this table, as in a database that has existed for a while.
    pub async fn vacuum(&self, table: &str) -> Result<()> {
        self.execute(&format!("vacuum analyze {table}")).await
    }
}
