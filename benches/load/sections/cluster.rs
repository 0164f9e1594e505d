//! Several bridges on one database: what each further one costs Postgres, how much later
//! rows arrive, and what it costs when all streams return.

use std::{collections::HashMap, time::Duration};

use tidings::{
    delivery::page_reader::{PageSize, TailStatements, tail_page},
    domain::{
        position::Position,
        snapshot::{Snapshot, Xid},
    },
    postgres::{queries::Sql, schema::SchemaName},
};
use tokio::time::sleep;

use super::{
    PATIENCE, Size,
    storm::{Storm, storm},
};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_all_marked,
    nats::NatsServer,
    report::{Counts, Figure, Section, Unit, at, measure, median, subject},
    server::{Database, Server},
    subject::Users,
    table::whole,
    writers::{Inserted, NOTIFICATIONS, Writers},
};

const BRIDGES: [usize; 3] = [1, 4, 10];
const FEW_BRIDGES: [usize; 2] = [1, 3];

/// Transactions per second, and the rows of each.
const LOADS: [(f64, u64); 2] = [(1_000.0, 1), (100.0, 50)];

/// Whose streams one of the bridges has. All rows are for them.
const USERS: Users = Users {
    name: "user",
    count: 100,
};

/// A bridge counts the others every five seconds.
const COUNTED: Duration = Duration::from_secs(6);
/// How often the number of connected bridges is read until then.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Streams that return at once, and how often they do: twenty thousand in all.
const STREAMS: u64 = 10_000;
const STORMS: usize = 2;

/// Rows per transaction of the table of which the tail query is measured.
const TAIL_ROWS: u64 = 50;
const TAIL_TRANSACTIONS: u64 = 4_000;
/// How often the statement runs in each round.
const TAIL_PAGES: usize = 200;
const TAIL_ROUNDS: usize = 7;

pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let bridges = size.choose(&FEW_BRIDGES[..], &BRIDGES[..]);
    let time = size.choose(Duration::from_secs(1), Duration::from_secs(10));
    let (streams, storms) = size.choose((500, 1), (STREAMS, STORMS));
    let mut figures = vec![tail_row(server, size.choose(1, TAIL_ROUNDS)).await?];
    let alone = further_bridges(server, None, bridges, time, &mut figures).await?;
    let nats = NatsServer::start().await?;
    further_bridges(server, Some((&nats, &alone)), bridges, time, &mut figures).await?;
    for from in [PagesFrom::Memory, PagesFrom::Primary, PagesFrom::Replica] {
        figures.extend(returns(server, from, streams, storms).await?);
    }
    Ok(Section {
        name: "cluster",
        title: "Several bridges on one database".to_owned(),
        setting: format!(
            "Rows at a fixed rate for {} s, with {} streams at one of the bridges: the processor \
             time of all of PostgreSQL, and the time from the commit to the event; then the same \
             with bridges that share what they read through NATS. Then {} streams \
             disconnect and return at once, each with one missed row, {storms} times: pages that \
             were read from the primary, and the time until all have caught up. The tail query \
             reads pages of a thousand rows.",
            time.as_secs(),
            USERS.count,
            whole(streams as f64),
        ),
        figures,
    })
}

/// What the tail query costs Postgres for each row.
async fn tail_row(server: &Server, rounds: usize) -> Result<Figure> {
    let database = server.database().await?;
    let fill = format!(
        "do $$ begin for i in 1..{TAIL_TRANSACTIONS} loop \
         insert into notifications (user_id, text) \
         select 'user-' || (i * {TAIL_ROWS} + n), repeat('x', 60) from generate_series(1, {TAIL_ROWS}) n; \
         commit; end loop; end $$"
    );
    database.execute(&fill).await?;
    database.vacuum("notifications").await?;
    let client = database.connect().await?;
    // As the listener's session does.
    client
        .batch_execute("set plan_cache_mode = force_generic_plan")
        .await?;
    let sql = Sql::new(&SchemaName::public());
    let statement = TailStatements::prepare(&client, &sql).await?;
    let first: i64 = client
        .query_one("select min(xid)::text::bigint from notifications", &[])
        .await?
        .get(0);
    let known = Snapshot::new(Xid(u64::MAX >> 1), Vec::new());
    let mut each = Vec::new();
    for _ in 0..rounds {
        let mut cost = Vec::new();
        for rows in [1, PageSize::TAIL.rows] {
            let size = PageSize {
                rows,
                ..PageSize::TAIL
            };
            let before = server.cpu()?;
            for page in 0..TAIL_PAGES as u64 {
                let begin = first.unsigned_abs() + page % (TAIL_TRANSACTIONS / 2);
                let position = Position::stored(Xid(begin), Vec::new());
                tail_page(&client, &statement, &position, &known, size).await?;
            }
            cost.push((server.cpu()? - before).as_secs_f64() / TAIL_PAGES as f64);
        }
        each.push((cost[1] - cost[0]) * 1e6 / (PageSize::TAIL.rows - 1) as f64);
    }
    Ok(Figure::new(
        subject::POSTGRES,
        measure::TAIL_ROW,
        median(&each),
        Unit::Microseconds,
    ))
}

