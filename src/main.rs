//! The command `tidings`.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use tidings::{
    app::{App, Parts},
    check::{self, Place, Report},
    config::{
        CheckOptions, Cli, Command, Form, MigrateOptions, PruneOptions, ServeOptions,
        StatusOptions, TokenOptions,
    },
    dev, direct, errand, manual,
    prune::{self, Outcome, Progress},
    retention, schema, settings, shutdown, status, tail, telemetry,
    terminal::{self, Colour},
    token, uninstall,
};

type Failure = Box<dyn Error>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::command().get_matches()).await {
        Err(error) if !nobody_reads(&*error) => {
            let _ = writeln!(io::stderr(), "tidings: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
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
        Command::Serve(options) => serve(options).await,
        Command::Migrate(options) => migrate(options).await,
        Command::Check(options) => check(&options).await,
        Command::Status(options) => status(&options).await,
        Command::Prune(options) => prune(options).await,
        Command::Dev(options) => Ok(dev::run(options, shutdown::requested()?).await?),
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
    let shutdown = shutdown::requested()?;
    for warning in options.warnings() {
        tracing::warn!("{warning}");
    }
    let app = App::build(Parts::of(&options)?, &options.bridge).await?;
    Ok(app.run_until(shutdown).await?)
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
    let stop = shutdown::requested()?;
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let sent_for = options.sent_before;
    if options.dry_run {
        let prunable = retention::prunable(&url, schema, sent_for).await?;
        return Ok(writeln!(io::stdout(), "{prunable}")?);
    }
    match prune::run(&url, schema, sent_for, stop, Progress::on_stderr()).await? {
        Outcome::Done(rows) => Ok(writeln!(io::stdout(), "{} removed", prune::rows(rows))?),
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
