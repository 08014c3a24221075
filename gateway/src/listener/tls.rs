//! TLS towards clients: certificates by name, renewed without a restart.
//!
//! A certificate is replaced on disk every few weeks by something that knows nothing of this
//! process. The store notices the new files, checks that they parse and belong together, and
//! swaps them in for the next handshake; open connections keep theirs. A bad new file leaves the
//! old certificate in service.
//!
//! Sources: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 6066 section 3 (SNI), RFC 7301 (ALPN),
//! RFC 9525 section 6.3 (a wildcard stands for exactly one label).

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{KeyLogFile, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::file::{FileStamp, read_bounded};
use crate::config::{Certificate, ListenerTls};
use crate::limits::{CERTIFICATE_WATCH_INTERVAL, TLS_SESSIONS_MAX};

/// What is wrong with certificates or their files.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} {wrong}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
    /// The TLS library refused the settings.
    #[error("TLS settings: {0}")]
    Settings(String),
}

impl TlsError {
    /// Whether the error is about this file.
    #[must_use]
    pub fn concerns(&self, file: &Path) -> bool {
        match self {
            Self::Read { path, .. } | Self::Content { path, .. } => path == file,
            Self::Settings(_) => false,
        }
    }

    fn content(path: &Path, wrong: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), wrong: wrong.into() }
    }
}

/// Builds a listener's TLS settings: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by ticket
/// and by id, no early data (it can be replayed), X25519MLKEM768 preferred.
///
/// `key_log` writes session secrets to the file that `SSLKEYLOGFILE` names; see
/// [`key_log_wanted`]. The client CA is read once: to trust another one, restart or upgrade.
///
/// # Errors
/// When the client CA cannot be read or the library refuses the settings.
pub fn server_config(
    tls: &ListenerTls,
    certificates: Arc<CertificateStore>,
    key_log: bool,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError::Settings(error.to_string()))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(load_roots(path)?);
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            if !tls.client_certificate_required {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier =
                verifier.build().map_err(|error| TlsError::content(path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets and sessions are never shared between listeners: a client certificate that one
    // listener verified must not be resumed on another that trusts other CAs.
    config.ticketer =
        aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Settings(error.to_string()))?;
    config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS_MAX);
    if key_log {
        config.key_log = Arc::new(KeyLogFile::new());
    }
    Ok(Arc::new(config))
}

/// Whether session secrets may be written to a file: `STILLGATE_KEYLOG=1` and `SSLKEYLOGFILE` are
/// both set. One variable alone is too easily inherited from a developer's shell.
#[must_use]
pub fn key_log_wanted() -> bool {
    std::env::var_os("STILLGATE_KEYLOG").is_some_and(|value| value == "1")
        && std::env::var_os("SSLKEYLOGFILE").is_some()
}

/// The certificates of one listener, by the names they are valid for.
#[derive(Debug)]
pub struct CertificateStore {
    files: Mutex<Vec<Watched>>,
    served: RwLock<Arc<Served>>,
}

impl CertificateStore {
    /// Reads all certificates; the first is served to clients whose SNI matches none.
    ///
    /// # Errors
    /// When any of them cannot be served, or there is none.
    pub fn load(certificates: &[Certificate]) -> Result<Arc<Self>, TlsError> {
        let mut files = Vec::new();
        for files_of in certificates {
            // The stamp is taken first: a change while reading then shows at the next look.
            let stamp = stamp(files_of);
            let loaded = load_certificate(files_of)?;
            files.push(Watched { files: files_of.clone(), stamp, loaded });
        }
        if files.is_empty() {
            return Err(TlsError::Settings("no certificate".into()));
        }
        let served = RwLock::new(Arc::new(Served::index(&files)));
        Ok(Arc::new(Self { files: Mutex::new(files), served }))
    }

    /// Reads again those certificates whose files changed since they were last read.
    pub fn reload_changed(&self) -> Reload {
        self.reload_where(|watched, now| watched.stamp != now)
    }

    /// Reads all certificates again.
    pub fn reload(&self) -> Reload {
        self.reload_where(|_, _| true)
    }

