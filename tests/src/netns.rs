//! Hosts of the test's own: a client, a router that masquerades, and the internet behind it, each in a
//! network namespace, joined by virtual Ethernet; with a real resolver (unbound) out there.
//!
//! ```text
//! client ── lan0 router wan0 ── internet
//! 10.77.1.2       │ 198.51.100.1     198.51.100.53, 1.1.1.1 (listed resolvers), 203.0.113.x
//! fd77:1::2       └ and the same in IPv6
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::clients::is_installed;
use crate::{Authority, wait_for};

/// The client's addresses.
pub const CLIENT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 77, 1, 2), Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2));
/// A resolver for plain DNS, on no list.
pub const RESOLVER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 53), Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x53));
/// An address of a well-known resolver.
pub const LISTED: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(1, 1, 1, 1), Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111));
/// An address on no list that serves DoH under a well-known name.
pub const UNLISTED: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 8), Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 8));
/// Addresses of the same kinds at which the resolver is not: for servers of the test's own.
pub const LISTED_FREE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(1, 0, 0, 1), Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001));
/// On no list.
pub const UNLISTED_FREE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 9), Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 9));
/// What `www.example` is resolved to.
pub const NAMED: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 80), Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 0x80));
/// An address that no name is resolved to.
pub const UNNAMED: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 99), Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 0x99));

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// The three hosts; gone when it goes out of scope.
#[derive(Debug)]
pub struct Network {
    /// Where API clients run.
    pub client: Namespace,
    /// What stands between.
    pub router: Namespace,
    /// Everything else.
    pub internet: Namespace,
}

/// One host.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Says that a test is skipped for want of privilege or a tool, or fails where everything must be
/// there.
///
/// # Panics
/// If `STILLGATE_REQUIRE_BPF` is `1`.
pub fn skip(needs: &str) {
    assert!(
        std::env::var("STILLGATE_REQUIRE_BPF").as_deref() != Ok("1"),
        "needs {needs}, and STILLGATE_REQUIRE_BPF=1 forbids skipping"
    );
    eprintln!("SKIP: needs {needs}");
}

/// Whether a tool is installed; says `SKIP` if not.
#[must_use]
pub fn has_tool(name: &str) -> bool {
    let found = is_installed(name);
    if !found {
        skip(name);
    }
    found
}