/// One run at one rate.
struct Load {
    /// Of all processes of the server, in cores.
    cores: f64,
    counts: Counts,
    p50: Duration,
    p99: Duration,
}

/// Measures ever more bridges, which poll or share what they read. The streams are at the
/// last one. Returns what a single one has shown at each load. `shared` has that of a single
/// bridge that polls.
async fn further_bridges(
    server: &Server,
    shared: Option<(&NatsServer, &[Load])>,
    numbers: &[usize],
    time: Duration,
    figures: &mut Vec<Figure>,
) -> Result<Vec<Load>> {
    let (postgres, tidings) = match shared {
        None => (subject::POSTGRES, subject::TIDINGS),
        Some(_) => (subject::POSTGRES_WITH_NATS, subject::WITH_NATS),
    };
    let mut alone: Vec<Load> = Vec::new();
    for &bridges in numbers {
        let database = server.database().await?;
        let nats = shared.map(|(nats, _)| nats);
        let running = start(&database, nats, bridges).await?;
        let last = running.last().ok_or("no bridge")?;
        let audience = Audience::open(last.subject()?, USERS, USERS.count as usize).await?;
        let writers = Writers::new(&database, NOTIFICATIONS, USERS);
        for (number, (rate, batch)) in LOADS.into_iter().enumerate() {
            let load = load(server, &database, &audience, &writers, (rate, batch), time).await?;
            let figure = |whom, what, value, unit| {
                Figure::new(whom, what, value, unit)
                    .at(at::BRIDGES, bridges as f64)
                    .at(at::RATE, rate * batch as f64)
            };
            let percent = Unit::PercentOfCore;
            figures.push(figure(postgres, measure::CPU, load.cores * 100.0, percent));
            for (what, value) in [(measure::P50, load.p50), (measure::P99, load.p99)] {
                let milliseconds = value.as_secs_f64() * 1e3;
                let figure = figure(tidings, what, milliseconds, Unit::Milliseconds);
                figures.push(figure.counts(load.counts));
            }
            let Some(alone) = alone.get(number) else {
                alone.push(load);
                continue;
            };
            let further = (load.cores - alone.cores) / (bridges - 1) as f64;
            let what = measure::FURTHER_BRIDGE;
            figures.push(figure(postgres, what, further * 100.0, percent));
            if let Some((_, polling)) = shared {
                let polling = &polling[number];
                for (what, value, before) in [
                    (measure::ADDED_P50, load.p50, polling.p50),
                    (measure::ADDED_P99, load.p99, polling.p99),
                ] {
                    let added = (value.as_secs_f64() - before.as_secs_f64()) * 1e3;
                    figures.push(figure(tidings, what, added, Unit::Milliseconds));
                }
            }
        }
        drop(audience);
        for bridge in running {
            bridge.stop().await?;
        }
    }
    Ok(alone)
}

/// Starts this many bridges, and waits until they have counted each other. The first one
/// reads for the others, if they share what they read.
async fn start(
    database: &Database,
    nats: Option<&NatsServer>,
    bridges: usize,
) -> Result<Vec<Bridge>> {
    let setting = nats.map(|nats| format!("--nats-url={}", nats.url()));
    let settings: Vec<_> = setting.iter().map(String::as_str).collect();
    let mut running = Vec::new();
    for number in 0..bridges {
        let bridge = Bridge::start_with(database, &settings).await?;
        if nats.is_some() {
            let role = if number == 0 { "feeding" } else { "following" };
            bridge.until_role(role).await?;
        }
        running.push(bridge);
    }
    let client = database.connect().await?;
    let begin = Moment::now();
    loop {
        let count = "select count(*) from tidings_bridges";
        let connected: i64 = client.query_one(count, &[]).await?.get(0);
        if usize::try_from(connected)? == bridges {
            break;
        }
        if Moment::now().since(begin) > PATIENCE {
            return Err(format!("{connected} of {bridges} bridges have reported").into());
        }
        sleep(POLL_INTERVAL).await;
    }
    sleep(COUNTED).await;
    Ok(running)
}

