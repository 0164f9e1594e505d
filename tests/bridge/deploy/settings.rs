//! The settings in the files of `deploy/` exist, and their times are consistent.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use clap::CommandFactory;
use tidings::config::Cli;

use crate::support::deployment::shipped;

/// How long a bridge may take to stop on top of its drain time: it waits for its listener, closes
/// the remaining streams, and writes the last marks.
const STOPPING: Duration = Duration::from_secs(10);

const FILES: [&str; 16] = [
    "deploy/nginx.conf",
    "deploy/Caddyfile",
    "deploy/haproxy.cfg",
    "deploy/pgbouncer.ini",
    "deploy/compose/roles.sh",
    "deploy/compose/haproxy.cfg",
    "deploy/nats/nats.conf",
    "deploy/debian/tidings.env",
    "deploy/systemd/tidings.service",
    "deploy/systemd/tidings.socket",
    "deploy/kubernetes/tidings.yaml",
    "Dockerfile",
    "docker-compose.yml",
    "docs/operations/running.md",
    "docs/operations/upgrading.md",
    "migrations/README.md",
];

/// All settings that have an environment variable.
fn settings() -> BTreeSet<String> {
    let cli = Cli::command();
    let commands = cli.get_subcommands().chain([&cli]);
    let arguments = commands.flat_map(clap::Command::get_arguments);
    let names = arguments.filter_map(|argument| argument.get_env()?.to_str());
    names.map(str::to_owned).collect()
}

fn default_of(setting: &str) -> Duration {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").expect("serve");
    let argument = serve
        .get_arguments()
        .find(|argument| argument.get_env().is_some_and(|name| name == setting));
    let default = argument.expect(setting).get_default_values()[0].to_str();
    duration(default.expect("text"))
}

fn duration(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The word that follows `before`.
fn value<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before}"));
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
    &rest[..end.unwrap_or(rest.len())]
}

#[test]
fn every_setting_that_they_name_exists() {
    let known = settings();
    for file in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(&path).expect(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names = words.filter(|word| {
            word.starts_with("TIDINGS_")
                || word.ends_with("DATABASE_URL")
                || word.ends_with("DATABASE_URL_FILE")
        });
        for name in names {
            assert!(
                known.contains(name),
                "{file} names {name}, which there is not"
            );
        }
    }
}

#[test]
fn nobody_kills_a_bridge_that_is_still_stopping() {
    let unit = shipped("systemd/tidings.service");
    let drain = duration(value(&unit, "Environment=TIDINGS_DRAIN="));
    assert!(drain + STOPPING < duration(value(&unit, "\nTimeoutStopSec=")));

    let manifest = shipped("kubernetes/tidings.yaml");
    let seconds = |before| {
        let seconds = value(&manifest, before);
        Duration::from_secs(seconds.parse().expect("seconds"))
    };
    let drain = duration(value(&manifest, "name: TIDINGS_DRAIN, value: "));
    let sleep = seconds("sleep: { seconds: ");
    assert!(sleep + drain + STOPPING < seconds("terminationGracePeriodSeconds: "));
}

#[test]
fn what_proxies_take_for_frozen_has_missed_four_heartbeats() {
    let silence = default_of("TIDINGS_HEARTBEAT") * 4;
    for (file, directive) in [
        ("nginx.conf", "\n        proxy_read_timeout "),
        ("Caddyfile", "\n\t\t\t\tread_timeout "),
        ("haproxy.cfg", "\n    timeout client "),
        ("haproxy.cfg", "\n    timeout server "),
        ("compose/haproxy.cfg", "\n    timeout client "),
        ("compose/haproxy.cfg", "\n    timeout server "),
    ] {
        assert_eq!(
            duration(value(&shipped(file), directive)),
            silence,
            "{file}"
        );
    }
}
