//! Processes of a server that are frozen, as if their machine hung: connections to them stay open,
//! the kernel still accepts connections and bytes for them, and nothing responds.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::Cluster;
use tokio_postgres::NoTls;

use super::database::Database;

/// Dropping it resumes the processes.
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// Freezes all processes of a running server.
    pub async fn freeze(cluster: &Cluster) -> Self {
        let config = cluster.config("postgres");
        let (client, connection) = config.connect(NoTls).await.expect("a connection");
        tokio::spawn(connection);
        let postmaster = cluster.postmaster_pid().expect("a server");
        let mut frozen = Self(Vec::new());
        // The postmaster first, so that it starts no process that the query doesn't see.
        frozen.stop(postmaster);
        let others = "select pid from pg_stat_activity where pid <> pg_backend_pid() \
                      union all select pg_backend_pid()";
        for row in client.query(others, &[]).await.expect(others) {
            frozen.stop(row.get(0));
        }
        frozen
    }

    /// Freezes sessions that are waiting for a query. A session frozen while it holds one of the
    /// server's locks would block the others too. An idle session may be reading the notification
    /// queue; one that waits for its client is not.
    pub async fn between_queries(database: &Database, sessions: &[i32]) -> Self {
        let watcher = database.superuser().connect().await;
        let query = "select bool_and(state = 'idle' and wait_event = 'ClientRead') \
                     from pg_stat_activity where pid = any($1)";
        loop {
            let mut frozen = Self(Vec::new());
            sessions.iter().for_each(|&pid| frozen.stop(pid));
            let state = watcher.query_one(query, &[&sessions]).await;
            if state.expect("their state").get(0) {
                return frozen;
            }
        }
    }

    fn stop(&mut self, pid: i32) {
        let pid = Pid::from_raw(pid);
        // The backend may have exited by itself.
        if kill(pid, Signal::SIGSTOP).is_ok() {
            self.0.push(pid);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &pid in &self.0 {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}
