//! Somebody else who hears the bell.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::support::database::Database;

/// Counts the rings. Those of one transaction are one.
pub struct Witness {
    client: Client,
    rings: Arc<AtomicUsize>,
}

impl Witness {
    /// Hears what is rung for the table of this schema.
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

    /// How many there were since the last time, all of those that are committed.
    pub async fn hears(&self) -> usize {
        // What was rung before it comes before its answer.
        self.client.batch_execute("").await.expect("an answer");
        self.rings.swap(0, Ordering::Relaxed)
    }
}