    /// Looks at the files every two seconds until `stop` turns true or its sender is gone.
    /// `on_reload` is told of each reload, for the log and the counters.
    pub async fn watch(
        self: Arc<Self>,
        mut stop: watch::Receiver<bool>,
        on_reload: impl Fn(&Reload) + Send,
    ) {
        let mut interval = tokio::time::interval(CERTIFICATE_WATCH_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let store = Arc::clone(&self);
            // Files may be on a slow mount, so they are not read on a worker thread.
            let Ok(reload) = tokio::task::spawn_blocking(move || store.reload_changed()).await
            else {
                continue;
            };
            if !reload.is_quiet() {
                reload.log();
                on_reload(&reload);
            }
        }
    }

    fn reload_where(&self, wanted: impl Fn(&Watched, FileStamps) -> bool) -> Reload {
        let mut files = self.files.lock();
        let mut reload = Reload::default();
        for watched in files.iter_mut() {
            let now = stamp(&watched.files);
            if !wanted(watched, now) {
                continue;
            }
            // Also after a failure: the same bad file is reported once, not every two seconds.
            watched.stamp = now;
            match load_certificate(&watched.files) {
                Ok(loaded) => {
                    watched.loaded = loaded;
                    reload.replaced.push(watched.files.chain.clone());
                }
                Err(error) => reload.refused.push(error),
            }
        }
        if !reload.replaced.is_empty() {
            *self.served.write() = Arc::new(Served::index(&files));
        }
        reload
    }

    fn choose(
        &self,
        name: Option<&str>,
        fits: impl Fn(&CertifiedKey) -> bool,
    ) -> Arc<CertifiedKey> {
        let served = Arc::clone(&self.served.read());
        let named = name.map(|name| served.named(name)).unwrap_or_default();
        let chosen = named
            .iter()
            .copied()
            .find(|index| fits(&served.keys[*index]))
            .or_else(|| named.first().copied())
            .unwrap_or(0);
        Arc::clone(&served.keys[chosen])
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Of several certificates for one name, the client may be able to verify only some.
        let fits = |key: &CertifiedKey| key.key.choose_scheme(hello.signature_schemes()).is_some();
        Some(self.choose(hello.server_name(), fits))
    }
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct Reload {
    /// Chains that are newly served.
    pub replaced: Vec<PathBuf>,
    /// Certificates that could not be read; the old ones stay in service.
    pub refused: Vec<TlsError>,
}

impl Reload {
    /// Whether nothing changed and nothing went wrong.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.replaced.is_empty() && self.refused.is_empty()
    }

    fn log(&self) {
        for path in &self.replaced {
            tracing::info!(chain = %path.display(), "certificate reloaded");
        }
        for error in &self.refused {
            tracing::error!(%error, "certificate not reloaded, the old one stays in service");
        }
    }
}

/// Reads a chain and its key and checks that they belong together.
///
/// # Errors
/// When a file is unreadable, holds no certificate or key, or the two do not match.
pub fn load_certificate(files: &Certificate) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(&files.chain)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| TlsError::content(&files.key, "holds no private key in PEM"))?;
    // The key by itself first, so that the error names the right file.
    aws_lc_rs::sign::any_supported_type(&key).map_err(|_| {
        TlsError::content(&files.key, "holds a private key of a kind that is not supported")
    })?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
        let wrong = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("is not the certificate of {}", files.key.display())
            }
            error => format!("holds no usable certificate: {error}"),
        };
        TlsError::content(&files.chain, wrong)
    })?;
    Ok(Arc::new(certified))
}

/// Reads a CA bundle.
///
/// # Errors
/// When the file is unreadable or holds no CA certificate.
pub fn load_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| {
            TlsError::content(path, format!("holds an unusable certificate: {error}"))
        })?;
    }
    Ok(roots)
}

/// Certificates ready to be served.
#[derive(Debug)]
struct Served {
    keys: Vec<Arc<CertifiedKey>>,
    /// Lower-case names, wildcards as `*.example.com`, with the keys in file order.
    names: HashMap<String, Vec<usize>>,
}

impl Served {
    fn index(files: &[Watched]) -> Self {
        let mut names: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, watched) in files.iter().enumerate() {
            for name in dns_names(&watched.loaded) {
                names.entry(name).or_default().push(index);
            }
        }
        Self { keys: files.iter().map(|watched| Arc::clone(&watched.loaded)).collect(), names }
    }

    fn named(&self, name: &str) -> Vec<usize> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let exact = self.names.get(&name);
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.names.get(&format!("*.{parent}"))
        };
        exact.or_else(wildcard).cloned().unwrap_or_default()
    }
}

