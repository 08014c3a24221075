//! `stillgate-sensor watch`: prints each sighting as a line of JSON, in the clear, and tells nobody.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use rustix::fd::OwnedFd;
use serde::Serialize;
use tokio::time::interval;

use super::{Ends, drop_capabilities, runtime, start_log};
use crate::classify::{Classifier, ClassifierSettings};
use crate::config::{Log, link_side, network};
use crate::event::Process;
use crate::hooks::{HookSettings, Hooks, Link};
use crate::limits::{LOOK_INTERVAL, TICK_INTERVAL};
use crate::metrics::Metrics;
use crate::resolver_files::ResolverFiles;
use crate::sighting::{Origin, Sighting, Sign, Transport};
use crate::source::Source;
use crate::tally::{Clock, protocol_name};
use crate::watcher::{Watcher, say_hooks};

/// What to watch.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// A link whose forwarded traffic is watched, and what is behind it; may be repeated.
    #[arg(long, value_name = "NAME=clients|internet", value_parser = parse_link)]
    link: Vec<Link>,
    /// Use clsact on links even where the kernel has tcx.
    #[arg(long)]
    clsact: bool,
    /// Do not watch local processes.
    #[arg(long)]
    no_local: bool,
    /// Look at sockets of local processes and not at their packets: costs less, tells no names.
    #[arg(long, conflicts_with = "no_local")]
    sockets_only: bool,
    /// Use kprobes even where the kernel has fentry.
    #[arg(long, conflicts_with = "no_local")]
    no_fentry: bool,
    /// The cgroup (v2) whose processes are watched [default: the root of the first one mounted].
    #[arg(long, value_name = "PATH", conflicts_with = "no_local")]
    cgroup: Option<PathBuf>,
    /// A list of resolvers beside the shipped one; may be repeated.
    #[arg(long, value_name = "FILE")]
    resolvers: Vec<PathBuf>,
    /// An address or network by which clients reach the API; may be repeated.
    #[arg(long, value_name = "NET", value_parser = network)]
    api: Vec<IpNet>,
    /// A network whose contacts are left out; may be repeated.
    #[arg(long, value_name = "NET", value_parser = network)]
    ignore: Vec<IpNet>,
    /// Print contacts with private addresses too.
    #[arg(long)]
    private_destinations: bool,
    /// How long a DNS answer names an address.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    named_window: u64,
    /// The log on stderr: "info", "debug" or another filter.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
}

fn parse_link(text: &str) -> Result<Link, String> {
    let example = "write NAME=clients or NAME=internet, such as eth1=clients";
    let (name, side) = text.rsplit_once('=').ok_or(example)?;
    let side = link_side(side)?;
    if name.is_empty() || name.len() > 15 {
        return Err(format!("a link's name has 1 to 15 bytes; {example}"));
    }
    Ok(Link { name: name.to_owned(), side, clsact: false })
}

/// Prints until SIGINT or SIGTERM, or until nobody reads.
pub(super) fn run(options: &Options) -> Result<(), String> {
    start_log(&Log { level: options.log.clone(), json: false })?;
    let links: Vec<Link> =
        options.link.iter().map(|link| Link { clsact: options.clsact, ..link.clone() }).collect();
    if options.no_local && links.is_empty() {
        return Err("nothing to watch: leave --no-local out, or name a --link".to_owned());
    }
    let resolvers = ResolverFiles::new(options.resolvers.clone()).load()?;
    let settings = ClassifierSettings {
        api: options.api.clone(),
        ignore: options.ignore.clone(),
        private_destinations: options.private_destinations,
        named_window: Duration::from_secs(options.named_window),
        ..ClassifierSettings::default()
    };
    let classifier = Classifier::new(settings, resolvers);
    let metrics = Metrics::new().map_err(|error| error.to_string())?;
    let has_links = !links.is_empty();
    let settings = HookSettings {
        local: !options.no_local,
        sockets_only: options.sockets_only,
        no_fentry: options.no_fentry,
        cgroup: options.cgroup.clone(),
        links,
    };
    runtime()?.block_on(async {
        let hooks = Hooks::attach(&settings).map_err(|error| error.to_string())?;
        say_hooks(&hooks);
        drop_capabilities(has_links)?;
        let mut ends = Ends::listen()?;
        tracing::info!("watching");
        print(Watcher::new(hooks, classifier, metrics), &mut ends).await
    })
}

