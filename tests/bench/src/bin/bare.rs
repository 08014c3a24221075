//! The baseline: bare Pingora. TLS and HTTP/2 before, HTTP/1.1 with keep-alive behind, no filters.
//!
//! It shares with the gateway whatever is not the gateway's doing: the crypto library, the
//! certificate, ALPN, the size of the upstream pool, the number of threads.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Idle upstream connections kept, as many as the gateway keeps.
const UPSTREAM_POOL: usize = 1024;

#[derive(Parser)]
#[command(about = "Bare Pingora, the baseline")]
struct Options {
    /// Address to listen on, with TLS.
    #[arg(long)]
    listen: SocketAddr,
    /// Address of the upstream, without TLS.
    #[arg(long)]
    upstream: SocketAddr,
    /// Certificate chain, PEM.
    #[arg(long)]
    chain: String,
    /// Private key, PEM.
    #[arg(long)]
    key: String,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Error::explain(ErrorType::InternalError, "a crypto provider is installed"))?;
    let conf = ServerConf {
        threads: options.threads,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(Some(Opt::default()), conf);
    server.bootstrap();
    let mut service =
        http_proxy_service(&server.configuration, Bare { upstream: options.upstream });
    let mut tls = TlsSettings::intermediate(&options.chain, &options.key)?;
    tls.enable_h2();
    service.add_tls_with_settings(&options.listen.to_string(), None, tls);
    server.add_service(service);
    server.run_forever();
}
