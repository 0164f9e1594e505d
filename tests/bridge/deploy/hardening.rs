//! The files of `deploy/` and `docker-compose.yml` give each part the privileges it needs and no
//! more.

use std::{
    collections::BTreeMap, env, fs, net::TcpListener, path::Path, process::Command, time::Duration,
};

use clap::CommandFactory;
use tidings::config::Cli;

use crate::support::{
    bridge::Bridge,
    database::{Database, psql, start_cluster},
    deployment::shipped,
    ports::free_address,
};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).expect(file)
}

/// The services of `docker-compose.yml`, each with its lines, and those that it takes from another
/// service. An anchor of a whole service is named like the service.
fn services() -> BTreeMap<String, String> {
    let compose = read("docker-compose.yml");
    let (_, services) = compose.split_once("\nservices:\n").expect("services");
    let (services, _) = services.split_once("\nvolumes:\n").expect("volumes");
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in services.lines() {
        match line.strip_prefix("  ") {
            Some(name) if !name.starts_with([' ', '#']) && name.contains(':') => {
                let (name, anchor) = name.split_once(':').expect("a service");
                assert!(anchor.is_empty() || anchor == format!(" &{name}"));
                current = name.to_owned();
            }
            _ => {
                let base = line.strip_prefix("    <<: *");
                let base = base.and_then(|name| found.get(name)).cloned();
                let lines = found.entry(current.clone()).or_default();
                lines.push_str(&base.unwrap_or_default());
                lines.push_str(line);
                lines.push('\n');
            }
        }
    }
    found
}

#[test]
fn every_container_of_compose_is_read_only_without_privileges_and_with_a_role_of_its_own() {
    let compose = read("docker-compose.yml");
    let (_, hardened) = compose.split_once("&hardened\n").expect("what all have");
    let (hardened, _) = hardened.split_once("\n\n").expect("its end");
    for line in [
        "read_only: true",
        "cap_drop: [ALL]",
        "no-new-privileges:true",
    ] {
        assert!(hardened.contains(line), "{line}");
    }
    let services = services();
    let names: Vec<&str> = services.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "balancer", "bridge", "bridge-1", "bridge-2", "migrate", "nats", "postgres"
        ]
    );
    let superuser = "POSTGRES_USER: tidings\n";
    assert!(services["postgres"].contains(superuser));
    for (name, service) in &services {
        assert!(service.contains("<<: *hardened\n"), "{name}");
        assert!(service.contains("    healthcheck:\n"), "{name}");
        let urls = service.lines().filter(|line| line.contains("postgres://"));
        for url in urls {
            assert!(!url.contains("postgres://tidings:"), "{name}: {url}");
            assert!(!url.contains("POSTGRES_PASSWORD"), "{name}: {url}");
        }
    }
    for bridge in ["bridge", "bridge-1", "bridge-2"] {
        assert!(services[bridge].contains("TIDINGS_MIGRATE: never"));
    }
    let roles = read("deploy/compose/roles.sh");
    for role in [
        "create role migrator login password :'owner_password' in role tidings_owner",
        "create role bridge login password :'bridge_password' in role tidings_bridge",
    ] {
        assert!(roles.contains(role), "{role}");
    }
    // The file itself explains how to see it work.
    for command in ["tidings token alice", "send_notification('alice'"] {
        assert!(compose.contains(command), "{command}");
    }
}

#[test]
fn without_the_profile_compose_has_one_bridge_and_no_nats() {
    for (name, service) in services() {
        let in_cluster = service.contains("    profiles: [cluster]\n");
        let expected = ["balancer", "bridge-1", "bridge-2", "nats"].contains(&name.as_str());
        assert_eq!(in_cluster, expected, "{name}");
        assert!(in_cluster || !service.contains("NATS"), "{name}");
        // Compose would insist on the variable without the profile, too.
        let of_compose = service.replace("$$", "");
        assert!(!of_compose.contains("${NATS_PASSWORD:?"), "{name}");
        let is_published = service.contains("ports:\n") && !service.contains("ports: []\n");
        let expected = ["bridge", "balancer"].contains(&name.as_str());
        assert_eq!(is_published, expected, "{name}");
    }
    let services = services();
    for bridge in ["bridge-1", "bridge-2"] {
        assert!(services[bridge].contains("TIDINGS_NATS_URL: "), "{bridge}");
        let proxy = shipped("compose/haproxy.cfg");
        assert!(proxy.contains(&format!("server {bridge} {bridge}:8080\n")));
    }
}

