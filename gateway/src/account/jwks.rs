//! The keys that sign the operator's tokens: a JWK set from a file or from the issuer.
//!
//! Issuers rotate their keys without notice, and a gateway that keeps an old set refuses every
//! customer. So the set is fetched again and again, early when a token names a key that is not
//! known, and a failed fetch keeps the last good set. Requests read the current set without
//! waiting for any of that.
//!
//! A set may hold keys that are not for us (encryption, shared secrets, curves without support):
//! they are left out one by one, so that the others still work. Shared secrets stay out on
//! purpose: a verifier that accepts both kinds can be made to take a public key for a secret.
//!
//! Sources: RFC 7517 (JWK), RFC 7518 section 6 (parameters), RFC 8725 section 3.1.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, StatusCode};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::config::JwksSource;
use crate::config::file::{FileStamp, read_bounded};
use crate::limits::{JWKS_BYTES_MAX, JWKS_FETCH_TIMEOUT, JWKS_FILE_INTERVAL, JWKS_KEYS_MAX};
use crate::outgoing::{Outgoing, Request, Trust, Url};

/// Bytes of an RSA modulus at least (2048 bits; RFC 7518, section 3.3).
const RSA_MODULUS_BYTES_MIN: usize = 256;
/// Least time between two fetches: what an unknown key, which any client can name, may cause.
const FETCH_GAP: Duration = Duration::from_secs(10);

/// Why a key set cannot be used.
#[derive(Debug, Error)]
pub enum JwksError {
    /// The file cannot be read.
    #[error("key set {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The document is not a JWK set.
    #[error("not a JWK set: {0}")]
    Syntax(#[from] serde_json::Error),
    /// The set holds no key that can verify a token here.
    #[error("no usable key in the set: RSA of at least 2048 bits, P-256, P-384 or Ed25519")]
    NoKey,
    /// The address did not give a set.
    #[error("key set could not be fetched: {0}")]
    Fetch(String),
}

/// Whether tokens signed so are accepted: signatures by a private key, never shared secrets.
#[must_use]
pub fn is_asymmetric(algorithm: Algorithm) -> bool {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    match algorithm {
        RS256 | RS384 | RS512 | PS256 | PS384 | PS512 | ES256 | ES384 | EdDSA => true,
        HS256 | HS384 | HS512 => false,
    }
}

/// Keys that may verify tokens.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<VerifyingKey>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

impl KeySet {
    /// Reads a JWK set, leaving out keys that are of no use here.
    ///
    /// # Errors
    /// When the document is not a JWK set, or none of its keys is of use.
    pub fn parse(json: &[u8]) -> Result<Self, JwksError> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document = serde_json::from_slice(json)?;
        let keys: Vec<VerifyingKey> =
            document.keys.into_iter().filter_map(VerifyingKey::read).take(JWKS_KEYS_MAX).collect();
        if keys.is_empty() {
            return Err(JwksError::NoKey);
        }
        Ok(Self { keys })
    }

    /// The keys that may have signed a token with this header. A token without a key id may be
    /// signed by any; a key without an id may have signed any token.
    pub fn candidates(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &DecodingKey> {
        let named = move |key: &&VerifyingKey| match (kid, key.kid.as_deref()) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        let fits = move |key: &&VerifyingKey| key.algorithms.contains(&algorithm);
        self.keys.iter().filter(named).filter(fits).map(|key| &key.decoding)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key, as before the first fetch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// A key set that is kept fresh.
#[derive(Debug)]
pub struct KeySource {
    source: JwksSource,
    current: RwLock<Arc<KeySet>>,
    wanted: Notify,
    failures: AtomicU64,
}

impl KeySource {
    /// Opens a source. A file is read now; an address is fetched by [`Self::keep_fresh`].
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn open(source: &JwksSource) -> Result<Arc<Self>, JwksError> {
        let set = match source {
            JwksSource::File(path) => read_file(path)?,
            JwksSource::Url { .. } => KeySet::default(),
        };
        Ok(Arc::new(Self {
            source: source.clone(),
            current: RwLock::new(Arc::new(set)),
            wanted: Notify::new(),
            failures: AtomicU64::new(0),
        }))
    }

    /// The newest good set.
    #[must_use]
    pub fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read())
    }

    /// Asks for an early look, because a token names a key that is not known.
    pub fn want_refresh(&self) {
        self.wanted.notify_one();
    }

    /// Attempts that failed and left the old set in place, for the metrics.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Keeps the set fresh until `stop` turns true or its sender is gone.
    pub async fn keep_fresh(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let work = async {
            match &self.source {
                JwksSource::File(path) => self.follow_file(path).await,
                JwksSource::Url { url, refresh } => {
                    self.follow_url(url, *refresh, FETCH_GAP).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn follow_file(&self, path: &Path) {
        // The file may have changed since it was opened, so the first look reads it in any case.
        let mut seen = None;
        loop {
            let stamp = FileStamp::of(path);
            if stamp.is_none() || stamp != seen {
                let outcome = read_file(path);
                // A file that is away for a moment is looked for again; one that is there and
                // bad is reported once.
                seen = stamp;
                self.take(outcome);
            }
            sleep(JWKS_FILE_INTERVAL).await;
        }
    }

    async fn follow_url(&self, url: &Url, refresh: Duration, gap: Duration) {
        let client = match Outgoing::new(url.clone(), &Trust::default()) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "key set not fetched");
                return;
            }
        };
        loop {
            let outcome = fetch(&client).await.and_then(|body| KeySet::parse(&body));
            let fetched = self.take(outcome);
            sleep(gap.min(refresh)).await;
            if fetched {
                let _ = timeout(refresh.saturating_sub(gap), self.wanted.notified()).await;
            }
        }
    }

    fn take(&self, outcome: Result<KeySet, JwksError>) -> bool {
        match outcome {
            Ok(set) => {
                tracing::debug!(keys = set.len(), "key set read");
                *self.current.write() = Arc::new(set);
                true
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, kept = self.current().len(), "key set not refreshed");
                false
            }
        }
    }
}

struct VerifyingKey {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl VerifyingKey {
    fn read(json: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
                let leading_zeros = modulus.iter().take_while(|byte| **byte == 0).count();
                if modulus.len() - leading_zeros < RSA_MODULUS_BYTES_MIN {
                    return None;
                }
                vec![
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ]
            }
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(okp) => match okp.curve {
                EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
                _ => return None,
            },
            AlgorithmParameters::OctetKey(_) => return None,
        };
        if let Some(declared) = jwk.common.key_algorithm {
            algorithms.retain(|algorithm| same_algorithm(*algorithm, declared));
        }
        if algorithms.is_empty() {
            return None;
        }
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { kid: jwk.common.key_id, algorithms, decoding })
    }
}

