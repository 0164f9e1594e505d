//! "Before you start", as a newcomer follows it, up to the first notification on a page.

use std::{fs, net::SocketAddr, path::Path};

use tokio::{process::Command, time::timeout};

use super::{application::program_path, page::Page};
use crate::support::{
    PATIENCE,
    database::{Database, shared_cluster},
    ports::free_address,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_own_role_leads_to_the_first_notification() {
    let database = Database::empty().await;
    let name = database.name();
    let grant = format!(
        "grant create on database {name} to application; \
         grant create on schema public to application"
    );
    database.superuser().execute(&grant).await;
    let [listen, admin] = [(); 2].map(|()| free_address());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("start");
    Page::open("sql").write_to(&folder);

    let run = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &commands(listen, admin)])
        .current_dir(&folder)
        .env("PATH", program_path())
        .env("PGHOST", shared_cluster().folder().join("run"))
        .env("PGPORT", "5432")
        .env("PGDATABASE", name)
        .env("PGUSER", "application")
        .env("TIDINGS_LISTEN", listen.to_string())
        .env("TIDINGS_ADMIN_LISTEN", admin.to_string())
        .kill_on_drop(true)
        .output();
    let output = timeout(2 * PATIENCE, run).await.expect("in time");
    let output = output.expect("bash");
    let traced = String::from_utf8_lossy(&output.stderr);
    let log = fs::read_to_string(folder.join("tidings.log")).unwrap_or_default();
    assert!(output.status.success(), "{traced}\n{log}");
    let stream = fs::read_to_string(folder.join("stream")).expect("the stream");
    assert!(
        stream.contains("event: order\ndata: Your lamp is on its way\n"),
        "{stream}"
    );
}

/// The commands of both pages. Those that don't end run in the background, and the rest waits for
/// what they print.
fn commands(listen: SocketAddr, admin: SocketAddr) -> String {
    let start = Page::open("README");
    let serve = start.files()["serve.sh"]
        .replace(
            "postgres://app:password@localhost/app",
            "\"host=$PGHOST dbname=$PGDATABASE user=$PGUSER\"",
        )
        .replace("tidings serve\n", "tidings serve 2> tidings.log &\n");
    let sql = Page::open("sql");
    let [create, watch, order] = sql.shown("sh").try_into().expect("three blocks");
    let watch = watch.replace("127.0.0.1:8080", &listen.to_string());
    format!(
        "trap 'kill $(jobs -p)' EXIT\n\
         {serve}\
         curl -s --fail --retry 60 --retry-delay 1 --retry-all-errors http://{admin}/health/ready\n\
         {create}\
         {} > stream &\n\
         {order}\
         until grep -q lamp stream; do sleep 0.1; done\n",
        watch.trim_end()
    )
}
