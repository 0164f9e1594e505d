//! `docs/recipes/development.md`: an application and a bridge on different ports of one machine,
//! with the page's files, in real browsers.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use super::{page::Page, shop};
use crate::{
    deploy::front,
    support::{
        PATIENCE,
        bridge::{Bridge, options_without_secret},
        browser::{Browser, Kind, in_each_browser},
        database::Database,
        dev::DataFolder,
        event_source::{EventSource, Item},
        ports::free_address,
        process::Served,
        until,
    },
};

in_each_browser!(
    #[ignore = "`make recipes` installs what it takes"]
    a_page_on_another_port_shows_rows,
    rows_pass_through_vite_and_the_page_outlives_the_bridge,
    rows_pass_through_caddy_and_the_page_outlives_the_bridge,
    rows_pass_through_nginx_and_the_page_outlives_the_bridge,
);

/// No heartbeat flushes what a proxy has buffered.
const SILENT: &str = "--heartbeat=300s";

/// How long a row may take to be shown, on a machine that is busy with other tests.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// The connections that a browser opens to an origin over HTTP/1.1.
const CONNECTIONS: usize = 6;

/// The page's stream, for a page of another origin.
const STREAM: &str = "http://localhost:8080/stream";

/// A replacement in the page's files.
type Edit<'a> = (&'a str, &'a str);

/// The page's stream, for a page of the same origin.
const OF_ITS_OWN_ORIGIN: Edit<'static> = (STREAM, "/stream");

/// What is between the browser and the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    Vite,
    Caddy,
    Nginx,
}

/// A developer's machine: the page, a database, and where the servers are.
struct Machine {
    page: Page,
    database: Database,
    application: SocketAddr,
    /// The bridge's settings on the page, as flags.
    settings: Vec<String>,
}

impl Machine {
    async fn new() -> Self {
        let page = Page::open("development");
        let application = free_address();
        let port = format!(":{}", application.port());
        let exports = page.files()["bridge.sh"].replace(":3000", &port);
        let settings: Vec<String> = exports.lines().filter_map(flag).collect();
        assert!(settings.len() >= 4, "{settings:?}");
        Self {
            page,
            database: shop::database().await,
            application,
            settings,
        }
    }

    /// The bridge's settings, with another one.
    fn settings<'a>(&'a self, another: &'a str) -> Vec<&'a str> {
        let all = self.settings.iter().map(String::as_str);
        all.chain([another]).collect()
    }

    /// A text of the page, with this test's ports.
    fn with_ports(&self, text: &str, bridge: SocketAddr, between: SocketAddr) -> String {
        let mut text = text.to_owned();
        for (from, address) in [
            (":8080", bridge),
            (":3000", self.application),
            ("(3000", self.application),
            (":8443", between),
            (":8000", between),
        ] {
            text = text.replace(from, &format!("{}{}", &from[..1], address.port()));
        }
        text
    }

    async fn send(&self, text: &str) {
        let send = format!("select tidings.send_notification('7', '{text}')");
        self.database.execute(&send).await;
    }
}

/// The flag for a setting that the page exports. Each test has a database of its own.
fn flag(line: &str) -> Option<String> {
    let (name, value) = line.strip_prefix("export TIDINGS_")?.split_once('=')?;
    let name = name.to_lowercase().replace('_', "-");
    Some(format!("--{name}={}", value.trim_matches('\'')))
}

/// The application, and the program in between.
struct Site {
    processes: Vec<Child>,
    /// Where a browser opens the page.
    url: String,
    /// Where the program in between listens.
    between: SocketAddr,
    /// The page's files.
    folder: DataFolder,
}

