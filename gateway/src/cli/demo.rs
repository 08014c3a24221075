//! `stillgate demo`: the whole gateway with everything embedded.
//!
//! A certificate made at start, a sample upstream in this process, the gateway in front of it and
//! a little traffic through both, so that one command shows what the gateway sees; then customers
//! and a campaign, so that it shows what the gateway does. Nothing is kept: files lie in a temporary
//! folder that is removed at the end.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;

use super::loopback;
use super::run::{assemble, start_log, write_private};
use crate::admin::Readiness;
use crate::config::{
    Admin, AdminToken, Certificate, Config, Identity, Listener, ListenerTls, Log, Route, Secret,
    Server, StoreKind, StoreSettings, Upstream, UpstreamProtocol,
};
use crate::demo::report::Ink;
use crate::demo::{sample_upstream, show};
use crate::exchanges::Exchange;
use crate::gateway::Gateway;
use crate::limits::Limits;

/// Longest wait for the gateway to serve, and for one sample exchange.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait for the sample exchanges to be noted.
const NOTED_MAX: Duration = Duration::from_secs(2);
/// Connections at once. Enough for one machine's own, and few enough for any limit on descriptors.
const CONNECTIONS_MAX: usize = 1_024;

/// Options of `stillgate demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// Address for clients.
    #[arg(long, value_name = "ADDRESS", default_value_t = loopback(8443))]
    listen: SocketAddr,
    /// Address of the admin endpoint.
    #[arg(long, value_name = "ADDRESS", default_value_t = loopback(9443))]
    admin: SocketAddr,
    /// Send no sample traffic.
    #[arg(long)]
    no_traffic: bool,
}

/// Runs until a signal ends it.
///
/// # Errors
/// What is wrong with the machine, in words for the person who started it.
pub fn run(options: &Options) -> Result<(), String> {
    start_log(&log())?;
    let folder = Folder::new()?;
    make_certificates(&folder.0, options.listen)?;
    let upstream = TcpListener::bind(loopback(0))
        .map_err(|error| format!("cannot listen for the sample upstream: {error}"))?;
    let upstream_address = upstream
        .local_addr()
        .map_err(|error| format!("sample upstream has no address: {error}"))?;
    let secrets = Secrets::new();
    let clients = free_address()?;
    let config = config(options, &folder.0, upstream_address, clients, &secrets);
    let running = assemble(config, false)?;
    running.remove_at_end(folder.0.clone());
    let shown = Shown {
        listen: options.listen,
        clients,
        admin: options.admin,
        ca: folder.0.join("ca.pem"),
        secrets,
        traffic: !options.no_traffic,
        gateway: running.gateway(),
    };
    std::thread::Builder::new()
        .name("demo".to_owned())
        .spawn(move || shown.run(upstream))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    running.serve();
    Ok(())
}

/// What is said beside the show. What is done about accounts is its subject.
fn log() -> Log {
    Log { level: "warn,gateway::enforce=error,stillgate::marks=error".to_owned(), json: false }
}

/// A loopback address that nobody listens on.
fn free_address() -> Result<SocketAddr, String> {
    let bound = TcpListener::bind(loopback(0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error| format!("cannot listen on loopback: {error}"))
}

/// Files of the demo, removed with it. A drain ends the process before this is dropped, and sees to
/// it by itself.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, String> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("stillgate-demo-{}", std::process::id()));
        // A folder that somebody else made under this name is not ours to use.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Secrets {
    key: String,
    second_key: String,
    admin_token: String,
    identity: Vec<u8>,
}

impl Secrets {
    fn new() -> Self {
        Self {
            key: format!("sk-demo-{}", random_hex(12)),
            second_key: format!("sk-demo-{}", random_hex(12)),
            admin_token: random_hex(16),
            identity: random_hex(16).into_bytes(),
        }
    }
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    let filled = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut random);
    if filled.is_err() {
        tracing::error!("no random numbers from the system");
        std::process::abort();
    }
    hex::encode(random)
}

