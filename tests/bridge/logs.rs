//! The log as machines read it: its format, its fields, and what an attacker can do to it.

use std::{env, process::Stdio, thread};

use clap::Parser;
use serde_json::Value;
use tidings::{config::Cli, monitoring::logging};
use tokio::{process::Command, time::timeout};

use crate::support::{
    PATIENCE, bridge::token, database::Database, event_source::get, process::Served, until,
};

fn lines(log: &[String]) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).expect("JSON");
    log.iter().map(parse).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_reads_alone_and_tells_machines_whose_it_is() {
    let database = Database::migrated().await;
    let mut bridge = Served::start(&database, &["--log=warn,tidings=debug"]).await;
    let mut tab = bridge.connect("alice", None).await;
    until(&mut tab, "tidings.caught-up").await;
    let begun = bridge.until_logged("DEBUG", "opened a stream").await;
    let span = &begun["span"];
    assert_eq!(
        (
            &span["name"],
            &span["number"],
            &span["client"],
            &span["start"]
        ),
        (
            &"connection".into(),
            &1.into(),
            &"127.0.0.1".into(),
            &"backlog".into()
        )
    );
    drop(tab);
    let ended = bridge
        .until_logged("DEBUG", "a stream has ended: left")
        .await;
    assert_eq!((&ended["span"], &ended["reason"]), (span, &"left".into()));

    // The listener's lines contain its backend's process id, by which a DBA knows it.
    database
        .superuser()
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and usename = 'bridge'",
        )
        .await;
    let lost = bridge
        .until_logged("WARN", "the listener lost the database")
        .await;
    assert_eq!(lost["span"]["name"], "listener");
    assert_eq!(lost["span"]["session"], 1);
    assert!(
        lost["span"]["backend"]
            .as_i64()
            .is_some_and(|backend| backend > 0),
        "{lost}"
    );
    assert!(
        lost["delay_ms"].is_u64() && lost["error"].is_string(),
        "{lost}"
    );
    bridge
        .until_logged("INFO", "reconnected to the database")
        .await;

    let log = bridge.log().await;
    for line in lines(&log) {
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "no {field}: {line}");
        }
        assert!(
            !line.to_string().contains("alice"),
            "it names a user: {line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_tokens_fills_no_disk_and_all_of_it_is_counted() {
    let database = Database::migrated().await;
    let bridge = Served::start(&database, &["--log=warn,tidings=debug"]).await;
    let bad = token("alice") + "x";
    let bearer = format!("Bearer {bad}");
    for _ in 0..200 {
        let answer = get(bridge.address(), "/stream", &[("Authorization", &bearer)]).await;
        assert_eq!(answer.expect("an answer").status(), 401);
    }
    let lines = lines(&bridge.log().await);
    let rejected = |line: &&Value| line["reason"] == "identity";
    let written = lines.iter().filter(rejected).count() as u64;
    let suppressed: u64 = lines
        .iter()
        .filter(|line| line["module"] == "tidings::auth::rejections")
        .filter_map(|line| line["suppressed"].as_u64())
        .sum();
    assert_eq!(written + suppressed, 200);
    assert!(suppressed > 0 && (20..200).contains(&written), "{written}");
    // At the default level there is one line for all of them.
    let told = lines.iter().filter(rejected);
    assert!(told.filter(|line| line["level"] == "INFO").count() <= 2);
}

/// Marks the child process of the test below, in which code panics.
const PANICS: &str = "OF_TESTS_PANICS";

/// Rust's default panic hook writes plain text, and blocks if the pipe isn't read.
#[tokio::test]
async fn a_panic_is_one_line_of_the_log_that_names_its_place() {
    if env::var_os(PANICS).is_some() {
        let cli = Cli::parse_from(["tidings", "dev", "--log-format=json"]);
        logging::install(&cli.log).expect("a log");
        let panics = thread::Builder::new().name("one of a test".to_owned());
        let panics = panics
            .spawn(|| panic!("the reason\nin two lines"))
            .expect("a thread");
        panics.join().expect_err("a panic");
        logging::flush();
        return;
    }
    let this = env::current_exe().expect("this program");
    let running = Command::new(this)
        .args(["--exact", "--nocapture"])
        .arg("logs::a_panic_is_one_line_of_the_log_that_names_its_place")
        .env(PANICS, "1")
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, running).await.expect("an end");
    let output = output.expect("a process");
    let log = String::from_utf8_lossy(&output.stderr);
    let [line] = log.lines().collect::<Vec<_>>()[..] else {
        panic!("not one line: {log}")
    };
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["level"], "ERROR");
    assert!(
        line["location"]
            .as_str()
            .is_some_and(|place| place.contains("logs.rs:")),
        "{line}"
    );
    let message = line["message"].as_str().expect("a message");
    for part in ["one of a test", "the reason\nin two lines"] {
        assert!(message.contains(part), "{line}");
    }
}
