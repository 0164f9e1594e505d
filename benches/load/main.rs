//! `make bench`: what Tidings costs, measured from outside.
//!
//! The load generator is a separate process. It starts a private PostgreSQL and the
//! release binary, opens streams over raw sockets, and inserts rows at a fixed rate.

mod audience;
mod bridge;
mod chart;
mod clock;
mod comparison;
mod event_stream;
mod floor;
mod gallery;
mod goal;
mod kernel;
mod machine;
mod marks;
mod nats;
mod peer;
mod process;
mod report;
mod results;
mod retained;
mod sections;
mod server;
mod subject;
mod table;
mod trials;
mod usage;
mod writers;

use std::{
    error::Error,
    io::stdout,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tidings::app::shutdown::Shutdown;

use crate::{
    comparison::Comparison,
    machine::Machine,
    report::Section,
    results::Results,
    sections::{
        Size, cluster, fan_out, flood, growth, latency, memory, peers, prune, storm, topics,
    },
    server::Server,
};

/// Errors are only printed for a person to read.
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Measures Tidings on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// What to measure (default: everything)
    sections: Vec<Name>,
    /// Small sizes: all sections in two minutes
    #[arg(long)]
    quick: bool,
    /// Only compare Tidings with the alternatives
    #[arg(long, conflicts_with = "sections")]
    peers: bool,
    /// Where to write the figures and charts
    #[arg(long)]
    out: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A section, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    Writers,
    Latency,
    Flood,
    FanOut,
    Memory,
    Storm,
    Growth,
    Prune,
    Topics,
    Cluster,
}

impl Name {
    async fn run(self, server: &Server, size: Size) -> Result<Section> {
        match self {
            Self::Writers => sections::writers::run(server, size).await,
            Self::Latency => latency::run(server, size).await,
            Self::Flood => flood::run(server, size).await,
            Self::FanOut => fan_out::run(server, size).await,
            Self::Memory => memory::run(server, size).await,
            Self::Storm => storm::run(server, size).await,
            Self::Growth => growth::run(server, size).await,
            Self::Prune => prune::run(server, size).await,
            Self::Topics => topics::run(server, size).await,
            Self::Cluster => cluster::run(server, size).await,
        }
    }
}

/// How long an interrupted run waits for its servers and bridges to end.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    // An interrupted run leaves no bridge behind.
    let shutdown = Shutdown::watch(1)?;
    shutdown.allow(CLEAN_UP_LIMIT);
    tokio::select! {
        outcome = measure(&options) => outcome,
        () = shutdown.requested() => Err("interrupted".into()),
    }
}

async fn measure(options: &Options) -> Result<()> {
    // The bridge inherits it.
    rlimit::increase_nofile_limit(u64::MAX)?;
    clock::fine_sleep();
    let size = match options.quick {
        true => Size::Quick,
        false => Size::Full,
    };
    if options.peers {
        return compare(size, options.out.as_deref()).await;
    }
    let names = match options.sections.as_slice() {
        [] => Name::value_variants(),
        some => some,
    };
    let server = Server::start().await?;
    let machine = Machine::look(&server.version().await?)?;
    server.stop().await?;
    let mut sections = Vec::new();
    for name in names {
        // Each section gets its own server, so that it doesn't inherit the state of
        // another.
        let server = Server::start().await?;
        sections.push(name.run(&server, size).await?);
        server.stop().await?;
    }
    let results = Results::new(machine, sections);
    results.print(&mut stdout())?;
    if let Some(folder) = &options.out {
        results.write(folder)?;
    }
    Ok(())
}

async fn compare(size: Size, out: Option<&Path>) -> Result<()> {
    let server = Server::start().await?;
    let machine = Machine::look(&server.version().await?)?;
    let comparison = Comparison::new(machine, peers::run(&server, size).await?);
    server.stop().await?;
    comparison.print(&mut stdout())?;
    if let Some(folder) = out {
        comparison.write(folder)?;
    }
    Ok(())
}
