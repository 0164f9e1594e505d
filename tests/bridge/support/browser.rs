//! A real browser.

use std::{process::Stdio, time::Duration};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use hyper_util::client::legacy::connect::HttpConnector;
use rand::random_range;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{PATIENCE, dev::DataFolder};

/// A browser and the program that drives it.
pub struct Browser {
    pub client: Client,
    profile: DataFolder,
    driver: Child,
}

/// The program that drives it and its port, unless that is taken.
async fn start_driver(program: &str, port: u16) -> Option<(Child, String)> {
    let mut driver = Command::new(program)
        .arg(format!("--port={port}"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs it"));
    let mut lines = BufReader::new(driver.stdout.take().expect("its output")).lines();
    while let Some(line) = lines.next_line().await.expect("its output") {
        if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
            return Some((driver, port.trim_end_matches('.').to_owned()));
        }
    }
    None
}

impl Browser {
    pub async fn start() -> Self {
        let program = std::env::var("CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".to_owned());
        // Left to itself it takes any port that is free for IPv4 and gives up if
        // the same one is not free for IPv6, as it often is where thousands of
        // clients come and go: theirs are from 32768 on.
        let mut tries = 20;
        let (driver, port) = loop {
            if let Some(started) = start_driver(&program, random_range(10_000..32_000)).await {
                break started;
            }
            tries -= 1;
            assert!(tries > 0, "{program} finds no port");
        };
        let profile = DataFolder::new();
        let arguments = json!([
            "--headless=new",
            // Chromium refuses to run as root otherwise; it loads nothing but
            // our own page.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            format!("--user-data-dir={}", profile.path().display()),
        ]);
        let mut options = json!({ "args": arguments });
        if let Ok(binary) = std::env::var("CHROME") {
            options["binary"] = json!(binary);
        }
        let Value::Object(capabilities) = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
            // Of the tests' own authorities.
            "acceptInsecureCerts": true,
        }) else {
            unreachable!("an object")
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("a browser");
        Self {
            client,
            profile,
            driver,
        }
    }

    /// An element, once it is there.
    pub async fn find(&self, css: &str) -> Element {
        let waiting = self
            .client
            .wait()
            .at_most(PATIENCE)
            .every(Duration::from_millis(20));
        waiting
            .for_element(Locator::Css(css))
            .await
            .unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// Waits until a script answers true.
    pub async fn until(&self, script: &str) {
        let asking = async {
            let script = format!("return Boolean({script})");
            while self.client.execute(&script, vec![]).await.expect(&script) != json!(true) {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() {
            let page = self.client.source().await.unwrap_or_default();
            panic!("never true: {script}\n{page}");
        }
    }

    pub async fn stop(mut self) {
        self.client.close().await.expect("the browser's end");
        self.driver.kill().await.expect("the driver's end");
        drop(self.profile);
    }
}
