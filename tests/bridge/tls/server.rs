//! A PostgreSQL with TLS, reached over TCP.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use private_postgres::{Cluster, PostgresBinaries};
use tidings::postgres::connect::{self, ConnectError};

use crate::support::database::Database;
use crate::support::tls::authority::Authority;

/// The name in its certificate. It is never resolved, since the address is given as well.
pub const NAME: &str = "db.tidings.test";

/// Which roles may connect over TCP, and how. The bridge's roles may only connect over TLS.
const ACCESS: &str = "
local     all all          trust
hostssl   all tidings,migrator,bridge,application all trust
hostssl   all certified all cert
hostssl   all scrammed  all scram-sha-256
hostnossl all scrammed  all scram-sha-256
hostnossl all clear     all trust
";

/// The binaries under test, unless they were built without TLS: what the bridge sends a server
/// before anything else is the same for all versions.
fn binaries() -> PostgresBinaries {
    match std::env::var_os("PG_TLS_BIN_DIR") {
        Some(folder) => PostgresBinaries::at(Path::new(&folder)).expect("PG_TLS_BIN_DIR"),
        None => PostgresBinaries::find().expect("a PostgreSQL"),
    }
}

/// The server, and the authority that signed its certificate.
pub struct Server {
    cluster: Cluster,
    pub authority: Authority,
    address: String,
}

impl Server {
    pub async fn start() -> Self {
        // All clusters use the same port, and other processes may run these tests, so each takes
        // its own loopback address.
        static NEXT: AtomicU8 = AtomicU8::new(2);
        let [.., high, low] = std::process::id().to_be_bytes();
        let last = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.{}.{low}.{last}", high.max(1));
        let cluster = Cluster::temporary_of(&binaries(), &[("listen_addresses", &address)])
            .await
            .expect("a private PostgreSQL");
        let server = Self {
            cluster,
            authority: Authority::new(),
            address,
        };
        server.turn_on().await;
        server
    }

    /// Enables TLS and lets the tests' roles connect.
    async fn turn_on(&self) {
        let folder = self.cluster.folder();
        let write = |name: &str, text: String| -> PathBuf {
            let path = folder.join(name);
            fs::write(&path, text).expect("a file");
            // Postgres rejects a key that others can read.
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("permissions");
            let owner = fs::metadata(folder).expect("its folder");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("an owner");
            path
        };
        let (certificate, key) = self.authority.sign(NAME, &[NAME]);
        let authority = fs::read_to_string(self.authority.file()).expect("a certificate");
        let settings = [
            ("ssl_cert_file", write("server.crt", certificate)),
            ("ssl_key_file", write("server.key", key)),
            ("ssl_ca_file", write("authority.crt", authority)),
        ];
        let postgres = Database::at(self.cluster.url("postgres")).superuser();
        postgres
            .execute(
                "create role certified login; create role clear login;
                 set password_encryption = 'scram-sha-256';
                 create role scrammed login password 'a good one'",
            )
            .await;
        let client = postgres.connect().await;
        let row = client.query_one("show hba_file", &[]).await;
        let access: String = row.expect("a setting").get(0);
        fs::write(access, ACCESS).expect("a file");
        for (name, path) in settings {
            let set = format!("alter system set {name} = '{}'", path.display());
            postgres.execute(&set).await;
        }
        postgres.execute("alter system set ssl = on").await;
        postgres.execute("select pg_reload_conf()").await;
        postgres
            .until("select setting = 'on' from pg_settings where name = 'ssl'")
            .await;
    }

    /// Creates a database, to be reached with these connection parameters.
    pub async fn database(&self, how: &str) -> Database {
        let database = Database::empty_in(&self.cluster).await;
        let text = database.connection_string();
        let (_, name) = text.split_once("dbname=").expect("a database");
        Database::at(format!(
            "hostaddr={} user=tidings dbname={name} {how}",
            self.address
        ))
    }

    /// The same database over the Unix socket, for what an operator does besides the bridge.
    pub fn beside(&self, database: &Database) -> Database {
        let text = database.connection_string();
        let (_, name) = text.split_once("dbname=").expect("a database");
        let name = name.split(' ').next().unwrap_or(name);
        Database::at(self.cluster.url(name))
    }

    /// Whether a connection of the bridge's own code with these parameters is encrypted.
    pub async fn encrypts(&self, how: &str) -> Result<bool, ConnectError> {
        // The last value wins, so `how` may name another user.
        let text = format!(
            "hostaddr={} user=tidings dbname=postgres {how}",
            self.address
        );
        encrypts(&text).await
    }

    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Whether a connection with this connection string is encrypted.
pub async fn encrypts(text: &str) -> Result<bool, ConnectError> {
    let url = text.parse().expect(text);
    let (client, _driver) = connect::connect(&url, |_| ()).await?;
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(query, &[]).await?;
    Ok(row.get(0))
}
