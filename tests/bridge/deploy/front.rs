//! A proxy in front of two bridges, with the configuration that we ship for it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::Arc,
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::support::deployment::filled_in;
use crate::support::{
    PATIENCE,
    bridge::{Bridge, token},
    dev::DataFolder,
    event_source::{EventSource, Response, get},
    ports::free_address,
    tls::{
        authority::{Authority, Certified},
        http2::Http2,
        tunnel::{ORIGIN, Tunnel},
    },
};

/// The longest silence that each of the files allows.
const SILENCE: &str = "60s";

/// The placeholder for an application in nginx.conf.
const APPLICATION: &str = "# location / { … your application … }";

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Nginx,
    Caddy,
    Haproxy,
}

/// A running proxy, and a client's tunnel to it. Dropping it kills it.
pub struct Front {
    address: SocketAddr,
    authority: Arc<Authority>,
    tunnel: Tunnel,
    process: Child,
    _folder: DataFolder,
}

/// A server behind the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    /// Where the proxy checks its readiness.
    pub admin_address: SocketAddr,
}

impl From<&Bridge> for Upstream {
    fn from(bridge: &Bridge) -> Self {
        Self {
            address: bridge.address(),
            admin_address: bridge.admin_address(),
        }
    }
}

impl Front {
    /// A proxy in front of these bridges.
    pub async fn before(kind: Kind, bridges: [&Bridge; 2]) -> Self {
        Self::with_silence(kind, bridges, SILENCE).await
    }

    /// A proxy that gives up on a bridge that is silent for this long.
    pub async fn with_silence(kind: Kind, bridges: [&Bridge; 2], silence: &str) -> Self {
        Self::to(kind, bridges.map(Upstream::from), silence, None).await
    }

    /// A proxy in front of other upstreams.
    pub async fn before_others(kind: Kind, upstreams: [Upstream; 2]) -> Self {
        Self::to(kind, upstreams, SILENCE, None).await
    }

    /// nginx, with an application on the bridges' origin.
    pub async fn before_application(bridges: [&Bridge; 2], application: SocketAddr) -> Self {
        let upstreams = bridges.map(Upstream::from);
        Self::to(Kind::Nginx, upstreams, SILENCE, Some(application)).await
    }

    async fn to(
        kind: Kind,
        upstreams: [Upstream; 2],
        silence: &str,
        application: Option<SocketAddr>,
    ) -> Self {
        let authority = Arc::new(Authority::new());
        let certified = authority.issue("front", &[ORIGIN]);
        let folder = DataFolder::new();
        fs::create_dir_all(folder.path()).expect("a folder");
        let address = free_address();
        let mut command = kind.command(
            folder.path(),
            address,
            &certified,
            upstreams,
            silence,
            application,
        );
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{kind:?}: {error}; see scripts/tools"));
        let tunnel = Tunnel::to(address, Arc::clone(&authority)).await;
        let mut front = Self {
            address,
            authority,
            tunnel,
            process,
            _folder: folder,
        };
        front.accepts().await;
        front
    }

