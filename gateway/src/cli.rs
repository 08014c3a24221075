//! The command line.

pub mod audit;
pub mod backup;
pub mod check;
pub mod demo;
pub mod evidence;
pub mod fingerprint;
pub mod replay;
pub mod run;
pub mod verify;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Detects and answers distillation campaigns in front of an LLM API.
#[derive(Debug, Parser)]
#[command(name = "stillgate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run with everything embedded: certificate, sample upstream, sample traffic.
    Demo(demo::Options),
    /// Run the gateway.
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take the listeners over from the running process (then send it SIGQUIT).
        #[arg(long)]
        upgrade: bool,
    },
    /// Check configuration and policy files; prints every error with file, line and key.
    Check {
        /// Files to check.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Copy the store of a gateway, also of one that is running.
    Backup(backup::Options),
    /// Judge recorded traffic, offline, with the engine that judges live traffic.
    Replay(replay::Options),
    /// Tell whose marks texts carry, and how sure that is.
    Verify(verify::Options),
    /// Check or export the audit.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Write what is known of a cluster into a folder that a third party can check; or check one.
    Evidence(evidence::Options),
    /// Print the TLS fingerprints in a ClientHello or a packet capture.
    Fingerprint {
        /// A raw ClientHello, or a pcap or pcapng file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    match Arguments::parse().command {
        Command::Demo(options) => {
            drop(out);
            finish(demo::run(&options))
        }
        Command::Run { config, upgrade } => {
            drop(out);
            finish(run::run(&config, upgrade))
        }
        Command::Check { files } => {
            match check::run(&files, &mut out, &mut std::io::stderr().lock()) {
                Ok(code) => ExitCode::from(code),
                Err(error) => finish(Err(error.to_string())),
            }
        }
        Command::Backup(options) => finish(backup::run(&options, &mut out)),
        Command::Replay(options) => finish(replay::run(&options, &mut out)),
        Command::Verify(options) => finish(verify::run(&options, &mut out)),
        Command::Audit(command) => finish(audit::run(&command, &mut out)),
        Command::Evidence(options) => finish(evidence::run(&options, &mut out)),
        Command::Fingerprint { file, json } => {
            finish(fingerprint::run(&file, json, &mut out).map_err(|error| error.to_string()))
        }
    }
}

/// One line on stderr that says what to do.
fn finish(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "stillgate: {message}");
            ExitCode::FAILURE
        }
    }
}

/// An address argument's default.
#[must_use]
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
