//! With `docs/install.md` alone, a DBA who is not a superuser can take a database without Tidings
//! to a first notification, and back: the test runs the page's commands verbatim.

use std::{env, fs, net::SocketAddr, path::Path};

use tokio::{process::Command, time::timeout};

use crate::support::{
    PATIENCE,
    database::{Database, psql, start_cluster},
    dev::DataFolder,
    ports::free_address,
};

/// The commands of a page, in order: its shell blocks.
fn commands(page: &str) -> String {
    let mut commands = String::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, line) => {
                commands.push_str(line);
                commands.push('\n');
            }
            (false, _) => {}
        }
    }
    commands
}

/// Replaces the page's ports, which may be in use on this machine.
fn with_free_ports(commands: &str) -> (String, [SocketAddr; 2]) {
    let addresses = [(); 2].map(|()| free_address());
    let [listen, admin] = addresses.map(|address| address.to_string());
    let commands = commands
        .replace("127.0.0.1:8080", &listen)
        .replace("127.0.0.1:8081", &admin);
    (commands, addresses)
}

/// The objects of the database and the roles of the cluster, as comparable text.
async fn inventory(superuser: &Database) -> String {
    let query = "select string_agg(thing, e'\\n' order by thing) from ( \
                   select 'relation ' || oid::regclass from pg_class \
                     where relnamespace::regnamespace::text not in ('pg_toast', 'pg_catalog') \
                   union all select 'function ' || oid::regprocedure from pg_proc \
                   union all select format('schema %s %s', nspname, nspacl) from pg_namespace \
                   union all select 'role ' || rolname from pg_roles \
                   union all select format('database %s %s', datname, datacl) from pg_database \
                   union all select 'type ' || oid::regtype from pg_type \
                     where typnamespace::regnamespace::text <> 'pg_toast' \
                 ) as things (thing)";
    let client = superuser.connect().await;
    client.query_one(query, &[]).await.expect(query).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_takes_a_dba_to_a_first_notification_and_back() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "shop").await.superuser();
    database
        .execute(
            "create role dba login createrole; create role app login; \
             alter database shop owner to dba; create table orders (id int)",
        )
        .await;
    let before = inventory(&database).await;

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/install.md")).expect("the page");
    let (commands, [listen, admin]) = with_free_ports(&commands(&page));
    let folder = DataFolder::new();
    fs::create_dir_all(folder.path()).expect("a folder");
    let program = Path::new(env!("CARGO_BIN_EXE_tidings")).parent();
    let psql = psql();
    let path = env::var_os("PATH").expect("a path");
    let folders = program.into_iter().chain(psql.parent());
    let path = env::join_paths(folders.map(Into::into).chain(env::split_paths(&path)));
    let run = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &commands])
        .current_dir(folder.path())
        .env("PATH", path.expect("a path"))
        .env("PGHOST", cluster.folder().join("run"))
        .env("PGPORT", "5432")
        .env("PGDATABASE", "shop")
        .env("PGUSER", "dba")
        .env("TIDINGS_LISTEN", listen.to_string())
        .env("TIDINGS_ADMIN_LISTEN", admin.to_string())
        .kill_on_drop(true)
        .output();
    let output = timeout(2 * PATIENCE, run).await.expect("in time");
    let output = output.expect("bash");
    let said = String::from_utf8_lossy(&output.stdout);
    let traced = String::from_utf8_lossy(&output.stderr);
    let log = fs::read_to_string(folder.path().join("tidings.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{traced}\n{log}");
    assert!(said.contains("\"status\":\"ready\""), "{said}");
    assert!(said.contains("data: Your build is green"), "{said}");
    assert!(said.contains("| t"), "it is marked as sent: {said}");
    assert_eq!(inventory(&database).await, before, "{traced}");
}