fn run(program: &str, arguments: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    let output = command.args(arguments.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {arguments}: {told}")) }
}

impl Network {
    /// Makes the hosts and joins them; `None`, with the reason told, where that may not be done.
    ///
    /// # Panics
    /// If a part of it fails where the rest does not.
    #[must_use]
    pub fn new() -> Option<Self> {
        for tool in ["ip", "nsenter", "nft", "unbound", "kdig", "curl"] {
            if !has_tool(tool) {
                return None;
            }
        }
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("sg{}-{number}", std::process::id());
        let mut made = Vec::new();
        for role in ["client", "router", "internet"] {
            let namespace = Namespace { name: format!("{prefix}-{role}") };
            if let Err(error) = run("ip", &format!("netns add {}", namespace.name)) {
                skip(&format!("the right to make network namespaces ({error})"));
                return None;
            }
            made.push(namespace);
        }
        let [client, router, internet] = <[Namespace; 3]>::try_from(made).expect("three");
        let network = Self { client, router, internet };
        network.join();
        Some(network)
    }

    fn join(&self) {
        let Self { client, router, internet } = self;
        for host in [client, router, internet] {
            host.ip("link set lo up");
        }
        let pair = |one: &Namespace, name: &str, at: &str| {
            let line = format!(
                "link add {name} netns {} type veth peer name {at} netns {}",
                one.name, router.name
            );
            run("ip", &line).expect("a pair of links");
        };
        pair(client, "eth0", "lan0");
        pair(internet, "eth0", "wan0");
        client.address("eth0", &format!("{}/24", CLIENT.0), &format!("{}/64", CLIENT.1));
        router.address("lan0", "10.77.1.1/24", "fd77:1::1/64");
        router.address("wan0", "198.51.100.1/24", "2001:db8:9::1/64");
        internet.address("eth0", &format!("{}/24", RESOLVER.0), &format!("{}/64", RESOLVER.1));
        for (four, six) in [LISTED, UNLISTED, LISTED_FREE, UNLISTED_FREE, NAMED, UNNAMED] {
            internet.address("lo", &format!("{four}/32"), &format!("{six}/128"));
        }
        client.ip("route add default via 10.77.1.1");
        client.ip("-6 route add default via fd77:1::1");
        internet.ip("route add default via 198.51.100.1");
        router.ip(&format!("route add default via {}", RESOLVER.0));
        router.ip(&format!("-6 route add default via {}", RESOLVER.1));
        let write = |path: &str| {
            let path = format!("/proc/sys/net/{path}");
            router.run(|| fs::write(&path, "1")).expect("a setting of the router");
        };
        write("ipv4/ip_forward");
        write("ipv6/conf/all/forwarding");
        // The client's address is gone behind this.
        let masquerade = |family: &str| {
            format!(
                "table {family} nat {{\nchain out {{\ntype nat hook postrouting priority 100\n\
                 oifname \"wan0\" masquerade\n}}\n}}\n"
            )
        };
        let mut nft = router.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
        let nft = nft.as_mut().expect("nft");
        let rules = masquerade("ip") + &masquerade("ip6");
        nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("rules");
        assert!(nft.wait().expect("nft").success(), "the router masquerades");
    }

    /// A resolver on [`RESOLVER`], [`LISTED`], [`UNLISTED`] and [`NAMED`]: plain DNS, DoT, DoH. It knows `www.example` and
    /// `cloudflare-dns.com` alone, and has its files in `folder`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn resolver(&self, folder: &Path, authority: &Authority) -> Running {
        let identity = authority.sign("resolver");
        fs::write(folder.join("resolver.key"), &identity.key_pem).expect("a file");
        fs::write(folder.join("resolver.pem"), &identity.chain_pem).expect("a file");
        let mut interfaces = String::new();
        for (four, six) in [RESOLVER, LISTED, UNLISTED, NAMED] {
            for port in ["", "@853", "@443"] {
                interfaces += &format!("interface: {four}{port}\ninterface: {six}{port}\n");
            }
        }
        let names = [("www.example", NAMED), ("cloudflare-dns.com", UNLISTED)].map(|(name, at)| {
            let (four, six) = at;
            format!("local-data: \"{name}. A {four}\"\nlocal-data: \"{name}. AAAA {six}\"\n")
        });
        let folder = folder.display();
        let text = format!(
            "server:\n{interfaces}access-control: 0.0.0.0/0 allow\n\
             access-control: ::/0 allow\ndo-daemonize: no\nuse-syslog: no\nusername: \"\"\n\
             chroot: \"\"\ndirectory: \"{folder}\"\npidfile: \"\"\ntls-service-key: {folder}/resolver.key\n\
             tls-service-pem: {folder}/resolver.pem\nlocal-zone: \"example.\" static\n\
             local-zone: \"cloudflare-dns.com.\" static\n{}",
            names.concat()
        );
        let path = format!("{folder}/unbound.conf");
        fs::write(&path, text).expect("a file");
        let log = File::create(format!("{folder}/unbound.log")).expect("a file");
        let mut command = self.internet.command("unbound");
        command.args(["-d", "-c", &path]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let running = Running(command.spawn().expect("unbound"));
        wait_for("resolver", Duration::from_secs(10), || {
            self.internet.run(|| {
                [53, 443, 853]
                    .iter()
                    .all(|port| std::net::TcpStream::connect((LISTED.0, *port)).is_ok())
                    .then_some(())
            })
        });
        running
    }
}

impl Namespace {
    /// A program on this host, with the mounts that the test has.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Calls a function on this host: the sockets that it makes are this host's.
    ///
    /// # Panics
    /// If the function does, or the host is gone.
    pub fn run<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace");
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).expect("the right to go there");
                call()
            });
            there.join().expect("what ran there")
        })
    }

    /// Whether `ip` does what these arguments say.
    #[must_use]
    pub fn try_ip(&self, arguments: &str) -> bool {
        run("ip", &format!("-n {} {arguments}", self.name)).is_ok()
    }

    /// `ip` with these arguments.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, arguments: &str) {
        run("ip", &format!("-n {} {arguments}", self.name)).expect("a network as asked for");
    }

    fn address(&self, link: &str, four: &str, six: &str) {
        self.ip(&format!("address add {four} dev {link}"));
        self.ip(&format!("address add {six} dev {link} nodad"));
        self.ip(&format!("link set {link} up"));
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &format!("netns delete {}", self.name)) {
            eprintln!("{error}");
        }
    }
}

/// A process that ends with the test: asked first, so that it cleans up.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Asks it to end, and waits.
    pub fn end(&mut self) -> Option<std::process::ExitStatus> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw)?;
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..100 {
            if let Ok(Some(status)) = self.0.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        self.0.wait().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            self.end();
        }
    }
}

/// A cgroup (v2) of the test's own, so that others on the machine are not seen.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one; `None`, with the reason told, where that may not be done.
    #[must_use]
    pub fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let root = mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4)).flatten()
        });
        let Some(root) = root else {
            skip("a mounted cgroup v2");
            return None;
        };
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(root).join(format!("sg{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self { path }),
            Err(error) => {
                skip(&format!("the right to make a cgroup ({error})"));
                None
            }
        }
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id, as the kernel counts: the inode of its folder.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn id(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(&self.path).expect("the cgroup"))
    }

    /// A program on a host and in this cgroup.
    #[must_use]
    pub fn command(&self, host: &Namespace, program: &str) -> Command {
        let mut command = host.command("sh");
        let procs = self.path.join("cgroup.procs");
        // `$0` is the program; it takes the shell's place, with its process id.
        let script = format!("echo $$ > {} && exec \"$0\" \"$@\"", procs.display());
        command.args(["-c", &script, program]);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended may still be counted.
        for _ in 0..40 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} stays", self.path.display());
    }
}
