//! The kernel programs: loaded, attached where this kernel lets them be, and read from.
//!
//! Only trying tells what works, so each hook is tried and what became of it is kept: kernels differ in
//! tcx (6.6), kprobes and fentry (their configuration, lockdown), cgroup v2 (where it is mounted).
//! Nothing is pinned; the kernel takes tcx, cgroup and tracing links away with the process. Filters of
//! clsact it does not, so leftovers are removed before attaching, and ours at the end.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::cgroup_skb::CgroupSkbAttachType;
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLinkId, TcAttachOptions, TcAttachType, TcError,
};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSockAddr, FEntry, KProbe, LinkOrder, Program,
    ProgramError, SchedClassifier,
};
use aya::{Btf, Ebpf, EbpfLoader};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::CapabilitySet;

use crate::event::{Flow, Protocol};
use crate::netlink;

/// The programs, as `bpf/build` makes them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/sensor.bpf.o");

/// How often to look for events.
pub const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct HookSettings {
    /// Whether local processes are watched.
    pub local: bool,
    /// The cgroup (v2) whose processes they are; `None`: all of them.
    pub cgroup: Option<PathBuf>,
    /// Whether their sockets alone are looked at: costs their packets nothing, and tells no names.
    pub sockets_only: bool,
    /// Whether kprobes are taken even where fentry is there.
    pub no_fentry: bool,
    /// The links that packets of others pass.
    pub links: Vec<Link>,
}

/// A link to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What is behind it.
    pub side: LinkSide,
    /// Whether clsact is used even where tcx is there.
    pub clsact: bool,
}

/// What is behind a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSide {
    /// Clients: what they send is looked at before it is masqueraded, and the answers they get.
    Clients,
    /// The internet: only answers of plain DNS are looked at.
    Internet,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is attached.
    Attached,
    /// Another one sees the same.
    NotNeeded(String),
    /// The kernel refused it, or there is nothing to attach it to.
    Refused(String),
}

/// A hook, where it was to be attached, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Its name.
    pub hook: &'static str,
    /// The cgroup, link or kernel function.
    pub target: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl fmt::Display for HookState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, target, outcome } = self;
        match outcome {
            Outcome::Attached => write!(f, "{hook} on {target}: attached"),
            Outcome::NotNeeded(why) => write!(f, "{hook} on {target}: not needed, {why}"),
            Outcome::Refused(why) => write!(f, "{hook} on {target}: not attached, {why}"),
        }
    }
}

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Capabilities are missing.
    #[error(
        "needs {}: run it by deploy/stillgate-sensor.service, or give them to the program with `setcap \
         cap_bpf,cap_net_admin,cap_perfmon+ep stillgate-sensor`",
        .0.join(", ")
    )]
    Capabilities(Vec<&'static str>),
    /// The kernel does not describe its structures.
    #[error(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux): it needs one built with \
             CONFIG_DEBUG_INFO_BTF, as those of the distributions are; {0}"
    )]
    NoBtf(String),
    /// The kernel does not take the maps or the programs.
    #[error("the kernel does not take the programs: {0}")]
    Object(String),
    /// No hook could be attached.
    #[error("nothing could be attached: `stillgate-sensor check` tells what this kernel can do")]
    Nothing,
}

/// Counted by the programs since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Events handed over.
    pub emitted: u64,
    /// Events that found the ring full.
    pub dropped: u64,
    /// Events left out because the same was told within a second.
    pub suppressed: u64,
}

/// The programs at work. Dropped, they are detached.
pub struct Hooks {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    streams: HashMap<MapData, [u8; 40], [u8; 16]>,
    header_bytes: HashMap<MapData, u32, u32>,
    states: Vec<HookState>,
    links: Vec<Watched>,
}

