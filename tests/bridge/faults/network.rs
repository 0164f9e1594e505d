//! The network between the bridge and Postgres breaks. Streams stay open, and each row is delivered
//! exactly once.

use std::time::{Duration, Instant};

use tidings::{
    app::{App, Parts},
    monitoring::logging::ErrorChain,
};
use tokio_util::sync::CancellationToken;

use super::load::Load;
use crate::support::{
    account::Account,
    bridge::{Bridge, serve_options},
    database::Database,
    proxy::{Network, Proxy, Target},
    rows,
};

/// The contract: a half-open connection turns readiness red within this time.
const NOTICED: Duration = Duration::from_secs(15);

/// A bridge under load that reaches its database through a proxy.
struct Scene {
    database: Database,
    network: Proxy,
    bridge: Bridge,
    load: Load,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with_texts(100).await
    }

    /// Starts the bridge, and a load with texts of `bytes` bytes.
    async fn set_with_texts(bytes: usize) -> Self {
        let database = Database::migrated().await;
        let (network, reached) = database.over_network().await;
        // Queues small enough to overflow in each burst after a fault, so that pages are read
        // through the proxy too.
        let bridge = Bridge::start_with(&reached, &["--queue-bytes=4096"]).await;
        let load = Load::start_with_texts(&database, &[bridge.address()], bytes).await;
        Self {
            database,
            network,
            bridge,
            load,
        }
    }

    /// Restores the network and waits until the bridge has recovered.
    async fn recovers(&self, account: &mut Account) {
        self.network.set(Network::Pass);
        account.recovered_after(self.load.flows().await);
        self.bridge.until_ready_is(200).await;
    }

    /// Asserts that no rows are lost, no stream has ended, and all rows are marked.
    async fn end(self, mut account: Account) {
        assert_eq!(self.load.breaks(), 0, "no stream ends");
        self.load.end(&mut account).await;
        self.database
            .until("select bool_and(sent) from notifications")
            .await;
        account.close();
    }

    /// Asserts that readiness turns red in time with a reason, while the process is live.
    async fn is_noticed(&self) {
        let start = Instant::now();
        let answer = self.bridge.until_ready_is(503).await.text().await;
        let noticed = start.elapsed();
        assert!(noticed < NOTICED, "it took {noticed:?}");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        let reason = answer["reason"].as_str().expect("a reason");
        assert!(!reason.is_empty(), "{answer}");
        assert!(answer["last_poll_ms"].is_u64(), "{answer}");
        assert_eq!(self.bridge.admin("/health/live").await.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_everything_is_noticed_in_time() {
    let scene = Scene::set().await;
    let mut account =
        Account::without_repeats("network to Postgres swallows everything (half-open)");
    for _ in 0..2 {
        scene.network.set(Network::BlackHole);
        scene.is_noticed().await;
        scene.load.writes(50).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_network_has_swallowed_for_good_are_replaced() {
    let scene = Scene::set().await;
    let mut account =
        Account::without_repeats("network to Postgres swallows everything, then forgets it");
    scene.network.set(Network::BlackHole);
    // The bridge drops a connection that doesn't respond, and opens a new one.
    let (_, ()) = tokio::join!(scene.is_noticed(), scene.network.until_opened(1));
    scene.network.reset();
    scene.recovers(&mut account).await;
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_under_load_lose_and_repeat_nothing() {
    let scene = Scene::set().await;
    let mut account = Account::without_repeats("network to Postgres resets all connections");
    for _ in 0..10 {
        scene.load.writes(20).await;
        scene.network.reset();
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_far_away_only_costs_time() {
    let scene = Scene::set().await;
    let mut account = Account::without_repeats("network to Postgres delays by up to 300 ms");
    scene
        .network
        .set(Network::Delay(Duration::from_millis(300)));
    for round in 0..3 {
        account.recovered_after(scene.load.flows().await);
        assert_eq!(
            scene.bridge.admin("/health/ready").await.status(),
            200,
            "slow is not deaf, round {round}"
        );
    }
    // Sessions can also be opened over a slow network, which takes about a dozen round trips.
    scene
        .network
        .set(Network::Delay(Duration::from_millis(150)));
    scene.network.reset();
    account.recovered_after(scene.load.flows().await);
    scene.recovers(&mut account).await;
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_narrow_only_costs_time() {
    let scene = Scene::set_with_texts(1_000).await;
    let mut account = Account::without_repeats("network to Postgres carries 50 kB/s");
    for _ in 0..3 {
        scene.network.set(Network::Throttle(50_000));
        scene.load.writes(300).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_the_network_cannot_carry_in_time_is_read_in_parts() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let bridge = Bridge::start(&reached).await;
    let mut account = Account::without_repeats(
        "network to Postgres carries 30 kB/s, and a flood of 400 kB comes at once",
    );
    let mut source = bridge.connect_live("alice").await;
    network.set(Network::Throttle(30_000));
    let start = Instant::now();
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 1000) from generate_series(1, 400)",
        )
        .await;
    let got = rows(&mut source, 400).await;
    account.recovered_after(start.elapsed());
    account.client(1..=400, &got);
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_the_network_cannot_carry_in_time_comes_in_parts() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let bridge = Bridge::start(&reached).await;
    let mut account =
        Account::without_repeats("network to Postgres carries 16 kB/s, a backlog is 270 kB");
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 1000) from generate_series(1, 270)",
        )
        .await;
    // The bridge has read alice's rows before the network is throttled.
    let mut bob = bridge.connect_live("bob").await;
    database
        .execute("select send_notification('bob', 'hello')")
        .await;
    assert_eq!(bob.next_event().await.data, "hello");
    network.set(Network::Throttle(16_000));
    let start = Instant::now();
    let mut source = bridge.connect("alice").await;
    let got = rows(&mut source, 270).await;
    account.recovered_after(start.elapsed());
    account.client(1..=270, &got);
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_cut_in_the_middle_is_read_again() {
    let scene = Scene::set().await;
    let mut account = Account::without_repeats("network to Postgres is cut within a message");
    // From the first responses of a session up to the pages of one in use.
    for bytes in [1, 100, 500, 1_000, 1_500, 2_000, 3_000, 5_000, 9_000] {
        scene.network.set(Network::CutAfter(bytes));
        scene.network.until_opened(2).await;
        scene.bridge.until_ready_is(503).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_connections_is_asked_again_until_it_takes_them() {
    let scene = Scene::set().await;
    let mut account = Account::without_repeats("network to Postgres refuses connections");
    for _ in 0..2 {
        scene.network.set(Network::Refuse);
        scene.network.reset();
        scene.is_noticed().await;
        scene.network.until_opened(4).await;
        scene.recovers(&mut account).await;
    }
    scene.end(account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_return_while_there_is_no_database_are_served_when_it_is_back() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let bridge = Bridge::start(&reached).await;
    let door = Proxy::to(Target::Tcp(bridge.address())).await;
    let load = Load::start(&database, &[door.address()]).await;
    let mut account =
        Account::without_repeats("both networks break: clients return while Postgres is away");
    for fault in [Network::Refuse, Network::BlackHole, Network::CutAfter(700)] {
        network.set(fault);
        if fault != Network::BlackHole {
            network.reset();
        }
        load.all_break(1, || door.reset()).await;
        load.writes(20).await;
        bridge.until_ready_is(503).await;
        if fault == Network::BlackHole {
            network.reset();
        } else {
            // One is an attempt of the listener's, the others are for pages.
            network.until_opened(10).await;
        }
        network.set(Network::Pass);
        account.recovered_after(load.flows().await);
        bridge.until_ready_is(200).await;
    }
    assert_eq!(load.breaks(), 3 * 6, "no stream ends that could stay");
    load.end(&mut account).await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    account.close();
}

/// The pool's first session is cut off after more and more bytes, so that the cut hits every query
/// that the bridge makes before it serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_at_any_moment_of_the_start_is_opened_again() {
    let database = Database::migrated().await;
    let direct = ["--direct-database-url", &database.connection_string()];
    for (cuts, bytes) in (400..).step_by(50).enumerate() {
        let (network, reached) = database.over_network().await;
        network.set(Network::CutAfter(bytes));
        let options = serve_options(&reached, &direct);
        let parts = Parts::of(&options).expect("settings");
        let repairing = async {
            network.until_opened(2).await;
            network.set(Network::Pass);
            std::future::pending::<()>().await;
        };
        let mut building = std::pin::pin!(App::build(parts, &options.bridge));
        let built = tokio::select! {
            built = &mut building => built,
            () = repairing => unreachable!("it has no end"),
        };
        if let Err(error) = built {
            panic!("cut off after {bytes} bytes: {}", ErrorChain(&error));
        }
        if network.opened() == 1 {
            assert!(cuts > 0, "it was cut off at least once");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_starts_without_its_database_reports_later() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let direct = ["--direct-database-url", &database.connection_string()];
    let options = serve_options(&reached, &direct);
    let parts = Parts::of(&options).expect("settings");
    let app = App::build(parts, &options.bridge).await.expect("a bridge");
    network.set(Network::Refuse);
    network.reset();
    let stop = CancellationToken::new();
    let running = tokio::spawn(app.run_until(stop.clone().cancelled_owned()));
    network.until_opened(2).await;
    network.set(Network::Pass);
    let told = "select exists (select from tidings_bridges)";
    database.until(told).await;
    stop.cancel();
    running.await.expect("no panic").expect("no error");
}
