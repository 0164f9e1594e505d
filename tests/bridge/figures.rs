//! The figures in the docs are those of the last benchmark runs and of the running program.
//!
//! After `make bench` or `make bench-peers`, a failure prints the text that a page should contain.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::support::{bridge::Bridge, database::Database, event_source::EventSource};

fn read(page: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page);
    fs::read_to_string(path).expect(page)
}

/// A page, with its line breaks, and those of its comments, read as spaces.
fn flowing(page: &str) -> String {
    let text = read(page);
    let words = text.split_whitespace().filter(|word| *word != "#");
    words.collect::<Vec<_>>().join(" ")
}

fn contains(page: &str, text: &str) {
    assert!(flowing(page).contains(text), "{page} should say: {text}");
}

fn results(name: &str) -> Value {
    let text = read(&format!("docs/benchmarks/{name}.json"));
    serde_json::from_str(&text).expect("JSON")
}

/// With two significant digits, as in 0.21, 1.4 and 34.
fn rounded(value: f64) -> String {
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(1 - magnitude).unwrap_or(0);
    format!("{value:.decimals$}")
}

/// The value of one of the goals in results.json.
fn goal(results: &Value, name: &str) -> f64 {
    let goals = results["goals"].as_array().expect("goals");
    let goal = goals.iter().find(|goal| goal["goal"] == name);
    goal.expect(name)["value"].as_f64().expect("a number")
}

/// What was measured about a subject under these conditions, such as `[["streams", 10000.0]]`.
fn figure(figures: &Value, subject: &str, measure: &str, at: &Value) -> f64 {
    let figures = figures.as_array().expect("figures");
    let figure = figures.iter().find(|figure| {
        figure["subject"] == subject && figure["measure"] == measure && figure["at"] == *at
    });
    let figure = figure.unwrap_or_else(|| panic!("no {measure} of {subject} at {at}"));
    figure["value"].as_f64().expect("a number")
}

#[test]
fn the_docs_state_what_the_last_benchmark_measured() {
    let results = results("results");
    let sections = results["sections"].as_array().expect("sections");
    let memory = sections.iter().find(|section| section["name"] == "memory");
    let memory = &memory.expect("memory")["figures"];
    let at = serde_json::json!([["streams", 10_000.0]]);
    let of_memory = |measure| rounded(figure(memory, "Tidings", measure, &at) / 1_024.0);
    let (idle, used) = (
        of_memory("memory per idle stream"),
        of_memory("memory per stream after traffic"),
    );
    let running = "docs/operations/running.md";
    contains(
        running,
        &format!("{idle} KiB per idle stream over plain HTTP"),
    );
    contains(running, &format!("{used} KiB after traffic"));
    contains(
        "deploy/kubernetes/tidings.yaml",
        &format!("{idle} KiB per idle stream"),
    );

    let flood = goal(&results, "events delivered and marked per second");
    contains(
        running,
        &format!(
            "deliver and mark {},000 notifications per second",
            rounded(flood)
        ),
    );
    let storm = goal(
        &results,
        "time until 10,000 reconnecting streams, with one missed row each, have caught up",
    );
    contains(
        running,
        &format!(
            "all are connected again after {} s on two cores",
            rounded(storm)
        ),
    );
    let growth = goal(
        &results,
        "cost per notification at 5 million rows, relative to 10 thousand",
    );
    contains(
        "docs/operations/database.md",
        "a notification costs the same with five million rows as with ten thousand",
    );
    assert!((0.8..1.2).contains(&growth), "the same? {growth}");
}

/// The columns of the README's comparison.
const COMPARED: [&str; 4] = [
    "Tidings",
    "nchan, with a forwarder",
    "django-eventstream",
    "Node, pg and better-sse",
];

/// One line of the comparison: the value of each column, relative to the first if the line says so.
fn line(title: &str, value: impl Fn(&str, &Value) -> String) -> String {
    let peers = results("peers");
    let contenders = peers["contenders"].as_array().expect("contenders");
    let cells = COMPARED.map(|name| {
        let contender = contenders.iter().find(|one| one["contender"] == name);
        value(name, contender.expect(name))
    });
    format!("| {title} | {} |", cells.join(" | "))
}

