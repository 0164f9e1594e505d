//! A real browser.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element, error::NewSessionError};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::random_range;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::timeout};

use super::{PATIENCE, dev::DataFolder, event_source::post};

/// A browser that the tests can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chromium,
    Firefox,
}

/// Defines each test once per browser. The named function takes the [`Kind`].
#[allow(unused_macros)] // In programs that take only a part of these tests' support.
macro_rules! in_each_browser {
    ($(#[$attribute:meta])* $($test:ident),+ $(,)?) => {
        $crate::support::browser::in_each_browser!(@ chromium Chromium [$(#[$attribute])*] $($test)+);
        $crate::support::browser::in_each_browser!(@ firefox Firefox [$(#[$attribute])*] $($test)+);
    };
    (@ $name:ident $kind:ident $attributes:tt $($test:ident)+) => {
        mod $name {
            $($crate::support::browser::in_each_browser!(@ $kind $attributes $test);)+
        }
    };
    (@ $kind:ident [$(#[$attribute:meta])*] $test:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        $(#[$attribute])*
        async fn $test() {
            super::$test($crate::support::browser::Kind::$kind).await;
        }
    };
}
pub(crate) use in_each_browser;

/// A browser and its driver. Dropping it ends both.
pub struct Browser {
    pub client: Client,
    profile: DataFolder,
    driver: Driver,
}

/// How often a browser is started: on a busy machine, Chromium may exit before it has shown
/// anything.
const STARTS: u32 = 3;

/// The program that drives a browser.
struct Driver {
    child: Child,
    port: u16,
}

impl Drop for Driver {
    /// Both drivers end their browser on SIGTERM. SIGKILL would leave it running.
    fn drop(&mut self) {
        let id = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(id, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

impl Driver {
    /// Starts the driver. Returns `None` if its port is taken.
    async fn start(
        program: &str,
        arguments: &[String],
        port_follows: &'static str,
    ) -> Option<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            // Firefox reports failures of its background services here.
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs it"));
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, port) = oneshot::channel();
        // A thread outlives the test's runtime. The driver fails if its output isn't read, even
        // while it is exiting.
        thread::spawn(move || {
            let mut sender = Some(sender);
            for line in output.lines().map_while(Result::ok) {
                let port = line.rsplit_once(port_follows).map(|(_, port)| port);
                if let Some((port, sender)) = port.and_then(|port| Some((port, sender.take()?))) {
                    let _ = sender.send(port.trim_end_matches('.').parse().expect("a port"));
                }
            }
        });
        let started = timeout(PATIENCE, port).await.expect("it starts or ends");
        Some(Self {
            child,
            port: started.ok()?,
        })
    }

    async fn of(kind: Kind, profile: &Path) -> Self {
        match kind {
            Kind::Chromium => {
                let program = program("CHROMEDRIVER", "chromedriver");
                // By default it takes any port that is free for IPv4, and gives up if the same port
                // isn't free for IPv6. That often happens with thousands of clients, which use
                // ports from 32768 on.
                for _ in 0..20 {
                    let port = format!("--port={}", random_range(10_000..32_000));
                    let started = "started successfully on port ";
                    if let Some(driver) = Self::start(&program, &[port], started).await {
                        return driver;
                    }
                }
                panic!("{program} finds no port");
            }
            Kind::Firefox => {
                let program = program("GECKODRIVER", "geckodriver");
                fs::create_dir_all(profile).expect("a folder");
                let profiles = format!("--profile-root={}", profile.display());
                // Its second port has a fixed default, for which several drivers would compete.
                let arguments = ["--port=0", "--websocket-port=0", &profiles].map(str::to_owned);
                let started = Self::start(&program, &arguments, "Listening on 127.0.0.1:").await;
                started.unwrap_or_else(|| panic!("{program} does not listen"))
            }
        }
    }
}

fn program(variable: &str, name: &str) -> String {
    env::var(variable).unwrap_or_else(|_| name.to_owned())
}

impl Kind {
    fn capabilities(self, profile: &Path) -> Value {
        match self {
            Self::Chromium => {
                let arguments = json!([
                    "--headless=new",
                    // Chromium refuses to run as root otherwise. It loads only our own page.
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--no-first-run",
                    format!("--user-data-dir={}", profile.display()),
                ]);
                let mut options = json!({ "args": arguments });
                if let Ok(binary) = env::var("CHROME") {
                    options["binary"] = json!(binary);
                }
                json!({
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": { "browser": "ALL" },
                })
            }
            Self::Firefox => {
                let mut options = json!({ "args": ["-headless"] });
                if let Ok(binary) = env::var("FIREFOX") {
                    options["binary"] = json!(binary);
                }
                json!({ "moz:firefoxOptions": options })
            }
        }
    }
}

impl Browser {
    pub async fn start(kind: Kind) -> Self {
        for _ in 1..STARTS {
            match Self::try_start(kind).await {
                Err(NewSessionError::SessionNotCreated(_)) => {}
                started => return started.expect("a browser"),
            }
        }
        Self::try_start(kind).await.expect("a browser")
    }

    async fn try_start(kind: Kind) -> Result<Self, NewSessionError> {
        let profile = DataFolder::new();
        let driver = Driver::of(kind, profile.path()).await;
        let mut capabilities = kind.capabilities(profile.path());
        // The tests use their own certificate authorities.
        capabilities["acceptInsecureCerts"] = json!(true);
        let Value::Object(capabilities) = capabilities else {
            unreachable!("an object")
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await?;
        Ok(Self {
            client,
            profile,
            driver,
        })
    }

    /// Waits for an element and returns it.
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

    /// Waits until a script returns true.
    ///
    /// Firefox runs scripts in a separate scope from the page's own. To set a variable of the page,
    /// write `window.name = …`.
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

    /// The lines of Chromium's console since the last call.
    pub async fn console(&self) -> Vec<String> {
        let session = self.client.session_id().await.expect("a session");
        let path = format!("/session/{}/se/log", session.expect("a session"));
        let driver = (Ipv4Addr::LOCALHOST, self.driver.port).into();
        let answer = post(
            driver,
            &path,
            &[],
            &json!({ "type": "browser" }).to_string(),
        )
        .await;
        let answer = answer.expect("an answer").text().await;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let lines = answer["value"].as_array().expect("lines");
        let text = |line: &Value| line["message"].as_str().expect("a text").to_owned();
        lines.iter().map(text).collect()
    }

    pub async fn stop(self) {
        self.client.close().await.expect("the browser's end");
        drop((self.driver, self.profile));
    }
}
