//! Redis under test: single servers and a Cluster, each a process of its own on loopback, and a way
//! to them that can be slowed, silenced and cut.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::{free_port, skip, wait_for};

/// Longest time until a server answers.
const READY_MAX: Duration = Duration::from_secs(10);
/// Longest time until a Cluster is whole.
const CLUSTER_READY_MAX: Duration = Duration::from_secs(30);

/// Whether there are servers to start; says so where there are none.
#[must_use]
pub fn is_there() -> bool {
    let there = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let both = there("redis-server") && there("redis-cli");
    if !both {
        skip("redis-server and redis-cli");
    }
    both
}

/// A server; ended when it goes out of scope.
pub struct Server {
    folder: tempfile::TempDir,
    settings: Vec<String>,
    cli: Vec<String>,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// A server that keeps nothing on disk.
    #[must_use]
    pub fn start() -> Self {
        Self::with(|_, port| vec!["--port".to_owned(), port.to_string()], &[])
    }

    /// A server with settings, by its folder and its port; `cli` is what `redis-cli` needs beside
    /// the address.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn with(settings: impl FnOnce(&Path, u16) -> Vec<String>, cli: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the server");
        let port = free_port();
        let mut server = Self {
            settings: settings(folder.path(), port),
            folder,
            cli: cli.iter().map(|&argument| argument.to_owned()).collect(),
            port,
            child: None,
        };
        server.run();
        server
    }

    fn run(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).expect("a log");
        let errors = log.try_clone().expect("the log again");
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--daemonize", "no", "--dir"])
            .arg(self.folder.path())
            .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
            .args(&self.settings)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        self.child = Some(child.expect("redis-server starts"));
        let begun = std::time::Instant::now();
        while self.cli(&["PING"]).trim() != "PONG" {
            let late = begun.elapsed() > READY_MAX;
            assert!(
                !late,
                "{}",
                fs::read_to_string(self.folder.path().join("log")).expect("a log")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `redis-cli` says to a command.
    ///
    /// # Panics
    /// If it cannot be run.
    #[must_use]
    pub fn cli(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(&self.cli)
            .args(command)
            .output();
        String::from_utf8_lossy(&output.expect("redis-cli runs").stdout).into_owned()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it and starts it again with nothing in it.
    pub fn restart_empty(&mut self) {
        self.kill();
        self.run();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters with a replica each.
pub struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts the servers and joins them. Clients are told ports alone and keep to the host that
    /// they came by, so that a gateway may have a host, and [`Way`]s behind it, of its own.
    ///
    /// # Panics
    /// If they do not become a Cluster.
    #[must_use]
    pub fn start() -> Self {
        let settings = |_: &Path, port: u16| {
            let (port, bus) = (port.to_string(), free_port().to_string());
            let settings = [
                ["--port", &port],
                ["--cluster-port", &bus],
                ["--cluster-enabled", "yes"],
                ["--cluster-config-file", "nodes.conf"],
                ["--cluster-node-timeout", "1000"],
                ["--cluster-preferred-endpoint-type", "unknown-endpoint"],
            ];
            settings.concat().into_iter().map(str::to_owned).collect()
        };
        let servers: Vec<Server> = (0..6).map(|_| Server::with(settings, &[])).collect();
        let addresses: Vec<String> = servers.iter().map(|s| s.address().to_string()).collect();
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}");
        let cluster = Self { servers };
        let whole = |server: &Server| {
            let replicas = server.cli(&["CLUSTER", "NODES"]).matches("slave").count();
            server.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok") && replicas == 3
        };
        wait_for("whole Cluster", CLUSTER_READY_MAX, || {
            cluster.servers.iter().all(whole).then_some(())
        });
        // A replica takes a master's place only once it has its data.
        wait_for("replicas in step", CLUSTER_READY_MAX, || {
            let up = |server: &Server| {
                let info = server.cli(&["INFO", "replication"]);
                info.contains("role:master") || info.contains("master_link_status:up")
            };
            cluster.servers.iter().all(up).then_some(())
        });
        cluster
    }

    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Server::address).collect()
    }

    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The running server that is master of a key's slot, and its number.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn master_of(&self, key: &str) -> usize {
        let holds = |server: &Server| {
            let role = server.cli(&["ROLE"]);
            role.starts_with("master") && !server.cli(&["TYPE", key]).contains("MOVED")
        };
        let running = self.servers.iter().enumerate().filter(|(_, s)| s.child.is_some());
        let mut holders = running.filter(|(_, server)| holds(server));
        holders.next().expect("a master of every slot").0
    }

    /// Kills a server.
    pub fn kill(&mut self, number: usize) {
        self.servers[number].kill();
    }

    /// Kills all and starts them again with nothing in them but who they are.
    pub fn restart_empty(&mut self) {
        self.servers.iter_mut().for_each(Server::kill);
        self.servers.iter_mut().for_each(Server::run);
    }
}

/// How a way treats what goes over it.
const OPEN: u8 = 0;
const SILENT: u8 = 1;
const CUT: u8 = 2;

/// A way to a server, on a host of its own: open at first.
pub struct Way {
    address: SocketAddr,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    mode: AtomicU8,
    delay_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Way {
    /// Opens a way on `127.0.0.<host>`, at the port of the server that it leads to.
    ///
    /// # Panics
    /// If that address is taken.
    #[must_use]
    pub fn open(host: u8, server: SocketAddr) -> Self {
        let host = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        let listener = TcpListener::bind((host, server.port())).expect("a free address");
        let address = listener.local_addr().expect("a bound address");
        let control = Arc::<Control>::default();
        let shared = control.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let control = shared.clone();
                std::thread::spawn(move || pass(stream, server, &control));
            }
        });
        Self { address, control }
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing goes over it any more, and nobody is told: a network that is gone.
    pub fn silence(&self) {
        self.control.mode.store(SILENT, Ordering::Relaxed);
    }

    /// Whoever is on it is thrown off, and nobody is let on.
    pub fn cut(&self) {
        self.control.mode.store(CUT, Ordering::Relaxed);
    }

    /// All goes over it again.
    pub fn mend(&self) {
        self.control.mode.store(OPEN, Ordering::Relaxed);
    }

    /// Whatever goes over it takes so much longer, either way.
    pub fn slow(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).expect("a short delay");
        self.control.delay_ms.store(delay, Ordering::Relaxed);
    }

    /// Bytes that went over it, both ways.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.control.bytes.load(Ordering::Relaxed)
    }
}

fn pass(client: TcpStream, server: SocketAddr, control: &Arc<Control>) {
    if control.mode.load(Ordering::Relaxed) == CUT {
        return;
    }
    let Ok(server) = TcpStream::connect(server) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(up), Ok(up_to)) = (client.try_clone(), server.try_clone()) else { return };
    let shared = control.clone();
    let upwards = std::thread::spawn(move || copy(up, up_to, &shared));
    copy(server, client, control);
    let _ = upwards.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream, control: &Control) {
    let mut buffer = [0; 64 * 1024];
    let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if is_late(&error) && control.mode.load(Ordering::Relaxed) != CUT => {
                continue;
            }
            Err(_) => break,
        };
        std::thread::sleep(Duration::from_millis(control.delay_ms.load(Ordering::Relaxed)));
        while control.mode.load(Ordering::Relaxed) == SILENT {
            std::thread::sleep(Duration::from_millis(5));
        }
        control.bytes.fetch_add(length as u64, Ordering::Relaxed);
        if control.mode.load(Ordering::Relaxed) == CUT || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
