//! The `stillgate` binary as a process of its own: configuration, certificates, start, signals.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Authority, http1, wait_for};

/// Longest time from start to the first `/readyz` that is 200.
const READY_MAX: Duration = Duration::from_secs(20);
/// The admin token of every gateway under test.
pub const ADMIN_TOKEN: &str = "test-admin-token-0123456789abcdef0123456789abcdef";
/// The account key of every gateway under test.
const ACCOUNT_KEY: &str = "7b1d0e5c9a4f38261fd2b6c8e0a7935441c6d8fb2e907a3c5d1f86b4e2a09c77";

/// A gateway under test; ended when it goes out of scope.
pub struct Gateway {
    folder: tempfile::TempDir,
    authority: Authority,
    process: Process,
    tls: SocketAddr,
    plain: SocketAddr,
    admin: SocketAddr,
    further: Vec<SocketAddr>,
}

/// A gateway to be started.
pub struct GatewayBuilder {
    upstreams: Vec<String>,
    routes: Vec<String>,
    limits: Vec<String>,
    server: Vec<String>,
    small_disk: Option<String>,
    listeners: Vec<String>,
    identity: Vec<String>,
    files: Vec<(String, String)>,
    settings: Vec<String>,
    tables: Vec<String>,
    secrets: Vec<(String, String)>,
    log_level: String,
    record: bool,
    record_text: bool,
    policy: bool,
}

impl Gateway {
    /// A gateway in front of one provider.
    #[must_use]
    pub fn in_front_of(provider: SocketAddr) -> GatewayBuilder {
        Self::builder().upstream("main", &[provider], "")
    }