impl Site {
    async fn start(
        machine: &Machine,
        bridge: SocketAddr,
        between: Between,
        edits: &[Edit<'_>],
    ) -> Self {
        let mut site = Self {
            processes: Vec::new(),
            url: format!("http://localhost:{}", machine.application.port()),
            between: free_address(),
            folder: DataFolder::new(),
        };
        machine.page.write_to(site.folder.path());
        for (from, _) in edits {
            assert!(machine.page.text.contains(from), "not on the page: {from}");
        }
        for (name, mut text) in machine.page.files() {
            for (from, to) in edits {
                text = text.replace(from, to);
            }
            // For the tests' scripts.
            text = text.replace("const source =", "const source = window.source =");
            let text = machine.with_ports(&text, bridge, site.between);
            fs::write(site.folder.path().join(name), text).expect(name);
        }
        let mut node = Command::new("node");
        let mut secret = machine.settings.iter();
        let secret = secret.find_map(|setting| setting.strip_prefix("--jwt-secret="));
        node.arg("app.mjs")
            .env("TIDINGS_JWT_SECRET", secret.expect("a secret"));
        site.run(node, machine.application.port()).await;
        site.run_between(between).await;
        site
    }

    async fn run_between(&mut self, between: Between) {
        let (folder, port) = (self.folder.path(), self.between.port());
        let (scheme, command) = match between {
            Between::Nothing => return,
            Between::Vite => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let vite = root.join("target/recipes/development/node_modules/.bin/vite");
                let mut command = Command::new(vite);
                command.args(["--strictPort", "--port", &port.to_string()]);
                ("http", command)
            }
            Between::Caddy => {
                let file = folder.join("Caddyfile");
                let text = fs::read_to_string(&file).expect("a file");
                // It would ask for a password, and listen on a port for its administration.
                let text = text.replacen('{', "{\n\tskip_install_trust\n\tadmin off", 1);
                fs::write(&file, text).expect("a file");
                ("https", front::caddy(folder, &file))
            }
            Between::Nginx => {
                let file = folder.join("development.conf");
                ("http", front::nginx(folder, &file))
            }
        };
        self.url = format!("{scheme}://localhost:{port}");
        self.run(command, port).await;
    }

