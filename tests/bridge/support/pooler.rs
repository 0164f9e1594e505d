//! A private PgBouncer in transaction mode, as many hosting providers put in front of their
//! databases.

use std::{fs, net::SocketAddr, os::unix::fs::MetadataExt, process::Stdio};

use nix::unistd::Uid;
use private_postgres::Cluster;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use super::deployment::filled_in;
use super::{
    PATIENCE,
    database::{Database, LOGINS},
    dev::DataFolder,
    ports::free_address,
};

/// Fewer than the bridge and the tests open, so that they share the server connections.
pub const SERVER_CONNECTIONS: usize = 3;

/// A running PgBouncer. Dropping it stops it.
pub struct Pooler {
    address: SocketAddr,
    process: Child,
    _folder: DataFolder,
}

impl Pooler {
    /// Starts a PgBouncer for all databases of a cluster.
    pub async fn before(cluster: &Cluster) -> Self {
        let sockets = cluster.folder().join("run");
        let folder = DataFolder::new();
        fs::create_dir_all(folder.path()).expect("a folder");
        let settings = folder.path().join("pgbouncer.ini");
        let users = folder.path().join("users.txt");
        let address = free_address();
        let database = format!("* = host={} port=5432", sockets.display());
        let listen = [
            format!("listen_addr = {}", address.ip()),
            format!("listen_port = {}", address.port()),
            format!("default_pool_size = {SERVER_CONNECTIONS}"),
        ];
        let users_file = users.display().to_string();
        let text = filled_in(
            "pgbouncer.ini",
            &[
                ("app = host=10.0.0.5 port=5432 dbname=app", &database),
                ("listen_addr = 127.0.0.1", &listen[0]),
                (
                    "listen_port = 6432",
                    &format!("{}\nunix_socket_dir =", listen[1]),
                ),
                ("auth_type = scram-sha-256", "auth_type = trust"),
                ("/etc/pgbouncer/userlist.txt", &users_file),
                ("default_pool_size = 20", &listen[2]),
            ],
        );
        fs::write(&settings, text).expect("a file");
        let logins = LOGINS.map(|(login, _)| format!("\"{login}\" \"\"\n"));
        fs::write(&users, logins.concat()).expect("a file");
        let program = std::env::var("PGBOUNCER").unwrap_or_else(|_| "pgbouncer".to_owned());
        let mut command = Command::new(&program);
        command
            .arg("--quiet")
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        // PgBouncer refuses to run as root, and only the server's own user may enter the folder
        // with its socket.
        if Uid::effective().is_root() {
            let owner = fs::metadata(cluster.folder()).expect("a folder");
            command.uid(owner.uid()).gid(owner.gid());
        }
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("{program}: {error}; `scripts/tools pgbouncer` prints where there is one")
        });
        let mut pooler = Self {
            address,
            process,
            _folder: folder,
        };
        pooler.accepts().await;
        pooler
    }

    async fn accepts(&mut self) {
        let asking = async {
            while TcpStream::connect(self.address).await.is_err() {
                let ended = self.process.try_wait().expect("its status");
                assert!(ended.is_none(), "PgBouncer ended: {ended:?}");
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asking).await.expect("PgBouncer accepts");
    }

    /// The same database through this pooler.
    pub fn database(&self, database: &Database) -> Database {
        let url = database.connection_string();
        let name = url.rsplit_once("dbname=").expect("a name").1;
        let (host, port) = (self.address.ip(), self.address.port());
        Database::at(format!(
            "host={host} port={port} user=tidings dbname={name}"
        ))
    }
}
