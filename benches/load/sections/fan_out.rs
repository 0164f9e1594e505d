//! One row for a user who has many connections.

use std::collections::BTreeMap;

use super::{PATIENCE, Size};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_all_marked,
    report::{Figure, Section, Unit, at, measure, median, subject},
    server::Server,
    subject::Users,
    writers::{Inserted, NOTIFICATIONS, Writers},
};

const STREAMS: usize = 1_000;
const USER: Users = Users {
    name: "user",
    count: 1,
};
/// Rows per second: each has long arrived when the next one is due.
const RATE: f64 = 4.0;

/// When one row arrived at the first connection and at the last.
struct Span {
    first: Moment,
    last: Moment,
}

/// Sends one row at a time.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let rows = size.choose(12, 80);
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let audience = Audience::open(bridge.subject()?, USER, STREAMS).await?;
    let writers = Writers::new(&database, NOTIFICATIONS, USER);
    let written = writers.by_the_clock(RATE, rows).await?;
    let counts = audience.until_arrived(rows, PATIENCE).await;
    until_all_marked(&database, PATIENCE).await?;

    let mut spans = BTreeMap::new();
    for arrival in audience.take_arrivals() {
        let span = spans.entry(arrival.row).or_insert(Span {
            first: arrival.at,
            last: arrival.at,
        });
        span.first = span.first.min(arrival.at);
        span.last = span.last.max(arrival.at);
    }
    let figure = |measure: &str, moment: fn(&Span) -> Moment| {
        let since = |row: &Inserted| {
            let span = spans.get(&row.row)?;
            Some(moment(span).since(row.issued).as_secs_f64() * 1e3)
        };
        let times: Vec<f64> = written.rows.iter().filter_map(since).collect();
        Figure::new(
            subject::TIDINGS,
            measure,
            median(&times),
            Unit::Milliseconds,
        )
        .at(at::CONNECTIONS, STREAMS as f64)
        .counts(counts)
    };
    let figures = vec![
        figure(measure::FIRST, |span| span.first),
        figure(measure::LAST, |span| span.last),
    ];
    drop(audience);
    bridge.stop().await?;
    Ok(Section {
        name: "fan-out",
        title: "One row to many connections".to_owned(),
        setting: format!(
            "One row at a time to a user with {STREAMS} connections, {rows} times: the median time \
             from INSERT until the first and until the last connection has received it."
        ),
        figures,
    })
}