/// A certificate and the state of its files when they were last read.
struct Watched {
    files: Certificate,
    stamp: FileStamps,
    loaded: Arc<CertifiedKey>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
}

type FileStamps = [Option<FileStamp>; 2];

fn stamp(files: &Certificate) -> FileStamps {
    [FileStamp::of(&files.chain), FileStamp::of(&files.key)]
}

fn dns_names(certified: &CertifiedKey) -> Vec<String> {
    let Ok(leaf) = certified.end_entity_cert() else { return Vec::new() };
    let Ok(parsed) = webpki::EndEntityCert::try_from(leaf) else { return Vec::new() };
    parsed.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::content(path, format!("is not valid PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(TlsError::content(path, "holds no certificate in PEM"));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    read_bounded(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::client::WebPkiServerVerifier;
    use rustls::pki_types::ServerName;
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection,
    };

    use std::time::Duration;

    use super::*;
    use crate::config::file::tests::TestDirectory;

    fn tls(
        certificates: Vec<Certificate>,
        client_ca: Option<PathBuf>,
        required: bool,
    ) -> ListenerTls {
        ListenerTls { certificates, client_ca, client_certificate_required: required }
    }

    fn server(tls: &ListenerTls) -> (Arc<CertificateStore>, Arc<ServerConfig>) {
        let store = CertificateStore::load(&tls.certificates).unwrap();
        let config = server_config(tls, Arc::clone(&store), false).unwrap();
        (store, config)
    }

    /// A client that trusts these chains, with or without a certificate of its own.
    pub(crate) fn client(
        trusted: &[&Certificate],
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Certificate>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            for certificate in read_certificates(&certificate.chain).unwrap() {
                roots.add(certificate).unwrap();
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .unwrap();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_webpki_verifier(verifier);
        match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = read_certificates(&own.chain).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&std::fs::read(&own.key).unwrap()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }

    pub(crate) const BOTH: &[&rustls::SupportedProtocolVersion] =
        &[&rustls::version::TLS13, &rustls::version::TLS12];

    /// Shakes hands in memory and lets one byte through each way, so that tickets arrive.
    fn handshake(
        client: &Arc<ClientConfig>,
        server: &Arc<ServerConfig>,
        name: &str,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }

    fn served_leaf(client: &ClientConnection) -> Vec<u8> {
        client.peer_certificates().unwrap()[0].to_vec()
    }

    fn leaf(certificate: &Certificate) -> Vec<u8> {
        read_certificates(&certificate.chain).unwrap()[0].to_vec()
    }

    #[test]
    fn post_quantum_exchange_and_http2_are_preferred() {
        let directory = TestDirectory::new();
        let certificate = directory.certificate("a", &["a.example"]);
        let (_, config) = server(&tls(vec![certificate.clone()], None, false));
        let mut offers = client(&[&certificate], BOTH, None);
        offers.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        let (_, done) = handshake(&Arc::new(offers), &config, "a.example").unwrap();
        assert_eq!(done.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(done.alpn_protocol(), Some(b"h2".as_slice()));
        let group = done.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);

        let old = client(&[&certificate], &[&rustls::version::TLS12], None);
        let (_, done) = handshake(&Arc::new(old), &config, "a.example").unwrap();
        assert_eq!(done.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        assert_eq!(done.alpn_protocol(), None);
    }

    #[test]
    fn sessions_are_resumed_and_early_data_is_off() {
        let directory = TestDirectory::new();
        let certificate = directory.certificate("a", &["a.example"]);
        let (_, config) = server(&tls(vec![certificate.clone()], None, false));
        assert_eq!(config.max_early_data_size, 0);
        for version in BOTH {
            let client = Arc::new(client(&[&certificate], &[version], None));
            let kinds = [(); 2].map(|()| {
                let (_, done) = handshake(&client, &config, "a.example").unwrap();
                done.handshake_kind().unwrap()
            });
            assert_ne!(kinds[0], HandshakeKind::Resumed);
            assert_eq!(kinds[1], HandshakeKind::Resumed, "{version:?}");
        }
    }

    #[test]
    fn the_certificate_follows_the_name() {
        let directory = TestDirectory::new();
        let first = directory.certificate("first", &["first.example", "also.example"]);
        let wild = directory.certificate("wild", &["*.wild.example"]);
        let exact = directory.certificate("exact", &["exact.wild.example"]);
        let all = [&first, &wild, &exact];
        let store = CertificateStore::load(&all.map(Clone::clone)).unwrap();
        let cases = [
            (Some("first.example"), &first),
            (Some("ALSO.example."), &first),
            (Some("x.wild.example"), &wild),
            (Some("exact.wild.example"), &exact),
            // A wildcard is one label, and not its parent.
            (Some("x.y.wild.example"), &first),
            (Some("wild.example"), &first),
            (Some("unknown.example"), &first),
            (Some(""), &first),
            (None, &first),
        ];
        for (name, expected) in cases {
            let chosen = store.choose(name, |_| true);
            assert_eq!(chosen.cert[0].to_vec(), leaf(expected), "{name:?}");
        }
        // The same over a real handshake.
        let (_, config) = server(&tls(all.map(Clone::clone).to_vec(), None, false));
        let client = Arc::new(client(&all, BOTH, None));
        for (name, expected) in [("also.example", &first), ("b.wild.example", &wild)] {
            let (done, _) = handshake(&client, &config, name).unwrap();
            assert_eq!(served_leaf(&done), leaf(expected), "{name}");
        }
    }

    #[test]
    fn of_two_certificates_for_a_name_the_one_that_fits_is_served() {
        let directory = TestDirectory::new();
        let one = directory.certificate("one", &["a.example"]);
        let two = directory.certificate("two", &["a.example"]);
        let store = CertificateStore::load(&[one.clone(), two.clone()]).unwrap();
        let second = leaf(&two);
        let chosen = store.choose(Some("a.example"), |key| key.cert[0].to_vec() == second);
        assert_eq!(chosen.cert[0].to_vec(), second);
        let neither = store.choose(Some("a.example"), |_| false);
        assert_eq!(neither.cert[0].to_vec(), leaf(&one));
    }

    #[test]
    fn client_certificates_are_asked_for_and_verified() {
        let directory = TestDirectory::new();
        let own = directory.certificate("server", &["a.example"]);
        let trusted = directory.certificate("trusted", &["customer"]);
        let stranger = directory.certificate("stranger", &["stranger"]);
        let ca = Some(trusted.chain.clone());
        let (_, none) = server(&tls(vec![own.clone()], None, false));
        let (_, optional) = server(&tls(vec![own.clone()], ca.clone(), false));
        let (_, required) = server(&tls(vec![own.clone()], ca, true));
        let with = |certificate: Option<&Certificate>| Arc::new(client(&[&own], BOTH, certificate));
        // Whether the handshake succeeds, and then whether a client certificate was verified.
        let outcome = |certificate: Option<&Certificate>, config| {
            let (_, done) = handshake(&with(certificate), config, "a.example").ok()?;
            Some(done.peer_certificates().is_some())
        };
        assert_eq!(outcome(None, &none), Some(false));
        assert_eq!(outcome(Some(&trusted), &none), Some(false));
        assert_eq!(outcome(None, &optional), Some(false));
        assert_eq!(outcome(Some(&trusted), &optional), Some(true));
        assert_eq!(outcome(Some(&stranger), &optional), None);
        assert_eq!(outcome(None, &required), None);
        assert_eq!(outcome(Some(&trusted), &required), Some(true));
        assert_eq!(outcome(Some(&stranger), &required), None);
    }

    #[test]
    fn new_files_are_served_and_bad_ones_keep_the_old_certificate() {
        let directory = TestDirectory::new();
        let a = directory.certificate("a", &["a.example"]);
        let b = directory.certificate("b", &["b.example"]);
        let (store, config) = server(&tls(vec![a.clone(), b.clone()], None, false));
        let served = |name: &str, trusted: &Certificate| {
            let client = Arc::new(client(&[trusted], BOTH, None));
            handshake(&client, &config, name).map(|(done, _)| served_leaf(&done))
        };
        let old = leaf(&a);
        let (mut open, mut open_server) =
            handshake(&Arc::new(client(&[&a], BOTH, None)), &config, "a.example").unwrap();
        assert!(store.reload_changed().is_quiet(), "nothing has changed yet");

        // The chain is there before its key, as when files are copied one by one.
        let next = directory.certificate("next", &["a.example", "new.example"]);
        std::fs::copy(&next.chain, &a.chain).unwrap();
        let reload = store.reload_changed();
        assert_eq!((reload.replaced.len(), reload.refused.len()), (0, 1), "{reload:?}");
        assert_eq!(store.choose(Some("a.example"), |_| true).cert[0].to_vec(), old);
        assert!(store.reload_changed().is_quiet(), "a bad file is reported once");

        std::fs::copy(&next.key, &a.key).unwrap();
        let reload = store.reload_changed();
        assert_eq!((reload.replaced, reload.refused.len()), (vec![a.chain.clone()], 0));
        assert_eq!(served("a.example", &next).unwrap(), leaf(&next));
        assert_eq!(served("new.example", &next).unwrap(), leaf(&next));
        assert_eq!(served("b.example", &b).unwrap(), leaf(&b));

        // One bad certificate does not hold back another that is good.
        std::fs::write(&a.chain, "rubbish").unwrap();
        let reload = store.reload();
        assert_eq!((reload.replaced.as_slice(), reload.refused.len()), ([b.chain].as_slice(), 1));
        std::fs::remove_file(&a.key).unwrap();
        assert_eq!(store.reload_changed().refused.len(), 1);
        assert_eq!(served("a.example", &next).unwrap(), leaf(&next));

        // The connection of before is still the one it was.
        std::io::Write::write_all(&mut open.writer(), b"ping").unwrap();
        let mut wire = Vec::new();
        open.write_tls(&mut wire).unwrap();
        open_server.read_tls(&mut wire.as_slice()).unwrap();
        let state = open_server.process_new_packets().unwrap();
        assert_eq!(state.plaintext_bytes_to_read(), 4);
    }

    #[tokio::test]
    async fn the_watch_tells_of_each_reload_and_ends_when_told() {
        let directory = TestDirectory::new();
        let a = directory.certificate("a", &["a.example"]);
        let store = CertificateStore::load(std::slice::from_ref(&a)).unwrap();
        let next = directory.certificate("next", &["a.example"]);
        std::fs::copy(&next.chain, &a.chain).unwrap();
        std::fs::copy(&next.key, &a.key).unwrap();
        let (stop, stopped) = watch::channel(false);
        let (told, mut heard) = tokio::sync::mpsc::channel(4);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let watching = Arc::clone(&store).watch(stopped, move |reload| {
            counter.fetch_add(reload.replaced.len(), Ordering::Relaxed);
            let _ = told.try_send(());
        });
        let task = tokio::spawn(watching);
        tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.unwrap().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert_eq!(store.choose(None, |_| true).cert[0].to_vec(), leaf(&next));
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }

    #[test]
    fn errors_name_the_file_that_is_wrong() {
        let directory = TestDirectory::new();
        let a = directory.certificate("a", &["a.example"]);
        let b = directory.certificate("b", &["b.example"]);
        let absent = directory.path().join("absent");
        let cut = directory.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        let cases = [
            (absent.clone(), a.key.clone(), &absent, "cannot be read"),
            (a.chain.clone(), absent.clone(), &absent, "cannot be read"),
            (a.key.clone(), a.key.clone(), &a.key, "holds no certificate in PEM"),
            (a.chain.clone(), a.chain.clone(), &a.chain, "holds no private key in PEM"),
            (cut.clone(), a.key.clone(), &cut, "is not valid PEM"),
            (a.chain.clone(), b.key, &a.chain, "is not the certificate of"),
        ];
        for (chain, key, file, wrong) in cases {
            let error = load_certificate(&Certificate { chain, key }).unwrap_err();
            assert!(error.concerns(file) && error.to_string().contains(wrong), "{error}");
        }
        assert!(CertificateStore::load(&[]).is_err());
        assert!(load_roots(&a.key).unwrap_err().concerns(&a.key));
    }

    #[test]
    fn session_secrets_are_written_only_when_asked_for() {
        let directory = TestDirectory::new();
        let certificate = directory.certificate("a", &["a.example"]);
        let tls = tls(vec![certificate], None, false);
        let store = CertificateStore::load(&tls.certificates).unwrap();
        let shown = |key_log| {
            let config = server_config(&tls, Arc::clone(&store), key_log).unwrap();
            format!("{:?}", config.key_log)
        };
        assert!(shown(false).contains("NoKeyLog"), "{}", shown(false));
        assert!(shown(true).contains("KeyLogFile"), "{}", shown(true));
    }
}
