//! The parts of the bridge that deliver rows, from the listener to the marker.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::StartError;
use crate::{
    auth::rejections::Rejections,
    config::BridgeOptions,
    delivery::{
        adopted_marks::{AdoptedMarker, AdoptedMarks},
        bridge_count::BridgeCount,
        catch_up::{FailingSubscribers, PageMemory, Pages, Reads, Turns},
        counters::Counters,
        cursors::{CursorWriter, Cursors},
        delivered_watermark::DeliveredWatermark,
        feed::{Feed, FeedStats},
        health::Health,
        heartbeat::Heartbeats,
        hub::Hub,
        listener::Listener,
        marker::{Marker, Marks},
        page_reader,
        replicas::{REPLICA_CONNECTIONS, Replicas},
        stream::Streams,
        stream_end::Ended,
    },
    monitoring::{reporter::Reporter, stats::Stats},
    postgres::{connect::DatabaseUrl, database::Database, pruner::Pruned, replica::Replica},
};

pub(super) struct Delivery {
    pub(super) hub: Arc<Hub>,
    pub(super) listener: Listener,
    pub(super) streams: Arc<Streams>,
    health: Arc<Health>,
    drained: Arc<DeliveredWatermark>,
    adopted: Arc<AdoptedMarks>,
    reads: Reads,
    replicas: Arc<Replicas>,
}

impl Delivery {
    /// Starts to listen. Must be called before the first connection is accepted: what
    /// becomes visible from then on reaches it.
    pub(super) async fn start(
        database: &Database,
        replicas: &[DatabaseUrl],
        feed: Option<Feed>,
        options: &BridgeOptions,
        health: Arc<Health>,
    ) -> Result<Self, StartError> {
        let Database {
            pool, sql, schema, ..
        } = database;
        let hub =
            Hub::new(options.queue_bytes as usize).with_recent_bytes(options.recent_bytes as usize);
        let hub = Arc::new(hub);
        let activity = Arc::new(Counters::default());
        let adopted = Arc::new(AdoptedMarks::default());
        let bridges = Arc::new(BridgeCount::default());
        let listener = Listener::start(
            database.clone(),
            Arc::clone(&hub),
            Arc::clone(&health),
            Arc::clone(&activity),
            options.safety_poll,
        )
        .await?
        .with_page_rows(options.tail_rows.into())
        .with_adopted_marks(Arc::clone(&adopted))
        .with_bridge_count(Arc::clone(&bridges))
        .with_feed(feed);
        let found = database.ask(|| page_reader::incarnation(pool, sql));
        if found.await? != hub.tail().history.incarnation {
            return Err(StartError::TwoServers);
        }
        let drained =
            database.ask(|| DeliveredWatermark::open(pool.clone(), Arc::clone(sql), schema));
        let drained = Arc::new(drained.await?);
        let reads = Reads::default();
        let cursors = Arc::new(Cursors::new(options.settle, options.cursor_every));
        let replicas = replicas.iter().map(|url| {
            let (gate, runtime) = (sql.replica_gate.clone(), Handle::current());
            Replica::new(url.clone(), REPLICA_CONNECTIONS, gate, runtime)
        });
        let replicas = Replicas::new(replicas.collect::<Result<_, _>>()?, Arc::clone(sql));
        let replicas = Arc::new(replicas);
        let pages = Pages {
            hub: Arc::clone(&hub),
            pool: pool.clone(),
            sql: Arc::clone(sql),
            drained: Arc::clone(&drained),
            cursors: Arc::clone(&cursors),
            health: Arc::clone(&health),
            turns: Arc::new(Turns::new(pages_at_once(options.pool_size))),
            failing: FailingSubscribers::default(),
            replicas: Arc::clone(&replicas),
            replica_turns: Arc::new(Turns::new(replicas.pages_at_once())),
            memory: Arc::new(PageMemory::default()),
            runtime: Handle::current(),
            history: Mutex::new(hub.tail().history),
            reads: reads.clone(),
        };
        let streams = Streams {
            hub: Arc::clone(&hub),
            marks: Arc::new(
                Marks::new(options.settle, Arc::clone(&activity)).with_bridge_count(bridges),
            ),
            activity,
            pages: Arc::new(pages),
            cursors,
            heartbeats: Heartbeats::every(options.heartbeat),
            drain: options.drain,
            max_age: options.limits.max_stream_age,
            ended: Ended::default(),
        };
        Ok(Self {
            hub,
            listener,
            streams: Arc::new(streams),
            health,
            drained,
            adopted,
            reads,
            replicas,
        })
    }

    /// The task that watches which replicas can be used, if there are any.
    pub(super) fn replica_watch(
        &self,
        database: &Database,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let replicas = Arc::clone(&self.replicas);
        let (hub, pool) = (Arc::clone(&self.hub), database.pool.clone());
        (!replicas.is_empty()).then(|| replicas.watch(hub, pool))
    }

    pub(super) fn marker(&self, database: &Database) -> Marker {
        Marker {
            marks: Arc::clone(&self.streams.marks),
            pool: database.pool.clone(),
            sql: Arc::clone(&database.sql),
            health: Arc::clone(&self.health),
            drained: Arc::clone(&self.drained),
            adopted: Arc::clone(&self.adopted),
        }
    }

    /// The task that writes where users continue in their topics.
    pub(super) fn cursor_writer(&self, database: &Database) -> CursorWriter {
        CursorWriter {
            cursors: Arc::clone(&self.streams.cursors),
            hub: Arc::clone(&self.hub),
            pool: database.pool.clone(),
            sql: Arc::clone(&database.sql),
        }
    }

    /// The task that marks rows of applications' tables.
    pub(super) fn adopted_marker(&self, database: &Database) -> AdoptedMarker {
        AdoptedMarker {
            marks: Arc::clone(&self.adopted),
            database: database.clone(),
        }
    }

    /// The task that reports to the database what the bridge at this address does.
    pub(super) fn reporter(&self, database: &Database, address: SocketAddr) -> Reporter {
        Reporter::new(
            address.to_string(),
            Arc::clone(&self.streams.activity),
            Arc::clone(&self.hub),
            Arc::clone(&self.health),
            database.clone(),
        )
    }

    pub(super) fn stats(
        &self,
        database: &Database,
        options: &BridgeOptions,
        pruned: &Arc<Pruned>,
        rejections: &Arc<Rejections>,
        feed: Option<Arc<FeedStats>>,
    ) -> Stats {
        Stats {
            hub: Arc::clone(&self.hub),
            marks: Arc::clone(&self.streams.marks),
            adopted: Arc::clone(&self.adopted),
            activity: Arc::clone(&self.streams.activity),
            cursors: Arc::clone(&self.streams.cursors),
            health: Arc::clone(&self.health),
            pool: database.pool.clone(),
            reads: self.reads.clone(),
            replicas: Arc::clone(&self.replicas),
            feed,
            pruned: Arc::clone(pruned),
            rejections: Arc::clone(rejections),
            connections_limit: options.limits.max_connections,
        }
    }
}

/// How many pages are read at once: one connection of the pool is reserved for marks, and
/// one is left for ticket lookups and reports.
fn pages_at_once(pool_size: u16) -> usize {
    usize::from(pool_size).saturating_sub(2).max(1)
}