    /// Starts a program and waits until it listens.
    async fn run(&mut self, mut command: Command, port: u16) {
        let mut process = command
            .current_dir(self.folder.path())
            // Vite exits when its input ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; `make recipes` installs it"));
        let connecting = async {
            while TcpStream::connect(("localhost", port)).await.is_err() {
                let ended = process.try_wait().expect("its status");
                assert!(ended.is_none(), "{command:?} ended: {ended:?}");
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, connecting).await.expect("it listens");
        self.processes.push(process);
    }
}

/// Opens the page and waits until its stream is open.
async fn open(browser: &Browser, url: &str) {
    browser.client.goto(url).await.expect("the page");
    browser.until("window.source?.readyState === 1").await;
    let watch = "window.errors = []; \
         source.addEventListener('error', () => errors.push(source.readyState))";
    run(browser, watch).await;
}

async fn run(browser: &Browser, script: &str) -> Value {
    let answer = browser.client.execute(script, vec![]).await;
    answer.expect(script)
}

/// The texts that the page shows, as a script's expression.
const SHOWN: &str = "[...document.querySelectorAll('li')].map((item) => item.textContent)";

/// Waits until the page shows these texts, and nothing else.
async fn until_shown(browser: &Browser, texts: &[&str]) {
    let all = format!("{SHOWN}.length >= {}", texts.len());
    browser.until(&all).await;
    let shown = run(browser, &format!("return {SHOWN}")).await;
    assert_eq!(shown, json!(texts));
}

/// Sends the first row and waits until it is shown.
async fn is_shown_soon(browser: &Browser, machine: &Machine, text: &str) {
    let sent = Instant::now();
    machine.send(text).await;
    until_shown(browser, &[text]).await;
    let after = sent.elapsed();
    assert!(after < SHOWN_WITHIN, "shown after {after:?}");
}

async fn a_page_on_another_port_shows_rows(kind: Kind) {
    let machine = Machine::new().await;
    let bridge = Served::start(&machine.database, &machine.settings(SILENT)).await;
    let site = Site::start(&machine, bridge.address(), Between::Nothing, &[]).await;
    let browser = Browser::start(kind).await;
    open(&browser, &site.url).await;
    is_shown_soon(&browser, &machine, "at once").await;
    browser.stop().await;
}

async fn rows_pass_through_vite_and_the_page_outlives_the_bridge(kind: Kind) {
    outlives(kind, Between::Vite).await;
}

async fn rows_pass_through_caddy_and_the_page_outlives_the_bridge(kind: Kind) {
    outlives(kind, Between::Caddy).await;
}

async fn rows_pass_through_nginx_and_the_page_outlives_the_bridge(kind: Kind) {
    outlives(kind, Between::Nginx).await;
}

async fn outlives(kind: Kind, between: Between) {
    let machine = Machine::new().await;
    let options = options_without_secret(&machine.database, &machine.settings(SILENT));
    let place = (free_address(), free_address());
    let bridge = Bridge::start_at(&options, place).await;
    let site = Site::start(&machine, place.0, between, &[OF_ITS_OWN_ORIGIN]).await;
    let browser = Browser::start(kind).await;
    open(&browser, &site.url).await;
    is_shown_soon(&browser, &machine, "at once").await;

    bridge.stop().await;
    machine.send("while away").await;
    // First for the stream's end, then for the proxy's responses.
    browser.until("errors.length >= 3").await;
    let bridge = Bridge::start_at(&options, place).await;
    until_shown(&browser, &["at once", "while away"]).await;
    machine.send("live again").await;
    until_shown(&browser, &["at once", "while away", "live again"]).await;
    let states = run(&browser, "return [...new Set(errors)]").await;
    assert_eq!(states, json!([0]), "it gave up");

    // Of the three, only Caddy speaks HTTP/2.
    if between == Between::Caddy {
        let more = format!(
            "window.more = Array.from({{ length: {CONNECTIONS} }}, () => new EventSource('/stream'))"
        );
        run(&browser, &more).await;
        let all = "more.every((source) => source.readyState === 1)";
        browser.until(all).await;
        run(&browser, "for (const source of more) source.close()").await;
    }
    // The proxy passes on that the page left.
    run(&browser, "source.close()").await;
    bridge.until_connections(0).await;
    browser.stop().await;
    bridge.stop().await;
}

/// nginx has a timeout, and the heartbeats keep it from passing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn heartbeats_keep_a_stream_through_nginx_open() {
    let machine = Machine::new().await;
    let bridge = Served::start(&machine.database, &machine.settings("--heartbeat=1s")).await;
    // Four heartbeats, as on the page.
    let timeout = ("proxy_read_timeout 60s", "proxy_read_timeout 4s");
    let site = Site::start(&machine, bridge.address(), Between::Nginx, &[timeout]).await;
    let client = machine.database.connect().await;
    let ticket = "select tidings.create_stream_ticket('7', '1 hour')";
    let ticket = client.query_one(ticket, &[]).await.expect("a ticket");
    let stream = format!("/stream?ticket={}", ticket.get::<_, String>(0));
    let mut source = EventSource::open(site.between, &stream, &[]).await;
    until(&mut source, "tidings.caught-up").await;
    for _ in 0..6 {
        let item = source.next_item().await;
        assert!(matches!(item, Ok(Item::Id(_))), "no heartbeat: {item:?}");
    }
    machine.send("still open").await;
    assert_eq!(source.next_event().await.data, "still open");
}

/// A row of the page's table of mistakes, and a way to make the mistake.
struct Mistake {
    row: usize,
    /// The name by which the page is opened.
    host: &'static str,
    edits: &'static [Edit<'static>],
    /// Whether a cookie of another project is there.
    leftover: bool,
}

const NONE: Mistake = Mistake {
    row: 0,
    host: "localhost",
    edits: &[],
    leftover: false,
};

