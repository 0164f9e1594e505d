//! One row for many users: what topics cost writers, readers, memory and the log.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tidings::postgres::{connect, queries::Sql, schema::SchemaName};
use tokio::time::sleep;
use tokio_postgres::Client;

use super::{PATIENCE, Size, storm::until_left};
use crate::{
    Result,
    audience::Audience,
    bridge::Bridge,
    clock::Moment,
    marks::until_all_marked,
    report::{Figure, Section, Unit, at, measure, median, subject},
    retained::Retained,
    server::{Database, Server},
    subject::Users,
    table::whole,
    writers::{FOR_TOPICS, Inserted, NOTIFICATIONS, Until, Writers},
};

/// Everyone's topic of the first part. Its subscribers' names begin with its own.
const TOPIC: Users = Users {
    name: "topic",
    count: 1,
};
const SUBSCRIBERS: usize = 10_000;
/// Rows per second: each has long arrived when the next one is due.
const RATE: f64 = 0.5;

/// Connections that INSERT rows for topics and rows for users alternately.
const WRITERS: usize = 8;
/// Who they are for. Nobody is connected.
const ABSENT: Users = Users {
    name: "absent",
    count: 1_000,
};

/// Rows in the table of which pages are read, in per cent those for topics, and how many
/// topics there are.
const ROWS: u64 = 1_000_000;
const OF_TOPICS: u64 = 48;
const TOPICS: u64 = 2_000;
const USERS: Users = Users {
    name: "user",
    count: 10_000,
};
/// How many transactions were committed since the page's position.
const BACK: usize = 100;
/// Topics of the users who read pages. One without topics reads a page as if there were
/// no topics.
const READERS: [u64; 3] = [0, 100, 1_000];
/// After five executions, PostgreSQL settles on a plan for a prepared statement.
const UNTIL_PLANNED: usize = 6;

/// Topics per stream, and the number of streams, of which memory is measured.
const STREAMS: [(u64, u64); 3] = [(0, 10_000), (50, 10_000), (1_000, 1_000)];
const FEW_STREAMS: [(u64, u64); 3] = [(0, 1_000), (50, 1_000), (1_000, 200)];
/// Topics that streams with fewer have in common.
const SHARED_TOPICS: u64 = 1_000;
/// Until after the first heartbeats, which are sent after 15 s of silence.
const REST: Duration = Duration::from_secs(20);

/// How often the number of cursors is read.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Its parts use databases of their own.
pub async fn run(server: &Server, size: Size) -> Result<Section> {
    let subscribers = size.choose(1_000, SUBSCRIBERS);
    let rows = size.choose(4, 20);
    let (insert_rounds, time) =
        size.choose((3, Duration::from_secs(1)), (15, Duration::from_secs(1)));
    let (retained, pages) = size.choose((100_000, 20), (ROWS, 200));
    let (streams, rest) = size.choose((FEW_STREAMS, Duration::from_secs(2)), (STREAMS, REST));
    let mut figures = one_row(server, subscribers, rows).await?;
    figures.extend(inserted(server, insert_rounds, time).await?);
    figures.extend(read_pages(server, retained, pages).await?);
    figures.extend(memory(server, streams, rest).await?);
    Ok(Section {
        name: "topics",
        title: "Topics: one row for many users".to_owned(),
        setting: format!(
            "One row at a time for a topic with {} subscribers, each with one stream: the median \
             time from its commit until the last of them has received it. Then all of them \
             disconnect, and the bridge stores where they continue: the log that this takes. \
             INSERT: one row per transaction from {WRITERS} connections, {} s each for topics and \
             for users, alternating, {insert_rounds} rounds; figures and ratios are medians. \
             Pages: one statement for a user who resumes {BACK} transactions back, in a vacuumed \
             table of {} rows, {OF_TOPICS} % of them in {} topics; medians of {pages}; “at 0 \
             topics” is the statement for users without topics, with which every user begins. \
             Memory as in “Cost \
             of an idle stream”, each membership of a transaction of its own.",
            whole(subscribers as f64),
            time.as_secs(),
            whole(retained as f64),
            whole(TOPICS as f64),
        ),
        figures,
    })
}

