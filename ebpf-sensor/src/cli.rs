//! The command line.

pub mod check;
pub mod run;
pub mod watch;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Sees how hosts resolve names (DNS, DoT, DoQ, DoH, DoH3) and tells Stillgate gateways.
#[derive(Debug, Parser)]
#[command(name = "stillgate-sensor", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch, and tell gateways.
    Run {
        /// Configuration file (TOML); deploy/sensor.toml is an example.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Watch, and print what is seen, in the clear; nobody is told.
    Watch(watch::Options),
    /// Tell what this kernel can do; or, with --config, what is wrong with configuration files.
    Check {
        /// Check configuration files instead of the kernel; needs no capability.
        #[arg(long, value_name = "FILE", num_args = 1..)]
        config: Vec<PathBuf>,
    },
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { config } => run::run(config.as_deref()),
        Command::Watch(options) => watch::run(&options),
        Command::Check { config } if config.is_empty() => return check::kernel(),
        Command::Check { config } => return check::files(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

/// Lines on stderr that say what to do.
fn complain(message: &str) {
    for line in message.lines() {
        let _ = writeln!(std::io::stderr(), "stillgate-sensor: {line}");
    }
}

/// Starts the log on stderr.
fn start_log(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| format!("log.level \"{}\" is not a filter: {error}", log.level))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = if log.json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_target(false).try_init()
    };
    started.map_err(|error| format!("log: {error}"))
}

/// One thread does everything: it has to be fast enough for the events anyway, and capabilities
/// belong to threads.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("no runtime: {error}"))
}

/// Gives up all capabilities that are not needed once the hooks are attached. Maps are read with
/// CAP_BPF where the kernel is older than 5.19; links that come later are attached to with all three.
fn drop_capabilities(links: bool) -> Result<(), String> {
    let mut kept = CapabilitySet::BPF;
    if links {
        kept |= CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
    }
    let now =
        rustix::thread::capabilities(None).map_err(|error| format!("capabilities: {error}"))?;
    // A kernel before 5.8, or a user who gave CAP_SYS_ADMIN in their place: it stays.
    if !now.permitted.contains(kept) {
        kept |= CapabilitySet::SYS_ADMIN;
    }
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
        .map_err(|error| format!("capabilities cannot be given up: {error}"))
}

/// SIGINT and SIGTERM.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    fn listen() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
