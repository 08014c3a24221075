//! `stillgate replay TRACE...`: judges recorded traffic with the engine that judges live traffic.
//!
//! The trace is read once from front to back and never held; what grows with it is the engine's
//! memory, which has its bounds in the policy. The same trace and policy give the same verdicts,
//! byte for byte. With `--against` a second policy judges the same events beside the first, so that
//! a change can be seen on yesterday's traffic before it acts on today's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use detectors::engine::{Account, Decision, Engine};
use detectors::facts::Facts;
use detectors::policy::Policy;
use detectors::tier::Tier;
use detectors::{AccountId, ClientFacts, Event, FactsError};
use serde_json::{Value, json};

use crate::network::{NetworkFiles, NetworkTable};
use crate::trace::TraceReader;

/// The key of a replay's hashes. They never leave the process, and the same trace must give the
/// same verdicts.
const KEY: [u8; 16] = *b"stillgate replay";
/// Clusters that the summary shows.
const CLUSTERS_SHOWN: usize = 10;
/// Ties and accounts that an explanation or a comparison shows.
const LINES_SHOWN: usize = 12;

/// Arguments of `stillgate replay`.
#[derive(Debug, Args)]
pub struct Options {
    /// Traces in order of time: .jsonl, .gz or .zst; `-` reads standard input.
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// Policy; the shipped default without it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Writes one verdict a line for each account; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Shows every contribution and tie of an account at the end. May be given several times.
    #[arg(long, value_name = "ACCOUNT")]
    explain: Vec<String>,
    /// A second policy to judge the same events with.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// An ASN database in MMDB format, in place of the shipped table.
    #[arg(long, value_name = "FILE")]
    asn_database: Option<PathBuf>,
    /// Tor exits, an address a line.
    #[arg(long, value_name = "FILE")]
    tor_exits: Option<PathBuf>,
    /// Proxies that are sold as such, an address or network a line.
    #[arg(long, value_name = "FILE")]
    proxies: Option<PathBuf>,
    /// Exits of VPNs, an address or network a line.
    #[arg(long, value_name = "FILE")]
    vpns: Option<PathBuf>,
    /// The table of clients, in place of the shipped one.
    #[arg(long, value_name = "FILE")]
    clients: Option<PathBuf>,
}

/// Reads a policy file.
///
/// # Errors
/// All that is wrong with it, a line each.
pub fn load_policy(path: &Path) -> Result<Policy, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    Policy::parse(&text).map_err(|faults| {
        let lines: Vec<_> =
            faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect();
        lines.join("\n")
    })
}