/// A link and what hangs on it.
struct Watched {
    link: Link,
    /// The link's index when it was attached to.
    index: Option<u32>,
    /// Whether its clsact was made by us.
    made_clsact: bool,
    /// What was attached, by the name of its program.
    attached: Vec<(&'static str, SchedClassifierLinkId)>,
    /// Where its hooks stand in `states`.
    states: Vec<usize>,
}

const TELL_TCP_CALLS: u32 = 1;
const TELL_UDP_CALLS: u32 = 2;
const TELL_TCP_STATE: u32 = 4;
const TELL_UDP_SEND: u32 = 8;

/// A classifier, its name, where it hangs, and the hook that it is.
type Classifier = (&'static str, TcAttachType, &'static str);

impl LinkSide {
    /// Names that no filter of somebody else has: leftovers are found by them.
    fn classifiers(self) -> &'static [Classifier] {
        match self {
            Self::Clients => &[
                ("stillgate_in", TcAttachType::Ingress, "tc/clients-ingress"),
                ("stillgate_out", TcAttachType::Egress, "tc/clients-egress"),
            ],
            Self::Internet => &[("stillgate_wan", TcAttachType::Ingress, "tc/internet-ingress")],
        }
    }
}

/// The capabilities that the process lacks, by their names; none if it may do all it has to.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    let has = rustix::thread::capabilities(None)
        .map_or(CapabilitySet::empty(), |capabilities| capabilities.effective);
    let all = has.contains(CapabilitySet::SYS_ADMIN);
    [
        ("CAP_BPF", CapabilitySet::BPF),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_PERFMON", CapabilitySet::PERFMON),
    ]
    .into_iter()
    // Before CAP_BPF and CAP_PERFMON there was CAP_SYS_ADMIN, which still does.
    .filter(|(name, one)| !(has.contains(*one) || all && *name != "CAP_NET_ADMIN"))
    .map(|(name, _)| name)
    .collect()
}

/// Where cgroup v2 is mounted: the first such mount of mountinfo (proc_pid_mountinfo(5)).
#[must_use]
pub fn find_cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let point = place.split(' ').nth(4)?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(point))
    })
}

/// What this kernel can do: tries each local hook, and classifiers on the loopback link, and takes them
/// away again.
///
/// # Errors
/// When nothing can be tried.
pub fn check() -> Result<Vec<HookState>, HookError> {
    let (mut ebpf, btf) = load()?;
    let mut states = Vec::new();
    let settings = HookSettings::default();
    attach_local(&mut ebpf, &btf, &settings, Tried::All, &mut states);
    for (by, hook) in [(By::Tcx, "tc/tcx"), (By::Clsact, "tc/clsact")] {
        let (name, at, _) = LinkSide::Internet.classifiers()[0];
        let tried = attach_classifier(&mut ebpf, name, "lo", at, by);
        if let Ok(program) = classifier(&mut ebpf, name) {
            // Not loaded, if that is what was refused.
            drop(program.unload());
        }
        if matches!(tried, Ok((_, true)))
            && let Err(error) = index_of("lo").and_then(netlink::remove_empty_clsact)
        {
            tracing::warn!("the clsact of lo stays: {error}");
        }
        let outcome = tried.map_or_else(Outcome::Refused, |_| Outcome::Attached);
        states.push(HookState { hook, target: "lo".into(), outcome });
    }
    Ok(states)
}

