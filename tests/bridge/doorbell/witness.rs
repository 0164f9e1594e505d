//! A separate listener that receives every NOTIFY.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::support::database::Database;

/// Counts the notifications. Several from one transaction count as one.
pub struct Witness {
    client: Client,
    rings: Arc<AtomicUsize>,
}

impl Witness {
    /// Listens for NOTIFYs for the table in this schema.
    pub async fn of(database: &Database, schema: &str) -> Self {
        let text = database.superuser().connection_string();
        let connected = tokio_postgres::connect(&text, NoTls).await;
        let (client, mut connection) = connected.expect("a connection");
        let rings = Arc::new(AtomicUsize::new(0));
        let heard = Arc::clone(&rings);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(_) = message {
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let listen = format!(
            "do $$ begin execute 'listen tidings_' || '{schema}.notifications'::regclass::oid; end $$"
        );
        client.batch_execute(&listen).await.expect("a listener");
        Self { client, rings }
    }

    /// The number of notifications since the last call, including those of all transactions
    /// committed by now.
    pub async fn received(&self) -> usize {
        // Notifications sent earlier arrive before the response to this query.
        self.client.batch_execute("").await.expect("an answer");
        self.rings.swap(0, Ordering::Relaxed)
    }
}
