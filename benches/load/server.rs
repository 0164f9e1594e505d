//! The private PostgreSQL that everything is measured on, and its databases.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use private_postgres::{Cluster, PostgresBinaries};
use tidings::postgres::schema::{self, SchemaName};
use tokio_postgres::{Client, NoTls};

use crate::{Result, process::Process};

/// As in production: a commit waits for the disk. The cluster would be thrown
/// away anyway and has that switched off otherwise.
///
/// The log has room for a whole run, so that a checkpoint falls between runs
/// ([`Server::settle`]) and not into one of those that are compared.
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
    /// A new one.
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

    /// A new database with nothing in it.
    pub async fn empty_database(&self) -> Result<Database> {
        let name = format!("load_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        admin
            .batch_execute(&format!("create database {name}"))
            .await?;
        Ok(Database::at(self.cluster.url(&name)))
    }

    /// A new database with the tables of Tidings.
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

    /// Writes to disk what is due to be written, so that nothing of it falls
    /// into what is measured next.
    pub async fn settle(&self) -> Result<()> {
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        Ok(admin.batch_execute("checkpoint").await?)
    }

    /// The processor time of all its processes so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.process.family_cpu()
    }

    /// Its version, in its own words.
    pub async fn version(&self) -> Result<String> {
        let admin = Database::at(self.cluster.url("postgres")).connect().await?;
        Ok(admin.query_one("show server_version", &[]).await?.get(0))
    }

    /// Stops it in order.
    pub async fn stop(self) -> Result<()> {
        Ok(self.cluster.stop().await?)
    }
}

/// A database.
#[derive(Clone, Debug)]
pub struct Database {
    url: String,
}

impl Database {
    fn at(url: String) -> Self {
        Self { url }
    }

    /// Its connection string.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection, driven by a task of this runtime.
    pub async fn connect(&self) -> Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Does this, and nothing comes back.
    pub async fn execute(&self, work: &str) -> Result<()> {
        Ok(self.connect().await?.batch_execute(work).await?)
    }

    /// Has this table's pages seen and its statistics taken, as in a database
    /// that has been there for a while.
    pub async fn vacuum(&self, table: &str) -> Result<()> {
        self.execute(&format!("vacuum analyze {table}")).await
    }
}