    /// A gateway without upstreams yet.
    #[must_use]
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder {
            upstreams: Vec::new(),
            routes: Vec::new(),
            limits: Vec::new(),
            server: Vec::new(),
            small_disk: None,
            listeners: Vec::new(),
            identity: Vec::new(),
            files: Vec::new(),
            settings: Vec::new(),
            tables: Vec::new(),
            secrets: Vec::new(),
            log_level: "info".to_owned(),
            record: false,
            record_text: false,
            policy: false,
        }
    }

    /// Address of the TLS listener.
    #[must_use]
    pub fn tls_address(&self) -> SocketAddr {
        self.tls
    }

    /// Address of the plain-text listener.
    #[must_use]
    pub fn plain_address(&self) -> SocketAddr {
        self.plain
    }

    /// Address of the admin endpoint.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Address of a further listener, in the order in which they were added.
    #[must_use]
    pub fn further_address(&self, index: usize) -> SocketAddr {
        self.further[index]
    }

    /// Base URL of the TLS listener, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.tls.port())
    }

    /// The authority that signed its certificate.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// File with the authority's certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The folder with its configuration, certificates and trace.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has written to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Asks the admin endpoint, with the token.
    #[must_use]
    pub fn admin(&self, path: &str) -> http1::Response {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
             connection: close\r\n\r\n"
        );
        http1::plain(self.admin, request.as_bytes())
    }

    /// Asks the admin endpoint to do something; `body` is JSON or empty.
    #[must_use]
    pub fn admin_do(&self, method: &str, path: &str, body: &str) -> http1::Response {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        http1::plain(self.admin, request.as_bytes())
    }

    /// Sets an account's tier as an operator does.
    ///
    /// # Panics
    /// If the admin endpoint does not take it.
    pub fn set_tier(&self, account: &str, tier: &str) {
        let body = format!(r#"{{"tier": "{tier}", "reason": "told so by the test"}}"#);
        let answer = self.admin_do("PUT", &format!("/v1/accounts/{account}/override"), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Replaces the policy's file, as an operator does: whole.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_policy(&self, toml: &str) {
        let fresh = self.folder.path().join("policy.next");
        fs::write(&fresh, toml).expect("a written file");
        fs::rename(fresh, self.folder.path().join("policy.toml")).expect("a replaced file");
    }

    /// The latest exchanges, newest first.
    ///
    /// # Panics
    /// If the admin endpoint does not answer with a list.
    #[must_use]
    pub fn exchanges(&self, limit: usize) -> Vec<Value> {
        let response = self.admin(&format!("/v1/exchanges?limit={limit}"));
        assert_eq!(response.status, 200, "{}", response.text());
        let body = response.json();
        let list = body.as_array().or_else(|| body["exchanges"].as_array());
        list.unwrap_or_else(|| panic!("no list of exchanges in {body}")).clone()
    }

    /// Waits for the exchange whose path contains `part`; it is recorded after its answer ended.
    #[must_use]
    pub fn exchange(&self, part: &str) -> Value {
        let what = format!("exchange with {part} in its path");
        wait_for(&what, Duration::from_secs(5), || {
            self.exchanges(1000).into_iter().find(|exchange| {
                exchange["http"]["path"].as_str().is_some_and(|path| path.contains(part))
            })
        })
    }

    /// The sum of a metric over all its labels; 0 if it is not there. `name` may carry a label
    /// such as `stillgate_requests_total{format="grpc"`: what starts like that is added up.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        let response = self.admin("/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        let text = response.text();
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| name.contains('{') || rest.starts_with([' ', '{']))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end and gives its status, or `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    /// Starts a further process on the same configuration with `--upgrade`, hands the old one its
    /// SIGQUIT, and makes the new one this gateway. The old process is given back.
    ///
    /// # Panics
    /// If the new process does not start.
    #[must_use]
    pub fn upgrade(&mut self) -> OldProcess {
        let config = self.folder.path().join("stillgate.toml");
        let fresh = Process::start(&config, &["--upgrade"]);
        // The new process waits for the listeners; the old one sends them on SIGQUIT.
        std::thread::sleep(Duration::from_millis(500));
        self.process.signal(Signal::QUIT);
        OldProcess(std::mem::replace(&mut self.process, fresh))
    }

    /// Ends it at once, as a crash does: SIGKILL.
    pub fn crash(&mut self) {
        self.process.signal(Signal::KILL);
        assert!(self.process.wait(Duration::from_secs(10)).is_some(), "it was killed");
    }

    /// Starts it again after it has ended, on the same configuration; the time until it was ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn restart(&mut self) -> Duration {
        let process = Process::start(&self.folder.path().join("stillgate.toml"), &[]);
        self.process = process;
        self.process.until_ready(self.admin).unwrap_or_else(|ended| panic!("it ended: {ended}"))
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("stillgate-data")
    }

    /// The data directory as the process itself sees it.
    #[must_use]
    pub fn data_inside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.child.id()));
        root.join(self.data().strip_prefix("/").expect("an absolute path"))
    }

    /// The whole audit, a JSON object an entry, with its number and hash.
    ///
    /// # Panics
    /// If it cannot be read or does not verify.
    #[must_use]
    pub fn audit(&self) -> Vec<Value> {
        let data = self.data();
        let run = |command: &str| {
            let run = Command::new(binary()).args(["audit", command, "--data"]).arg(&data).output();
            let run = run.expect("the stillgate binary starts");
            let (out, err) = (run.stdout, String::from_utf8_lossy(&run.stderr).into_owned());
            assert!(run.status.success(), "audit {command}: {err}");
            String::from_utf8(out).expect("text")
        };
        run("verify");
        let entry = |line: &str| -> Value {
            let link: Value = serde_json::from_str(line).expect("a line of the audit");
            let mut entry = link["entry"].clone();
            entry["hash"] = link["hash"].clone();
            entry
        };
        run("export").lines().map(entry).collect()
    }

    /// Ends the process as a power cut does and starts another on the same folder.
    ///
    /// # Panics
    /// If the new one does not become ready.
    pub fn kill_and_start(&mut self) {
        self.crash();
        self.restart();
    }

    /// Whether `/readyz` says yes.
    #[must_use]
    pub fn ready(&self) -> bool {
        is_ready(self.admin)
    }

    /// Replaces the certificate by a fresh one of the same authority.
    #[must_use]
    pub fn replace_certificate(&self, common_name: &str) -> crate::Identity {
        let identity = self.authority.sign(common_name);
        write_identity(self.folder.path(), &identity);
        identity
    }
}

/// A process that was replaced by an upgrade.
pub struct OldProcess(Process);

impl OldProcess {
    /// Waits for its end and gives its status, or `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.0.wait(limit)
    }

    /// What it has written to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.0.stderr()
    }
}

impl GatewayBuilder {
    /// Adds an upstream with a route to it at `/`, or at `/NAME` for all but the first.
    /// `settings` are further lines of its table.
    #[must_use]
    pub fn upstream(mut self, name: &str, addresses: &[SocketAddr], settings: &str) -> Self {
        let path = if self.routes.is_empty() { "/".to_owned() } else { format!("/{name}") };
        let addresses: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        let addresses = addresses.join(", ");
        self.upstreams.push(format!("[upstream.{name}]\naddresses = [{addresses}]\n{settings}\n"));
        self.routes.push(format!(
            "[[route]]\nname = \"{name}\"\npath = \"{path}\"\nupstream = \"{name}\"\n"
        ));
        self
    }

