//! Who is asking: from a request's credential to the account's pseudonym.
//!
//! Everything that is learnt hangs on the account, and the credential is the one thing that must
//! never be kept. So the credential is read here, goes through a keyed HMAC at once (RFC 2104),
//! and only the pseudonym leaves. The same key always gives the same account, whichever header
//! carries it.
//!
//! It is wrong where one customer uses many credentials (they are many accounts until something
//! ties them) and where many people share one credential (they are one account). It does not
//! authenticate: an opaque key is for the upstream to accept or refuse. Only a JWT, where the
//! operator gave the keys, is verified here, because its claims would otherwise be the client's
//! own words.
//!
//! Sources: RFC 6750 (bearer tokens), RFC 7519 (JWT), RFC 8725 (which algorithms to accept), and
//! the providers' documents for `x-api-key`, `x-goog-api-key`, `api-key` and `?key=`.

pub mod jwks;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use detectors::{AccountId, Format, OrganisationId};
use hmac::{Hmac, Mac};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use ipnet::IpNet;
use serde_json::{Map, Value};
use sha2::Sha256;
use thiserror::Error;

use crate::config::{Identity, Jwt};
use crate::limits::JWT_BYTES_MAX;
use jwks::{JwksError, KeySource};

/// Hex digits of the HMAC in an identifier: 96 bits, so that a billion accounts do not collide.
const PSEUDONYM_HEX_DIGITS: usize = 24;

/// What of a request may tell who sends it. Its `Debug` shows no credential.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    /// The request's header fields.
    pub headers: &'a HeaderMap,
    /// The request's path and query.
    pub path_and_query: &'a str,
    /// Address of whoever speaks HTTP with us: a load balancer's where one ends TLS.
    pub peer: IpAddr,
    /// SHA-256 of the client certificate in DER, where TLS verified one.
    pub certificate_sha256: Option<&'a [u8]>,
    /// Provider format, which decides whose word counts where several credentials differ.
    pub format: Format,
}

impl fmt::Debug for Sender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("path_and_query", &redact_path(self.path_and_query))
            .field("peer", &self.peer)
            .field("credentials", &credentials(self).count())
            .field("certificate", &self.certificate_sha256.is_some())
            .finish_non_exhaustive()
    }
}

/// Who a request is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The account; `None` when the request carries no credential.
    pub account: Option<AccountId>,
    /// The account's organisation, where the operator or a verified token declares one.
    pub organisation: Option<OrganisationId>,
    /// Whether the request carries several credentials that differ. The account is that of the
    /// one which the format's provider reads, as far as a format is recognised.
    pub ambiguous: bool,
}

/// The request's token is not valid; it never says which token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("invalid credential: {reason}")]
pub struct InvalidCredential {
    /// What is wrong with it, in a few words.
    pub reason: &'static str,
}

/// Why identity cannot be set up.
#[derive(Debug, Error)]
pub enum AccountError {
    /// The HMAC key was refused.
    #[error("the identity key cannot be used: {0}")]
    Key(hmac::digest::InvalidLength),
    /// The key set was refused.
    #[error(transparent)]
    Jwks(#[from] JwksError),
}

/// Gives accounts their pseudonyms.
pub struct AccountNamer {
    hmac: Hmac<Sha256>,
    jwt: Option<TokenVerifier>,
    client_certificate: bool,
    organisation_header: Option<(HeaderName, Vec<IpNet>)>,
}

impl fmt::Debug for AccountNamer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountNamer").field("jwt", &self.jwt.is_some()).finish_non_exhaustive()
    }
}