/// What the image of PostgreSQL runs, and what the two other containers do then.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_of_compose_are_enough_for_each_container_and_no_more() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "shop").await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roles = root.join("sql/roles.sql").display().to_string();
    let script = read("deploy/compose/roles.sh").replace("/tidings/roles.sql", &roles);
    let psql = psql();
    let path = env::var_os("PATH").expect("a path");
    let folders = psql.parent().map(Into::into);
    let folders = folders.into_iter().chain(env::split_paths(&path));
    let output = tokio::process::Command::new("sh")
        .args(["-c", &script])
        .env("PATH", env::join_paths(folders).expect("a path"))
        .env("PGHOST", cluster.folder().join("run"))
        .env("PGPORT", "5432")
        .env("POSTGRES_USER", "tidings")
        .env("POSTGRES_DB", "shop")
        .env("OWNER_PASSWORD", "it's the owner's")
        .env("BRIDGE_PASSWORD", "bridge")
        .output()
        .await
        .expect("a shell");
    assert!(output.status.success(), "{output:?}");
    let client = database.superuser().connect().await;
    let mighty = "select count(*) from pg_roles where rolname in ('migrator', 'bridge') \
                  and not (rolsuper or rolcreaterole or rolcreatedb or rolbypassrls) \
                  and rolcanlogin";
    let row = client.query_one(mighty, &[]).await.expect(mighty);
    assert_eq!(row.get::<_, i64>(0), 2);

    database.migrate().await;
    let bridge = Bridge::start_with(&database, &["--migrate=never"]).await;
    let mut alice = bridge.connect_live("alice").await;
    let send = "select send_notification('alice', 'Hello')";
    database.superuser().execute(send).await;
    assert_eq!(alice.next_event().await.data, "Hello");
    let forge = "insert into notifications (user_id, text) values ('alice', 'forged')";
    let forged = database.bridge().connect().await.execute(forge, &[]).await;
    forged.expect_err("it may only read and mark");
}

#[test]
fn what_holds_secrets_gets_into_no_repository_and_no_image() {
    let ignored = read(".gitignore");
    let has = |name: &str| ignored.lines().any(|line| line.trim_matches('/') == name);
    assert!(has("secrets") && has(".env"), "{ignored}");
    let ignored = read(".dockerignore");
    let mut rules = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "everything is ignored except:");
    for rule in rules {
        let path = rule.strip_prefix("!/").expect("what is copied");
        assert!(!path.contains(['*', '.']) || path.starts_with("Cargo.") || path == "build.rs");
    }
}

#[test]
fn the_manifests_are_of_this_version_and_let_nobody_but_monitors_reach_the_admin_port() {
    let manifest = shipped("kubernetes/tidings.yaml");
    let version = env!("CARGO_PKG_VERSION").trim_end_matches("-dev");
    let images: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "))
        .collect();
    let expected = format!("registry.example.com/tidings:{version}");
    assert_eq!(images, [&expected; 2]);
    let documents = manifest.split("\n---\n");
    let of_kind = |kind: &str| {
        let kind = format!("kind: {kind}\n");
        let found = documents.clone().find(|document| document.contains(&kind));
        found.unwrap_or_else(|| panic!("no {kind}"))
    };
    let ingress = of_kind("Ingress");
    assert!(ingress.contains("path: /stream\n"));
    assert!(ingress.contains("name: tidings, port: { name: stream }"));
    assert!(ingress.contains("proxy-buffering: \"off\""));
    assert!(!ingress.contains("admin"));
    let policy = of_kind("NetworkPolicy");
    let rules: Vec<&str> = policy.split("- from:").skip(1).collect();
    for rule in &rules {
        assert!(rule.contains("namespaceSelector"), "{rule}");
    }
    let admin = rules.iter().filter(|rule| rule.contains("port: admin"));
    let admin: Vec<_> = admin.collect();
    assert!(
        admin.len() == 1 && admin[0].contains("monitoring"),
        "{admin:?}"
    );
}