async fn print(mut watcher: Watcher<impl Source>, ends: &mut Ends) -> Result<(), String> {
    let mut lines = Lines::new(BufWriter::new(io::stdout()));
    let mut tick = interval(TICK_INTERVAL);
    let mut look = interval(LOOK_INTERVAL);
    let mut sightings = Vec::new();
    let mut ended = false;
    while !ended {
        tokio::select! {
            () = watcher.wait() => watcher.take(&mut sightings),
            _ = tick.tick() => watcher.tick(&mut sightings),
            _ = look.tick() => watcher.refresh(),
            () = ends.asked() => {
                watcher.take_all(&mut sightings);
                watcher.tick(&mut sightings);
                ended = true;
            }
        }
        match lines.write(&sightings) {
            Ok(()) => sightings.clear(),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(format!("stdout: {error}")),
        }
    }
    let (kernel, malformed) = watcher.lost();
    if kernel + malformed > 0 {
        tracing::warn!(kernel, malformed, "events were lost");
    }
    Ok(())
}

/// Sightings as lines of JSON.
struct Lines<W> {
    out: W,
    clock: Clock,
    links: LinkNames,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Lookup {
        at_ms: u64,
        address: IpAddr,
        transport: Transport,
        server: IpAddr,
        port: u16,
        name: Option<&'a str>,
        server_name: Option<&'a str>,
        provider: Option<&'a str>,
        sign: Sign,
        #[serde(flatten)]
        place: Place<'a>,
    },
    Contact {
        at_ms: u64,
        address: IpAddr,
        protocol: &'static str,
        destination: IpAddr,
        port: u16,
        #[serde(flatten)]
        place: Place<'a>,
    },
    Client {
        at_ms: u64,
        address: IpAddr,
        #[serde(flatten)]
        place: Place<'a>,
    },
}

/// Who and where.
#[derive(Serialize)]
struct Place<'a> {
    process: Option<LineProcess<'a>>,
    hook: &'static str,
    link: Option<&'a str>,
}

#[derive(Serialize)]
struct LineProcess<'a> {
    pid: u32,
    uid: u32,
    cgroup: u64,
    name: &'a str,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self { out, clock: Clock::now(), links: LinkNames::default() }
    }

    fn write(&mut self, sightings: &[Sighting]) -> io::Result<()> {
        if sightings.is_empty() {
            return Ok(());
        }
        self.clock = Clock::now();
        for sighting in sightings {
            let (Sighting::Client { origin, .. }
            | Sighting::Contact(crate::sighting::Contact { origin, .. })
            | Sighting::Lookup(crate::sighting::Lookup { origin, .. })) = sighting;
            let place = place(origin, self.links.of(origin.link));
            let line = match sighting {
                Sighting::Lookup(lookup) => Line::Lookup {
                    at_ms: self.clock.unix_ms(lookup.at_ns),
                    address: origin.address,
                    transport: lookup.transport,
                    server: lookup.server.ip(),
                    port: lookup.server.port(),
                    name: lookup.name.as_deref(),
                    server_name: lookup.server_name.as_deref(),
                    provider: lookup.provider.as_deref(),
                    sign: lookup.sign,
                    place,
                },
                Sighting::Contact(contact) => Line::Contact {
                    at_ms: self.clock.unix_ms(contact.at_ns),
                    address: origin.address,
                    protocol: protocol_name(contact.protocol),
                    destination: contact.destination.ip(),
                    port: contact.destination.port(),
                    place,
                },
                Sighting::Client { at_ns, .. } => Line::Client {
                    at_ms: self.clock.unix_ms(*at_ns),
                    address: origin.address,
                    place,
                },
            };
            serde_json::to_writer(&mut self.out, &line)?;
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }
}