impl AccountNamer {
    /// Sets up naming. A key set in a file is read now; one at an address is empty until
    /// [`KeySource::keep_fresh`] of [`Self::key_source`] runs.
    ///
    /// # Errors
    /// When the HMAC key or the key set cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, AccountError> {
        let hmac = Hmac::new_from_slice(&identity.key).map_err(AccountError::Key)?;
        let jwt = identity.jwt.as_ref().map(TokenVerifier::new).transpose()?;
        // A resolved name is valid; one that is not can match no request either.
        let organisation_header = identity.organisation_header.as_ref().and_then(|header| {
            Some((HeaderName::try_from(&header.name).ok()?, header.from.clone()))
        });
        let client_certificate = identity.client_certificate;
        Ok(Self { hmac, jwt, client_certificate, organisation_header })
    }

    /// Names the sender of a request.
    ///
    /// # Errors
    /// When tokens are verified and the request's token is not valid: a 401.
    pub fn name(&self, sender: &Sender<'_>) -> Result<Named, InvalidCredential> {
        let mut found = credentials(sender);
        let first = found.next();
        let ambiguous = first.as_ref().is_some_and(|first| found.any(|other| other != *first));
        let mut organisation = self.declared_organisation(sender);
        let account = match (&first, &self.jwt) {
            (Some(Credential(token)), Some(verifier)) if looks_like_jwt(token) => {
                let claims = verifier.verify(token)?;
                organisation = claims.organisation.or(organisation);
                Some(self.account("token", &[claims.issuer.as_bytes(), claims.account.as_bytes()]))
            }
            (Some(Credential(key)), _) => Some(self.account("key", &[key])),
            (None, _) => sender
                .certificate_sha256
                .filter(|_| self.client_certificate)
                .map(|digest| self.account("certificate", &[digest])),
        };
        let organisation = organisation.map(|name| {
            OrganisationId::new(self.pseudonym("org-", "organisation", &[name.as_bytes()]))
        });
        Ok(Named { account, organisation, ambiguous })
    }

    /// Where the keys of tokens come from, to be kept fresh in the background.
    #[must_use]
    pub fn key_source(&self) -> Option<&Arc<KeySource>> {
        self.jwt.as_ref().map(|verifier| &verifier.keys)
    }

    /// The organisation header, where this peer is not one whose header is believed: it is then
    /// removed, so that nothing behind the gateway believes it either.
    #[must_use]
    pub fn header_to_remove(&self, peer: IpAddr, headers: &HeaderMap) -> Option<&HeaderName> {
        let (name, from) = self.organisation_header.as_ref()?;
        // Of several values one is the client's own.
        let several = headers.get_all(name).iter().count() > 1;
        (several || !contains(from, peer)).then_some(name)
    }

    fn declared_organisation(&self, sender: &Sender<'_>) -> Option<String> {
        let (name, from) = self.organisation_header.as_ref()?;
        if !contains(from, sender.peer) {
            return None;
        }
        let mut values = sender.headers.get_all(name).iter();
        let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn account(&self, kind: &str, parts: &[&[u8]]) -> AccountId {
        AccountId::new(self.pseudonym("acct-", kind, parts))
    }

    /// Each part goes in with its length, so that no two lists of parts look alike.
    fn pseudonym(&self, prefix: &str, domain: &str, parts: &[&[u8]]) -> String {
        let mut hmac = self.hmac.clone();
        for part in [b"stillgate".as_slice(), domain.as_bytes()].iter().chain(parts) {
            hmac.update(&(part.len() as u64).to_be_bytes());
            hmac.update(part);
        }
        let mut name = prefix.to_owned();
        name.push_str(&hex::encode(hmac.finalize().into_bytes()));
        name.truncate(prefix.len() + PSEUDONYM_HEX_DIGITS);
        name
    }
}

/// Header fields that carry a credential or a session, lower case and sorted.
pub const CREDENTIAL_HEADERS: [&str; 19] = [
    "api-key",
    "authentication",
    "authorization",
    "cookie",
    "ocp-apim-subscription-key",
    "proxy-authorization",
    // A browser cannot set headers on a WebSocket, so API keys travel as a subprotocol.
    "sec-websocket-protocol",
    "set-cookie",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-auth-token",
    "x-csrf-token",
    "x-forwarded-access-token",
    "x-forwarded-client-cert",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-xsrf-token",
];