/// The library has two lists of one set of names.
fn same_algorithm(algorithm: Algorithm, declared: KeyAlgorithm) -> bool {
    format!("{algorithm:?}") == format!("{declared:?}")
}

fn read_file(path: &Path) -> Result<KeySet, JwksError> {
    let bytes = read_bounded(path)
        .map_err(|source| JwksError::Read { path: path.display().to_string(), source })?;
    KeySet::parse(&bytes)
}

/// Fetches a key set's document.
async fn fetch(client: &Outgoing) -> Result<Vec<u8>, JwksError> {
    let request = Request {
        method: Method::GET,
        target: None,
        headers: &[("accept", "application/jwk-set+json, application/json")],
        body: Bytes::new(),
        timeout: JWKS_FETCH_TIMEOUT,
        answer_bytes_max: JWKS_BYTES_MAX,
    };
    let answer =
        client.send(&request).await.map_err(|error| JwksError::Fetch(error.to_string()))?;
    match answer.status {
        StatusCode::OK => Ok(answer.body),
        status => Err(JwksError::Fetch(format!("answer: {status}"))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;
    use rcgen::KeyPair;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::file::tests::TestDirectory;

    /// The public half of a P-256 pair as a JWK.
    pub(in crate::account) fn ec_jwk(pair: &KeyPair, kid: Option<&str>) -> Value {
        let point = pair.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    fn new_jwk(kid: Option<&str>) -> Value {
        ec_jwk(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(), kid)
    }

    fn changed(mut jwk: Value, key: &str, value: Value) -> Value {
        jwk[key] = value;
        jwk
    }

    fn rsa(bytes: usize) -> Value {
        let mut modulus = vec![0xab; bytes];
        modulus[bytes - 1] |= 1;
        json!({ "kty": "RSA", "kid": "r", "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB" })
    }

    #[test]
    fn keys_of_no_use_are_left_out_and_the_others_kept() {
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let ed = json!({
            "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(ed.public_key_raw()),
        });
        let cases: Vec<(&str, Value, Vec<Algorithm>)> = vec![
            ("p-256", new_jwk(Some("k")), vec![Algorithm::ES256]),
            ("ed25519", ed, vec![Algorithm::EdDSA]),
            (
                "rsa",
                rsa(256),
                vec![
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ],
            ),
            (
                "rsa for one algorithm",
                changed(rsa(256), "alg", json!("PS384")),
                vec![Algorithm::PS384],
            ),
            ("short rsa", rsa(128), vec![]),
            ("for encryption", changed(new_jwk(None), "use", json!("enc")), vec![]),
            ("encryption algorithm", changed(rsa(256), "alg", json!("RSA-OAEP")), vec![]),
            ("wrong algorithm", changed(new_jwk(None), "alg", json!("RS256")), vec![]),
            ("unknown curve", changed(new_jwk(None), "crv", json!("P-521")), vec![]),
            ("unknown type", json!({ "kty": "AKP" }), vec![]),
            ("shared secret", json!({ "kty": "oct", "k": "c2VjcmV0" }), vec![]),
            ("no object", json!("key"), vec![]),
        ];
        for (name, jwk, algorithms) in cases {
            // Beside a key that is always of use, so that the set itself is accepted.
            let anchor = changed(new_jwk(Some("anchor")), "crv", json!("P-256"));
            let set = KeySet::parse(json!({ "keys": [anchor, jwk] }).to_string().as_bytes());
            let set = set.unwrap();
            let found = set.keys.get(1).map(|key| key.algorithms.clone()).unwrap_or_default();
            assert_eq!(found, algorithms, "{name}");
        }
    }

    #[test]
    fn a_document_without_a_usable_key_is_an_error() {
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[{}]}"#] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_chosen_by_id_and_algorithm() {
        let keys = json!({ "keys": [new_jwk(Some("a")), new_jwk(Some("b")), new_jwk(None)] });
        let set = KeySet::parse(keys.to_string().as_bytes()).unwrap();
        let count = |kid, algorithm| set.candidates(kid, algorithm).count();
        assert_eq!(count(Some("a"), Algorithm::ES256), 2);
        assert_eq!(count(Some("z"), Algorithm::ES256), 1);
        assert_eq!(count(None, Algorithm::ES256), 3);
        assert_eq!(count(Some("a"), Algorithm::RS256), 0);
    }

    /// Waits until the condition holds; the deadline only ends a test that fails.
    async fn until(condition: impl Fn() -> bool) {
        timeout(Duration::from_secs(20), async {
            while !condition() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_bad_one_keeps_the_old_keys() {
        let directory = TestDirectory::new();
        let path = directory.path().join("jwks.json");
        let write = |keys: Vec<Value>| {
            std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
        };
        write(vec![new_jwk(Some("a"))]);
        let source = KeySource::open(&JwksSource::File(path.clone())).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&source).keep_fresh(stopped));

        write(vec![]);
        until(|| source.failures() > 0).await;
        assert_eq!(source.current().len(), 1);
        write(vec![new_jwk(Some("a")), new_jwk(Some("b"))]);
        until(|| source.current().len() == 2).await;

        stop.send(true).unwrap();
        timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }

    /// Answers each connection with the next response, then with the last one for ever.
    async fn serve(responses: Vec<String>) -> (Url, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys?v=1", listener.local_addr().unwrap());
        let url = url.parse().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let n = stream.read(&mut head).await.unwrap_or(0);
                assert!(head[..n].starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"));
                let index = counter.fetch_add(1, Ordering::Relaxed);
                let response = &responses[index.min(responses.len() - 1)];
                let _ = stream.write_all(response.as_bytes()).await;
            }
        });
        (url, served)
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn a_failed_fetch_keeps_the_last_good_set() {
        let one = ok(&json!({ "keys": [new_jwk(Some("a"))] }).to_string());
        let two = ok(&json!({ "keys": [new_jwk(Some("a")), new_jwk(Some("b"))] }).to_string());
        let failures = [
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 302 Found\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n".to_owned(),
            ok("not json"),
            ok(&"x".repeat(JWKS_BYTES_MAX + 1)),
        ];
        let failure_count = failures.len() as u64;
        let mut responses = vec![one];
        responses.extend(failures);
        responses.push(two);
        let (url, _) = serve(responses).await;
        let refresh = Duration::from_secs(3600);
        let source = KeySource::open(&JwksSource::Url { url: url.clone(), refresh }).unwrap();
        assert!(source.current().is_empty());
        let following = Arc::clone(&source);
        let pause = Duration::from_millis(20);
        let task = tokio::spawn(async move { following.follow_url(&url, pause, pause).await });
        until(|| source.failures() == failure_count).await;
        assert_eq!(source.current().len(), 1);
        until(|| source.current().len() == 2).await;
        task.abort();
    }

    #[tokio::test]
    async fn an_unknown_key_causes_an_early_fetch() {
        let (url, served) = serve(vec![ok(&json!({ "keys": [new_jwk(None)] }).to_string())]).await;
        let refresh = Duration::from_secs(3600);
        let source = KeySource::open(&JwksSource::Url { url: url.clone(), refresh }).unwrap();
        let following = Arc::clone(&source);
        let gap = Duration::from_millis(1);
        let task = tokio::spawn(async move { following.follow_url(&url, refresh, gap).await });
        until(|| served.load(Ordering::Relaxed) == 1 && !source.current().is_empty()).await;
        source.want_refresh();
        until(|| served.load(Ordering::Relaxed) == 2).await;
        task.abort();
    }

    proptest! {
        #[test]
        fn arbitrary_documents_never_panic(
            text in "\\PC{0,80}", kty in "(RSA|EC|OKP|oct)", crv in "(P-256|P-384|Ed25519)",
            x in "[A-Za-z0-9_-]{0,50}",
        ) {
            let _ = KeySet::parse(text.as_bytes());
            let jwk = json!({ "kty": kty, "crv": crv, "x": x, "y": x, "n": x, "e": text, "k": x });
            let _ = KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes());
        }
    }
}