impl Hooks {
    /// Loads the programs and attaches what can be attached.
    ///
    /// # Errors
    /// When capabilities are missing, when the kernel takes none of it, or when no hook could be
    /// attached. That single hooks were refused is no error but a [`HookState`].
    pub fn attach(settings: &HookSettings) -> Result<Self, HookError> {
        let (mut ebpf, btf) = load()?;
        let broken = |what: &str| HookError::Object(format!("no map {what}"));
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| broken(name));
        let (ring, counters, streams, header_bytes) =
            (take("EVENTS")?, take("COUNTERS")?, take("STREAMS")?, take("LINKS")?);
        let wrong = |error: aya::maps::MapError| HookError::Object(error.to_string());
        let mut hooks = Self {
            ring: RingBuf::try_from(ring).map_err(wrong)?,
            counters: PerCpuArray::try_from(counters).map_err(wrong)?,
            streams: HashMap::try_from(streams).map_err(wrong)?,
            header_bytes: HashMap::try_from(header_bytes).map_err(wrong)?,
            states: Vec::new(),
            links: Vec::new(),
            ebpf,
        };
        for link in &settings.links {
            let first = hooks.states.len();
            for (_, _, hook) in link.side.classifiers() {
                let outcome = Outcome::Refused("no such link; attached when there is one".into());
                hooks.states.push(HookState { hook, target: link.name.clone(), outcome });
            }
            let states = (first..hooks.states.len()).collect();
            let watched = Watched {
                link: link.clone(),
                index: None,
                made_clsact: false,
                attached: Vec::new(),
                states,
            };
            hooks.links.push(watched);
        }
        hooks.refresh();
        if settings.local {
            let Self { ebpf, states, .. } = &mut hooks;
            let tried = if settings.sockets_only { Tried::Sockets } else { Tried::Needed };
            attach_local(ebpf, &btf, settings, tried, states);
        }
        let waits = |hooks: &Self| hooks.links.iter().any(|watched| watched.index.is_none());
        if hooks.states.iter().all(|state| state.outcome != Outcome::Attached) && !waits(&hooks) {
            return Err(HookError::Nothing);
        }
        Ok(hooks)
    }

    /// Attaches to links that came, or came back under another index. Tells whether anything changed.
    pub fn refresh(&mut self) -> bool {
        let mut changed = false;
        for watched in &mut self.links {
            let index = index_of(&watched.link.name).ok();
            if index == watched.index {
                continue;
            }
            changed = true;
            // What hung on the link that went: a file descriptor each, and the map's entry.
            for (name, id) in watched.attached.drain(..) {
                if let Ok(program) = classifier(&mut self.ebpf, name) {
                    drop(program.detach(id));
                }
            }
            if let Some(gone) = watched.index {
                drop(self.header_bytes.remove(&gone));
            }
            watched.index = index;
            watched.made_clsact = false;
            let classifiers = watched.link.side.classifiers();
            let outcomes: Vec<Outcome> = match index {
                Some(index) => match header_bytes(index) {
                    Ok(bytes) => {
                        if let Err(error) = self.header_bytes.insert(index, bytes, 0) {
                            tracing::error!("link {}: {error}", watched.link.name);
                        }
                        let attach = |(name, at, _): &Classifier| {
                            let Link { name: link, clsact, .. } = &watched.link;
                            let by = if *clsact { By::Clsact } else { By::Either };
                            match attach_classifier(&mut self.ebpf, name, link, *at, by) {
                                Ok((id, made)) => {
                                    watched.attached.push((name, id));
                                    watched.made_clsact |= made;
                                    Outcome::Attached
                                }
                                Err(why) => Outcome::Refused(why),
                            }
                        };
                        classifiers.iter().map(attach).collect()
                    }
                    Err(why) => vec![Outcome::Refused(why); classifiers.len()],
                },
                None => {
                    let why = "no such link; attached when there is one".to_owned();
                    vec![Outcome::Refused(why); classifiers.len()]
                }
            };
            for (state, outcome) in watched.states.iter().zip(outcomes) {
                if let Some(state) = self.states.get_mut(*state) {
                    state.outcome = outcome;
                }
            }
        }
        changed
    }

    /// Every hook that was tried, and what became of it.
    #[must_use]
    pub fn states(&self) -> &[HookState] {
        &self.states
    }

    /// Gives at most `max` events to `take`, oldest first; tells how many there were. To be called every
    /// [`POLL_INTERVAL`] while there are none: the programs wake nobody, which costs each packet less,
    /// and what is read comes in batches.
    pub fn drain(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < max
            && let Some(event) = self.ring.next()
        {
            take(&event);
            taken += 1;
        }
        taken
    }

    /// Tells the programs that enough of a stream was read.
    pub fn close_stream(&mut self, flow: &Flow) {
        // It may have made room for another already.
        drop(self.streams.remove(&key(flow)));
    }

    /// What the programs counted.
    #[must_use]
    pub fn counters(&self) -> KernelCounters {
        let sum = |which: u32| {
            let values = self.counters.get(&which, 0);
            values.map_or(0, |values| values.iter().sum())
        };
        KernelCounters { emitted: sum(0), dropped: sum(1), suppressed: sum(2) }
    }

    /// The object, for measurements of its programs.
    pub fn programs(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        for watched in &self.links {
            for (name, _, _) in watched.link.side.classifiers() {
                if let Ok(program) = classifier(&mut self.ebpf, name) {
                    // Its links go with it; a second link of the same side finds it gone already.
                    drop(program.unload());
                }
            }
        }
        for watched in self.links.iter().filter(|watched| watched.made_clsact) {
            let Some(index) = watched.index else { continue };
            if let Err(error) = netlink::remove_empty_clsact(index) {
                tracing::warn!("the clsact of {} stays: {error}", watched.link.name);
            }
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("states", &self.states).finish_non_exhaustive()
    }
}

