//! A certificate authority for one test, and the certificates it signs.
//!
//! Extensions are set as strict verifiers want them (RFC 5280, section 4.2): key identifiers, key
//! usages, the names of loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority that lives as long as its test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate and its key, in PEM.
pub struct Identity {
    /// The certificate.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
    /// The certificate as it goes over the wire.
    pub der: CertificateDer<'static>,
}

impl Authority {
    /// Makes an authority with a fresh key.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "Stillgate test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.self_signed(&key).expect("a self-signed certificate");
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for `localhost` and the loopback addresses.
    #[must_use]
    pub fn sign(&self, common_name: &str) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)));
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.signed_by(&key, &self.issuer).expect("a signed certificate");
        Identity {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    /// A TLS client that trusts this authority alone and offers `alpn`.
    #[must_use]
    pub fn tls_client(&self, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        self.tls_client_with(provider, alpn)
    }

    /// The same with a cryptography provider of the caller's, for a hello of another shape.
    #[must_use]
    pub fn tls_client_with(
        &self,
        provider: Arc<rustls::crypto::CryptoProvider>,
        alpn: &[&str],
    ) -> Arc<rustls::ClientConfig> {
        finished(self.trusting(provider).with_no_client_auth(), alpn)
    }

    /// The same with a client certificate.
    #[must_use]
    pub fn tls_client_as(&self, identity: &Identity, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
        let config = self.trusting(provider).with_client_auth_cert(vec![identity.der.clone()], key);
        finished(config.expect("a key that fits its certificate"), alpn)
    }

    fn trusting(
        &self,
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> rustls::ConfigBuilder<rustls::ClientConfig, WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("the authority is a root");
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(roots)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn finished(mut config: rustls::ClientConfig, alpn: &[&str]) -> Arc<rustls::ClientConfig> {
    // A resumed handshake has another hello and shows no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}
