//! The command `tidings`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use tidings::{
    app::{App, Parts},
    check,
    config::{
        CheckOptions, Cli, Command, MigrateOptions, PruneOptions, ServeOptions, TokenOptions,
    },
    dev, direct,
    prune::{self, Outcome, Progress},
    retention, schema, shutdown, telemetry, token,
};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "tidings: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    telemetry::install(&cli.log)?;
    // Each stream is a file to the system, and a fresh shell allows 1,024. What
    // can't be had is felt only by the streams beyond it.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    match cli.command {
        Command::Serve(options) => serve(options).await,
        Command::Migrate(options) => migrate(options).await,
        Command::Check(options) => check(options).await,
        Command::Prune(options) => prune(options).await,
        Command::Dev(options) => Ok(dev::run(options, shutdown::requested()?).await?),
        Command::Token(options) => token(&options),
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
    direct::prove(&url).await?;
    Ok(schema::migrate(&url, &options.database.schema).await?)
}

async fn check(options: CheckOptions) -> Result<(), Failure> {
    let schema = &options.database.schema;
    let findings = check::examine(&options.database.session_url()?, schema).await?;
    let mut output = io::stdout();
    for finding in &findings {
        writeln!(output, "{finding}")?;
    }
    match findings.iter().filter(|found| found.is_wrong()).count() {
        0 => Ok(writeln!(
            output,
            "the schema {schema} and the rights in it are in order"
        )?),
        1 => Err("one thing is wrong".into()),
        wrong => Err(format!("{wrong} things are wrong").into()),
    }
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