    /// Adds a line under `[limits]`.
    #[must_use]
    pub fn limit(mut self, line: &str) -> Self {
        self.limits.push(line.to_owned());
        self
    }

    /// Adds a line under `[server]`.
    #[must_use]
    pub fn server(mut self, line: &str) -> Self {
        self.server.push(line.to_owned());
        self
    }

    /// Gives its data directory a disk of its own with room for so much, as `mount` takes it.
    /// Needs [`may_mount`].
    #[must_use]
    pub fn small_disk(mut self, size: &str) -> Self {
        self.small_disk = Some(size.to_owned());
        self
    }

    /// Adds a further listener; `settings` are lines of its table beside the address.
    #[must_use]
    pub fn listener(mut self, settings: &str) -> Self {
        self.listeners.push(settings.to_owned());
        self
    }

    /// Adds a line under `[identity]`.
    #[must_use]
    pub fn identity(mut self, line: &str) -> Self {
        self.identity.push(line.to_owned());
        self
    }

    /// Adds a line above all tables.
    #[must_use]
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push(format!("{line}\n"));
        self
    }

    /// Adds a table of its own, with its header.
    #[must_use]
    pub fn table(mut self, toml: &str) -> Self {
        self.tables.push(format!("{toml}\n"));
        self
    }

    /// Puts a secret into the gateway's folder before it starts.
    #[must_use]
    pub fn secret(mut self, name: &str, text: &str) -> Self {
        self.secrets.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Puts a file into the gateway's folder before it starts.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Acts by a policy.
    #[must_use]
    pub fn policy(mut self, toml: &str) -> Self {
        self.policy = true;
        self.file("policy.toml", toml)
    }

    /// Sets the log filter.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Records a trace to `trace.jsonl` in the gateway's folder.
    #[must_use]
    pub fn record(mut self) -> Self {
        self.record = true;
        self
    }

    /// Records a trace with the texts that were asked.
    #[must_use]
    pub fn record_texts(mut self) -> Self {
        self.record_text = true;
        self.record()
    }

    /// Writes configuration and certificates, starts the process and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    #[must_use]
    pub fn start(self) -> Gateway {
        // A port may be taken between the search for it and the start, so there is a second try.
        for _ in 0..2 {
            if let Some(gateway) = self.try_start() {
                return gateway;
            }
        }
        panic!("the gateway found its ports taken twice");
    }

    fn try_start(&self) -> Option<Gateway> {
        let folder = tempfile::tempdir().expect("a folder for the gateway");
        let authority = Authority::new();
        fs::write(folder.path().join("ca.pem"), authority.pem()).expect("a written file");
        write_identity(folder.path(), &authority.sign("first"));
        let [tls, plain, admin] = [free_port(), free_port(), free_port()]
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let further: Vec<SocketAddr> =
            self.listeners.iter().map(|_| ([127, 0, 0, 1], free_port()).into()).collect();
        let config = folder.path().join("stillgate.toml");
        let toml = self.toml(folder.path(), tls, plain, admin, &further);
        fs::write(&config, toml).expect("a written file");
        for (name, text) in &self.files {
            fs::write(folder.path().join(name), text).expect("a written file");
        }
        write_secret(&folder.path().join("account.key"), ACCOUNT_KEY);
        write_secret(&folder.path().join("admin.token"), ADMIN_TOKEN);
        for (name, text) in &self.secrets {
            write_secret(&folder.path().join(name), text);
        }
        let mut process = match &self.small_disk {
            None => Process::start(&config, &[]),
            Some(size) => {
                let dir = folder.path().join("stillgate-data");
                fs::create_dir(&dir).expect("a folder for the disk");
                Process::start_on_disk(&config, &dir, size)
            }
        };
        match process.until_ready(admin) {
            Ok(_) => {}
            Err(ended) if ended.contains("in use") => return None,
            Err(ended) => panic!("the gateway ended: {ended}"),
        }
        Some(Gateway { folder, authority, process, tls, plain, admin, further })
    }

    fn toml(
        &self,
        folder: &Path,
        tls: SocketAddr,
        plain: SocketAddr,
        admin: SocketAddr,
        further: &[SocketAddr],
    ) -> String {
        let record = match (self.record, self.record_text) {
            (false, _) => "",
            (true, false) => "record = \"trace.jsonl\"\n",
            (true, true) => "record = \"trace.jsonl\"\nrecord_text = true\n",
        };
        let policy = if self.policy { "policy = \"policy.toml\"\n" } else { "" };
        let (upstreams, routes) = (self.upstreams.concat(), self.routes.concat());
        let (limits, server) = (self.limits.join("\n"), self.server.join("\n"));
        let identity = self.identity.join("\n");
        let (settings, tables) = (self.settings.concat(), self.tables.concat());
        let listeners: String = further
            .iter()
            .zip(&self.listeners)
            .map(|(address, settings)| {
                format!("[[listener]]\naddress = \"{address}\"\n{settings}\n")
            })
            .collect();
        let upgrade_socket = folder.join("upgrade.sock");
        let (upgrade_socket, level) = (upgrade_socket.display(), &self.log_level);
        format!(
            "{settings}{record}{policy}\
             [[listener]]\naddress = \"{tls}\"\n\
             certificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]\n\
             [[listener]]\naddress = \"{plain}\"\n\
             {listeners}{routes}{upstreams}\
             [identity]\nkey_file = \"account.key\"\n{identity}\n\
             [admin]\naddress = \"{admin}\"\ntoken_file = \"admin.token\"\n\
             [limits]\n{limits}\n\
             [server]\nthreads = 2\nupgrade_socket = \"{upgrade_socket}\"\n{server}\n\
             [log]\nlevel = \"{level}\"\nformat = \"text\"\n\
             {tables}"
        )
    }
}