#[test]
fn the_readme_compares_what_the_last_run_with_the_alternatives_measured() {
    let peers = results("peers");
    let ours = &peers["contenders"][0]["figures"];
    let streams = |count: f64| serde_json::json!([["streams", count]]);
    let relative = |measure: &'static str, at: Value, ours_at: f64| {
        move |name: &str, contender: &Value| {
            let value = figure(&contender["figures"], name, measure, &at);
            rounded(value / ours_at)
        }
    };
    let writers = serde_json::json!([["writers", 32.0]]);
    let rate = serde_json::json!([["rows/s", 100.0]]);
    let none = serde_json::json!([]);

    contains(
        "README.md",
        &line(
            "INSERT throughput, 32 connections (1.0 = no trigger)",
            |name, contender| {
                let of =
                    |subject: &str| figure(&contender["figures"], subject, "inserted", &writers);
                rounded(of(name) / of(&format!("{name}, no trigger")))
            },
        ),
    );
    let delivered = figure(ours, "Tidings", "delivered", &none);
    contains(
        "README.md",
        &line(
            "rows delivered per second in a flood, relative to Tidings, which also marks them",
            relative("delivered", none, delivered),
        ),
    );
    let p99 = figure(ours, "Tidings", "p99", &rate);
    contains(
        "README.md",
        &line(
            "p99 from INSERT to event at 100 rows/s, relative to Tidings",
            relative("p99", rate, p99),
        ),
    );
    // One of the alternatives ran with fewer streams.
    let most = |contender: &Value| {
        let figures = contender["figures"].as_array().expect("figures");
        let memory = figures
            .iter()
            .find(|one| one["measure"] == "memory per idle stream");
        memory.expect("memory")["at"][0][1]
            .as_f64()
            .expect("streams")
    };
    let memory = figure(
        ours,
        "Tidings",
        "memory per idle stream",
        &streams(10_000.0),
    );
    contains(
        "README.md",
        &line(
            "memory per idle stream, relative to Tidings",
            |name, contender| {
                let at = streams(most(contender));
                relative("memory per idle stream", at, memory)(name, contender)
            },
        ),
    );
    let storm = figure(
        ours,
        "Tidings",
        "time until all have caught up",
        &streams(10_000.0),
    );
    let title = "time until 10,000 returning streams have caught up, relative to Tidings";
    contains(
        "README.md",
        &line(title, |name, contender| match most(contender) {
            10_000.0 => {
                relative("time until all have caught up", streams(10_000.0), storm)(name, contender)
            }
            _ => "only 1,000 streams ran".to_owned(),
        }),
    );
    contains(
        "README.md",
        &line(
            "rows delivered of 200 missed during a disconnect",
            |_, contender| {
                let outcome = &contender["trials"]["resume_many"];
                let partly = &outcome["partly"];
                match partly["repeated"].as_u64() {
                    None => format!("{}", if outcome == "yes" { 200 } else { 0 }),
                    Some(0) => partly["arrived"].to_string(),
                    Some(twice) => format!("{}, {twice} of them twice", partly["arrived"]),
                }
            },
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_uses_as_many_database_sessions_as_the_docs_say() {
    const POOL: usize = 8;
    let said = format!(
        "`TIDINGS_POOL_SIZE` + 1 per bridge: {} by default. One more for the bridge that removes old \
         rows, and one while the operator's page is open",
        POOL + 1
    );
    contains("docs/operations/running.md", &said);
    contains(
        "docs/install.md",
        &format!("A bridge uses at most {} sessions", POOL + 3),
    );
    contains(
        "docs/install.md",
        &format!("limit of {} is for three bridges", 3 * (POOL + 3)),
    );

    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--settle=0s", "--prune-sent-after=30d"]).await;
    // One of the pool is reserved for marks.
    let mut tab = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    tab.next_event().await;
    database
        .until("select bool_and(sent_at is not null) from notifications")
        .await;
    // Until the lock is released, every page that is read keeps a session of the pool.
    let owner = database.superuser().connect().await;
    owner
        .batch_execute("begin; lock notifications in access exclusive mode")
        .await
        .expect("the lock");
    let streams = (0..2 * POOL).map(|number| {
        let (bridge, user) = (&bridge, format!("user{number}"));
        async move { bridge.connect(&user).await }
    });
    let streams: Vec<EventSource> = futures_util::future::join_all(streams).await;
    let (overview, ()) = tokio::join!(bridge.admin("/database"), async {
        let count = "select count(*) from pg_stat_activity where datname = current_database() \
                     and application_name = 'tidings'";
        database
            .until(&format!("select ({count}) = {}", POOL + 3))
            .await;
        owner.batch_execute("commit").await.expect("the end");
    });
    drop((overview, streams));
}
