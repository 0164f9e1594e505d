//! Monitoring: metrics are counted and documented, and all that alerts and dashboards query exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::ErrorKind,
    process::Stdio,
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{
    bridge::{ALL_THAT_HAS_METRICS, Bridge},
    database::Database,
    event_source::get,
};

/// A page of docs/operations.
fn page(path: &str) -> String {
    let path = format!("{}/docs/operations/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).expect(&path)
}

/// The names in the text of the metrics as a query uses them: with their labels and with the
/// suffixes of their type.
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

/// The names in the first column of the tables.
fn documented() -> BTreeSet<String> {
    let page = page("metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

/// All names in a text that look like our metrics, without the suffix of histogram buckets.
fn used(text: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_part(character))
        .filter(|word| word.starts_with("tidings_") || word.starts_with("process_"))
        .map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned())
        .collect()
}

/// Appends every string in a JSON value.
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
    let bridge = Bridge::start_with(&database, &ALL_THAT_HAS_METRICS).await;
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
        // A row that waited while alice was offline doesn't count as late.
        "tidings_delay_seconds_count 1",
        "tidings_delay_seconds_bucket{le=\"60.0\"} 1",
        "tidings_marked_rows_total 2",
        "tidings_unmarked_rows 0",
        "tidings_mailbox_rows 0",
        "tidings_listener_connected 1",
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
    // Metrics contain no user's name.
    let metrics = get(bridge.admin_address(), "/metrics", &[]).await;
    assert!(!metrics.expect("an answer").text().await.contains("alice"));
}

/// Checks a text in format 0.0.4: each family has one HELP and one TYPE line, followed immediately
/// by its samples, with the names and values that its type requires.
fn check_plain(text: &str) -> BTreeMap<String, String> {
    let mut kinds = BTreeMap::new();
    let mut family: Option<(&str, &str)> = None;
    let mut described = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect(line);
            assert!(!help.is_empty(), "{line}");
            (described, family) = (name, None);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(name, described, "{line}");
            let known = ["counter", "gauge", "histogram", "summary", "untyped"];
            assert!(known.contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            let before = kinds.insert(name.to_owned(), kind.to_owned());
            assert_eq!(before, None, "{line}");
            family = Some((name, kind));
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (sample, value) = line.rsplit_once(' ').expect(line);
            let name = sample.split('{').next().unwrap_or_default();
            let (family, kind) = family.expect(line);
            let suffix = name.strip_prefix(family).expect(line);
            let suffixes: &[&str] = match kind {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let number = value.trim_start_matches('+').to_lowercase();
            assert!(number.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(text.ends_with('\n'));
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_prefer_plain_text_get_the_prometheus_format() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let _tab = bridge.connect_live("alice").await;
    let ask = async |accept: &[&str]| {
        let headers: Vec<_> = accept.iter().map(|value| ("Accept", *value)).collect();
        let answer = get(bridge.admin_address(), "/metrics", &headers).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("vary"), Some("accept"));
        let kind = answer.header("content-type").map(str::to_owned);
        (kind.expect("a type"), answer.text().await)
    };
    let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let plain = "text/plain; version=0.0.4; charset=utf-8";
    for accept in [
        &["text/plain"][..],
        &["text/plain; version=0.0.4"],
        &["application/json, text/plain;q=0.2"],
        &["application/openmetrics-text;q=0.4, text/*;q=0.5"],
        &["application/openmetrics-text;q=0.4", "text/plain;q=0.5"],
    ] {
        let (kind, text) = ask(accept).await;
        assert_eq!(kind, plain, "{accept:?}");
        let kinds = check_plain(&text);
        assert_eq!(kinds["tidings_connections"], "gauge");
        assert_eq!(kinds["tidings_connections_opened_total"], "counter");
        assert_eq!(kinds["tidings_refused_total"], "counter");
        assert_eq!(kinds["tidings_build_info"], "gauge");
        assert_eq!(kinds["tidings_delay_seconds"], "histogram");
        for line in [
            "tidings_connections 1",
            "tidings_connections_opened_total 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
    for accept in [
        &[][..],
        &["*/*"],
        &["text/plain;q=0"],
        &["application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
    ] {
        let (kind, text) = ask(accept).await;
        assert_eq!(kind, openmetrics, "{accept:?}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
    // Both formats have the same samples.
    let samples = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        names.collect()
    };
    let (_, one) = ask(&["text/plain"]).await;
    let (_, other) = ask(&[]).await;
    assert_eq!(samples(&one), samples(&other));

    promtool(&one).await;
}

/// Checks a text with Prometheus's own tool, if it is installed.
async fn promtool(text: &str) {
    let promtool = env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let spawned = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        spawned => spawned.expect(&promtool),
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{promtool}: {said}");
}