/// The value of a setting in the unit.
fn of_unit<'a>(unit: &'a str, name: &str) -> &'a str {
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn systemd_gives_up_on_what_ends_at_once_and_not_on_a_database_that_is_away() {
    let unit = shipped("systemd/tidings.service");
    assert_eq!(of_unit(&unit, "RestartPreventExitStatus"), "2");
    let duration = |name| {
        let text = of_unit(&unit, name);
        humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let (interval, pause) = (duration("StartLimitIntervalSec"), duration("RestartSec"));
    let burst: u32 = of_unit(&unit, "StartLimitBurst").parse().expect("a number");
    // How long `serve` waits for an unreachable database.
    let waits = Duration::from_secs(30);
    assert!(burst * pause < interval, "what ends at once is given up");
    assert!(burst * (waits + pause) > 2 * interval, "what waits is not");
}

/// The bridge recognizes the socket by its name, and the socket replaces the default address.
#[test]
fn the_socket_unit_passes_what_the_bridge_takes() {
    let unit = shipped("systemd/tidings.socket");
    assert_eq!(of_unit(&unit, "FileDescriptorName"), "stream");
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").expect("serve");
    let listen = serve.get_arguments().find(|argument| {
        let variable = argument.get_env();
        variable.is_some_and(|name| name == "TIDINGS_LISTEN")
    });
    let default = listen.expect("the setting").get_default_values()[0].to_str();
    assert_eq!(default, Some(of_unit(&unit, "ListenStream")));
    // One process accepts all connections.
    assert!(!unit.contains("Accept="));
}

#[test]
fn make_dev_tells_that_a_port_is_in_use_before_it_builds() {
    let makefile = read("Makefile");
    let (_, dev) = makefile.split_once("\ndev: ").expect("the target");
    let (dev, _) = dev.split_once("\n\n").expect("its end");
    let before = dev.split_once("cargo build").expect("it builds").0;
    assert!(before.contains("scripts/ports $(ARGS)"), "{dev}");

    let bind = |address| {
        let listener = TcpListener::bind(address).expect("a port");
        let bound = listener.local_addr().expect("an address");
        (listener, bound)
    };
    let (_here, taken) = bind("127.0.0.1:0");
    let (_everywhere, any) = bind("0.0.0.0:0");
    let free = free_address();
    let (taken, any) = (taken.to_string(), any.port());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ports");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = Command::new(&script)
            .args(arguments)
            .env("TIDINGS_LISTEN", "127.0.0.1:0")
            .env("TIDINGS_ADMIN_LISTEN", "127.0.0.1:0")
            .envs(variables.iter().copied())
            .output()
            .expect("the script");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    assert_eq!(run(&[], &[]), (true, String::new()));
    let free = format!("--listen={free}");
    assert_eq!(run(&[&free], &[]), (true, String::new()));
    let localhost = format!("localhost:{any}");
    for (arguments, variables) in [
        (vec![format!("--listen={taken}")], vec![]),
        (vec!["--admin-listen".to_owned(), taken.clone()], vec![]),
        (vec![], vec![("TIDINGS_LISTEN", taken.as_str())]),
        (vec![], vec![("TIDINGS_ADMIN_LISTEN", localhost.as_str())]),
        (vec![format!("--listen=:{any}")], vec![]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (succeeded, said) = run(&arguments, &variables);
        assert!(
            !succeeded && said.contains("in use"),
            "{arguments:?} {variables:?}: {said}"
        );
    }
}