/// One row to many subscribers, and their cursors.
async fn one_row(server: &Server, subscribers: usize, rows: u64) -> Result<Vec<Figure>> {
    let database = server.database().await?;
    subscribe_all(&database, TOPIC, subscribers).await?;
    let bridge = Bridge::start(&database).await?;
    let mut audience = Audience::subscribed(bridge.subject()?, TOPIC, subscribers).await?;
    let writers = Writers::new(&database, FOR_TOPICS, TOPIC);
    let written = writers.by_the_clock(RATE, rows).await?;
    let counts = audience.until_arrived(rows, PATIENCE).await;
    until_all_marked(&database, PATIENCE).await?;

    let last = last_arrivals(&audience);
    let until_last = |since| median(&until_last(&last, &written.rows, since));
    let figure = |what, value| {
        Figure::new(subject::TIDINGS, what, value, Unit::Milliseconds)
            .at(at::CONNECTIONS, subscribers as f64)
            .counts(counts)
    };
    let mut figures = vec![
        figure(measure::LAST, until_last(|row| row.issued)),
        figure(measure::LAST_AFTER_COMMIT, until_last(|row| row.committed)),
    ];

    let mut counted = rows;
    for what in [measure::FIRST_CURSORS, measure::LATER_CURSORS] {
        writers.by_the_clock(RATE, 1).await?;
        counted += 1;
        audience.until_arrived(counted, PATIENCE).await;
        until_all_marked(&database, PATIENCE).await?;
        let client = database.connect().await?;
        let before = logged(&client).await?;
        let begin: String = one(&client, "select pg_current_snapshot()::text").await?;
        audience.leave().await;
        until_left(&bridge).await?;
        until_stored(&client, &begin, subscribers).await?;
        let value = (logged(&client).await? - before) as f64;
        let figure = Figure::new(subject::POSTGRES, what, value, Unit::Bytes);
        figures.push(figure.at(at::STREAMS, subscribers as f64));
        audience.come();
        audience.until_live(PATIENCE).await?;
    }
    drop(audience);
    bridge.stop().await?;
    Ok(figures)
}

/// Subscribes the topic's subscribers.
pub async fn subscribe_all(database: &Database, topics: Users, subscribers: usize) -> Result<()> {
    let client = database.connect().await?;
    let (mut users, mut names) = (Vec::new(), Vec::new());
    for number in 0..subscribers as u64 {
        users.push(topics.subscriber(number));
        names.push(topics.name(topics.of(number)));
    }
    let insert = "insert into topic_subscriptions (user_id, topic) \
                  select * from unnest($1::text[], $2::text[])";
    client.execute(insert, &[&users, &names]).await?;
    database.vacuum("topic_subscriptions").await
}

async fn logged(client: &Client) -> Result<i64> {
    let bytes = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
    one(client, bytes).await
}

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    client: &Client,
    question: &str,
) -> Result<T> {
    Ok(client.query_one(question, &[]).await?.get(0))
}

