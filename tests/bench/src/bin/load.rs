//! The load generator: one run of one load, told on standard output.
//!
//! `begin` and `end` are printed as the measured window begins and ends, then the report follows
//! as one line of JSON.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use stand::answer::Kind;
use stand::client::Target;
use stand::load::{Moment, Plan, Reuse, run};

#[derive(Parser)]
#[command(about = "Makes load and measures it")]
struct Options {
    /// Address of the proxy.
    #[arg(long)]
    address: SocketAddr,
    /// Speak TLS; the server's certificate chains to this PEM file.
    #[arg(long)]
    authority: Option<PathBuf>,
    /// How requests use connections.
    #[arg(long, value_enum, default_value = "h1")]
    reuse: Reuse,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests at once on each HTTP/2 connection.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Events of the streamed answer; without it the answer is one JSON object.
    #[arg(long)]
    events: Option<u32>,
    /// Milliseconds between two events; without it all are ready together.
    #[arg(long, requires = "events")]
    pace_ms: Option<u64>,
    /// Which prompts are sent: another number gives others.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The proxy changes answers: their length is not known.
    #[arg(long)]
    changed: bool,
    /// Requests a second; without it as many as answers come.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds before the measured window.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Seconds of the measured window.
    #[arg(long, default_value_t = 3.0)]
    window: f64,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let target = match &options.authority {
        Some(authority) => Target::tls(options.address, authority)?,
        None => Target::plain(options.address),
    };
    let kind = match (options.events, options.pace_ms) {
        (None, _) => Kind::Whole,
        (Some(events), None) => Kind::Fast { events },
        (Some(events), Some(pace)) => Kind::Paced { events, pace: Duration::from_millis(pace) },
    };
    let plan = Plan {
        target,
        reuse: options.reuse,
        connections: options.connections,
        streams: options.streams,
        kind,
        seed: options.seed,
        changed: options.changed,
        rate: options.rate,
        warm_up: Duration::from_secs_f64(options.warm_up),
        window: Duration::from_secs_f64(options.window),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(plan, |moment| {
        let word = match moment {
            Moment::Begin => "begin",
            Moment::End => "end",
        };
        // A reader that is gone does not want the report either.
        let _ = writeln!(io::stdout(), "{word}");
    }))?;
    let json = serde_json::to_string(&report).map_err(io::Error::other)?;
    writeln!(io::stdout(), "{json}")
}
