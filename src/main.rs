//! The command `tidings`.

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use tidings::{
    app::{self, App, Parts, shutdown::Shutdown},
    auth::jwt,
    check::{self, Installation, Report},
    cli::{
        AnyError, adopt, completions, dev, health,
        output::{self, Colour, Screen},
        prune::{self, ProgressLine, PruneOutcome},
        send, show_config, status, tail, uninstall,
    },
    config::{
        BridgeOptions, CheckOptions, Cli, Command, ConfigError, ConfigOptions, Environment, Form,
        MigrateOptions, PruneOptions, ServeOptions, StatusOptions, TokenOptions,
    },
    http::inherited_sockets::{InheritedSockets, InheritedSocketsError},
    monitoring::logging::{self, ErrorChain, LogError},
    postgres::{
        connect::MissingPassword,
        error_hint, listen_probe, prune_failure,
        retention::{self, Prune, Retry},
        schema,
    },
};
use tokio::runtime::Runtime;
use tracing::info;

/// Exit code of `serve` and `dev` after they were asked to stop, even if something was
/// cut off: the stop was wanted, so process managers must not restart them.
const STOPPED: i32 = 0;

/// Exit code of `prune` if it is cut off: there may be more to remove.
const UNFINISHED: i32 = 1;

/// Exit code of every command if a setting is missing or can't be used, the same as for
/// bad arguments: another attempt won't help, and process managers can be told so
/// (`RestartPreventExitStatus=2`).
const BAD_SETTING: u8 = 2;

/// How long `prune` may take to finish its batch when it is asked to stop. A batch
/// normally takes a second.
const BATCH_LIMIT: Duration = Duration::from_secs(12);

/// How long tasks that were cut off may take to close what they hold, at the very end:
/// they may also never end.
const RUNTIME_LIMIT: Duration = Duration::from_millis(100);

/// `serve` would refuse the settings. The reasons were printed already, so the error
/// doesn't repeat them.
#[derive(Debug)]
struct BadSettings(String);

impl fmt::Display for BadSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for BadSettings {}

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return refuse(&error, &environment),
    };
    // This changes the environment, so it must happen before there is a second thread.
    let activation = match matches.subcommand_name() {
        Some("serve") => InheritedSockets::of_process(),
        _ => Ok(InheritedSockets::default()),
    };
    let outcome = match Runtime::new() {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(matches, &environment, activation));
            runtime.shutdown_timeout(RUNTIME_LIMIT);
            outcome
        }
        Err(error) => Err(error.into()),
    };
    let code = match outcome {
        Err(error) if !is_broken_pipe(&*error) => {
            let text = ErrorChain(&*error);
            match error_hint::of(&*error) {
                Some(explanation) => logging::say(&format!("tidings: {text}; {explanation}")),
                None => logging::say(&format!("tidings: {text}")),
            }
            if is_of_settings(&*error) {
                ExitCode::from(BAD_SETTING)
            } else {
                ExitCode::FAILURE
            }
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    };
    logging::flush();
    code
}

/// Prints what is wrong with the arguments, or the help that was requested.
fn refuse(error: &clap::Error, environment: &Environment) -> ExitCode {
    // If it can't be printed, nothing can be done about it.
    let _ = error.print();
    if error.kind() == clap::error::ErrorKind::InvalidValue
        || error.kind() == clap::error::ErrorKind::ValueValidation
    {
        let unreadable = environment.check().err().map(|error| error.to_string());
        for hint in unreadable.into_iter().chain(environment.warnings()) {
            logging::say(&format!("tidings: {hint}"));
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(BAD_SETTING))
}

/// Whether the output was closed, as in `tidings status | head`: its reader has enough.
/// Commands return such an error as it is; one that is the cause of another is about
/// something else, such as the connection to Postgres.
fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref().is_some_and(is_closed)
}

