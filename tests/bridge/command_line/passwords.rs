//! If the URL has no password, it is looked up where libpq does; and permanent errors of the server
//! are reported at once.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use private_postgres::Cluster;
use tokio::time::Instant;

use super::{Said, command, said};
use crate::support::{
    bridge::SECRET,
    database::{Database, start_cluster},
    dev::DataFolder,
    process::Served,
};

/// Far less than the 30 s for which `serve` waits for an unreachable database.
const AT_ONCE: Duration = Duration::from_secs(10);

/// The superuser needs no password; all others do.
const ACCESS: &str = "local all tidings trust\nlocal all all scram-sha-256\n";

/// The password of the role `bridge`.
const PASSWORD: &str = r"a:good \one";

struct Server {
    cluster: Cluster,
    database: Database,
    folder: DataFolder,
}

impl Server {
    async fn start() -> Self {
        let cluster = start_cluster().await;
        let database = Database::migrated_in(&cluster).await;
        let superuser = database.superuser();
        let client = superuser.connect().await;
        let row = client.query_one("show hba_file", &[]).await;
        let access: String = row.expect("a setting").get(0);
        fs::write(access, ACCESS).expect("a file");
        superuser
            .execute(&format!(
                "alter role bridge password '{PASSWORD}'; select pg_reload_conf()"
            ))
            .await;
        let refused = async {
            while Database::at(database.connection_string())
                .try_connect()
                .await
                .is_ok()
            {
                tokio::task::yield_now().await;
            }
        };
        let refused = tokio::time::timeout(crate::support::PATIENCE, refused).await;
        refused.expect("the server asks for passwords");
        let folder = DataFolder::new();
        fs::create_dir_all(folder.path()).expect("a folder");
        Self {
            cluster,
            database,
            folder,
        }
    }

    /// Writes a password file.
    fn file(&self, name: &str, lines: &str, mode: u32) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, lines).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        path
    }

    /// Runs `tidings status` as the bridge, without `HOME`.
    async fn status(&self, more: &str, environment: &[(&str, &str)]) -> Said {
        self.run(&["status"], more, environment).await
    }

    async fn run(&self, arguments: &[&str], more: &str, environment: &[(&str, &str)]) -> Said {
        let mut command = command(arguments);
        let url = format!("{} {more}", self.database.connection_string());
        for name in ["HOME", "PGPASSWORD", "PGPASSFILE"] {
            command.env_remove(name);
        }
        command
            .env("DATABASE_URL", url)
            .env("TIDINGS_JWT_SECRET", SECRET)
            .envs(environment.iter().copied());
        let begin = Instant::now();
        let said = said(command, "").await;
        assert!(
            begin.elapsed() < AT_ONCE,
            "{arguments:?}: {:?}",
            begin.elapsed()
        );
        said
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_found_where_libpq_finds_it() {
    let server = Server::start().await;
    let escaped = PASSWORD.replace('\\', r"\\").replace(':', r"\:");
    let socket = server.cluster.folder().join("run");
    let name = server.database.name();
    let exact = format!("{}:5432:{name}:bridge:{escaped}\n", text(&socket));
    let exact = server.file(
        "exact",
        &format!("*:*:*:other:no\n{exact}*:*:*:*:no\n"),
        0o600,
    );
    let wild = server.file(
        "wild",
        &format!("# all of them\n*:*:*:*:{escaped}\r\n"),
        0o400,
    );
    let home = server.folder.path().join("home");
    fs::create_dir_all(&home).expect("a folder");
    server.file("home/.pgpass", &format!("*:*:*:bridge:{escaped}\n"), 0o600);
    let bad = server.file("bad", "*:*:*:*:wrong\n", 0o600);

    let passfile = format!("passfile={}", text(&exact));
    let cases: [(&str, &[(&str, &str)]); 6] = [
        ("", &[("PGPASSWORD", PASSWORD)]),
        ("", &[("PGPASSFILE", text(&exact))]),
        ("", &[("PGPASSFILE", text(&wild))]),
        ("", &[("HOME", text(&home))]),
        (&passfile, &[("PGPASSFILE", text(&bad))]),
        // The variable takes precedence over files.
        ("", &[("PGPASSWORD", PASSWORD), ("PGPASSFILE", text(&bad))]),
    ];
    for (more, environment) in cases {
        let said = server.status(more, environment).await;
        assert!(
            said.out.contains("connected as bridge"),
            "{more} {environment:?}: {said:?}"
        );
        assert!(!format!("{said:?}").contains("good"), "{said:?}");
    }
    // The file is read for each connection of the bridge, so a new password needs no restart.
    let secret = [("PGPASSFILE", text(&exact))];
    let mut bridge = Served::start_in(&server.database, &[], &secret).await;
    let mut alice = bridge.connect_live("alice").await;
    server
        .database
        .superuser()
        .execute("alter role bridge password 'the next one'")
        .await;
    server.file("exact", "*:*:*:bridge:the next one\n", 0o600);
    server
        .database
        .superuser()
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and usename = 'bridge'",
        )
        .await;
    bridge
        .until_logged("INFO", "reconnected to the database")
        .await;
    server
        .database
        .superuser()
        .execute("select send_notification('alice', 'hello')")
        .await;
    assert_eq!(alice.next_event().await.data, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_for_good_is_told_at_once_with_what_to_do() {
    let server = Server::start().await;
    let open = server.file("open", "*:*:*:*:x\n", 0o644);
    let bad = server.file("bad", "*:*:*:*:wrong\n", 0o600);
    let other = server.file("other", "*:*:*:other:x\n", 0o600);
    let status: &[&str] = &["status"];
    let commands: [&[&str]; 3] = [&["serve"], status, &["send", "alice", "hello"]];
    for arguments in commands {
        // A missing password is a missing setting.
        for (environment, reason) in [
            (&[][..], "there is no password file"),
            (&[("PGPASSFILE", text(&open))], "chmod 600"),
            (&[("PGPASSFILE", text(&other))], "no line"),
            (&[("PGPASSFILE", "/nowhere")], "/nowhere"),
            (&[("PGPASSFILE", "/dev/null")], "not a plain file"),
            (&[("HOME", "/nowhere")], "/nowhere/.pgpass"),
        ] {
            let said = server.run(arguments, "", environment).await;
            assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
            for expected in [
                "requires a password for the role bridge",
                "PGPASSFILE",
                reason,
            ] {
                assert!(said.error.contains(expected), "{expected}: {said:?}");
            }
        }
        // The other errors may be fixed on the server.
        for (more, environment, reasons) in [
            (
                "password=wrong",
                &[][..],
                &[
                    "password authentication failed",
                    "check the role and its password",
                ][..],
            ),
            ("", &[("PGPASSWORD", "wrong")], &["from PGPASSWORD"]),
            (
                "",
                &[("PGPASSFILE", text(&bad))],
                &["from the password file", "bad"],
            ),
            (
                "user=nobody password=x",
                &[],
                &["password authentication failed"],
            ),
            (
                "dbname=nowhere user=tidings",
                &[],
                &["\"nowhere\" does not exist", "correct its name"],
            ),
        ] {
            let said = server.run(arguments, more, environment).await;
            assert_eq!(said.code, Some(1), "{more}: {said:?}");
            for reason in reasons {
                assert!(said.error.contains(reason), "{reason}: {said:?}");
            }
            assert!(!said.error.contains("retrying for"), "{said:?}");
        }
    }
}