fn place<'a>(origin: &'a Origin, link: Option<&'a str>) -> Place<'a> {
    let process = |process: &'a Process| LineProcess {
        pid: process.pid,
        uid: process.uid,
        cgroup: process.cgroup,
        name: &process.name,
    };
    Place { process: origin.process.as_ref().map(process), hook: origin.hook.name(), link }
}

/// Names of links by their index; a link that is renamed keeps the name it was seen under first.
#[derive(Default)]
struct LinkNames {
    socket: Option<OwnedFd>,
    names: HashMap<u32, Option<String>>,
}

impl LinkNames {
    const MAX: usize = 256;

    fn of(&mut self, index: u32) -> Option<&str> {
        use rustix::net::{AddressFamily, SocketType, netdevice, socket};
        if index == 0 {
            return None;
        }
        if self.names.len() >= Self::MAX && !self.names.contains_key(&index) {
            self.names.clear();
        }
        if self.socket.is_none() {
            self.socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok();
        }
        let socket = self.socket.as_ref();
        let name = self.names.entry(index).or_insert_with(|| {
            socket.and_then(|socket| netdevice::index_to_name(socket, index).ok())
        });
        name.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Protocol;
    use crate::tally::tests::{contact, lookup, origin};

    #[test]
    fn each_sighting_is_a_line_in_the_clear() {
        let mut lines = Lines::new(Vec::new());
        let local = || Origin { link: 0, ..origin("10.0.0.9", Some(5)) };
        let forwarded = || Origin { link: u32::MAX, ..origin("fd00::9", None) };
        let sightings = [
            lookup(local(), 0, Some("a.example")),
            contact(forwarded(), 0, "[2001:db8::9]:443"),
            Sighting::Client { at_ns: 0, origin: local() },
        ];
        lines.write(&sightings).unwrap();
        let text = String::from_utf8(lines.out).unwrap();
        let mut read: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut read {
            let at_ms = line.as_object_mut().unwrap().remove("at_ms").unwrap();
            assert!(at_ms.as_u64().unwrap() <= crate::tally::unix_ms());
        }
        let process = serde_json::json!({"pid": 7, "uid": 0, "cgroup": 5, "name": "curl"});
        let hook = "tc/clients-ingress";
        let expected = [
            serde_json::json!({
                "kind": "lookup", "address": "10.0.0.9", "transport": "udp",
                "server": "192.0.2.53", "port": 53, "name": "a.example",
                "server_name": "never.told.example", "provider": null, "sign": "port",
                "process": process, "hook": hook, "link": null,
            }),
            serde_json::json!({
                "kind": "contact", "address": "fd00::9", "protocol": protocol_name(Protocol::Tcp),
                "destination": "2001:db8::9", "port": 443,
                "process": null, "hook": hook, "link": null,
            }),
            serde_json::json!({
                "kind": "client", "address": "10.0.0.9",
                "process": process, "hook": hook, "link": null,
            }),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn links_have_their_names() {
        let mut names = LinkNames::default();
        assert_eq!(names.of(1), Some("lo"));
        assert_eq!(names.of(0), None);
        assert_eq!(names.of(u32::MAX), None);
        for index in 1000..2000 {
            names.of(index);
            assert!(names.names.len() <= LinkNames::MAX);
        }
        assert_eq!(names.of(1), Some("lo"));
    }

    #[test]
    fn a_link_is_its_name_and_its_side() {
        let link = |text: &str| parse_link(text).map(|link| (link.name, link.side));
        assert_eq!(link("eth1=clients"), Ok(("eth1".into(), crate::hooks::LinkSide::Clients)));
        assert_eq!(link("a=b=internet"), Ok(("a=b".into(), crate::hooks::LinkSide::Internet)));
        for wrong in ["eth1", "eth1=", "=clients", "eth1=lan", "a-name-that-is-long=clients"] {
            assert!(link(wrong).is_err(), "{wrong}");
        }
    }
}