fn load() -> Result<(Ebpf, Btf), HookError> {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(HookError::Capabilities(missing));
    }
    let btf = Btf::from_sys_fs().map_err(|error| HookError::NoBtf(error.to_string()))?;
    let ebpf = EbpfLoader::new().btf(Some(&btf)).load(OBJECT);
    Ok((ebpf.map_err(|error| HookError::Object(chain(&error)))?, btf))
}

/// Which of the hooks that watch local processes are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tried {
    /// Those that tell what no other one does.
    Needed,
    /// Of these, those that do not see packets.
    Sockets,
    /// All there are.
    All,
}

/// Attaches what watches local processes.
fn attach_local(
    ebpf: &mut Ebpf,
    btf: &Btf,
    settings: &HookSettings,
    which: Tried,
    states: &mut Vec<HookState>,
) {
    let chosen = settings.cgroup.is_some();
    let path = settings.cgroup.clone().or_else(find_cgroup);
    let opened = match &path {
        Some(path) => File::open(path).map_err(|error| error.to_string()),
        None => Err("no cgroup v2 is mounted".to_owned()),
    };
    let target = path.map_or_else(|| "cgroup".to_owned(), |path| path.display().to_string());
    let mut note = |hook, target: &str, outcome: Outcome| {
        let attached = outcome == Outcome::Attached;
        states.push(HookState { hook, target: target.into(), outcome });
        attached
    };
    let cgroup = opened.as_ref().map_err(Clone::clone);
    let sides = [
        ("cgroup_skb/egress", "cgroup_egress", CgroupSkbAttachType::Egress),
        ("cgroup_skb/ingress", "cgroup_ingress", CgroupSkbAttachType::Ingress),
    ];
    let mut packets = true;
    for (hook, name, side) in sides {
        let tried = match which {
            Tried::Sockets => Outcome::NotNeeded("only sockets are looked at".into()),
            _ => outcome(cgroup.clone().and_then(|open| attach_packets(ebpf, name, open, side))),
        };
        packets &= note(hook, &target, tried);
    }
    let calls = [
        ("cgroup/connect4", "cgroup_connect4"),
        ("cgroup/connect6", "cgroup_connect6"),
        ("cgroup/sendmsg4", "cgroup_sendmsg4"),
        ("cgroup/sendmsg6", "cgroup_sendmsg6"),
    ];
    let mut owners = true;
    for (hook, name) in calls {
        let tried = cgroup.clone().and_then(|open| attach_call(ebpf, name, open));
        owners &= note(hook, &target, outcome(tried));
    }
    let functions = [
        ("udp_sendmsg", "fentry_udp", "kprobe_udp"),
        ("udpv6_sendmsg", "fentry_udp6", "kprobe_udp6"),
    ];
    let mut sends = true;
    for (function, fentry, kprobe) in functions {
        let tried = if settings.no_fentry {
            Outcome::NotNeeded("it is left out".into())
        } else {
            outcome(attach_fentry(ebpf, btf, fentry, function))
        };
        let attached = note("fentry", function, tried);
        let tried = if attached && which != Tried::All {
            Outcome::NotNeeded("fentry tells the same".into())
        } else {
            outcome(attach_kprobe(ebpf, kprobe, function))
        };
        let probed = note("kprobe", function, tried);
        sends &= attached || probed;
    }
    let tried = if packets && owners && which != Tried::All {
        Outcome::NotNeeded("the cgroup's hooks tell more".into())
    } else {
        outcome(attach_state(ebpf, btf))
    };
    let opens = note("tp_btf", "inet_sock_set_state", tried);
    // Functions are called in every cgroup, so where one was asked for, its own hooks tell.
    let everywhere = !(chosen && owners);
    let tcp = if opens && everywhere { TELL_TCP_STATE } else { TELL_TCP_CALLS };
    let udp = if sends && everywhere { TELL_UDP_SEND } else { TELL_UDP_CALLS };
    let tell = if packets { 0 } else { tcp | udp };
    if let Err(error) = set_tell(ebpf, tell) {
        tracing::error!("{error}");
    }
}