/// Whether a setting is missing or can't be used.
fn is_of_settings(error: &(dyn Error + 'static)) -> bool {
    let is_filter = |error: &LogError| matches!(error, LogError::Filter(_));
    error.is::<ConfigError>()
        || error.is::<InheritedSocketsError>()
        || error.is::<BadSettings>()
        || error.is::<MissingPassword>()
        || error.downcast_ref().is_some_and(is_filter)
        || error.source().is_some_and(is_of_settings)
}

/// The verdict counts even if the output was closed.
fn unless_output_closed(printed: Result<(), AnyError>) -> Result<(), AnyError> {
    match printed {
        Err(error) if !is_broken_pipe(&*error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn run(
    matches: ArgMatches,
    environment: &Environment,
    activation: Result<InheritedSockets, InheritedSocketsError>,
) -> Result<(), AnyError> {
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    environment.check()?;
    logging::install(&cli.log)?;
    match &cli.command {
        // They print the warnings themselves, or need no settings.
        Command::Check(_) | Command::Config(_) | Command::Completions(_) | Command::Man(_) => {}
        _ => {
            for warning in environment.warnings() {
                tracing::warn!("{warning}");
            }
        }
    }
    // Each stream is an open file, and a fresh shell allows 1,024. If the limit can't be
    // raised, only the streams beyond it are affected.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let output = &mut Screen::new(io::stdout());
    match cli.command {
        Command::Serve(options) => Box::pin(serve(options, activation?)).await,
        Command::Migrate(options) => migrate(output, options).await,
        Command::Roles(options) => {
            let script = schema::roles(&options.schema, options.from.as_deref());
            Ok(write!(output, "{script}")?)
        }
        Command::Check(options) => check(output, &options, environment).await,
        Command::Status(options) => status(output, &options).await,
        Command::Prune(options) => prune(output, options).await,
        Command::Dev(options) => dev::run(options, &Shutdown::watch(STOPPED)?).await,
        Command::Token(options) => token(output, &options),
        Command::Send(options) => Ok(writeln!(output, "{}", send::send(&options).await?)?),
        Command::Adopt(options) => adopt::run(output, &options).await,
        Command::Ticket(options) => Ok(writeln!(output, "{}", send::issue(&options).await?)?),
        Command::Tail(options) => tail::run(output, &options).await,
        Command::Health(options) => {
            health::run(&options).await?;
            Ok(writeln!(output, "ready")?)
        }
        Command::Uninstall(options) => uninstall::run(output, &options).await,
        Command::Config(options) => {
            let matches = matches.subcommand_matches("config").unwrap_or(&matches);
            config(output, &options, matches, environment)
        }
        Command::Completions(options) => Ok(completions::complete(output, options.shell)?),
        Command::Man(options) => completions::page(output, options.command.as_deref()),
    }
}

fn config(
    output: &mut impl Write,
    options: &ConfigOptions,
    matches: &ArgMatches,
    environment: &Environment,
) -> Result<(), AnyError> {
    let printed = show_config::print(output, options, &show_config::of(matches), environment);
    unless_output_closed(printed.map_err(AnyError::from))?;
    match options.serve.problems().len() {
        0 => Ok(()),
        count => Err(BadSettings(format!(
            "`tidings serve` would refuse to start with these settings ({count} to fix)"
        ))
        .into()),
    }
}

/// Inherited sockets take precedence over the settings: they are passed on purpose, and
/// the service manager already holds their addresses.
fn prefer(activation: &InheritedSockets, options: &mut BridgeOptions) {
    for (inherited, address, setting) in [
        (&activation.stream, &mut options.listen, "TIDINGS_LISTEN"),
        (
            &activation.admin,
            &mut options.admin_listen,
            "TIDINGS_ADMIN_LISTEN",
        ),
    ] {
        if let Some(inherited) = inherited {
            let inherited = inherited.address();
            info!(
                %inherited, setting,
                "using the service manager's socket at {inherited}, not {setting} ({address})"
            );
            *address = inherited;
        }
    }
}

async fn serve(mut options: ServeOptions, activation: InheritedSockets) -> Result<(), AnyError> {
    let shutdown = Shutdown::watch(STOPPED)?;
    prefer(&activation, &mut options.bridge);
    for warning in options.warnings() {
        tracing::warn!("{warning}");
    }
    let building = async {
        let parts = Parts {
            activation,
            ..Parts::of(&options)?
        };
        Ok::<_, AnyError>(App::build(parts, &options.bridge).await?)
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

async fn migrate(output: &mut impl Write, options: MigrateOptions) -> Result<(), AnyError> {
    let url = options.database.session_url()?;
    if options.dry_run {
        let script = schema::plan(&url, &options.database.schema).await?;
        write!(output, "{script}")?;
        return Ok(output.flush()?);
    }
    listen_probe::prove(&url).await?;
    Ok(schema::migrate(&url, &options.database.schema, options.lock_limit).await?)
}

async fn check(
    output: &mut impl Write,
    options: &CheckOptions,
    environment: &Environment,
) -> Result<(), AnyError> {
    let mut report = Report {
        findings: check::configuration(&options.serve, environment),
        unseen: Vec::new(),
    };
    let database = &options.serve.database;
    // Errors in the URLs are already among the findings.
    if let (Ok(url), Ok(direct), Ok(replicas), Ok(nats)) = (
        database.url(),
        database.direct_url(),
        database.replica_urls(),
        options.serve.nats.servers(),
    ) {
        let place = Installation {
            direct: direct.as_ref().unwrap_or(&url),
            pooled: direct.is_some().then_some(&url),
            schema: &database.schema,
            replicas: &replicas,
            nats: nats.as_ref(),
            memberships: options.serve.bridge.memberships.as_ref(),
        };
        let found = check::examine(place, &options.thresholds).await?;
        report.findings.extend(found.findings);
        report.unseen.extend(found.unseen);
    }
    unless_output_closed(print_check(output, options, &report).map_err(AnyError::from))?;
    match report.verdict() {
        Err(verdict) if report.has_bad_settings() => Err(BadSettings(verdict).into()),
        verdict => Ok(verdict?),
    }
}

fn print_check(output: &mut impl Write, options: &CheckOptions, report: &Report) -> io::Result<()> {
    if options.form.form() == Form::Json {
        return output::print_json(output, &report.json());
    }
    let colour = Colour::of_stdout();
    output::print_report(output, report, colour)?;
    if report.wrong() == 0 {
        let calm = colour.calm("no problems:");
        let schema = &options.serve.database.schema;
        writeln!(
            output,
            "{calm} checked the schema {schema}, its privileges, and the running state"
        )?;
    }
    Ok(())
}

async fn status(output: &mut impl Write, options: &StatusOptions) -> Result<(), AnyError> {
    let status = status::look(options).await?;
    let printed = status.print(output, options.form.form());
    unless_output_closed(printed)?;
    Ok(status.report.verdict()?)
}

async fn prune(output: &mut impl Write, options: PruneOptions) -> Result<(), AnyError> {
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let retentions = options.retentions();
    if options.dry_run {
        let prunable = retention::prunable(&url, schema, retentions).await?;
        return Ok(writeln!(output, "{prunable}")?);
    }
    let shutdown = Shutdown::watch(UNFINISHED)?;
    let opening = Prune::open(&url, schema, retentions, Retry::All);
    let outcome = match shutdown.unless_requested(opening).await {
        None => PruneOutcome::Stopped(0),
        Some(prune) => {
            shutdown.allow(BATCH_LIMIT);
            prune::run(prune?, shutdown.requested(), ProgressLine::on_stderr()).await?
        }
    };
    match outcome {
        PruneOutcome::Done { removed, failures } => {
            if let Some(complaint) = prune_failure::complaint(&failures) {
                tracing::warn!("{complaint}");
            }
            Ok(writeln!(
                output,
                "{} removed",
                prune_failure::rows(removed)
            )?)
        }
        PruneOutcome::Stopped(rows) => {
            let rows = prune_failure::rows(rows);
            Err(format!("stopped after removing {rows}; there may be more to remove").into())
        }
    }
}

fn token(output: &mut impl Write, options: &TokenOptions) -> Result<(), AnyError> {
    let (secret, rules) = options.secret()?;
    let token = jwt::sign(&secret, &rules, &options.user, options.ttl.as_secs())?;
    Ok(writeln!(output, "{token}")?)
}

#[cfg(test)]
mod tests {
    use tidings::postgres::{connect::ConnectError, schema::SchemaError};

    use super::*;

    #[test]
    fn only_closed_output_ends_a_command_without_a_message() {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&closed()));
        let connection = ConnectError::Network {
            host: "db".to_owned(),
            source: closed(),
        };
        assert!(!is_broken_pipe(&connection));
    }

    #[test]
    fn a_missing_password_is_a_bad_setting_wherever_it_is_noticed() {
        let missing = ConnectError::NoPassword {
            host: "db".to_owned(),
            role: "app".to_owned(),
            source: MissingPassword::NoFile,
        };
        assert!(is_of_settings(&SchemaError::from(missing)));
        assert!(!is_of_settings(&SchemaError::Standby));
    }
}
