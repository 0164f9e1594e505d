//! Churn for a few seconds, or for `TIDINGS_SOAK_SECONDS` (`make soak`): clients connect, break and
//! reconnect while rows pour in. Once they are gone, the bridge uses no more resources than before.

use std::{collections::BTreeMap, env, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, timeout_at},
};

use crate::support::{
    account::Account,
    database::Database,
    event_source::{EventSource, Item},
    process::{Served, Stats},
    row_id, until,
};

const USERS: usize = 40;
const CLIENTS_A_USER: usize = 2;
const POOL: usize = 4;

/// How often rows are written.
const TICK: Duration = Duration::from_millis(20);

fn duration() -> Duration {
    let seconds = env::var("TIDINGS_SOAK_SECONDS").unwrap_or_else(|_| "8".to_owned());
    Duration::from_secs(seconds.parse().expect("TIDINGS_SOAK_SECONDS is a number"))
}

/// A client that keeps disconnecting and reconnecting.
struct Wanderer {
    user: String,
    last_event_id: String,
    got: Vec<i64>,
}

impl Wanderer {
    async fn new(bridge: &Served, user: usize) -> Self {
        let user = format!("user{user}");
        let mut source = bridge.connect(&user, None).await;
        until(&mut source, "tidings.caught-up").await;
        Self {
            last_event_id: source.last_event_id().to_owned(),
            user,
            got: Vec::new(),
        }
    }

    /// Connects and disconnects until `end`; `ticks` advances meanwhile.
    async fn wander(&mut self, bridge: &Served, mut ticks: watch::Receiver<usize>, end: Instant) {
        while Instant::now() < end {
            let mut source = self.come(bridge).await;
            if rand::random_ratio(1, 8) {
                // Reads nothing for a while.
                let then = *ticks.borrow() + rand::random_range(1..100);
                let _ = timeout_at(end, ticks.wait_for(|&tick| tick >= then)).await;
            }
            let most = if rand::random() { 10 } else { 200 };
            let enough = self.got.len() + rand::random_range(0..most);
            while self.got.len() < enough
                && let Ok(item) = timeout_at(end, source.next_item()).await
            {
                self.take(item.expect("an open stream"));
            }
            self.leave(source);
        }
    }

    /// Connects once more and stays until it has received `count` rows.
    async fn collect(&mut self, bridge: &Served, count: usize) {
        let mut source = self.come(bridge).await;
        while self.got.len() < count {
            self.take(source.next_item().await.expect("an open stream"));
        }
        self.leave(source);
    }

    async fn come(&self, bridge: &Served) -> EventSource {
        bridge.connect(&self.user, Some(&self.last_event_id)).await
    }

    fn take(&mut self, item: Item) {
        if let Item::Event(event) = item
            && !event.name.starts_with("tidings.")
        {
            self.got.push(row_id(&event));
        }
    }

    /// Disconnects, at random by a reset or cleanly.
    fn leave(&mut self, source: EventSource) {
        // A stream that was closed before its first bytes arrived has no id.
        if !source.last_event_id().is_empty() {
            source.last_event_id().clone_into(&mut self.last_event_id);
        }
        if rand::random() {
            source.reset();
        }
    }
}

/// Writes rows for all users, and from time to time more for one user than a mailbox holds.
async fn write(database: &Database, ticks: watch::Sender<usize>, end: Instant) {
    let client = database.connect().await;
    let insert = "insert into notifications (user_id, text) \
        select 'user' || coalesce($1, floor(random() * $2)), repeat('x', (random() * 900)::int) \
        from generate_series(1, $3::int)";
    let insert = client.prepare(insert).await.expect("a statement");
    let users = USERS as f64;
    let mut interval = interval(TICK);
    while Instant::now() < end {
        let tick = *ticks.borrow() + 1;
        let (user, count) = if tick.is_multiple_of(100) {
            (Some(rand::random_range(0..USERS) as f64), 1_500)
        } else {
            (None, rand::random_range(1..20))
        };
        client
            .execute(&insert, &[&user, &users, &count])
            .await
            .expect("rows");
        ticks.send_replace(tick);
        interval.tick().await;
    }
}