/// Waits until the cursors of that many users were written after this snapshot.
async fn until_stored(client: &Client, since: &str, users: usize) -> Result<()> {
    // The 32 bits of a transaction id that a row version stores are all that a new cluster
    // uses.
    let stored = format!(
        "select count(*) from tidings_cursors \
         where not pg_visible_in_snapshot(xmin::text::xid8, '{since}')"
    );
    let begin = Moment::now();
    while one::<i64>(client, &stored).await? < i64::try_from(users)? {
        if Moment::now().since(begin) > PATIENCE {
            return Err("cursors are missing".into());
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// INSERTs for topics and for users, alternately, into one table.
async fn inserted(server: &Server, rounds: usize, time: Duration) -> Result<Vec<Figure>> {
    let database = server.database().await?;
    let bridge = Bridge::start(&database).await?;
    let kinds = [
        (
            subject::USER_ROWS,
            Writers::new(&database, NOTIFICATIONS, ABSENT),
        ),
        (
            subject::TOPIC_ROWS,
            Writers::new(&database, FOR_TOPICS, ABSENT),
        ),
    ];
    let mut times = [Vec::new(), Vec::new()];
    server.settle().await?;
    for _ in 0..rounds {
        for ((_, writers), times) in kinds.iter().zip(&mut times) {
            let written = writers.flat_out(WRITERS, Until::Passed(time)).await?;
            times.push(WRITERS as f64 * 1e6 / written.rate());
        }
    }
    bridge.stop().await?;
    let figure = |((name, _), times): (&(&str, Writers), Vec<f64>)| {
        Figure::new(name, measure::INSERT, median(&times), Unit::Microseconds)
            .at(at::WRITERS, WRITERS as f64)
            .rounds(times)
    };
    Ok(kinds.iter().zip(times).map(figure).collect())
}

/// The statements that read pages, as the bridge prepares them.
async fn read_pages(server: &Server, rows: u64, times: usize) -> Result<Vec<Figure>> {
    let database = server.database().await?;
    let floor = fill(&database, rows).await?;
    let (client, _driver) = connect::connect(&database.url().parse()?, |_| ()).await?;
    connect::settle(&client).await?;
    let sql = Sql::new(&SchemaName::public());
    client
        .batch_execute(&format!(
            "prepare user_page (xid8, xid8[], bigint[], bigint, bigint, text) as {}; \
             prepare topic_page as {}",
            sql.user_page, sql.topic_page
        ))
        .await?;
    let mut figures = Vec::new();
    for topics in READERS {
        let own = format!(
            "'{floor}', '{{}}', '{{}}', 501, 262144, '{}'",
            reader(topics)
        );
        let page = match topics {
            0 => format!("execute user_page ({own})"),
            _ => format!(
                "execute topic_page ({own}, '{floor}', '{{}}', null, null, null, 1001, null, \
                 '{{}}', null, null, null, null, null, null, null, null)"
            ),
        };
        for _ in 0..UNTIL_PLANNED {
            client.simple_query(&page).await?;
        }
        let mut took = Vec::new();
        for _ in 0..times {
            let begin = Instant::now();
            client.simple_query(&page).await?;
            took.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let (subject, unit) = (subject::POSTGRES, Unit::Milliseconds);
        let figure = Figure::new(subject, measure::PAGE, median(&took), unit);
        figures.push(figure.at(at::TOPICS, topics as f64));
    }
    Ok(figures)
}

fn reader(topics: u64) -> String {
    format!("reader-{topics}")
}

/// Fills the table, and returns the transaction from which pages are read.
async fn fill(database: &Database, rows: u64) -> Result<String> {
    let for_topics = rows * OF_TOPICS / 100;
    let retained = Retained {
        rows: rows - for_topics,
        users: USERS,
        heavy: None,
        away: 0,
    };
    retained.fill(database).await?;
    let client = database.connect().await?;
    for topics in READERS.into_iter().filter(|&topics| topics > 0) {
        let subscribe = format!(
            "insert into topic_subscriptions (user_id, topic) \
             select '{}', 'topic-' || n * {} from generate_series(0, {topics} - 1) as n",
            reader(topics),
            TOPICS / topics,
        );
        client.batch_execute(&subscribe).await?;
    }
    let recent = 2 * BACK;
    for work in [
        "set synchronous_commit = off".to_owned(),
        // A hundred rows per transaction, and the newest in one each.
        format!(
            "do $$ begin for i in 1..{for_topics} / 100 loop \
               insert into notifications (topic, text, sent_at) \
               select 'topic-' || (i * 100 + n)::bigint * 7919 % {TOPICS}, \
                      'Your build of the branch main is red: 3 of 214 tests failed.', now() \
               from generate_series(1, 100) as n; \
               commit; \
             end loop; end $$"
        ),
        format!(
            "do $$ begin for i in 1..{recent} loop \
               insert into notifications (topic, text) \
               values ('topic-' || i * 7919 % {TOPICS}, 'Your build is green.'); \
               commit; \
             end loop; end $$"
        ),
    ] {
        client.batch_execute(&work).await?;
    }
    database.vacuum("notifications").await?;
    database.vacuum("topic_subscriptions").await?;
    let floor =
        format!("select xid::text from notifications order by xid desc offset {BACK} limit 1");
    one(&client, &floor).await
}

/// Memory per stream by its number of topics. Each size has its own bridge, since memory that
/// was once used is kept.
async fn memory(server: &Server, sizes: [(u64, u64); 3], rest: Duration) -> Result<Vec<Figure>> {
    let (mut figures, mut without) = (Vec::new(), 0.0);
    for (topics, streams) in sizes {
        let users = Users {
            name: "user",
            count: streams,
        };
        let database = server.database().await?;
        join(&database, users, topics).await?;
        let bridge = Bridge::start(&database).await?;
        let process = bridge.process()?;
        let empty = process.memory()?;
        let audience = Audience::open(bridge.subject()?, users, usize::try_from(streams)?).await?;
        sleep(rest).await;
        let each = process.memory()?.saturating_sub(empty) as f64 / streams as f64;
        let figure = |what, value| {
            Figure::new(subject::TIDINGS, what, value, Unit::Bytes)
                .at(at::STREAMS, streams as f64)
                .at(at::TOPICS, topics as f64)
        };
        figures.push(figure(measure::IDLE_STREAM, each));
        match topics {
            0 => without = each,
            _ => figures.push(figure(measure::TOPICS_MEMORY, each - without)),
        }
        drop(audience);
        bridge.stop().await?;
    }
    Ok(figures)
}

/// Subscribes each of the users to that many topics, which they share. Each time in another
/// transaction, because memberships of one have the same snapshot.
async fn join(database: &Database, users: Users, topics: u64) -> Result<()> {
    let client = database.connect().await?;
    let join = format!(
        "do $$ begin for i in 1..{topics} loop \
           insert into topic_subscriptions (user_id, topic) \
           select '{}-' || n, 'topic-' || (n * 7 + i * ({SHARED_TOPICS} / {})) % {SHARED_TOPICS} \
           from generate_series(0, {} - 1) as n; \
           commit; \
         end loop; end $$",
        users.name,
        topics.max(1),
        users.count,
    );
    for work in ["set synchronous_commit = off", &join] {
        client.batch_execute(work).await?;
    }
    database.vacuum("topic_subscriptions").await
}

/// When each row arrived at the last of its readers.
pub fn last_arrivals(audience: &Audience) -> HashMap<u64, Moment> {
    let mut last = HashMap::new();
    for arrival in audience.take_arrivals() {
        let last = last.entry(arrival.row).or_insert(arrival.at);
        *last = arrival.at.max(*last);
    }
    last
}

/// How long each row took until then, in milliseconds.
pub fn until_last(
    last: &HashMap<u64, Moment>,
    rows: &[Inserted],
    since: fn(&Inserted) -> Moment,
) -> Vec<f64> {
    let wait = |row: &Inserted| Some(last.get(&row.row)?.since(since(row)));
    let waits = rows.iter().filter_map(wait);
    waits.map(|wait| wait.as_secs_f64() * 1e3).collect()
}
