//! The command `tidings`.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use tidings::{
    app::{self, App, Parts},
    check::{self, Place, Report},
    config::{
        CheckOptions, Cli, Command, Form, MigrateOptions, PruneOptions, ServeOptions,
        StatusOptions, TokenOptions,
    },
    dev, direct, errand, manual,
    prune::{self, Outcome, Progress},
    retention::{self, Prune, Retry},
    schema, settings,
    shutdown::Shutdown,
    status, tail, telemetry,
    terminal::{self, Colour},
    token, uninstall,
};
use tokio::runtime::Runtime;
use tracing::info;

type Failure = Box<dyn Error>;

/// What `serve` and `dev` exit with when they were asked to stop, also if something
/// was cut off: the stop was wanted, and no process manager is to start them again.
const STOPPED: i32 = 0;

/// What `prune` exits with if it is cut off: there may be more to remove.
const UNFINISHED: i32 = 1;

/// How long `prune` may take to finish its batch when it is asked to stop: as long as
/// a statement may run, and some more.
const BATCH_LIMIT: Duration = Duration::from_secs(12);

/// How long tasks that were cut off may take to close what they hold, once all is
/// done: they may also never end.
const RUNTIME_LIMIT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let outcome = match Runtime::new() {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(matches));
            runtime.shutdown_timeout(RUNTIME_LIMIT);
            outcome
        }
        Err(error) => Err(error.into()),
    };
    let code = match outcome {
        Err(error) if !nobody_reads(&*error) => {
            telemetry::say(&format!("tidings: {error}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    };
    telemetry::flush();
    code
}

/// As in `tidings status | head`: whoever reads has enough.
fn nobody_reads(error: &(dyn Error + 'static)) -> bool {
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref().is_some_and(is_closed) || error.source().is_some_and(nobody_reads)
}

async fn run(matches: ArgMatches) -> Result<(), Failure> {
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    telemetry::install(&cli.log)?;
    // Each stream is a file to the system, and a fresh shell allows 1,024. What
    // can't be had is felt only by the streams beyond it.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let output = &mut io::stdout();
    match cli.command {
        Command::Serve(options) => Box::pin(serve(options)).await,
        Command::Migrate(options) => migrate(options).await,
        Command::Check(options) => check(&options).await,
        Command::Status(options) => status(&options).await,
        Command::Prune(options) => prune(options).await,
        Command::Dev(options) => Ok(dev::run(options, &Shutdown::watch(STOPPED)?).await?),
        Command::Token(options) => token(&options),
        Command::Send(options) => Ok(writeln!(output, "{}", errand::send(&options).await?)?),
        Command::Ticket(options) => Ok(writeln!(output, "{}", errand::issue(&options).await?)?),
        Command::Tail(options) => Ok(tail::run(output, &options).await?),
        Command::Uninstall(options) => Ok(uninstall::run(output, &options).await?),
        Command::Config(options) => {
            let matches = matches.subcommand_matches("config").unwrap_or(&matches);
            Ok(settings::print(output, &options, &settings::of(matches))?)
        }
        Command::Completions(options) => Ok(manual::complete(output, options.shell)?),
        Command::Man(options) => Ok(manual::page(output, options.command.as_deref())?),
    }
}

async fn serve(options: ServeOptions) -> Result<(), Failure> {
    let shutdown = Shutdown::watch(STOPPED)?;
    for warning in options.warnings() {
        tracing::warn!("{warning}");
    }
    let building = async {
        let parts = Parts::of(&options)?;
        App::build(parts, &options.bridge).await
    };
    let Some(app) = shutdown.unless_requested(Box::pin(building)).await else {
        info!("stopped before it was ready");
        return Ok(());
    };
    let mut app = app?;
    app.reload_on(shutdown.hangups());
    shutdown.allow(app::shutdown_limit(&options.bridge));
    Ok(app.run_until(shutdown.requested()).await?)
}

async fn migrate(options: MigrateOptions) -> Result<(), Failure> {
    let url = options.database.session_url()?;
    if options.dry_run {
        let script = schema::plan(&url, &options.database.schema).await?;
        return Ok(write!(io::stdout(), "{script}")?);
    }
    direct::prove(&url).await?;
    Ok(schema::migrate(&url, &options.database.schema, options.lock_limit).await?)
}

async fn check(options: &CheckOptions) -> Result<(), Failure> {
    let mut report = Report {
        findings: check::configuration(&options.serve),
        unseen: Vec::new(),
    };
    let database = &options.serve.database;
    // What keeps it from being found is among the findings.
    if let (Ok(url), Ok(direct)) = (database.url(), database.direct_url()) {
        let place = Place {
            direct: direct.as_ref().unwrap_or(&url),
            pooled: direct.is_some().then_some(&url),
            schema: &database.schema,
        };
        let found = check::examine(place, &options.thresholds).await?;
        report.findings.extend(found.findings);
        report.unseen.extend(found.unseen);
    }
    let mut output = io::stdout();
    match options.form.form() {
        Form::Json => writeln!(output, "{:#}", report.json())?,
        Form::Text => {
            let colour = Colour::of_stdout();
            terminal::print_report(&mut output, &report, colour)?;
            if report.wrong() == 0 {
                let calm = colour.calm("in order:");
                let schema = &database.schema;
                writeln!(
                    output,
                    "{calm} the schema {schema}, the rights in it, and how it runs"
                )?;
            }
        }
    }
    Ok(report.verdict()?)
}

async fn status(options: &StatusOptions) -> Result<(), Failure> {
    let status = status::look(options).await?;
    status.print(&mut io::stdout(), options.form.form())?;
    Ok(status.report.verdict()?)
}

async fn prune(options: PruneOptions) -> Result<(), Failure> {
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let sent_for = options.sent_before;
    if options.dry_run {
        let prunable = retention::prunable(&url, schema, sent_for).await?;
        return Ok(writeln!(io::stdout(), "{prunable}")?);
    }
    let shutdown = Shutdown::watch(UNFINISHED)?;
    let opening = Prune::open(&url, schema, sent_for, Retry::All);
    let outcome = match shutdown.unless_requested(opening).await {
        None => Outcome::Stopped(0),
        Some(prune) => {
            shutdown.allow(BATCH_LIMIT);
            prune::run(prune?, shutdown.requested(), Progress::on_stderr()).await?
        }
    };
    match outcome {
        Outcome::Done { removed, failures } => {
            if let Some(complaint) = prune::complaint(&failures) {
                tracing::warn!("{complaint}");
            }
            Ok(writeln!(io::stdout(), "{} removed", prune::rows(removed))?)
        }
        Outcome::Stopped(rows) => {
            let rows = prune::rows(rows);
            Err(format!("stopped with {rows} removed; there may be more to remove").into())
        }
    }
}

fn token(options: &TokenOptions) -> Result<(), Failure> {
    let (secret, rules) = options.secret()?;
    let token = token::sign(&secret, &rules, &options.user, options.ttl.as_secs())?;
    Ok(writeln!(io::stdout(), "{token}")?)
}