/// Whether a header field carries a credential: its value is never logged or recorded.
#[must_use]
pub fn is_credential_header(name: &str) -> bool {
    CREDENTIAL_HEADERS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a header field's value is one that fingerprints use and may be kept. All others may
/// hold a secret of somebody's own making, so only their names are kept.
#[must_use]
pub fn header_value_kept(name: &str) -> bool {
    const KEPT: [&str; 29] = [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-version",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "dnt",
        "expect",
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-timeout",
        "host",
        "http2-settings",
        "openai-beta",
        "pragma",
        "priority",
        "te",
        "transfer-encoding",
        "upgrade",
        "upgrade-insecure-requests",
        "user-agent",
        "x-goog-api-client",
        "x-requested-with",
    ];
    const KEPT_PREFIXES: [&str; 3] = ["x-stainless-", "sec-ch-ua", "sec-fetch-"];
    let prefixed = |prefix: &str| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    KEPT.iter().any(|known| known.eq_ignore_ascii_case(name))
        || KEPT_PREFIXES.iter().any(|prefix| prefixed(prefix))
}

/// The path and query with the values of credential parameters replaced by `REDACTED`.
#[must_use]
pub fn redact_path(path_and_query: &str) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else {
        return path_and_query.to_owned();
    };
    let mut redacted = String::with_capacity(path_and_query.len());
    redacted.push_str(path);
    redacted.push('?');
    for parameter in query.split_inclusive(['&', ';']) {
        let (body, separator) = match parameter.strip_suffix(['&', ';']) {
            Some(body) => (body, &parameter[body.len()..]),
            None => (parameter, ""),
        };
        match body.split_once('=') {
            Some((name, _)) if is_credential_parameter(name) => {
                redacted.push_str(name);
                redacted.push_str("=REDACTED");
            }
            _ => redacted.push_str(body),
        }
        redacted.push_str(separator);
    }
    redacted
}

/// Compared after percent-decoding: the upstream reads `%6bey` as `key` too.
fn is_credential_parameter(name: &str) -> bool {
    const PARAMETERS: [&str; 13] = [
        "access_token",
        "api-key",
        "api_key",
        "apikey",
        "auth",
        "client_secret",
        "key",
        "oauth_token",
        "password",
        "subscription-key",
        "token",
        "x-amz-security-token",
        "x-amz-signature",
    ];
    let name = percent_decode(name);
    PARAMETERS.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(&name))
}

/// A credential as sent. No `Debug`: it is compared, verified and hashed, nothing else.
#[derive(PartialEq, Eq)]
struct Credential<'a>(Cow<'a, [u8]>);

/// Every credential of a request, in the order in which they are believed: first the carrier that
/// the format's provider reads. A throwaway token in another carrier, which the provider would
/// ignore, must not make a new account.
fn credentials<'a>(sender: &Sender<'a>) -> impl Iterator<Item = Credential<'a>> {
    let headers = sender.headers;
    let values = |name: &'static str| headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let bearer = || values(AUTHORIZATION.as_str()).map(read_authorization).map(Cow::Borrowed);
    let key = |name: &'static str| values(name).map(<[u8]>::trim_ascii).map(Cow::Borrowed);
    let query = sender.path_and_query.split_once('?').map_or("", |(_, query)| query);
    let parameters = || {
        let parameters = query.split(['&', ';']).filter_map(|parameter| parameter.split_once('='));
        parameters
            .filter(|(name, _)| *percent_decode(name) == *b"key")
            .map(|(_, value)| percent_decode(value))
    };
    let mut found: Vec<Cow<'a, [u8]>> = Vec::with_capacity(2);
    match sender.format {
        Format::AnthropicMessages => found.extend(key("x-api-key").chain(bearer())),
        Format::GeminiGenerate => {
            found.extend(key("x-goog-api-key").chain(parameters()).chain(bearer()));
        }
        _ => found.extend(bearer()),
    }
    let rest = ["x-api-key", "x-goog-api-key", "api-key"].into_iter().flat_map(key);
    for value in bearer().chain(rest).chain(parameters()) {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found.into_iter().filter(|value| !value.is_empty()).map(Credential)
}

/// The part of an `Authorization` value that stays the same from request to request.
fn read_authorization(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return rest;
    }
    if scheme.starts_with(b"AWS4-") {
        // A signature differs each time; the access key's id in front of it does not.
        const FIELD: &[u8] = b"Credential=";
        if let Some(at) = rest.windows(FIELD.len()).position(|window| window == FIELD) {
            let credential = &rest[at + FIELD.len()..];
            let end = credential.iter().position(|b| matches!(b, b'/' | b',' | b' '));
            return &credential[..end.unwrap_or(credential.len())];
        }
    }
    // `Token X` and the like: the scheme must not make another account of X, nor hide a token
    // from verification. Several words are a scheme with parameters of its own.
    let one_word = !rest.is_empty() && !rest.iter().any(u8::is_ascii_whitespace);
    if one_word { rest } else { value }
}