/// Runs the churn for `span`; then all clients receive what is left, and disconnect. Returns the
/// clients, and what each user was owed.
async fn churn(
    bridge: &Arc<Served>,
    database: &Database,
    wanderers: Vec<Wanderer>,
    span: Duration,
) -> (Vec<Wanderer>, BTreeMap<String, Vec<i64>>) {
    let end = Instant::now() + span;
    let (ticks, on_tick) = watch::channel(0);
    let mut wandering = JoinSet::new();
    for mut wanderer in wanderers {
        let (bridge, on_tick) = (Arc::clone(bridge), on_tick.clone());
        wandering.spawn(async move {
            wanderer.wander(&bridge, on_tick, end).await;
            wanderer
        });
    }
    let (wanderers, ()) = tokio::join!(wandering.join_all(), write(database, ticks, end));

    let owed = "select user_id, array_agg(id) from notifications group by user_id";
    let owed = database.owner().connect().await.query(owed, &[]).await;
    let owed: BTreeMap<String, Vec<i64>> = owed
        .expect("ids")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut collecting = JoinSet::new();
    for mut wanderer in wanderers {
        let (bridge, count) = (Arc::clone(bridge), owed[&wanderer.user].len());
        collecting.spawn(async move {
            wanderer.collect(&bridge, count).await;
            wanderer
        });
    }
    let wanderers = collecting.join_all().await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    (wanderers, owed)
}

/// Waits until the bridge has no more threads and files than at the start, plus the rest of the
/// pool's connections.
async fn quiet(bridge: &Served, start: Stats) -> Stats {
    let (threads, files) = (start.threads, start.files + POOL - 1);
    bridge
        .until_vitals(
            |now| now.threads <= threads && now.files <= files,
            format_args!("{threads} threads and {files} files"),
        )
        .await;
    bridge.vitals()
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_leaves_the_bridge_as_it_was() {
    let mut account = Account::without_repeats("clients come, break and return without end");
    let database = Database::migrated().await;
    let bridge = Arc::new(Served::start(&database, &[&format!("--pool-size={POOL}")]).await);
    // This client stays connected. The bridge has opened the pool's first connection by now.
    let mut witness = bridge.connect("witness", None).await;
    until(&mut witness, "tidings.caught-up").await;
    // Both servers have all their threads and files once they have responded.
    bridge.until_ready_is(200).await;
    let start = bridge.vitals();
    let mut wanderers = Vec::new();
    for n in 0..USERS * CLIENTS_A_USER {
        wanderers.push(Wanderer::new(&bridge, n % USERS).await);
    }

    // The worst case comes first, so that the allocator has all the memory that it will need: all
    // clients catch up at the same time.
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user' || n, repeat('x', 450) \
             from generate_series(0, {USERS} - 1) n, generate_series(1, 600)"
        ))
        .await;
    let (wanderers, _) = churn(&bridge, &database, wanderers, duration() / 4).await;
    let warm = quiet(&bridge, start).await;
    let (wanderers, owed) = churn(&bridge, &database, wanderers, duration() * 3 / 4).await;
    let end = quiet(&bridge, start).await;
    println!("start {start:?}\nwarm  {warm:?}\nend   {end:?}");

    for wanderer in &wanderers {
        account.client(owed[&wanderer.user].iter().copied(), &wanderer.got);
    }
    assert!(
        end.resident_bytes * 5 <= warm.resident_bytes * 6,
        "memory grew by more than a fifth: {warm:?}, {end:?}"
    );
    database
        .execute("select send_notification('witness', 'still here')")
        .await;
    assert_eq!(witness.next_event().await.data, "still here");
    let bridge = Arc::into_inner(bridge).expect("nobody uses it any more");
    assert_eq!(bridge.stop().await, 1, "streams that are registered");
    account.round();
    account.close();
}
