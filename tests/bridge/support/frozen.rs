//! Processes of a server that are frozen, as if their machine hung: what is
//! connected to them stays so, the kernel takes more connections and bytes for
//! them, and nothing answers.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::Cluster;
use tokio_postgres::NoTls;

use super::database::Database;

/// Dropping it thaws them.
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// Freezes all processes of a running server.
    pub async fn freeze(cluster: &Cluster) -> Self {
        let config = cluster.config("postgres");
        let (client, connection) = config.connect(NoTls).await.expect("a connection");
        tokio::spawn(connection);
        let postmaster = cluster.postmaster_pid().expect("a server");
        let mut frozen = Self(Vec::new());
        // First, so that it starts no process that the query doesn't see.
        frozen.stop(postmaster);
        let others = "select pid from pg_stat_activity where pid <> pg_backend_pid() \
                      union all select pg_backend_pid()";
        for row in client.query(others, &[]).await.expect(others) {
            frozen.stop(row.get(0));
        }
        frozen
    }

    /// Freezes sessions that wait for a query: one that is frozen while it holds
    /// a lock of the server would freeze the others too. One that is idle may just
    /// be reading the queue of notifications; one that waits for its client is not.
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
        // A backend may just have ended by itself.
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
