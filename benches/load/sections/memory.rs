//! The cost of an idle stream.

use std::time::Duration;

use tokio::time::sleep;

use super::{PATIENCE, Size};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    kernel::socket_memory,
    marks::until_all_marked,
    report::{Figure, Section, Unit, at, measure, subject},
    server::Server,
    subject::Users,
    usage::Usage,
    writers::{NOTIFICATIONS, Writers},
};

const STREAMS: [u64; 4] = [1_000, 5_000, 10_000, 15_000];
const QUICK: [u64; 1] = [1_000];

/// Until after the first heartbeats, which are sent after 15 s of silence.
const REST: Duration = Duration::from_secs(20);
/// Two heartbeats of every stream.
const WATCHED: Duration = Duration::from_secs(30);
/// The number of streams for which processor time is measured.
const WATCHED_STREAMS: u64 = 10_000;
/// Rows per stream before its memory is measured again.
const ROWS_EACH: u64 = 10;
const BATCH: u64 = 1_000;

/// Each size has its own bridge, since memory that was once used is kept.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let sizes: &[u64] = size.choose(&QUICK, &STREAMS);
    let rest = size.choose(Duration::from_secs(2), REST);
    let watched = size.choose(Duration::from_secs(4), WATCHED);
    let mut figures = Vec::new();
    for &streams in sizes {
        figures.extend(measure_at(server, streams, rest, watched, size).await?);
    }
    Ok(Section {
        name: "memory",
        title: "Cost of an idle stream".to_owned(),
        setting: format!(
            "One stream per user. Memory is the resident set of the bridge, minus that of a \
             bridge without streams, divided by the number of streams: after {} s of silence, and \
             again {} s after {ROWS_EACH} rows for each. The kernel's memory is listed separately, \
             as half of what both ends use here: sockets, their files, and their entries in epoll \
             sets. CPU time over {} s with the default heartbeat.",
            rest.as_secs(),
            rest.as_secs(),
            watched.as_secs(),
        ),
        figures,
    })
}

async fn measure_at(
    server: &Server,
    streams: u64,
    rest: Duration,
    watched: Duration,
    size: Size,
) -> Result<Vec<Figure>> {
    let users = Users {
        name: "user",
        count: streams,
    };
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let process = bridge.process()?;
    let (empty, sockets) = (process.memory()?, socket_memory()?);
    let audience = Audience::open(bridge.subject()?, users, usize::try_from(streams)?).await?;
    sleep(rest).await;
    let each = |bytes: u64| bytes as f64 / streams as f64;
    let figure = |whom, what, bytes| {
        Figure::new(whom, what, each(bytes), Unit::Bytes).at(at::STREAMS, streams as f64)
    };
    let idle = process.memory()?.saturating_sub(empty);
    let mut figures = vec![figure(subject::TIDINGS, measure::IDLE_STREAM, idle)];
    if let (Some(before), Some(now)) = (sockets, socket_memory()?) {
        let half = now.saturating_sub(before) / 2;
        figures.push(figure(subject::KERNEL, measure::IDLE_STREAM, half));
    }
    if streams == WATCHED_STREAMS || size == Size::Quick {
        let (before, begin) = (Usage::of(server, Some(&bridge))?, Moment::now());
        sleep(watched).await;
        let used = Usage::of(server, Some(&bridge))?.since(before);
        let time = Moment::now().since(begin);
        let figure = |(whom, busy): (&str, Duration)| {
            let share = 100.0 * busy.as_secs_f64() / time.as_secs_f64();
            Figure::new(whom, measure::CPU, share, Unit::PercentOfCore)
                .at(at::STREAMS, streams as f64)
        };
        let parties = [
            (subject::TIDINGS, used.bridge),
            (subject::POSTGRES, used.postgres),
        ];
        figures.extend(parties.map(figure));
    }
    let writers = Writers::new(&database, NOTIFICATIONS, users);
    writers.in_batches(ROWS_EACH * streams, BATCH).await?;
    let counts = audience.until_arrived(writers.rows(), PATIENCE).await;
    until_all_marked(&database, PATIENCE).await?;
    sleep(rest).await;
    let used = process.memory()?.saturating_sub(empty);
    figures.push(figure(subject::TIDINGS, measure::USED_STREAM, used).counts(counts));
    drop(audience);
    bridge.stop().await?;
    Ok(figures)
}