fn outcome(tried: Result<(), String>) -> Outcome {
    tried.map_or_else(Outcome::Refused, |()| Outcome::Attached)
}

/// Says which calls are told of: `TELL` in the programs.
fn set_tell(ebpf: &mut Ebpf, tell: u32) -> Result<(), String> {
    let map = ebpf.map_mut("TELL").ok_or("no map TELL")?;
    let mut map = Array::<_, u32>::try_from(map).map_err(|error| error.to_string())?;
    map.set(0, tell, 0).map_err(|error| error.to_string())
}

/// The program of a name, as the kind that it is.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| format!("no program {name}"))?;
    program.try_into().map_err(|error| reason(&error))
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, String> {
    program(ebpf, name)
}

fn attach_packets(
    ebpf: &mut Ebpf,
    name: &str,
    cgroup: &File,
    side: CgroupSkbAttachType,
) -> Result<(), String> {
    let program: &mut CgroupSkb = program(ebpf, name)?;
    program.load().map_err(|error| reason(&error))?;
    let attached = program.attach(cgroup, side, CgroupAttachMode::Single);
    attached.map(drop).map_err(|error| reason(&error))
}

fn attach_call(ebpf: &mut Ebpf, name: &str, cgroup: &File) -> Result<(), String> {
    let program: &mut CgroupSockAddr = program(ebpf, name)?;
    program.load().map_err(|error| reason(&error))?;
    let attached = program.attach(cgroup, CgroupAttachMode::Single);
    attached.map(drop).map_err(|error| reason(&error))
}

fn attach_fentry(ebpf: &mut Ebpf, btf: &Btf, name: &str, function: &str) -> Result<(), String> {
    let program: &mut FEntry = program(ebpf, name)?;
    program.load(function, btf).map_err(|error| reason(&error))?;
    program.attach().map(drop).map_err(|error| reason(&error))
}

fn attach_kprobe(ebpf: &mut Ebpf, name: &str, function: &str) -> Result<(), String> {
    let program: &mut KProbe = program(ebpf, name)?;
    program.load().map_err(|error| reason(&error))?;
    // The file that tells how to make them.
    let none = !std::path::Path::new("/sys/bus/event_source/devices/kprobe/type").exists();
    program.attach(function, 0).map(drop).map_err(|error| {
        let why = reason(&error);
        if none { format!("this kernel has no kprobes: {why}") } else { why }
    })
}

fn attach_state(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), String> {
    let program: &mut BtfTracePoint = program(ebpf, "sock_state")?;
    program.load("inet_sock_set_state", btf).map_err(|error| reason(&error))?;
    program.attach().map(drop).map_err(|error| reason(&error))
}

/// How a classifier is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// By tcx, else by clsact.
    Either,
    /// By tcx (Linux 6.6).
    Tcx,
    /// By clsact.
    Clsact,
}