/// Decodes `%xx`; what is not a valid escape stays as it is.
fn percent_decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let mut escaped = [0];
        match after.get(..2) {
            Some(digits) if *byte == b'%' && hex::decode_to_slice(digits, &mut escaped).is_ok() => {
                decoded.push(escaped[0]);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    Cow::Owned(decoded)
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    // A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d.
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Three base64url parts of which the first is a JSON object with an `alg` (RFC 7515, section 7.1).
fn looks_like_jwt(token: &[u8]) -> bool {
    let mut parts = token.split(|byte| *byte == b'.');
    let (Some(header), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // An overlong one goes to the verifier to be refused: it must not pass as an opaque key.
    if token.len() > JWT_BYTES_MAX {
        return true;
    }
    URL_SAFE_NO_PAD
        .decode(header)
        .ok()
        .and_then(|json| serde_json::from_slice::<Map<String, Value>>(&json).ok())
        .is_some_and(|header| header.contains_key("alg"))
}

/// What a verified token says.
struct Claims {
    issuer: String,
    account: String,
    organisation: Option<String>,
}

struct TokenVerifier {
    keys: Arc<KeySource>,
    settings: Jwt,
}

impl TokenVerifier {
    fn new(settings: &Jwt) -> Result<Self, JwksError> {
        Ok(Self { keys: KeySource::open(&settings.jwks)?, settings: settings.clone() })
    }

    fn verify(&self, token: &[u8]) -> Result<Claims, InvalidCredential> {
        let invalid = |reason| InvalidCredential { reason };
        if token.len() > JWT_BYTES_MAX {
            return Err(invalid("token too long"));
        }
        // `none`, and everything that the library does not know, already fails here.
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| invalid("malformed token header"))?;
        if header.crit.is_some() {
            return Err(invalid("token needs an extension that is not supported"));
        }
        if !jwks::is_asymmetric(header.alg) {
            return Err(invalid("token algorithm not accepted"));
        }
        let keys = self.keys.current();
        let mut outcome = Err(invalid("unknown signing key"));
        let mut known = false;
        for key in keys.candidates(header.kid.as_deref(), header.alg) {
            known = true;
            let decoded = jsonwebtoken::decode(token, key, &self.validation(header.alg));
            outcome = decoded.map(|data| data.claims).map_err(|error| invalid(reason(&error)));
            if outcome.is_ok() {
                break;
            }
        }
        if !known {
            // The issuer may have begun to sign with a new key.
            self.keys.want_refresh();
        }
        let claims: Map<String, Value> = outcome?;
        let account = claim(&claims, &self.settings.account_claim)
            .ok_or(invalid("token does not name an account"))?;
        let organisation =
            self.settings.organisation_claim.as_ref().and_then(|name| claim(&claims, name));
        let issuer = claim(&claims, "iss").unwrap_or_default();
        Ok(Claims { issuer, account, organisation })
    }

    fn validation(&self, algorithm: jsonwebtoken::Algorithm) -> jsonwebtoken::Validation {
        let mut validation = jsonwebtoken::Validation::new(algorithm);
        validation.validate_nbf = true;
        // The library checks issuer and audience only where the token has them, unless they are
        // also required.
        let mut required = vec!["exp"];
        match &self.settings.issuer {
            Some(issuer) => {
                validation.set_issuer(&[issuer]);
                required.push("iss");
            }
            None => validation.iss = None,
        }
        match &self.settings.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// A claim as text: a non-empty string or a whole number.
fn claim(claims: &Map<String, Value>, name: &str) -> Option<String> {
    match claims.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

fn reason(error: &jsonwebtoken::errors::Error) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => "token expired",
        ErrorKind::ImmatureSignature => "token not valid yet",
        ErrorKind::InvalidIssuer => "token of another issuer",
        ErrorKind::InvalidAudience => "token for another audience",
        ErrorKind::MissingRequiredClaim(_) => "token lacks a required claim",
        ErrorKind::InvalidSignature => "token signature does not match",
        _ => "malformed token",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{JwksSource, OrganisationHeader};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn identity() -> Identity {
        Identity {
            key: Arc::from((0..32).collect::<Vec<u8>>()),
            jwt: None,
            client_certificate: false,
            organisation_header: None,
        }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn name_with(
        identity: &Identity,
        fields: &[(&'static str, &str)],
        path: &str,
    ) -> Result<Named, InvalidCredential> {
        let headers = headers(fields);
        let sender = Sender {
            headers: &headers,
            path_and_query: path,
            peer: PEER,
            certificate_sha256: None,
            format: Format::Unknown,
        };
        AccountNamer::new(identity).unwrap().name(&sender)
    }

    fn account(fields: &[(&'static str, &str)], path: &str) -> String {
        let named = name_with(&identity(), fields, path).unwrap();
        assert!(!named.ambiguous, "{fields:?}");
        named.account.map_or_else(String::new, |account| account.to_string())
    }

    #[test]
    fn one_key_is_one_account_whatever_carries_it() {
        let expected = account(&[("authorization", "Bearer sk-one")], "/v1/x");
        assert!(expected.starts_with("acct-") && expected.len() == 29, "{expected}");
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("authorization", "bearer   sk-one ")], "/"),
            (&[("authorization", "sk-one")], "/"),
            (&[("authorization", "Token sk-one")], "/"),
            (&[("x-api-key", "sk-one")], "/"),
            (&[("x-goog-api-key", "sk-one")], "/"),
            (&[("api-key", " sk-one")], "/"),
            (&[], "/v1beta/models/m:generateContent?key=sk-one"),
            (&[], "/v1?alt=sse&%6Bey=sk%2Done"),
            (&[("authorization", "Bearer sk-one"), ("x-api-key", "sk-one")], "/?key=sk-one"),
        ];
        for (fields, path) in cases {
            assert_eq!(account(fields, path), expected, "{fields:?} {path}");
        }
        assert_ne!(account(&[("x-api-key", "sk-two")], "/"), expected);
        assert_eq!(account(&[("authorization", "Bearer ")], "/?key=&monkey=sk-one"), "");
    }

    #[test]
    fn the_pseudonym_is_the_documented_hmac() {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&identity().key).unwrap();
        for part in ["stillgate", "key", "sk-one"] {
            hmac.update(&(part.len() as u64).to_be_bytes());
            hmac.update(part.as_bytes());
        }
        let expected = format!("acct-{}", &hex::encode(hmac.finalize().into_bytes())[..24]);
        assert_eq!(account(&[("x-api-key", "sk-one")], "/"), expected);
        let other = Identity { key: Arc::from(vec![7; 32]), ..identity() };
        let renamed = name_with(&other, &[("x-api-key", "sk-one")], "/").unwrap();
        assert_ne!(renamed.account.unwrap().as_str(), expected);
    }

    #[test]
    fn a_signed_request_is_named_by_its_access_key() {
        let value = |signature: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/eu-west-1/bedrock/aws4_request, \
                 SignedHeaders=host, Signature={signature}"
            )
        };
        let first = account(&[("authorization", &value("aa"))], "/");
        assert_eq!(account(&[("authorization", &value("bb"))], "/"), first);
        assert_eq!(account(&[("x-api-key", "AKIAEXAMPLE")], "/"), first);
    }

    #[test]
    fn differing_credentials_are_called_ambiguous_and_the_first_counts() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("authorization", "Bearer a"), ("x-api-key", "b")], "/"),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], "/"),
            (&[("authorization", "Bearer a")], "/?key=b"),
            (&[], "/?key=a&key=b"),
        ];
        let first = account(&[("x-api-key", "a")], "/");
        for (fields, path) in cases {
            let named = name_with(&identity(), fields, path).unwrap();
            assert!(named.ambiguous, "{fields:?} {path}");
            assert_eq!(named.account.unwrap().as_str(), first, "{fields:?} {path}");
        }
    }

    #[test]
    fn a_throwaway_token_hides_no_account_of_the_providers_own_carrier() {
        let cases: &[(Format, &str, &str)] = &[
            (Format::AnthropicMessages, "x-api-key", "/v1/messages"),
            (Format::GeminiGenerate, "x-goog-api-key", "/v1beta/models/m:generateContent"),
        ];
        for (format, carrier, path) in cases {
            let fields = [("authorization", "Bearer throwaway"), (*carrier, "real")];
            let headers = headers(&fields);
            let sender = Sender {
                headers: &headers,
                path_and_query: path,
                peer: PEER,
                certificate_sha256: None,
                format: *format,
            };
            let named = AccountNamer::new(&identity()).unwrap().name(&sender).unwrap();
            assert!(named.ambiguous);
            assert_eq!(named.account.unwrap().as_str(), account(&[("x-api-key", "real")], "/"));
        }
    }

    #[test]
    fn a_certificate_names_the_account_only_where_nothing_else_does() {
        let digest = [5; 32];
        let on = Identity { client_certificate: true, ..identity() };
        let name = |identity: &Identity, fields: &[(&'static str, &str)]| {
            let headers = headers(fields);
            let certificate_sha256 = Some(digest.as_slice());
            let sender = Sender {
                headers: &headers,
                path_and_query: "/",
                peer: PEER,
                certificate_sha256,
                format: Format::Unknown,
            };
            AccountNamer::new(identity).unwrap().name(&sender).unwrap().account
        };
        assert_eq!(name(&identity(), &[]), None);
        let by_certificate = name(&on, &[]).unwrap();
        let by_key = name(&on, &[("x-api-key", "a")]).unwrap();
        assert_eq!(by_key.as_str(), account(&[("x-api-key", "a")], "/"));
        assert_ne!(by_certificate, by_key);
    }

    #[test]
    fn an_organisation_header_is_believed_from_listed_peers_only() {
        let with = |from: &str| Identity {
            organisation_header: Some(OrganisationHeader {
                name: "x-organisation".into(),
                from: vec![from.parse().unwrap()],
            }),
            ..identity()
        };
        let fields = [("x-api-key", "a"), ("x-organisation", "acme")];
        let believed = name_with(&with("10.0.0.0/8"), &fields, "/").unwrap().organisation.unwrap();
        assert!(believed.as_str().starts_with("org-") && !believed.as_str().contains("acme"));
        assert_eq!(name_with(&with("10.1.0.0/16"), &fields, "/").unwrap().organisation, None);

        let namer = AccountNamer::new(&with("10.0.0.0/8")).unwrap();
        assert_eq!(namer.header_to_remove(PEER, &HeaderMap::new()), None);
        assert_eq!(
            namer.header_to_remove("::ffff:10.0.0.1".parse().unwrap(), &HeaderMap::new()),
            None
        );
        let removed =
            namer.header_to_remove("192.0.2.1".parse().unwrap(), &HeaderMap::new()).unwrap();
        assert_eq!(removed, "x-organisation");
    }

    /// A signing key, the file of its key set, and an identity that trusts it.
    struct Issuer {
        key: EncodingKey,
        identity: Identity,
        _directory: TestDirectory,
    }

    impl Issuer {
        fn new() -> Self {
            let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let directory = TestDirectory::new();
            let path = directory.path().join("jwks.json");
            let set = json!({ "keys": [jwks::tests::ec_jwk(&pair, Some("k1"))] });
            std::fs::File::create(&path).unwrap().write_all(set.to_string().as_bytes()).unwrap();
            let jwt = Jwt {
                jwks: JwksSource::File(path),
                issuer: Some("https://issuer.example".into()),
                audience: Some("llm".into()),
                account_claim: "sub".into(),
                organisation_claim: Some("org".into()),
            };
            let key = EncodingKey::from_ec_der(&pair.serialize_der());
            let identity = Identity { jwt: Some(jwt), ..identity() };
            Self { key, identity, _directory: directory }
        }

        fn sign(&self, change: impl Fn(&mut Header, &mut Value)) -> String {
            let now = jsonwebtoken::get_current_timestamp();
            let mut header = Header::new(Algorithm::ES256);
            header.kid = Some("k1".into());
            let mut claims = json!({
                "iss": "https://issuer.example", "aud": ["llm"], "sub": "user-1", "org": "acme",
                "exp": now + 600, "nbf": now - 10,
            });
            change(&mut header, &mut claims);
            jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
        }

        fn name(&self, token: &str) -> Result<Named, InvalidCredential> {
            name_with(&self.identity, &[("authorization", &format!("Bearer {token}"))], "/")
        }
    }

    #[test]
    fn a_valid_token_names_account_and_organisation_by_its_claims() {
        let issuer = Issuer::new();
        let first = issuer.name(&issuer.sign(|_, _| {})).unwrap();
        let renewed = issuer.name(&issuer.sign(|_, claims| claims["jti"] = json!("x"))).unwrap();
        assert!(first.organisation.is_some());
        assert_eq!(first, renewed, "a renewed token is the same account");
        let other = issuer.name(&issuer.sign(|_, claims| claims["sub"] = json!(17))).unwrap();
        assert_ne!(first.account, other.account);
        assert_eq!(first.organisation, other.organisation);
        // What is no token is an opaque key still.
        let opaque = issuer.name("sk-one.two.three").unwrap();
        assert_eq!(
            opaque.account,
            name_with(&identity(), &[("x-api-key", "sk-one.two.three")], "/").unwrap().account
        );
    }

    #[test]
    fn an_invalid_token_is_refused() {
        let issuer = Issuer::new();
        let past = jsonwebtoken::get_current_timestamp() - 3600;
        let later = jsonwebtoken::get_current_timestamp() + 3600;
        let signed = |change: fn(&mut Header, &mut Value, u64), at: u64| {
            issuer.sign(|header, claims| change(header, claims, at))
        };
        let valid = issuer.sign(|_, _| {});
        let (head, signature) = valid.rsplit_once('.').unwrap();
        let body = valid.split('.').nth(1).unwrap();
        let encode = |header: Value| URL_SAFE_NO_PAD.encode(header.to_string());
        let shared_secret = {
            // The published key used as an HMAC secret: the classic confusion of algorithms.
            let secret = EncodingKey::from_secret(b"public key bytes");
            let claims = json!({ "sub": "user-1", "exp": later });
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap()
        };
        let cases: Vec<(&str, String, &str)> = vec![
            ("expired", signed(|_, c, at| c["exp"] = json!(at), past), "token expired"),
            ("early", signed(|_, c, at| c["nbf"] = json!(at), later), "token not valid yet"),
            (
                "issuer",
                signed(|_, c, _| c["iss"] = json!("https://evil"), 0),
                "token of another issuer",
            ),
            (
                "audience",
                signed(|_, c, _| c["aud"] = json!("web"), 0),
                "token for another audience",
            ),
            (
                "no exp",
                signed(
                    |_, c, _| {
                        c.as_object_mut().unwrap().remove("exp");
                    },
                    0,
                ),
                "token lacks a required claim",
            ),
            (
                "no iss",
                signed(
                    |_, c, _| {
                        c.as_object_mut().unwrap().remove("iss");
                    },
                    0,
                ),
                "token lacks a required claim",
            ),
            (
                "no aud",
                signed(
                    |_, c, _| {
                        c.as_object_mut().unwrap().remove("aud");
                    },
                    0,
                ),
                "token lacks a required claim",
            ),
            (
                "no account",
                signed(|_, c, _| c["sub"] = json!(""), 0),
                "token does not name an account",
            ),
            ("unknown kid", signed(|h, _, _| h.kid = Some("k2".into()), 0), "unknown signing key"),
            (
                "critical",
                signed(|h, _, _| h.crit = Some(vec!["b64".into()]), 0),
                "token needs an extension that is not supported",
            ),
            (
                "other signature",
                format!(
                    "{head}.{}{}",
                    if signature.starts_with('A') { 'B' } else { 'A' },
                    &signature[1..]
                ),
                "token signature does not match",
            ),
            ("other key", Issuer::new().sign(|_, _| {}), "token signature does not match"),
            (
                "none",
                format!("{}.{body}.", encode(json!({"alg": "none"}))),
                "malformed token header",
            ),
            ("shared secret", shared_secret, "token algorithm not accepted"),
            (
                "other family",
                format!("{}.{body}.{signature}", encode(json!({"alg": "RS256", "kid": "k1"}))),
                "unknown signing key",
            ),
            (
                "long header",
                issuer.sign(|h, _| h.cty = Some("x".repeat(JWT_BYTES_MAX))),
                "token too long",
            ),
            (
                "too long",
                issuer.sign(|_, c| c["pad"] = json!("x".repeat(JWT_BYTES_MAX))),
                "token too long",
            ),
        ];
        for (name, token, reason) in cases {
            assert_eq!(issuer.name(&token), Err(InvalidCredential { reason }), "{name}");
        }
    }

    #[test]
    fn a_token_is_verified_whatever_carries_it() {
        let issuer = Issuer::new();
        let valid = issuer.sign(|_, _| {});
        let expected = issuer.name(&valid).unwrap();
        let expired = issuer.sign(|_, claims| claims["exp"] = json!(1));
        let name =
            |fields: &[(&'static str, &str)], path: &str| name_with(&issuer.identity, fields, path);
        for carrier in ["x-api-key", "x-goog-api-key", "api-key"] {
            assert_eq!(name(&[(carrier, &valid)], "/"), Ok(expected.clone()), "{carrier}");
            assert!(name(&[(carrier, &expired)], "/").is_err(), "{carrier}");
        }
        assert_eq!(name(&[("authorization", &format!("JWT {valid}"))], "/"), Ok(expected.clone()));
        assert!(name(&[("authorization", &format!("JWT {expired}"))], "/").is_err());
        assert_eq!(name(&[], &format!("/?key={valid}")), Ok(expected));
    }

    #[test]
    fn no_debug_output_shows_a_credential() {
        let fields = [
            ("authorization", "Bearer SECRET-1"),
            ("x-api-key", "SECRET-2"),
            ("cookie", "s=SECRET-3"),
        ];
        let headers = headers(&fields);
        let sender = Sender {
            headers: &headers,
            path_and_query: "/?key=SECRET-4",
            peer: PEER,
            certificate_sha256: Some(b"SECRET-5"),
            format: Format::Unknown,
        };
        let namer = AccountNamer::new(&identity()).unwrap();
        let shown = format!("{sender:?} {namer:?} {:?}", namer.name(&sender));
        assert!(!shown.contains("SECRET") && shown.contains("credentials: 3"), "{shown}");
        let issuer = Issuer::new();
        let token = issuer.sign(|_, claims| claims["sub"] = json!("SECRET"));
        let (head, _) = token.rsplit_once('.').unwrap();
        let error = issuer.name(&format!("{head}.c2ln")).unwrap_err();
        assert!(!format!("{error:?} {error}").contains(head.split('.').next_back().unwrap()));
    }

    #[test]
    fn credential_parameters_are_redacted_and_the_rest_stays() {
        let cases = [
            ("/v1/chat", "/v1/chat"),
            ("/v1?", "/v1?"),
            ("/m:gen?key=AIza", "/m:gen?key=REDACTED"),
            ("/m?alt=sse&key=a%26b&x=1", "/m?alt=sse&key=REDACTED&x=1"),
            ("/m?KEY=a;token=b&&n", "/m?KEY=REDACTED;token=REDACTED&&n"),
            ("/m?%6bey=a&api_key=b", "/m?%6bey=REDACTED&api_key=REDACTED"),
            ("/m?access_token=a=b?c", "/m?access_token=REDACTED"),
            ("/m?monkey=a&key", "/m?monkey=a&key"),
            ("/m?x=%zz%", "/m?x=%zz%"),
        ];
        for (path, expected) in cases {
            assert_eq!(redact_path(path), expected);
        }
    }

    #[test]
    fn header_lists_do_not_overlap() {
        assert!(CREDENTIAL_HEADERS.is_sorted());
        for name in CREDENTIAL_HEADERS {
            assert!(is_credential_header(&name.to_ascii_uppercase()), "{name}");
            assert!(!header_value_kept(name), "{name}");
        }
        for name in ["User-Agent", "X-Stainless-Lang", "sec-ch-ua-platform", "TE", "host"] {
            assert!(header_value_kept(name), "{name}");
        }
        for name in ["origin", "referer", "openai-organization", "x-stainless", "x-custom", ""] {
            assert!(!header_value_kept(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_query_value_of_a_credential_survives(
            path in "/[a-z/:]{0,8}", before in "[a-z=&;%0-9]{0,12}",
            name in "(key|token|%6bey|API_KEY)",
            value in "[A-Z]{8,12}", after in "[a-z=&;%0-9]{0,12}",
        ) {
            let text = format!("{path}?{before}&{name}={value}&{after}");
            let redacted = redact_path(&text);
            prop_assert!(!redacted.contains(&value));
            prop_assert_eq!(redact_path(&redacted), redacted);
        }

        #[test]
        fn arbitrary_requests_never_panic(
            authorization in proptest::collection::vec(0x20_u8..0x7f, 0..80), path in "\\PC{0,60}",
        ) {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(&authorization).unwrap());
            let sender = Sender {
                headers: &headers, path_and_query: &path, peer: PEER, certificate_sha256: None,
                format: Format::GeminiGenerate,
            };
            let _ = format!("{sender:?}");
            prop_assert!(AccountNamer::new(&identity()).unwrap().name(&sender).is_ok());
            let _ = looks_like_jwt(&authorization);
        }
    }

    use crate::config::file::tests::TestDirectory;
}