fn make_certificates(folder: &Path, listen: SocketAddr) -> Result<(), String> {
    let make = || -> Result<(String, String, String), rcgen::Error> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "Stillgate demo CA");
        let ca_certificate = ca.self_signed(&ca_key)?;
        let key = KeyPair::generate()?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !listen.ip().is_unspecified() && !listen.ip().is_loopback() {
            names.push(listen.ip().to_string());
        }
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        leaf.use_authority_key_identifier_extension = true;
        let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok((ca_certificate.pem(), certificate.pem(), key.serialize_pem()))
    };
    let (ca, certificate, key) =
        make().map_err(|error| format!("cannot make a certificate: {error}"))?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        write_private(&path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    write("ca.pem", &ca)?;
    write("certificate.pem", &certificate)?;
    write("key.pem", &key)
}

/// `clients` is where the demo's own clients come in, each from an address of its own, as they would
/// through a load balancer.
fn config(
    options: &Options,
    folder: &Path,
    upstream: SocketAddr,
    clients: SocketAddr,
    secrets: &Secrets,
) -> Config {
    let listener = |address: SocketAddr, proxy_protocol_from| Listener {
        address,
        tls: Some(ListenerTls {
            certificates: vec![Certificate {
                chain: folder.join("certificate.pem"),
                key: folder.join("key.pem"),
            }],
            client_ca: None,
            client_certificate_required: false,
        }),
        proxy_protocol_from,
        fingerprint_headers: None,
    };
    let mut listeners = vec![listener(options.listen, Vec::new())];
    if !options.no_traffic {
        listeners.push(listener(clients, vec![clients.ip().into()]));
    }
    Config {
        listeners,
        routes: vec![Route {
            name: "sample".into(),
            host: None,
            path: "/".to_owned(),
            upstream: 0,
        }],
        upstreams: vec![Arc::new(Upstream {
            name: "sample".into(),
            addresses: vec![upstream.to_string()],
            tls: false,
            protocol: UpstreamProtocol::Http1,
            server_name: None,
            preserve_host: false,
            ca: None,
            health: None,
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            retries: 1,
        })],
        networks: Arc::default(),
        webhooks: Vec::new(),
        ioc: None,
        policies: Arc::default(),
        redis: None,
        sensor_socket: None,
        identity: Identity {
            key: secrets.identity.clone().into(),
            jwt: None,
            client_certificate: false,
            organisation_header: None,
        },
        admin: Admin {
            address: options.admin,
            tokens: vec![AdminToken::admin(Secret::new(secrets.admin_token.clone()))],
            tls: None,
        },
        store: StoreSettings {
            kind: StoreKind::Memory,
            dir: folder.to_owned(),
            node: Some("demo".to_owned()),
            keep_days: 1,
        },
        record: None,
        limits: Limits { connections_max: CONNECTIONS_MAX, ..Limits::default() },
        server: Server {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            drain: Duration::from_secs(5),
            upgrade_socket: folder.join("upgrade.sock"),
            pid_file: None,
        },
        log: log(),
        warnings: Vec::new(),
    }
}

/// What runs beside the gateway: the sample upstream, the traffic, the summary.
struct Shown {
    listen: SocketAddr,
    clients: SocketAddr,
    admin: SocketAddr,
    ca: PathBuf,
    secrets: Secrets,
    traffic: bool,
    gateway: Arc<Gateway>,
}