/// Attaches a classifier; tells its link, and whether a clsact was made for it.
fn attach_classifier(
    ebpf: &mut Ebpf,
    name: &str,
    link: &str,
    at: TcAttachType,
    by: By,
) -> Result<(SchedClassifierLinkId, bool), String> {
    // Otherwise there was none, or no clsact that it could hang on.
    if tc::qdisc_detach_program(link, at, name).is_ok() {
        tracing::info!("removed a filter that an earlier run left on {link}");
    }
    let program = classifier(ebpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(|error| reason(&error))?;
    }
    let mut refused = String::new();
    if by != By::Clsact {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(link, at, options) {
            Ok(id) => return Ok((id, false)),
            Err(error) if by == By::Tcx => return Err(reason(&error)),
            Err(error) => refused = format!("tcx: {}; clsact: ", reason(&error)),
        }
    }
    // Where there is one already, attaching tells.
    let made = tc::qdisc_add_clsact(link).is_ok();
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let attached = program.attach_with_options(link, at, options);
    let id = attached.map_err(|error| format!("{refused}{}", reason(&error)))?;
    if !refused.is_empty() {
        tracing::info!("on {link} clsact takes the place of tcx, which this kernel does not have");
    }
    Ok((id, made))
}

/// Bytes of a link's header, by its type (linux/if_arp.h).
fn header_bytes(index: u32) -> Result<u32, String> {
    match netlink::link_type(index).map_err(|error| error.to_string())? {
        // Ethernet, loopback.
        1 | 772 => Ok(14),
        // PPP, IPIP, IPv6 in IPv6, raw IP, SIT, GRE, IPv6 GRE, none (tun, WireGuard).
        512 | 768 | 769 | 519 | 776 | 778 | 823 | 0xfffe => Ok(0),
        other => Err(format!("links of type {other} are not known")),
    }
}

fn index_of(link: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, link)?)
}

/// Of a stream in the programs' map: `struct flow`.
fn key(flow: &Flow) -> [u8; 40] {
    let mut key = [0; 40];
    let ip = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let protocol = match flow.protocol {
        Protocol::Tcp => 6_u32,
        Protocol::Udp => 17,
    };
    key[..16].copy_from_slice(&ip(flow.source.ip()));
    key[16..32].copy_from_slice(&ip(flow.destination.ip()));
    key[32..34].copy_from_slice(&flow.source.port().to_ne_bytes());
    key[34..36].copy_from_slice(&flow.destination.port().to_ne_bytes());
    key[36..].copy_from_slice(&protocol.to_ne_bytes());
    key
}

/// Why a program was refused, in a line.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().map(str::trim).rfind(|line| {
                !line.is_empty() && !line.starts_with("processed ") && *line != "none"
            });
            match last {
                Some(last) => format!("not loaded: {io_error} ({last})"),
                None => format!("not loaded: {io_error}"),
            }
        }
        ProgramError::TcError(TcError::NetlinkError(error)) => chain(error),
        error => chain(error),
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_key_is_as_the_programs_write_it() {
        let flow = Flow {
            source: "192.0.2.1:40000".parse().unwrap(),
            destination: "[2001:db8::2]:443".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        let key = key(&flow);
        assert_eq!(&key[..16], b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01");
        assert_eq!(&key[16..18], &[0x20, 0x01]);
        assert_eq!(&key[32..34], &40_000_u16.to_ne_bytes());
        assert_eq!(&key[34..36], &443_u16.to_ne_bytes());
        assert_eq!(&key[36..], &6_u32.to_ne_bytes());
    }

    #[test]
    fn the_object_has_every_program_and_map() {
        let object = aya_names(OBJECT);
        for side in [LinkSide::Clients, LinkSide::Internet] {
            for (name, _, _) in side.classifiers() {
                assert!(object.contains(name), "{name}");
            }
        }
        for name in ["EVENTS", "COUNTERS", "STREAMS", "LINKS", "TELL", "sock_state"] {
            assert!(object.contains(name), "{name}");
        }
    }

    /// The object's strings: enough to see that a name is there.
    fn aya_names(object: &[u8]) -> String {
        String::from_utf8_lossy(object).into_owned()
    }
}