const MISTAKES: [Mistake; 6] = [
    Mistake {
        row: 0,
        host: "127.0.0.1",
        ..NONE
    },
    Mistake {
        row: 1,
        edits: &[(STREAM, "http://127.0.0.1:8080/stream")],
        ..NONE
    },
    Mistake {
        row: 1,
        edits: &[(", { withCredentials: true }", "")],
        ..NONE
    },
    Mistake {
        row: 2,
        edits: &[(
            "process.env.TIDINGS_JWT_SECRET",
            "'another secret, of at least 32 bytes'",
        )],
        ..NONE
    },
    Mistake {
        row: 2,
        leftover: true,
        ..NONE
    },
    Mistake {
        row: 3,
        edits: &[OF_ITS_OWN_ORIGIN],
        ..NONE
    },
];

/// The row of the mistake that is not in the list above.
const SEVENTH_TAB: usize = 4;

/// What the page says about each mistake: the text in the browser's console, and in the bridge's
/// log.
fn symptoms(page: &Page) -> Vec<[Option<&str>; 2]> {
    let (_, table) = page.text.split_once("## Common mistakes").expect("a table");
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(2);
    let symptoms = rows.map(|row| {
        let mut cells = row.split(" | ").skip(1);
        [(); 2].map(|()| cells.next()?.split('`').nth(1))
    });
    symptoms.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn each_mistake_shows_what_the_page_says() {
    let page = Page::open("development");
    let symptoms = symptoms(&page);
    assert_eq!(symptoms.len(), SEVENTH_TAB + 1, "{symptoms:?}");
    for mistake in MISTAKES {
        shows(&mistake, symptoms[mistake.row]).await;
    }
}

async fn shows(mistake: &Mistake, [console, log]: [Option<&str>; 2]) {
    let machine = Machine::new().await;
    let mut bridge = Served::start(&machine.database, &machine.settings(SILENT)).await;
    let address = bridge.address();
    let site = Site::start(&machine, address, Between::Nothing, mistake.edits).await;
    let browser = Browser::start(Kind::Chromium).await;
    if mistake.leftover {
        open(&browser, &site.url).await;
        run(&browser, "document.cookie = 'tidings_token=left; path=/'").await;
    }
    let url = site.url.replace("localhost", mistake.host);
    browser.client.goto(&url).await.expect("the page");
    browser.until("window.source?.readyState === 2").await;

    let console = console.expect("a text in the console");
    let mut lines = Vec::new();
    let reading = async {
        while !lines.iter().any(|line: &String| line.contains(console)) {
            lines.extend(browser.console().await);
        }
    };
    if timeout(PATIENCE, reading).await.is_err() {
        panic!("never in the console: {console}");
    }
    match log {
        Some(text) => {
            let text = machine.with_ports(text, address, site.between);
            bridge.until_logged("INFO", &text).await;
        }
        None => {
            let rejected = bridge.refused("origin").await + bridge.refused("identity").await;
            assert_eq!(rejected, 0);
        }
    }
    browser.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "`make recipes` installs what it takes"]
async fn the_seventh_stream_waits_and_the_application_responds() {
    let page = Page::open("development");
    assert_eq!(symptoms(&page)[SEVENTH_TAB], [None, None]);
    let machine = Machine::new().await;
    let options = options_without_secret(&machine.database, &machine.settings(SILENT));
    let bridge = Bridge::start_as(&options).await;
    let site = Site::start(&machine, bridge.address(), Between::Nothing, &[]).await;
    let browser = Browser::start(Kind::Chromium).await;
    open(&browser, &site.url).await;
    let more = format!(
        "window.more = Array.from({{ length: {CONNECTIONS} }}, \
         () => new EventSource(source.url, {{ withCredentials: true }}))"
    );
    run(&browser, &more).await;
    bridge.until_connections(CONNECTIONS).await;
    let ask = "fetch('/stream-cookie', { method: 'POST' }).then((it) => { window.responded = it.status })";
    run(&browser, ask).await;
    browser.until("window.responded === 204").await;
    let open = "more.filter((source) => source.readyState === 1).length";
    browser
        .until(&format!("{open} === {}", CONNECTIONS - 1))
        .await;
    run(&browser, "source.close()").await;
    browser.until(&format!("{open} === {CONNECTIONS}")).await;
    browser.stop().await;
    bridge.stop().await;
}