/// A loopback port that nobody listens on, below the range that the kernel gives to clients.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 14_000;
    static STEP: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time start at different places.
    let seed = std::process::id().wrapping_mul(2_654_435_761) >> 16;
    let seed = u16::try_from(seed % u32::from(COUNT)).expect("below 14,000");
    for _ in 0..COUNT {
        let step = STEP.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (seed + step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback");
}

struct Process {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    fn start(config: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.arg("run").arg("--config").arg(config).args(arguments);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut pipe) = (stderr.clone(), child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                kept.lock().expect("not poisoned").extend_from_slice(&buffer[..length]);
            }
        });
        Self { child, stderr }
    }

    /// Starts it where it may mount, with a disk of its own at a folder.
    fn start_on_disk(config: &Path, folder: &Path, size: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c"]);
        command.arg(r#"mount -t tmpfs -o size="$3" tmpfs "$2" && exec "$0" run --config "$1""#);
        command.arg(binary()).arg(config).arg(folder).arg(size);
        Self::spawn(command)
    }

    /// Waits until it is ready, and how long that took; or what it said when it ended instead.
    fn until_ready(&mut self, admin: SocketAddr) -> Result<Duration, String> {
        let begun = Instant::now();
        while !is_ready(admin) {
            if let Some(status) = self.wait(Duration::ZERO) {
                return Err(format!("{status}\n{}", self.stderr()));
            }
            assert!(begun.elapsed() < READY_MAX, "the gateway is not ready:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(begun.elapsed())
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("not poisoned")).into_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a running process");
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.stderr();
        if std::thread::panicking() {
            eprintln!("the end of the gateway's standard error:\n{}", last_lines(&log));
        } else if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
            // Pingora catches a task's panic, so that nothing else may show it.
            panic!("the gateway panicked: {line}");
        }
    }
}

/// Whether this user may have disks of its own; says so where not.
#[must_use]
pub fn may_mount() -> bool {
    let tried =
        Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "t", "/mnt"]).output();
    let may = tried.is_ok_and(|tried| tried.status.success());
    if !may {
        crate::skip("user namespaces (unshare -Urm)");
    }
    may
}

/// Enough of a log to see what happened.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(30));
    last.map(|line| line.chars().take(400).chain(['\n']).collect::<String>()).collect()
}

/// The gateway: `STILLGATE_BIN`, or the one beside the folder of the test executable.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    built("stillgate", "STILLGATE_BIN")
}

/// The sensor: `STILLGATE_SENSOR_BIN`, or the one beside the folder of the test executable.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn sensor_binary() -> PathBuf {
    built("stillgate-sensor", "STILLGATE_SENSOR_BIN")
}

fn built(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test");
    let binary = profile.join(name);
    assert!(binary.is_file(), "{} is not there: cargo build -p {name}", binary.display());
    binary
}

fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut stream) = std::net::TcpStream::connect(admin) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = b"GET /readyz HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
    http1::exchange(&mut stream, request).status == 200
}

fn write_identity(folder: &Path, identity: &crate::Identity) {
    // Written beside and renamed, so that a reader sees an old file or a new one and no half.
    for (name, pem) in [("key.pem", &identity.key_pem), ("chain.pem", &identity.chain_pem)] {
        let fresh = folder.join(format!("{name}.new"));
        write_secret(&fresh, pem);
        fs::rename(&fresh, folder.join(name)).expect("a renamed file");
    }
}

fn write_secret(path: &Path, secret: &str) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.expect("a new file"), secret.as_bytes()).expect("written");
}