async fn load(
    server: &Server,
    database: &Database,
    audience: &Audience,
    writers: &Writers,
    (rate, batch): (f64, u64),
    time: Duration,
) -> Result<Load> {
    server.settle().await?;
    audience.take_arrivals();
    let counted = audience.counts(writers.rows());
    let transactions = (rate * time.as_secs_f64()) as u64;
    let before = server.cpu()?;
    let written = writers
        .batches_by_the_clock(rate, transactions, batch)
        .await?;
    let counts = audience.until_arrived(writers.rows(), PATIENCE).await;
    let used = server.cpu()? - before;
    until_all_marked(database, PATIENCE).await?;
    let mut delays = delays(audience, &written.rows);
    delays.sort_unstable();
    let quantile = |part: f64| {
        let index = (delays.len() as f64 * part) as usize;
        delays.get(index).copied().unwrap_or_default()
    };
    Ok(Load {
        cores: used.as_secs_f64() / written.end.since(written.begin).as_secs_f64(),
        counts: super::between(counted, counts),
        p50: quantile(0.5),
        p99: quantile(0.99),
    })
}

/// From the acknowledgement of each row's commit to its event.
fn delays(audience: &Audience, rows: &[Inserted]) -> Vec<Duration> {
    let committed: HashMap<_, _> = rows.iter().map(|row| (row.row, row.committed)).collect();
    let arrivals = audience.take_arrivals();
    let delays = arrivals.iter().filter_map(|arrival| {
        let committed = committed.get(&arrival.row)?;
        Some(arrival.at.since(*committed))
    });
    delays.collect()
}

/// Where returning streams get what they missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PagesFrom {
    Memory,
    Primary,
    Replica,
}

impl PagesFrom {
    fn subject(self) -> &'static str {
        match self {
            Self::Memory => subject::TIDINGS,
            Self::Primary => subject::WITHOUT_RECENT,
            Self::Replica => subject::WITH_REPLICA,
        }
    }
}

/// All streams return at once, several times.
async fn returns(
    server: &Server,
    from: PagesFrom,
    streams: u64,
    rounds: usize,
) -> Result<Vec<Figure>> {
    let users = Users {
        name: "user",
        count: streams,
    };
    let database = server.database().await?;
    let mut settings = Vec::new();
    if from != PagesFrom::Memory {
        settings.push("--recent-bytes=0".to_owned());
    }
    let replica = match from {
        PagesFrom::Replica => Some(server.replica().await?),
        PagesFrom::Memory | PagesFrom::Primary => None,
    };
    if let Some(replica) = &replica {
        let url = replica.url(database.name());
        settings.push(format!("--replica-database-url={url}"));
    }
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let bridge = Bridge::start_with(&database, &settings).await?;
    if replica.is_some() {
        bridge.until_replica_is_used().await?;
    }
    let mut audience = Audience::open(bridge.subject()?, users, usize::try_from(streams)?).await?;
    let writers = Writers::new(&database, NOTIFICATIONS, users);
    let mut storms: Vec<Storm> = Vec::new();
    let pages = bridge.pages_read().await?;
    let mut used = Duration::ZERO;
    for _ in 0..rounds {
        server.settle().await?;
        let before = server.cpu()?;
        storms.push(storm(&database, &bridge, &mut audience, &writers, streams).await?);
        used += server.cpu()? - before;
        until_all_marked(&database, PATIENCE).await?;
    }
    let queries = bridge.pages_read().await? - pages;
    drop(audience);
    bridge.stop().await?;
    let times: Vec<f64> = storms.iter().map(|it| it.caught_up.as_secs_f64()).collect();
    let counts = storms.last().map(|one| one.counts).unwrap_or_default();
    let returned = (streams * rounds as u64) as f64;
    let figure = |what, value, unit| {
        Figure::new(from.subject(), what, value, unit)
            .at(at::STREAMS, streams as f64)
            .counts(counts)
    };
    Ok(vec![
        figure(measure::PAGES_READ, queries as f64, Unit::Count),
        figure(measure::CAUGHT_UP, median(&times), Unit::Seconds),
        figure(
            measure::CPU_PER_RETURN,
            used.as_secs_f64() * 1e6 / returned,
            Unit::Microseconds,
        ),
    ])
}