    async fn accepts(&mut self) {
        let asking = async {
            while TcpStream::connect(self.address).await.is_err() {
                let ended = self.process.try_wait().expect("its status");
                assert!(ended.is_none(), "it ended: {ended:?}");
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asking).await.expect("it accepts");
    }

    /// The URL that a browser requests.
    pub fn url(&self, path: &str) -> String {
        format!("https://{ORIGIN}:{}{path}", self.address.port())
    }

    /// The response to a browser's `EventSource`.
    pub async fn ask(&self, user: &str, last_event_id: &str) -> Response {
        ask(&self.tunnel, user, &[("Last-Event-ID", last_event_id)]).await
    }

    /// The response to a request with these headers.
    pub async fn ask_with(&self, query: &str, headers: &[(&str, &str)]) -> Response {
        let headers = [&[("Host", ORIGIN)], headers].concat();
        let answer = get(self.tunnel.address, &format!("/stream{query}"), &headers).await;
        answer.expect("an answer")
    }

    /// The response to a program with a token.
    pub async fn ask_as_program(&self, user: &str) -> Response {
        let bearer = format!("Bearer {}", token(user));
        self.ask_with("", &[("Authorization", &bearer)]).await
    }

    /// Opens the stream of a new client.
    pub async fn connect(&self, user: &str) -> EventSource {
        self.ask(user, "").await.into_events().await
    }

    /// The response to a client with this address that claims to have another one.
    pub async fn ask_from(&self, client: IpAddr, forwarded: &str) -> Response {
        let authority = Arc::clone(&self.authority);
        let tunnel = Tunnel::between(client, self.address, authority).await;
        ask(&tunnel, "alice", &[("X-Forwarded-For", forwarded)]).await
    }

    /// The response to a page of this origin that claims to have connected without TLS.
    pub async fn ask_of_page(&self, origin: &str) -> Response {
        let more = [("Origin", origin), ("X-Forwarded-Proto", "http")];
        ask(&self.tunnel, "alice", &more).await
    }

    /// The single connection that a browser uses for all its tabs.
    pub async fn connect_http2(&self) -> Http2 {
        Http2::connect(self.address, &self.authority).await
    }
}

async fn ask(tunnel: &Tunnel, user: &str, more: &[(&str, &str)]) -> Response {
    let cookie = format!("tidings_token={}", token(user));
    let headers = [
        ("Host", ORIGIN),
        ("Accept", "text/event-stream"),
        ("Cookie", &cookie),
    ];
    let answer = get(tunnel.address, "/stream", &[&headers, more].concat()).await;
    answer.expect("an answer")
}

impl Kind {
    /// Fills in the placeholders, and returns the command to run.
    fn command(
        self,
        folder: &Path,
        address: SocketAddr,
        certified: &Certified,
        [one, two]: [Upstream; 2],
        silence: &str,
        application: Option<SocketAddr>,
    ) -> Command {
        let own = folder.display().to_string();
        let certificate = certified.certificate.display().to_string();
        let key = certified.key.display().to_string();
        let [first, second] = [one, two].map(|upstream| upstream.address.to_string());
        let file = folder.join("front.conf");
        let shared = [
            ("10.0.0.11:8080", first.as_str()),
            ("10.0.0.12:8080", second.as_str()),
            (SILENCE, silence),
        ];
        let written = |name: &str, more: &[(&str, &str)], before: &str| {
            let mut text = filled_in(name, &[&shared, more].concat());
            if one.admin_address.port() != two.admin_address.port() {
                // Caddy uses one port for the health checks of all upstreams.
                text = lines_without(&text, "\t\t\thealth_");
            }
            fs::write(&file, format!("{before}{text}")).expect("a file");
        };
        match self {
            Self::Nginx => {
                let listen = format!("listen {address} ssl http2;");
                let elsewhere = application.map_or(APPLICATION.to_owned(), |application| {
                    format!(
                        "location / {{ proxy_pass http://{application}; \
                         proxy_set_header Host $http_host; \
                         proxy_set_header X-Forwarded-Proto $scheme; }}"
                    )
                });
                let more = [
                    (APPLICATION, elsewhere.as_str()),
                    ("listen 443 ssl http2;", listen.as_str()),
                    ("/etc/ssl/app.example.com.crt", &certificate),
                    ("/etc/ssl/app.example.com.key", &key),
                    ("/var/log/nginx", &own),
                ];
                written("nginx.conf", &more, "");
                nginx(folder, &file)
            }
            Self::Caddy => {
                let site = format!("https://{ORIGIN}:{} {{\n", address.port());
                let site = format!("{site}\ttls {certificate} {key}\n");
                let probes = format!("health_port {}", one.admin_address.port());
                let more = [
                    ("app.example.com {\n", site.as_str()),
                    ("/var/log/caddy", &own),
                    ("health_port 8081", &probes),
                ];
                let options = "{\n\tadmin off\n\tauto_https disable_redirects\n\tlog {\n\t\tlevel \
                               PANIC\n\t}\n}\n";
                written("Caddyfile", &more, options);
                caddy(folder, &file)
            }
            Self::Haproxy => {
                let pair = folder.join("pair.pem");
                let text = [&certified.certificate, &certified.key]
                    .map(|path| fs::read_to_string(path).expect("PEM"));
                fs::write(&pair, text.concat()).expect("a file");
                let with_probe = |Upstream {
                                      address,
                                      admin_address,
                                  }: Upstream| {
                    format!("{address} port {}", admin_address.port())
                };
                let [one, two] = [one, two].map(with_probe);
                let pair = pair.display().to_string();
                let bind = format!("bind {address}");
                let more = [
                    ("bind :443", bind.as_str()),
                    ("/etc/haproxy/app.example.com.pem", &pair),
                    // Each bridge has its own port for health checks.
                    (&format!("server one {first}"), &format!("server one {one}")),
                    (
                        &format!("server two {second}"),
                        &format!("server two {two}"),
                    ),
                    // Raising the limit of open files needs a privilege that few have.
                    ("maxconn 20000", "maxconn 200"),
                ];
                written("haproxy.cfg", &more, "");
                let mut command = program("HAPROXY", "haproxy");
                command.arg("-q").arg("-db").arg("-f").arg(&file);
                command
            }
        }
    }
}

/// nginx with a file of servers, as in `/etc/nginx/conf.d`. Everything that it writes is in the
/// folder.
pub fn nginx(folder: &Path, servers: &Path) -> Command {
    let own = folder.display().to_string();
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {own}/{name};\n"));
    // A single process, so that killing it ends nginx.
    let main = format!(
        "daemon off;\nmaster_process off;\npid {own}/nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n{}access_log off;\ninclude {};\n}}\n",
        folders.concat(),
        servers.display(),
    );
    let main_file = folder.join("nginx.conf");
    fs::write(&main_file, main).expect("a file");
    let mut command = program("NGINX", "nginx");
    command.args([
        "-p",
        &own,
        "-e",
        "stderr",
        "-g",
        "error_log stderr crit;",
        "-c",
    ]);
    // nginx would take this variable for a list of sockets.
    command.arg(main_file).env_remove("NGINX");
    command
}

/// Caddy with this file. Everything that it writes is in the folder.
pub fn caddy(folder: &Path, file: &Path) -> Command {
    let mut command = program("CADDY", "caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]);
    command
        .arg(file)
        .env("HOME", folder)
        .env("XDG_DATA_HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .stderr(Stdio::null());
    command
}

/// The text without the lines that begin with this.
fn lines_without(text: &str, beginning: &str) -> String {
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !line.starts_with(beginning)).collect()
}

fn program(variable: &str, name: &str) -> Command {
    Command::new(std::env::var(variable).unwrap_or_else(|_| name.to_owned()))
}
