//! The rows of one user that the table shows, with those of the program's topics.

use std::sync::Arc;

use tidings::domain::{position::RowKey, snapshot::Xid};
use tokio_postgres::Client;

use super::{
    oracle::{Row, Rows, number_of},
    program::Topic,
};

/// A user's name in the database, and those of the topics.
#[derive(Clone, Debug)]
pub struct Names {
    pub user: String,
    pub topics: Arc<[String; Topic::ALL.len()]>,
}

impl Names {
    pub fn topic(&self, topic: Topic) -> &str {
        &self.topics[topic as usize]
    }
}

/// Whether or not the user is subscribed.
pub async fn read_rows(client: &Client, names: &Names) -> Result<Rows, String> {
    let query = "select text, id, xid::text, sent, topic from notifications \
                 where user_id = $1 \
                 union all \
                 select text, id, xid::text, sent, topic from notifications \
                 where topic = any($2) and topic is not null";
    let topics = &names.topics[..];
    let rows = client.query(query, &[&names.user, &topics]).await;
    let rows = rows.map_err(|error| format!("{query}: {error}"))?;
    let rows = rows.iter().map(|row| {
        let text: String = row.get(0);
        let xid: String = row.get(2);
        let key = RowKey {
            xid: Xid(xid.parse().map_err(|_| format!("no xid: {xid}"))?),
            id: row.get(1),
        };
        let topic: Option<&str> = row.get(4);
        let topic =
            topic.and_then(|name| Topic::ALL.into_iter().find(|&one| names.topic(one) == name));
        let row = Row {
            key,
            sent: row.get(3),
            topic,
            text,
        };
        Ok((number_of(&row.text)?, row))
    });
    rows.collect()
}
