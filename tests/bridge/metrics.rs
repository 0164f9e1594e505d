//! What monitors read: it is counted, documented, and what alerts and dashboards ask
//! for exists.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::support::{bridge::Bridge, database::Database, event_source::get};

/// A page of the repository.
fn page(path: &str) -> String {
    let path = format!("{}/docs/operations/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).expect(&path)
}

/// The names in the text of the metrics, as a query has them: with their labels, and
/// with what a kind adds to a name.
fn shown(metrics: &str) -> BTreeSet<String> {
    let kinds = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let names = kinds
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let full = format!("{name}{suffix}");
            let sample = format!("{full}{{");
            let labels = metrics.lines().find_map(|line| line.strip_prefix(&sample));
            match labels.and_then(|labels| labels.split_once('=')) {
                Some((label, _)) => format!("{full}{{{label}}}"),
                None => full,
            }
        });
    names.collect()
}

/// What stands in the first column of the tables.
fn documented() -> BTreeSet<String> {
    let page = page("metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

/// All that a text names that looks like a metric of ours, without the parts of
/// histograms.
fn used(text: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_part(character))
        .filter(|word| word.starts_with("tidings_") || word.starts_with("process_"))
        .map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned())
        .collect()
}

/// Every string in a piece of JSON.
fn strings(value: &Value, all: &mut String) {
    match value {
        Value::String(text) => all.extend([text.as_str(), "\n"]),
        Value::Array(values) => values.iter().for_each(|value| strings(value, all)),
        Value::Object(values) => values.values().for_each(|value| strings(value, all)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_what_alerts_and_dashboards_use_exists() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let answer = bridge.admin("/metrics").await;
    let kind = answer.header("content-type").map(str::to_owned);
    assert!(kind.is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
    let shown = shown(&answer.text().await);
    assert_eq!(shown, documented());

    let name = |metric: &String| metric.split('{').next().map(str::to_owned);
    let names: BTreeSet<String> = shown.iter().filter_map(name).collect();
    let dashboard: Value = serde_json::from_str(&page("grafana.json")).expect("JSON");
    let mut queries = String::new();
    strings(&dashboard, &mut queries);
    for (place, text) in [
        ("alerts.yml", page("alerts.yml")),
        ("grafana.json", queries),
    ] {
        let used = used(&text);
        let unknown: Vec<_> = used.difference(&names).collect();
        assert!(
            used.len() > 10 && unknown.is_empty(),
            "{place}: {unknown:?}"
        );
    }
    assert_eq!(used(&page("alerts.test.yml")).difference(&names).count(), 0);
}

#[test]
fn every_alert_is_named_where_its_metric_is_documented() {
    let alerts = page("alerts.yml");
    let rules = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let rules: BTreeSet<&str> = rules.collect();
    let page = page("metrics.md");
    let named = page.split('`').filter(|word| {
        word.starts_with("Tidings") && word.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    assert_eq!(rules, named.collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_counted() {
    let database = Database::migrated().await;
    let send = "select send_notification('alice', 'one')";
    database.execute(send).await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    let other = bridge.connect_live("bob").await;
    database.execute(send).await;
    assert_eq!(tab.next_event().await.data, "one");

    let has = |metrics: &str, lines: &[&str]| {
        let is_there = |line: &&str| metrics.lines().any(|other| other == *line);
        lines.iter().all(is_there)
    };
    let expected = [
        "tidings_ready 1",
        "tidings_connections 2",
        "tidings_connections_opened_total 2",
        "tidings_users 2",
        "tidings_delivered_rows_total 2",
        // What waited for her is not late.
        "tidings_delay_seconds_count 1",
        "tidings_delay_seconds_bucket{le=\"60.0\"} 1",
        "tidings_marked_rows_total 2",
        "tidings_unmarked_rows 0",
        "tidings_mailbox_rows 0",
        "tidings_listener_hears 1",
        "tidings_doorbell_in_order 1",
        "tidings_page_seconds_count 2",
        "tidings_page_rows_total 1",
        "tidings_pages_wanted 0",
        "tidings_pool_size 8",
    ];
    bridge
        .until_metrics(|metrics| has(metrics, &expected), &expected.join(", "))
        .await;
    drop(other);
    let left = [
        "tidings_connections 1",
        "tidings_connections_ended_total{reason=\"left\"} 1",
    ];
    bridge
        .until_metrics(|metrics| has(metrics, &left), &left.join(", "))
        .await;
    database.execute("select disconnect_user('alice')").await;
    let ended = ["tidings_connections_ended_total{reason=\"disconnected\"} 1"];
    bridge
        .until_metrics(|metrics| has(metrics, &ended), ended[0])
        .await;
    // Nobody is named.
    let metrics = get(bridge.admin_address(), "/metrics", &[]).await;
    assert!(!metrics.expect("an answer").text().await.contains("alice"));
}