fn load_clients(path: &Path) -> Result<ClientFacts, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    ClientFacts::parse(&text).map_err(|faults| {
        let line = |fault: &FactsError| {
            format!("{}:{}: {}: {}", path.display(), fault.line, fault.key, fault.problem)
        };
        faults.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Runs the command.
///
/// # Errors
/// What is wrong with a file, in words for its owner.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), String> {
    let policy = match &options.policy {
        Some(path) => load_policy(path)?,
        None => Policy::default(),
    };
    let against = options.against.as_deref().map(load_policy).transpose()?;
    let mut facts = Facts::builtin().map_err(|error| error.to_string())?;
    if let Some(path) = &options.clients {
        facts.clients = load_clients(path)?;
    }
    let facts = Arc::new(facts);
    let files = NetworkFiles {
        asn_database: options.asn_database.clone(),
        tor_exits: options.tor_exits.clone(),
        proxies: options.proxies.clone(),
        vpns: options.vpns.clone(),
    };
    let networks = NetworkTable::load(&files).map_err(|faults| {
        let lines: Vec<_> = faults.iter().map(|(_, fault)| fault.to_string()).collect();
        lines.join("\n")
    })?;
    let mut replay = Replay::new(policy, &facts);
    let mut other = against.map(|policy| Replay::new(policy, &facts));
    let begun = Instant::now();
    for path in &options.traces {
        let reader = TraceReader::open(path).map_err(|error| error.to_string())?;
        for event in reader {
            let mut event = event.map_err(|error| error.to_string())?;
            if let Event::Exchange(observation) = &mut event {
                observation.network = networks.lookup(observation.ip);
            }
            replay.observe(&event);
            if let Some(other) = &mut other {
                other.observe(&event);
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    if let Some(path) = &options.out {
        write_verdicts(&mut replay, path, out)
            .map_err(|error| format!("{}: cannot be written: {error}", path.display()))?;
    }
    let to_stdout = options.out.as_deref() == Some(Path::new("-"));
    let mut err = io::stderr().lock();
    // Verdicts on standard output are for a program; the summary is for whoever watches.
    let show: &mut dyn Write = if to_stdout { &mut err } else { out };
    let written: io::Result<()> = (|| {
        replay.summarise(seconds, show)?;
        if let Some(other) = &other {
            compare(&replay, other, show)?;
        }
        for id in &options.explain {
            replay.explain(&AccountId::new(id.as_str()), show)?;
        }
        show.flush()
    })();
    match written {
        // Whoever reads only the first lines has what they wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| format!("the summary cannot be written: {error}")),
    }
}

/// One policy at work on a trace.
struct Replay {
    engine: Engine,
    events: u64,
    exchanges: u64,
    last_ms: u64,
    changes: u64,
}

impl Replay {
    fn new(policy: Policy, facts: &Arc<Facts>) -> Self {
        let engine = Engine::new(Arc::new(policy), facts.clone(), KEY);
        Self { engine, events: 0, exchanges: 0, last_ms: 0, changes: 0 }
    }

    fn observe(&mut self, event: &Event) {
        self.events += 1;
        self.exchanges += u64::from(matches!(event, Event::Exchange(_)));
        self.last_ms = self.last_ms.max(event.at_ms());
        if let Some(decision) = self.engine.observe(event) {
            self.changes += u64::from(decision.tier != decision.before);
        }
    }

    /// Accounts that have asked anything.
    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.engine.accounts().into_iter().filter(|account| account.memory.requests > 0)
    }

    fn summarise(&self, seconds: f64, out: &mut dyn Write) -> io::Result<()> {
        let mut tiers: BTreeMap<Tier, usize> = BTreeMap::new();
        let mut clusters: BTreeMap<u64, Vec<&Account>> = BTreeMap::new();
        for account in self.accounts() {
            *tiers.entry(account.peak.1).or_default() += 1;
            if let Some(cluster) = account.cluster {
                clusters.entry(cluster).or_default().push(account);
            }
        }
        let count = |tier: Tier| tiers.get(&tier).copied().unwrap_or(0);
        let accounts: usize = tiers.values().sum();
        writeln!(
            out,
            "{} exchanges of {accounts} accounts judged in {seconds:.1} s ({:.0} a second)",
            self.exchanges,
            self.exchanges as f64 / seconds.max(1e-9)
        )?;
        writeln!(out, "\nhighest tier reached")?;
        for tier in Tier::ALL.into_iter().rev() {
            let share = count(tier) as f64 / accounts.max(1) as f64 * 100.0;
            writeln!(out, "  {:<9}{:>8}  {share:5.1} %", tier.name(), count(tier))?;
        }
        let mut clusters: Vec<_> = clusters.into_iter().filter(|(_, m)| m.len() > 1).collect();
        clusters.sort_by_key(|(label, members)| (std::cmp::Reverse(members.len()), *label));
        writeln!(out, "\n{} clusters of tied accounts", clusters.len())?;
        if !clusters.is_empty() {
            writeln!(
                out,
                "  cluster           accounts  medium+  exchanges  of them below medium"
            )?;
        }
        for (label, members) in clusters.iter().take(CLUSTERS_SHOWN) {
            let medium = members.iter().filter(|member| member.peak.1 >= Tier::Medium).count();
            let exchanges: u64 = members.iter().map(|m| u64::from(m.memory.requests)).sum();
            let served: u64 = members.iter().map(|member| served(member)).sum();
            let share = served as f64 / exchanges.max(1) as f64 * 100.0;
            writeln!(
                out,
                "  {label:016x}  {:>8}  {medium:>7}  {exchanges:>9}  {share:>5.1} %",
                members.len()
            )?;
        }
        if clusters.len() > CLUSTERS_SHOWN {
            writeln!(out, "  and {} more", clusters.len() - CLUSTERS_SHOWN)?;
        }
        let (accounts, pivots) = self.engine.evicted();
        if accounts + pivots > 0 {
            writeln!(
                out,
                "\nlet go to keep the bounds of memory: {accounts} accounts, {pivots} shared values"
            )?;
        }
        Ok(())
    }

    fn explain(&mut self, id: &AccountId, out: &mut dyn Write) -> io::Result<()> {
        let Some(decision) = self.engine.judge_now(id, self.last_ms) else {
            return writeln!(out, "\n{id}: not in the trace");
        };
        let Some(account) = self.engine.account(id) else { return Ok(()) };
        writeln!(
            out,
            "\n{id}: {} at the end (suspicion {:.3}), {} at most (suspicion {:.3}), {} exchanges",
            decision.tier.name(),
            decision.suspicion,
            account.peak.1.name(),
            account.peak.0,
            account.memory.requests
        )?;
        for (tier, reached) in Tier::ALL.iter().zip(account.first) {
            if let Some((_, request)) = reached {
                writeln!(out, "  {} from exchange {request} on", tier.name())?;
            }
        }
        writeln!(out, "  contributions, in nats of {:.3}", total(&decision))?;
        let mut parts: Vec<_> = decision.contributions.iter().filter(|c| c.nats > 0.0005).collect();
        parts.sort_by(|a, b| b.nats.total_cmp(&a.nats));
        for part in parts {
            let finding = &part.finding;
            writeln!(
                out,
                "    {:<15}{:6.3}  {:.2} x {:.2}, weight {:.2}: {}",
                finding.detector,
                part.nats,
                finding.strength,
                finding.confidence,
                part.weight,
                finding.evidence.as_deref().unwrap_or("")
            )?;
        }
        let ties = self.engine.explain_ties(id);
        if !ties.is_empty() {
            writeln!(out, "  ties to {} other customers", ties.len())?;
        }
        for tie in ties.iter().take(LINES_SHOWN) {
            let kinds = tie.evidence.iter().map(|(kind, nats)| format!("{kind} {nats:.1}"));
            writeln!(
                out,
                "    {} ({}) {:.2}: {}",
                tie.account,
                tie.tier.name(),
                tie.weight,
                kinds.collect::<Vec<_>>().join(", ")
            )?;
        }
        Ok(())
    }

    fn verdict(&mut self, id: &AccountId) -> Option<Value> {
        let decision = self.engine.judge_now(id, self.last_ms)?;
        let account = self.engine.account(id)?;
        let first: serde_json::Map<String, Value> = Tier::ALL
            .iter()
            .zip(account.first)
            .filter_map(|(tier, reached)| {
                let (at_ms, request) = reached?;
                let reached = json!({"ts": at_ms as f64 / 1000.0, "request": request});
                Some((tier.name().to_owned(), reached))
            })
            .collect();
        let findings: Vec<Value> = decision
            .contributions
            .iter()
            .filter(|part| part.nats > 0.0)
            .map(|part| {
                json!({
                    "detector": part.finding.detector,
                    "score": rounded(part.finding.score()),
                    "nats": rounded(part.nats),
                })
            })
            .collect();
        Some(json!({
            "account": id.as_str(),
            "score": rounded(account.peak.0),
            "tier": account.peak.1.name(),
            "requests": account.memory.requests,
            "first": first,
            "cluster": account.cluster.map(|label| format!("{label:016x}")),
            "findings": findings,
        }))
    }
}

/// Six digits: enough to compare, and the same on every machine.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn total(decision: &Decision) -> f64 {
    decision.contributions.iter().map(|part| part.nats).sum()
}

/// Exchanges up to the one on which medium was reached; all where it never was.
fn served(account: &Account) -> u64 {
    let reached = account.first[Tier::Medium as usize].map(|(_, request)| request);
    u64::from(reached.unwrap_or(account.memory.requests))
}

fn write_verdicts(replay: &mut Replay, path: &Path, out: &mut impl Write) -> io::Result<()> {
    let ids: Vec<AccountId> = replay.accounts().map(|account| account.id.clone()).collect();
    let lines = ids.iter().filter_map(|id| replay.verdict(id));
    if path == Path::new("-") {
        for line in lines {
            writeln!(out, "{line}")?;
        }
        return out.flush();
    }
    // Written beside and renamed: a run that is broken off leaves no half of a file.
    let fresh = path.with_extension("partial");
    let mut file = BufWriter::new(File::create(&fresh)?);
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&fresh, path)
}

/// How the second policy judges beside the first.
fn compare(first: &Replay, second: &Replay, out: &mut dyn Write) -> io::Result<()> {
    let mut moved: BTreeMap<(Tier, Tier), u64> = BTreeMap::new();
    let mut changed: Vec<(&Account, &Account)> = Vec::new();
    for account in first.accounts() {
        let Some(other) = second.engine.account(&account.id) else { continue };
        if account.peak.1 != other.peak.1 {
            *moved.entry((account.peak.1, other.peak.1)).or_default() += 1;
            changed.push((account, other));
        }
    }
    writeln!(out, "\nagainst the second policy: {} accounts reach another tier", changed.len())?;
    for ((from, to), count) in &moved {
        writeln!(out, "  {:<9} -> {:<9}{count:>7}", from.name(), to.name())?;
    }
    let medium = |replay: &Replay| {
        replay.accounts().filter(|account| account.peak.1 >= Tier::Medium).map(served).sum::<u64>()
    };
    writeln!(
        out,
        "  exchanges served to accounts before they reach medium: {}, {} under the second",
        medium(first),
        medium(second)
    )?;
    let tie = |account: &Account| account.id.clone();
    let distance = |(a, b): &(&Account, &Account)| (a.peak.0 - b.peak.0).abs();
    changed.sort_by(|a, b| distance(b).total_cmp(&distance(a)).then(tie(a.0).cmp(&tie(b.0))));
    for (account, other) in changed.iter().take(LINES_SHOWN) {
        writeln!(
            out,
            "  {}  {} {:.3} -> {} {:.3}",
            account.id,
            account.peak.1.name(),
            account.peak.0,
            other.peak.1.name(),
            other.peak.0
        )?;
    }
    Ok(())
}
