//! Streams without a socket: what they would write, chunk by chunk.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tidings::{
    delivery::{
        catch_up::{FailingSubscribers, PageMemory, Pages, Reads, Turns},
        cursors::Cursors,
        delivered_watermark::DeliveredWatermark,
        heartbeat::Heartbeats,
        hub::{Hub, Tail},
        marker::Marks,
        page_reader,
        replicas::Replicas,
        stream::{EventStream, Streams},
        stream_end::Ended,
    },
    domain::{history::History, snapshot::Xid},
    postgres::{
        pool::{Pool, PoolMode},
        queries::Sql,
        schema::SchemaName,
    },
};
use tokio::runtime::Handle;

use super::database::Database;

/// The streams of a bridge that starts now and has a listener that never reads.
pub async fn streams(database: &Database) -> Arc<Streams> {
    let sql = Arc::new(Sql::new(&SchemaName::public()));
    let hub = Arc::new(Hub::new(1 << 18));
    let start = page_reader::tail_start(&database.bridge().connect().await, &sql.tail_start).await;
    let pool = Pool::new(&database.url(), PoolMode::Session, 1, Handle::current()).expect("a pool");
    hub.start(Tail {
        history: History {
            system_identifier: 7,
            incarnation: page_reader::incarnation(&pool, &sql)
                .await
                .expect("an incarnation"),
        },
        position: Arc::new(start.expect("a start").position),
        safe: Xid::default(),
    });
    let drained =
        DeliveredWatermark::open(pool.clone(), Arc::clone(&sql), &SchemaName::public()).await;
    let cursors = Arc::new(Cursors::new(Duration::ZERO, Duration::MAX));
    Arc::new(Streams {
        hub: Arc::clone(&hub),
        marks: Arc::new(Marks::new(Duration::ZERO, Arc::default())),
        activity: Arc::default(),
        pages: Arc::new(Pages {
            replicas: Arc::new(Replicas::new(Vec::new(), Arc::clone(&sql))),
            replica_turns: Arc::new(Turns::new(1)),
            hub,
            pool,
            sql,
            drained: Arc::new(drained.expect("rights")),
            cursors: Arc::clone(&cursors),
            health: Arc::default(),
            turns: Arc::new(Turns::new(1)),
            failing: FailingSubscribers::default(),
            memory: Arc::new(PageMemory::default()),
            runtime: Handle::current(),
            history: Mutex::default(),
            reads: Reads::default(),
        }),
        cursors,
        heartbeats: Heartbeats::every(Duration::from_secs(300)),
        drain: Duration::ZERO,
        max_age: Duration::from_secs(300),
        ended: Ended::default(),
    })
}

/// Everything that the stream writes up to the end of its catch-up.
pub async fn until_caught_up(stream: &mut EventStream) -> String {
    let mut body = String::new();
    while !body.contains("tidings.caught-up") {
        let Some(Ok(chunk)) = stream.next().await else {
            panic!("it ended: {body}")
        };
        body.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    body
}
