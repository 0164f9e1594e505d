//! `config`: the settings that exist, and where each value comes from.

use std::fs;

use serde_json::Value;

use super::{command, said};
use crate::support::{bridge::SECRET, dev::DataFolder};

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_tells_where_it_comes_from_and_secrets_are_hidden() {
    let folder = DataFolder::new();
    fs::create_dir_all(folder.path()).expect("a folder");
    let file = folder.path().join("secret");
    fs::write(&file, SECRET).expect("a file");
    let configured = |form: &[&str]| {
        let arguments = ["config", "--listen=127.0.0.1:9000"];
        let mut command = command(&[&arguments, form].concat());
        command
            .env("DATABASE_URL", "postgres://app:hunter2@localhost/app")
            .env("TIDINGS_JWT_SECRET_FILE", &file)
            .env("TIDINGS_HEARTBEAT", "20s");
        command
    };
    let told = said(configured(&["--json"]), "").await;
    let json = told.json();
    assert_eq!(json["problems"], Value::Array(Vec::new()));
    let settings = json["settings"].as_array().expect("settings");
    let of = |variable: &str| {
        let is_it = |setting: &&Value| setting["variable"] == variable;
        let found = settings.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("{variable} in {json}"));
        (
            found["value"].as_str(),
            found["hidden"].as_bool() == Some(true),
            found["source"].as_str().expect("a source"),
        )
    };
    assert_eq!(
        of("TIDINGS_LISTEN"),
        (Some("127.0.0.1:9000"), false, "flag")
    );
    assert_eq!(of("TIDINGS_HEARTBEAT"), (Some("20s"), false, "environment"));
    assert_eq!(of("TIDINGS_DRAIN"), (Some("2s"), false, "default"));
    assert_eq!(of("DATABASE_URL"), (None, true, "environment"));
    assert_eq!(of("TIDINGS_JWT_SECRET"), (None, true, "file"));
    assert_eq!(of("TIDINGS_TLS_CERT"), (None, false, "default"));
    let text = said(configured(&[]), "").await.well();
    for shown in [told.out, text] {
        assert!(
            !shown.contains("hunter2") && !shown.contains(SECRET),
            "{shown}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_of_the_settings_are_reported_at_once() {
    let mut config = command(&["config", "--json"]);
    config
        .env("TIDINGS_JWT_SECRET", "hunter2")
        .env("TIDINGS_TLS_CERT", "cert.pem")
        .env("TIDINGS_TRUSTED_USER_HEADER", "X-User");
    let told = said(config, "").await;
    let problems = told.json()["problems"].to_string();
    for expected in [
        "set DATABASE_URL",
        "TIDINGS_JWT_SECRET can't be used",
        "TIDINGS_TLS_KEY",
        "TIDINGS_TRUSTED_PROXIES",
    ] {
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
    assert!(!told.out.contains("hunter2"), "{}", told.out);
}
