//! The processes between which is measured: the fake model API, bare Pingora and the gateway.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::answer::Kind;
use crate::client::{SERVER_NAME, Target};
use crate::prompt::Requests;
use crate::samples::Samples;
use crate::system::Process;

/// Longest time from start to the first answer.
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// Time for the gateway to tell its metrics.
const METRICS_TIME_MAX: Duration = Duration::from_secs(5);
/// What accounts are named with; no secret.
const KEY: &str = "5f1d6a0c93be47287ad03c9be1f4586d2e9a7b10c4d8f3652b7e90a1c6d4e8f3\n";

fn admin_token() -> String {
    KEY.replace('5', "6")
}

/// Files and processes of one stand; all go when it does.
#[derive(Debug)]
pub struct Stand {
    // Dropped in this order: processes, then their files.
    upstream: Running,
    folder: TempDir,
}

/// A server process and its address.
#[derive(Debug)]
pub struct Running {
    process: Process,
    address: SocketAddr,
    /// The gateway's endpoint for operators.
    admin: Option<SocketAddr>,
}

/// Which processor each process has to itself.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The proxy's.
    pub proxy: Option<usize>,
    /// The fake model API's.
    pub upstream: Option<usize>,
}

/// What of the gateway's configuration is not the same for all.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Name of its files.
    pub name: &'static str,
    /// Worker threads.
    pub threads: usize,
    /// Lines for the upstream's table; each ends with a line end.
    pub upstream_lines: &'static str,
    /// Lines for the table of limits; each ends with a line end.
    pub limits_lines: &'static str,
    /// Lines above all tables that say where its store is; each ends with a line end.
    pub store_lines: &'static str,
    /// Its policy; the default one where it is empty.
    pub policy: &'static str,
}

impl Running {
    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The gateway's endpoint for operators; nothing else has one.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What the gateway's metrics say.
    ///
    /// # Errors
    /// When it is no gateway, or does not tell.
    pub fn metrics(&self) -> io::Result<Samples> {
        let admin = self.admin.ok_or_else(|| io::Error::other("no gateway has no metrics"))?;
        let mut socket = TcpStream::connect(admin)?;
        socket.set_read_timeout(Some(METRICS_TIME_MAX))?;
        let token = admin_token();
        let token = token.trim_end();
        write!(
            socket,
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        Samples::parse(&answer)
    }

    /// The process, to be asked and ended.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Stand {
    /// Makes certificates and starts the fake model API.
    ///
    /// # Errors
    /// When files cannot be written or the process does not come up.
    pub fn new(places: Places) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("stillgate-bench-").tempdir()?;
        make_certificates(folder.path())?;
        let address = free_address()?;
        let process = Process::start(
            Command::new(beside("upstream")?).args(["--listen", &address.to_string()]),
            places.upstream,
        )?;
        let mut upstream = Running { process, address, admin: None };
        wait_for_answer(&mut upstream, &Target::plain(address), "upstream")?;
        Ok(Self { upstream, folder })
    }

    /// The fake model API.
    #[must_use]
    pub fn upstream(&self) -> &Running {
        &self.upstream
    }

    /// Certificate authority of the proxies' certificate, PEM.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Where to connect for TLS.
    ///
    /// # Errors
    /// When the authority's certificate cannot be read.
    pub fn target(&self, proxy: &Running) -> io::Result<Target> {
        Target::tls(proxy.address, &self.authority())
    }

