//! A client, running as a program or in a page.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use crate::{
    control::{Control, Tokens},
    cutter::Cutter,
    roster::{Client, Runtime},
    support::dev::DataFolder,
};

/// The page that a frame shows, from the stream's own origin.
pub fn frame(control: &str) -> String {
    format!(
        "<!doctype html><title>A stream</title><script type=module src=\"{control}/frame.js\"></script>"
    )
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `scripts/clients install` puts the clients' libraries.
pub fn installed(path: &str) -> PathBuf {
    root().join("target/clients").join(path)
}

fn sources(path: &str) -> PathBuf {
    root().join("tests/clients").join(path)
}

/// Copies the adapters to where their libraries are.
pub fn prepare() {
    for file in ["main.js", "streams.js"] {
        let target = installed("node").join(file);
        std::fs::copy(sources("node").join(file), &target).unwrap_or_else(|error| {
            panic!("{}: {error}; `make clients` makes it", target.display())
        });
    }
}

/// `scripts/tools` sets the variables.
pub fn browser_program(runtime: Runtime) -> String {
    let (name, else_) = match runtime {
        Runtime::Firefox => ("FIREFOX", "firefox-esr"),
        _ => ("CHROME", "chromium"),
    };
    env::var(name).unwrap_or_else(|_| else_.to_owned())
}

/// A running client. Dropping it ends it.
pub struct Adapter {
    /// Its output: lines of JSON.
    pub lines: mpsc::UnboundedReceiver<String>,
    _control: Control,
    _profile: Option<DataFolder>,
    _input: Option<ChildStdin>,
    child: Child,
}

impl Client {
    pub fn is_page(&self) -> bool {
        matches!(self.runtime, Runtime::Chromium | Runtime::Firefox)
    }

    /// The name of its adapter in pages.
    fn adapter(&self) -> &'static str {
        match self.name {
            "chromium" | "firefox" | "chromium-elsewhere" | "firefox-elsewhere" => "native",
            name => name,
        }
    }

    fn program(&self) -> Command {
        let mut command = match self.runtime {
            Runtime::Node | Runtime::NodeBuiltIn => {
                let mut command = Command::new("node");
                if self.runtime == Runtime::NodeBuiltIn {
                    command.args(["--experimental-eventsource", "--no-warnings"]);
                }
                command.arg(installed("node/main.js"));
                command
            }
            Runtime::Python => {
                let mut command = Command::new(installed("python/bin/python"));
                command.arg(sources("python/main.py"));
                command
            }
            Runtime::Rust => Command::new(installed("rust/debug/tidings-clients")),
            Runtime::Chromium | Runtime::Firefox => unreachable!("a page"),
        };
        command.arg(self.name);
        command
    }

    fn browser(&self, profile: &DataFolder, url: &str) -> Command {
        let program = browser_program(self.runtime);
        let folder = profile.path().display();
        if self.runtime == Runtime::Firefox {
            std::fs::create_dir_all(profile.path()).expect("a profile");
            std::fs::write(profile.path().join("user.js"), FIREFOX_SETTINGS).expect("settings");
            let mut command = Command::new(program);
            command
                .args(["--headless", "--no-remote", "--profile", &folder.to_string(), url])
                // Root's own home isn't suitable.
                .env("HOME", profile.path());
            return command;
        }
        let mut command = Command::new(program);
        command.args([
            "--headless=new",
            // As root it refuses to run without this; it loads only our own page.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            &format!("--user-data-dir={folder}"),
            url,
        ]);
        command
    }

    /// Opens a stream through each of the cutters.
    pub async fn open(&self, listener: TcpListener, tokens: Tokens, cutters: &[Cutter]) -> Adapter {
        let control = format!("http://{}", listener.local_addr().expect("an address"));
        let streams: Vec<Value> = cutters
            .iter()
            .enumerate()
            .map(|(n, cutter)| {
                let page = format!("http://{}", cutter.address());
                let mut stream = json!({
                    "n": n,
                    "url": format!("{page}/stream"),
                    "token_url": format!("{control}/token/{n}"),
                });
                if self.is_page() {
                    let page = if self.is_elsewhere { &control } else { &page };
                    stream["page"] = json!(page);
                    stream["client"] = json!(self.adapter());
                }
                stream
            })
            .collect();
        let streams = Value::from(streams).to_string();
        let index = format!(
            "<!doctype html><title>Streams</title><body><script>window.streams = {streams}</script>\
             <script type=module src=\"/index.js\"></script>"
        );
        let folders = vec![
            sources("page"),
            sources("node"),
            installed("node/node_modules"),
        ];
        let (reports, lines) = mpsc::unbounded_channel();
        let control = Control::start(listener, tokens, index, folders, reports.clone()).await;
        if self.is_page() {
            let profile = DataFolder::new();
            let url = format!("http://{}/", control.address());
            let child = self
                .browser(&profile, &url)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {error}", self.name));
            return Adapter {
                lines,
                _control: control,
                _profile: Some(profile),
                _input: None,
                child,
            };
        }
        let mut child = self
            .program()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `make clients` installs it", self.name));
        let mut input = child.stdin.take().expect("its input");
        input
            .write_all(format!("{streams}\n").as_bytes())
            .await
            .expect("it reads");
        let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                if reports.send(line).is_err() {
                    return;
                }
            }
        });
        Adapter {
            lines,
            _control: control,
            _profile: None,
            _input: Some(input),
            child,
        }
    }
}

impl Adapter {
    pub async fn stop(mut self) {
        // A browser consists of many processes.
        if let (Some(id), true) = (self.child.id(), self._profile.is_some()) {
            let _ = killpg(Pid::from_raw(id as i32), Signal::SIGKILL);
        }
        let _ = self.child.kill().await;
    }
}

/// No first-run pages, and no network access except to our servers.
const FIREFOX_SETTINGS: &str = r#"
user_pref("app.normandy.enabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.getAddons.cache.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.http.speculative-parallel-limit", 0);
user_pref("network.proxy.type", 0);
user_pref("toolkit.telemetry.enabled", false);
"#;
