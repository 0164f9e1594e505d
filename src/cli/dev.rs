//! `tidings dev`: a private PostgreSQL, the bridge, and the demo page.
//!
//! Safe on a shared machine: it never touches a database other than its own, and accepts
//! connections from this machine only.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    thread,
};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{
    app::{self, App, Parts, shutdown::Shutdown},
    auth::{
        authenticator::{Credentials, QueryUser, TicketPolicy},
        client_addr::Proxies,
        cookie::CookieName,
    },
    cli::AnyError,
    config::{BridgeOptions, ConfigError, DevOptions, MigratePolicy},
    delivery::feed::FeedPolicy,
    http::{demo::Demo, inherited_sockets::InheritedSockets, servers},
    postgres::{
        connect::{DatabaseUrl, DatabaseUrlError},
        pool::{Pool, PoolMode},
        schema::SchemaName,
    },
    runtime::loopback::is_loopback,
};
use private_postgres::{self, Cluster, PostgresBinaries};

/// The database in the private cluster.
const DATABASE: &str = "tidings";

/// Pool size for the demo page's own queries.
const PAGE_CONNECTIONS: usize = 2;

/// Why the private PostgreSQL can't be used, although it runs.
#[derive(Debug, thiserror::Error)]
enum PrivatePostgresError {
    #[error("the private PostgreSQL returned an error")]
    Postgres(#[source] tokio_postgres::Error),
    #[error("the private PostgreSQL's URL can't be parsed")]
    Url(#[source] DatabaseUrlError),
}

/// Runs until it is asked to stop or its terminal is closed, then stops the bridge and
/// its PostgreSQL.
pub async fn run(options: DevOptions, shutdown: &Shutdown) -> Result<(), AnyError> {
    check_loopback(&options.bridge)?;
    // Checked first, so that a port in use is reported before a PostgreSQL is set up.
    servers::check_ports(&options.bridge)?;
    // An exported production URL must never be migrated or written to.
    if env::var_os("DATABASE_URL").is_some() {
        warn!("DATABASE_URL is set but ignored: `tidings dev` runs its own PostgreSQL");
    }
    let data = options
        .data
        .or_else(data_folder)
        .ok_or(ConfigError::NoDataFolder)?;
    let binaries = PostgresBinaries::find()?;
    // If this is interrupted, the next start removes what is half made.
    let starting = Cluster::start(&binaries, &data, &[]);
    let Some(cluster) = shutdown.unless_requested(starting).await else {
        return Ok(());
    };
    let cluster = cluster?;
    shutdown.allow(app::shutdown_limit(&options.bridge) + private_postgres::STOP_LIMIT);
    let outcome = serve(&cluster, &binaries, &options.bridge, shutdown).await;
    cluster.stop().await?;
    outcome
}

/// Resolves when a shutdown is requested, or when the terminal that `dev` was started
/// from is closed, because nobody would stop it then. Any other SIGHUP stops nothing, as
/// in `serve`.
async fn asked(shutdown: &Shutdown) {
    let has_terminal = || io::stdin().is_terminal();
    let hangups = shutdown.hangups();
    let closed = async {
        let had_terminal = has_terminal();
        loop {
            hangups.next().await;
            if had_terminal && !has_terminal() {
                return;
            }
            info!("SIGHUP: `tidings dev` has no files to reload");
        }
    };
    tokio::select! {
        () = shutdown.requested() => {}
        () = closed => {}
    }
}

async fn serve(
    cluster: &Cluster,
    binaries: &PostgresBinaries,
    options: &BridgeOptions,
    shutdown: &Shutdown,
) -> Result<(), AnyError> {
    let asked = asked(shutdown);
    tokio::pin!(asked);
    let building = build(cluster, binaries, options);
    let app = tokio::select! {
        biased;
        () = &mut asked => return Ok(()),
        app = building => app?,
    };
    app.run_until(asked).await?;
    Ok(())
}

async fn build(
    cluster: &Cluster,
    binaries: &PostgresBinaries,
    options: &BridgeOptions,
) -> Result<App, AnyError> {
    create_database(cluster)
        .await
        .map_err(PrivatePostgresError::Postgres)?;
    let connection_string = cluster.url(DATABASE);
    let url: DatabaseUrl = connection_string
        .parse()
        .map_err(PrivatePostgresError::Url)?;
    let psql = format!(
        "{} \"{connection_string}\" -c \"select send_notification('alice', 'Hello from SQL')\"",
        psql_command(binaries),
    );
    let pool = Pool::new(&url, PoolMode::Session, PAGE_CONNECTIONS, Handle::current())?;
    let demo = Demo::new(pool, &psql);
    let parts = Parts {
        url,
        direct_url: None,
        replica_urls: Vec::new(),
        nats: None,
        feed: FeedPolicy::Never,
        schema: SchemaName::public(),
        migrate: MigratePolicy::Auto,
        credentials: Credentials {
            tokens: None,
            cookie: CookieName::default(),
            user_header: None,
            tickets: TicketPolicy::Believed,
            query: QueryUser::Believed,
        },
        certificate: None,
        proxies: Proxies::default(),
        origins: options.cors_origins.clone(),
        demo: Some(demo.clone()),
        reloadable: None,
        activation: InheritedSockets::default(),
    };
    let app = App::build(parts, options).await?;
    demo.open_room().await?;
    print(format!(
        "\n  Tidings is running:  http://{}/\n\n  Send from SQL:\n\n  {psql}\n\n  Stop with Ctrl-C.\n",
        app.address()
    ));
    Ok(app)
}

/// Writes to standard output on a separate thread: if that is a pipe whose reader hangs,
/// only this thread blocks.
fn print(text: String) {
    let thread = thread::Builder::new().name("tidings-output".to_owned());
    let written = thread.spawn(move || {
        if let Err(error) = writeln!(io::stdout(), "{text}") {
            warn!(%error, "can't write to standard output: {error}");
        }
    });
    if let Err(error) = written {
        warn!(%error, "can't start a thread that writes to standard output: {error}");
    }
}

/// How to call psql: by name if it is on the PATH, otherwise by its full path.
fn psql_command(binaries: &PostgresBinaries) -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_found = env::split_paths(&path).any(|folder| folder.join("psql").is_file());
    match binaries.psql() {
        Some(psql) if !is_found => psql.display().to_string(),
        _ => "psql".to_owned(),
    }
}

fn check_loopback(options: &BridgeOptions) -> Result<(), ConfigError> {
    let addresses = [
        ("TIDINGS_LISTEN", options.listen),
        ("TIDINGS_ADMIN_LISTEN", options.admin_listen),
    ];
    match addresses
        .into_iter()
        .find(|(_, address)| !is_loopback(address.ip()))
    {
        None => Ok(()),
        Some((setting, address)) => Err(ConfigError::NotLoopback { setting, address }),
    }
}

/// The default data folder. For root, it is below a folder that the unprivileged user who
/// runs PostgreSQL can enter.
fn data_folder() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/tidings/dev"));
    }
    // XDG Base Directory Specification.
    let state = env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".local/state")));
    state.map(|state| state.join("tidings/dev"))
}

async fn create_database(cluster: &Cluster) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = cluster
        .config("postgres")
        .connect(tokio_postgres::NoTls)
        .await?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let exists = include_str!("../../sql/database_exists.sql");
    if !client
        .query_one(exists, &[&DATABASE])
        .await?
        .try_get::<_, bool>(0)?
    {
        client
            .batch_execute(&format!("create database {DATABASE}"))
            .await?;
    }
    Ok(())
}