    /// Starts bare Pingora.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn bare(&self, places: Places) -> io::Result<Running> {
        let address = free_address()?;
        let mut command = Command::new(beside("bare")?);
        command
            .args(["--listen", &address.to_string()])
            .args(["--upstream", &self.upstream.address.to_string()])
            .arg("--chain")
            .arg(self.folder.path().join("chain.pem"))
            .arg("--key")
            .arg(self.folder.path().join("key.pem"))
            .current_dir(self.folder.path());
        self.start(&mut command, address, None, places, "bare")
    }

    /// Starts the gateway.
    ///
    /// # Errors
    /// When its binary is not there or it does not come up.
    pub fn gateway(&self, places: Places, settings: &Settings) -> io::Result<Running> {
        let (address, admin) = (free_address()?, free_address()?);
        let folder = self.folder.path();
        write_private(&folder.join("account.key"), KEY)?;
        write_private(&folder.join("admin.token"), &admin_token())?;
        let upstream = self.upstream.address;
        let Settings { name, threads, upstream_lines, limits_lines, store_lines, policy } =
            settings;
        let policy_line = if policy.is_empty() {
            String::new()
        } else {
            let file = format!("{name}.policy.toml");
            fs::write(folder.join(&file), policy)?;
            format!("policy = \"{file}\"\n\n")
        };
        let config = format!(
            "{store_lines}{policy_line}[[listener]]\naddress = \"{address}\"\n\
             certificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]\n\n\
             [[route]]\nname = \"default\"\nupstream = \"model\"\n\n\
             [upstream.model]\naddresses = [\"{upstream}\"]\n{upstream_lines}\n\
             [identity]\nkey_file = \"account.key\"\n\n\
             [admin]\naddress = \"{admin}\"\ntoken_file = \"admin.token\"\n\n\
             [server]\nthreads = {threads}\ndrain_seconds = 5\nupgrade_socket = \"{name}.sock\"\n\n\
             [limits]\n{limits_lines}"
        );
        let path = folder.join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let binary = match std::env::var_os("STILLGATE_BIN") {
            Some(path) => PathBuf::from(path),
            None => beside("stillgate")?,
        };
        let mut command = Command::new(binary);
        command.args(["run", "--config"]).arg(path);
        self.start(&mut command, address, Some(admin), places, name)
    }

    /// What a process wrote to its log.
    #[must_use]
    pub fn log_of(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn start(
        &self,
        command: &mut Command,
        address: SocketAddr,
        admin: Option<SocketAddr>,
        places: Places,
        name: &str,
    ) -> io::Result<Running> {
        let log = File::create(self.folder.path().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Process::start(command, places.proxy)?;
        let mut running = Running { process, address, admin };
        let target = self.target(&running)?;
        wait_for_answer(&mut running, &target, name).map_err(|error| {
            io::Error::new(error.kind(), format!("{error}\n{}", self.log_of(name)))
        })?;
        Ok(running)
    }
}

/// A program of this package, which cargo puts beside the one that runs.
///
/// # Errors
/// When it is not there.
pub fn beside(name: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().unwrap_or(Path::new(".")).join(name);
    if path.exists() {
        return Ok(path);
    }
    let message = format!("{} is missing: build it first", path.display());
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

/// A loopback address that nobody listens on.
///
/// # Errors
/// The system's error.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn wait_for_answer(running: &mut Running, target: &Target, name: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let requests = Requests::new(&target.authority(), Kind::Whole);
    let end = Instant::now() + START_TIME_MAX;
    loop {
        if let Some(status) = running.process.ended()? {
            return Err(io::Error::other(format!("{name} ended at once ({status})")));
        }
        let asked = runtime.block_on(async {
            let ask =
                async { target.http1().await?.exchange(&requests.http1(0), &mut |_| {}).await };
            tokio::time::timeout(Duration::from_secs(2), ask).await
        });
        match asked {
            Ok(Ok(head)) if head.status() == Some(200) => return Ok(()),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            Ok(Ok(head)) => {
                return Err(io::Error::other(format!("{name} answers {}", head.line)));
            }
            Ok(Err(error)) => {
                return Err(io::Error::other(format!("{name} does not answer: {error}")));
            }
            Err(_) => return Err(io::Error::other(format!("{name} does not answer"))),
        }
    }
}

/// An authority and a server certificate from it, both ECDSA P-256.
fn make_certificates(folder: &Path) -> io::Result<()> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Stillgate bench authority");
    let authority_key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = authority.self_signed(&authority_key).map_err(io::Error::other)?;
    fs::write(folder.join("authority.pem"), certificate.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let leaf = CertificateParams::new([SERVER_NAME.to_owned()])
        .and_then(|params| params.signed_by(&key, &issuer))
        .map_err(io::Error::other)?;
    fs::write(folder.join("chain.pem"), leaf.pem())?;
    write_private(&folder.join("key.pem"), &key.serialize_pem())
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
