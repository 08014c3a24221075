//! The drivers under `tests/clients` and the tools of the system, run as their users run them.
//!
//! A driver takes the base URL and the key as arguments and scenarios as JSON lines on standard
//! input; for each it prints one JSON line of what it saw. It trusts the test's authority through
//! `SSL_CERT_FILE`, `NODE_EXTRA_CA_CERTS` and the like.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{free_port, package_folder, skip, wait_for};

/// The API key that drivers send.
pub const KEY: &str = "sk-test-0123456789abcdefghijklmnopqrstuv";

/// Where a driver's requests go and whom it trusts.
#[derive(Clone, Debug)]
pub struct Target {
    /// Base URL without a slash at the end.
    pub url: String,
    /// The authority's certificate; `None` for plain text.
    pub ca_file: Option<PathBuf>,
}

impl From<&crate::Gateway> for Target {
    fn from(gateway: &crate::Gateway) -> Self {
        Self { url: gateway.url(), ca_file: Some(gateway.ca_file()) }
    }
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

/// Whether a program of this name is on the path.
pub(crate) fn is_installed(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// A driver with what it needs: Python's environment or Node's modules. `None` if they are not
/// there; `./x test` makes them.
#[must_use]
pub fn driver(name: &str) -> Option<Command> {
    let installed = std::env::var_os("STILLGATE_CLIENTS_DIR")
        .map_or_else(|| package_folder().join("../target/clients"), PathBuf::from);
    let script = package_folder().join("clients").join(name);
    assert!(script.is_file(), "there is no driver {name}");
    let mut command = if script.extension().is_some_and(|extension| extension == "py") {
        let python = installed.join("venv/bin/python");
        if !python.is_file() {
            skip("target/clients/venv, made by ./x test");
            return None;
        }
        let mut python = Command::new(python);
        // Drivers share a module; its compiled form has no place among the sources.
        python.env("PYTHONDONTWRITEBYTECODE", "1");
        python
    } else {
        let modules = installed.join("node_modules");
        if !modules.is_dir() {
            skip("target/clients/node_modules, made by ./x test");
            return None;
        }
        if !has_tool("node") {
            return None;
        }
        let mut node = Command::new("node");
        // Modules are searched from the script's folder, which has none; the driver asks here.
        node.arg("--no-warnings").env("STILLGATE_NODE_MODULES", modules);
        node
    };
    command.arg(script);
    Some(command)
}

/// Runs a driver over scenarios and gives what it saw of each. `None` if it is not installed.
///
/// # Panics
/// If the driver fails as a whole or answers fewer scenarios than it was given.
#[must_use]
pub fn drive(name: &str, target: &Target, scenarios: &[Value]) -> Option<Vec<Value>> {
    let mut command = driver(name)?;
    command.args([&target.url, KEY]);
    trust(&mut command, target.ca_file.as_deref());
    let lines: String = scenarios.iter().map(|scenario| format!("{scenario}\n")).collect();
    let output = run(&mut command, lines.as_bytes());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed:\n{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    // A library may print a line of its own; the driver's lines are the JSON objects.
    let seen: Vec<Value> =
        stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(seen.len(), scenarios.len(), "{name} printed:\n{stdout}\n{stderr}");
    Some(seen)
}

/// Reads a STIX bundle with the library of its authors; how many indicators it has. `None` if that is
/// not installed.
///
/// # Panics
/// If it is not valid STIX 2.1.
#[must_use]
pub fn check_stix(bundle: &str) -> Option<usize> {
    let mut command = driver("stix_check.py")?;
    let output = run(&mut command, bundle.as_bytes());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it is not STIX 2.1: {stderr}\n{bundle}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    Some(stdout.trim().parse().unwrap_or_else(|_| panic!("no number: {stdout}")))
}

/// Makes a command trust the authority, in each way that clients have.
pub fn trust(command: &mut Command, ca_file: Option<&Path>) {
    // A proxy of the environment is none of a loopback test's business.
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    if let Some(file) = ca_file {
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"]
        {
            command.env(name, file);
        }
    }
}

/// Runs a command with this standard input to its end.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("a child");
    writer.join().expect("the writer ends");
    output
}

/// `curl` against a gateway with the usual settings; `None` if it is not installed.
#[must_use]
pub fn curl(target: &Target) -> Option<Command> {
    if !has_tool("curl") {
        return None;
    }
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--no-buffer", "--max-time", "60"]);
    trust(&mut command, target.ca_file.as_deref());
    Some(command)
}

/// A server written in Python, ended when it goes out of scope.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts `tests/clients/NAME` with its port as the argument. `None` if Python's environment is
    /// not there.
    #[must_use]
    pub fn start(name: &str) -> Option<Self> {
        let mut command = driver(name)?;
        let port = free_port();
        let child = command.arg(port.to_string()).stdin(Stdio::null()).spawn().expect("a server");
        let server = Self { child, port };
        wait_for(name, Duration::from_secs(20), || {
            std::net::TcpStream::connect(server.address()).ok()
        });
        Some(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