impl Shown {
    fn run(self, upstream: TcpListener) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
            runtime.block_on(async {
                upstream.set_nonblocking(true).map_err(|error| error.to_string())?;
                let listener = tokio::net::TcpListener::from_std(upstream)
                    .map_err(|error| error.to_string())?;
                let serving =
                    tokio::spawn(sample_upstream::serve(listener, std::future::pending::<()>()));
                self.show().await?;
                let _ = serving.await;
                Ok(())
            })
        });
        if let Err(error) = outcome {
            let _ = writeln!(std::io::stderr(), "stillgate: demo: {error}");
            std::process::exit(1);
        }
    }

    async fn show(&self) -> Result<(), String> {
        let begun = Instant::now();
        while self.gateway.readiness() != Readiness::Ready
            || tokio::net::TcpStream::connect(self.local()).await.is_err()
        {
            if begun.elapsed() > PATIENCE {
                return Err("the gateway did not start".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.traffic {
            let samples = self.samples();
            for sample in &samples {
                let sent = tokio::time::timeout(PATIENCE, self.send(sample)).await;
                sent.map_err(|_| format!("{}: no answer in time", sample.path))??;
            }
            // An exchange is noted when its client has had the last byte, so a moment later.
            let begun = Instant::now();
            while self.gateway.exchanges.latest(samples.len()).len() < samples.len()
                && begun.elapsed() < NOTED_MAX
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        print(&self.greeting())?;
        if self.traffic {
            let stage = show::Stage {
                gateway: self.gateway.clone(),
                listener: self.clients,
                identity: self.secrets.identity.clone(),
                admin_token: self.secrets.admin_token.clone(),
                new_key: || format!("sk-demo-{}", random_hex(12)),
            };
            let (ca, ink) = (self.ca.clone(), ink());
            // Its clients are threads that wait; the sample upstream goes on here.
            let shown = tokio::task::spawn_blocking(move || {
                show::run(&stage, &ca, ink, &mut std::io::stdout())
            });
            shown.await.map_err(|error| error.to_string())??;
        }
        print(&self.invitation())
    }

    /// The listening address as this machine reaches it.
    fn local(&self) -> SocketAddr {
        if self.listen.ip().is_unspecified() {
            SocketAddr::new(loopback(0).ip(), self.listen.port())
        } else {
            self.listen
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let (first, second) = (&self.secrets.key, &self.secrets.second_key);
        let text = "Why does bread rise? Answer in two sentences.";
        let weather = json!({
            "name": "get_weather",
            "description": "Weather at a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        });
        vec![
            Sample {
                path: "/v1/chat/completions",
                credential: ("authorization", format!("Bearer {first}")),
                http2: true,
                body: json!({
                    "model": "sample-chat", "stream": true, "max_tokens": 200,
                    "stream_options": {"include_usage": true},
                    "messages": [
                        {"role": "system", "content": "You are a helpful baker."},
                        {"role": "user", "content": text},
                    ],
                }),
            },
            Sample {
                path: "/v1/chat/completions",
                credential: ("authorization", format!("Bearer {first}")),
                http2: true,
                body: json!({
                    "model": "sample-chat", "stream": true,
                    "messages": [{"role": "user", "content": "What is the weather in Bremen?"}],
                    "tools": [{"type": "function", "function": weather}],
                }),
            },
            Sample {
                path: "/v1/responses",
                credential: ("authorization", format!("Bearer {first}")),
                http2: false,
                body: json!({
                    "model": "sample-reasoner", "reasoning": {"effort": "low", "summary": "auto"},
                    "input": "How many weekends are there in a leap year?",
                }),
            },
            Sample {
                path: "/v1/messages",
                credential: ("x-api-key", second.clone()),
                http2: false,
                body: json!({
                    "model": "sample-messages", "stream": true, "max_tokens": 2048,
                    "thinking": {"type": "enabled", "budget_tokens": 1024},
                    "messages": [{"role": "user", "content": text}],
                }),
            },
            Sample {
                path: "/v1beta/models/sample-gemini:streamGenerateContent?alt=sse",
                credential: ("x-goog-api-key", second.clone()),
                http2: true,
                body: json!({
                    "contents": [{"role": "user", "parts": [{"text": "Name three rivers."}]}],
                    "generationConfig": {"temperature": 0.4},
                }),
            },
        ]
    }

    async fn send(&self, sample: &Sample) -> Result<(), String> {
        let mut options = ConnectorOptions::new(1);
        options.ca_file = Some(self.ca.display().to_string());
        let connector = Connector::new(Some(options));
        let mut peer = HttpPeer::new(self.local(), true, "localhost".to_owned());
        let version = if sample.http2 { 2 } else { 1 };
        peer.options.set_http_version(version, version);
        let failed = |error: Box<pingora_error::Error>| format!("{}: {error}", sample.path);
        let body = sample.body.to_string();
        let mut head =
            RequestHeader::build("POST", sample.path.as_bytes(), None).map_err(failed)?;
        for (name, value) in [
            ("host", format!("localhost:{}", self.listen.port()).as_str()),
            ("user-agent", concat!("stillgate-demo/", env!("CARGO_PKG_VERSION"))),
            ("content-type", "application/json"),
            (sample.credential.0, sample.credential.1.as_str()),
            ("content-length", body.len().to_string().as_str()),
        ] {
            head.insert_header(name.to_owned(), value).map_err(failed)?;
        }
        if sample.http2 {
            let uri = format!("https://localhost:{}{}", self.listen.port(), sample.path);
            head.set_uri(uri.parse().map_err(|error| format!("{uri}: {error}"))?);
            head.remove_header("host");
        }
        let (mut session, _) = connector.get_http_session(&peer).await.map_err(failed)?;
        session.write_request_header(Box::new(head)).await.map_err(failed)?;
        session.write_request_body(body.into(), true).await.map_err(failed)?;
        session.finish_request_body().await.map_err(failed)?;
        session.read_response_header().await.map_err(failed)?;
        while session.read_response_body().await.map_err(failed)?.is_some() {}
        let status = session.response_header().map_or(0, |head| head.status.as_u16());
        if status == 200 { Ok(()) } else { Err(format!("{}: status {status}", sample.path)) }
    }

    /// What runs, and what it saw first.
    fn greeting(&self) -> String {
        let mut text =
            format!("\n{}\n", ink().bold("Stillgate is running in front of a sample model API."));
        let seen = self.gateway.exchanges.latest(20);
        if !seen.is_empty() {
            let _ = write!(text, "\n{}\n\n", ink().bold("What it saw of the sample traffic"));
            text.push_str(&table(&seen));
        }
        text
    }

    /// Where it is, and lines to paste.
    fn invitation(&self) -> String {
        let base = format!("https://localhost:{}", self.listen.port());
        let ca = self.ca.display();
        let key = &self.secrets.key;
        let token = &self.secrets.admin_token;
        let admin = self.admin;
        format!(
            "\n{}\n\n\
             \x20 base URL     {base}\n\
             \x20 CA file      {ca}\n\
             \x20 sample key   {key}\n\
             \x20 admin        http://{admin}\n\
             \x20 admin token  {token}\n\n\
             curl --cacert {ca} {base}/v1/chat/completions \\\n\
             \x20 -H 'authorization: Bearer {key}' -H 'content-type: application/json' \\\n\
             \x20 -d '{{\"model\":\"sample-chat\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n\n\
             SSL_CERT_FILE={ca} python3 - <<'END'\n\
             from openai import OpenAI  # pip install openai\n\
             client = OpenAI(base_url=\"{base}/v1\", api_key=\"{key}\")\n\
             for chunk in client.chat.completions.create(model=\"sample-chat\", stream=True,\n\
             \x20       messages=[{{\"role\": \"user\", \"content\": \"Hello\"}}]):\n\
             \x20   print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)\n\
             END\n\n\
             curl -H 'authorization: Bearer {token}' 'http://{admin}/v1/exchanges?limit=1'\n\n\
             Ctrl-C ends it.\n",
            ink().bold("Try it")
        )
    }
}

fn ink() -> Ink {
    Ink { colours: std::io::stdout().is_terminal() }
}

fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| error.to_string())
}

struct Sample {
    path: &'static str,
    credential: (&'static str, String),
    http2: bool,
    body: serde_json::Value,
}

/// One line for each exchange, oldest first.
fn table(exchanges: &[Arc<Exchange>]) -> String {
    let header =
        ["account", "HTTP", "format", "model", "asked", "answered", "reasoning", "tools", "tokens"];
    let mut rows = vec![header.map(str::to_owned)];
    for exchange in exchanges.iter().rev() {
        let answer = &exchange.answer;
        let asked: u32 =
            exchange.conversation.turns.iter().map(|turn| turn.text.features.chars).sum();
        let tools: Vec<&str> = answer.tool_calls.iter().map(|call| call.name.as_str()).collect();
        let version = serde_json::to_value(exchange.http.version).unwrap_or_default();
        rows.push([
            exchange
                .account
                .as_ref()
                .map_or("-", |account| account.as_str())
                .chars()
                .take(17)
                .collect(),
            version.as_str().unwrap_or_default().to_owned(),
            exchange.format.name().to_owned(),
            exchange.conversation.model.clone().unwrap_or_default(),
            format!("{asked} chars"),
            format!("{} chars", answer.text_chars),
            format!("{} chars", answer.reasoning_chars),
            if tools.is_empty() { "-".to_owned() } else { tools.join(",") },
            answer.usage.map_or_else(
                || "-".to_owned(),
                |usage| format!("{} + {}", usage.prompt_tokens, usage.completion_tokens),
            ),
        ]);
    }
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    if let Some(exchange) = exchanges.first()
        && let Some(tls) = &exchange.tls
    {
        let _ = writeln!(text, "\n  TLS of the latest: JA4 {}, JA3 {}", tls.ja4, tls.ja3_md5);
        if let Some(h2) = &exchange.http.h2 {
            let _ = writeln!(text, "  HTTP/2 of the latest: {}", h2.akamai);
        }
    }
    text
}
