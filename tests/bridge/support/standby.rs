//! A hot standby, and its promotion.

use private_postgres::Cluster;
use tokio_postgres::NoTls;

use super::database::Database;

/// A server that replicates another one.
pub struct Standby(Cluster);

impl Standby {
    pub async fn of(primary: &Cluster) -> Self {
        Self(primary.standby().await.expect("a standby"))
    }

    pub fn cluster(&self) -> &Cluster {
        &self.0
    }

    /// Waits until it has replayed everything that is committed on its primary now.
    pub async fn follows(&self, primary: &Cluster) {
        let (client, connection) = primary
            .config("postgres")
            .connect(NoTls)
            .await
            .expect("the primary");
        tokio::spawn(connection);
        let now = "select pg_current_wal_insert_lsn()::text";
        let now: String = client.query_one(now, &[]).await.expect(now).get(0);
        // WAL that isn't flushed yet, such as that of an asynchronous commit, is not sent.
        client.batch_execute("checkpoint").await.expect("a flush");
        Database::at(self.0.url("postgres"))
            .superuser()
            .until(&format!("select pg_last_wal_replay_lsn() >= '{now}'"))
            .await;
    }

    /// Promotes it to primary. Returns once it accepts writes.
    pub async fn promote(&self) {
        let database = Database::at(self.0.url("postgres")).superuser();
        database.execute("select pg_promote()").await;
        database.until("select not pg_is_in_recovery()").await;
    }
}
