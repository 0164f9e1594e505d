//! The network between clients and the bridge breaks. A client that reconnects with its last event
//! id receives what it missed, and nothing twice.

use super::load::Load;
use crate::support::{
    account::Account,
    bridge::Bridge,
    database::Database,
    proxy::{Network, Proxy, Target},
};

/// A bridge under load whose clients connect through a proxy.
struct Scene {
    database: Database,
    network: Proxy,
    _bridge: Bridge,
    load: Load,
}

impl Scene {
    /// Starts the bridge, and a load with texts of `text_bytes` bytes.
    async fn set(text_bytes: usize) -> Self {
        let database = Database::migrated().await;
        // Small queues, so that they overflow soon.
        let bridge = Bridge::start_with(&database, &["--queue-bytes=4096"]).await;
        let network = Proxy::to(Target::Tcp(bridge.address())).await;
        let load = Load::start_with_texts(&database, &[network.address()], text_bytes).await;
        Self {
            database,
            network,
            _bridge: bridge,
            load,
        }
    }

    async fn recovers(&self, account: &mut Account) {
        self.network.set(Network::Pass);
        account.recovered_after(self.load.flows().await);
    }

    async fn end(self, mut account: Account) {
        self.load.end(&mut account).await;
        self.database
            .until("select bool_and(sent) from notifications")
            .await;
        account.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_into_a_black_hole_comes_again() {
    // More than the sockets' buffers hold.
    let scene = Scene::set(10_000).await;
    let mut account =
        Account::without_repeats("network to the clients swallows everything, then resets");
    for _ in 0..3 {
        scene.network.set(Network::BlackHole);
        scene.load.writes(200).await;
        scene.network.reset();
        scene.recovers(&mut account).await;
    }
    assert!(scene.load.breaks() > 0);
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_reset_miss_and_repeat_nothing() {
    let scene = Scene::set(100).await;
    let mut account = Account::without_repeats("network to the clients resets all connections");
    for _ in 0..20 {
        scene.load.writes(10).await;
        scene.load.all_break(1, || scene.network.reset()).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_cut_anywhere_comes_again_as_a_whole() {
    let scene = Scene::set(100).await;
    let mut account = Account::without_repeats("network to the clients is cut within a frame");
    // The first cut falls within the headers; the step is not a multiple of a frame's length.
    for step in 0..20 {
        let cut = Network::CutAfter(150 + 37 * step);
        scene.load.all_break(2, || scene.network.set(cut)).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_slowly_get_everything() {
    let scene = Scene::set(2_000).await;
    let mut account = Account::without_repeats("network to the clients carries 20 kB/s");
    for _ in 0..3 {
        scene.network.set(Network::Throttle(20_000));
        scene.load.writes(300).await;
        scene.recovers(&mut account).await;
    }
    assert_eq!(scene.load.breaks(), 0, "no stream ends");
    scene.end(account).await;
}
