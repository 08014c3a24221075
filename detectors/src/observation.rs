//! One exchange as seen: who connected, how, what was asked, what was answered.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::conversation::{Answer, Conversation, Format};
use crate::indicator::IndicatorHit;
use crate::network::Network;

/// Who a credential belongs to: a pseudonym (keyed HMAC of the credential), never the credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountId(Arc<str>);

/// Accounts that the operator says belong together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct OrganisationId(Arc<str>);

macro_rules! identifier {
    ($name:ident) => {
        impl $name {
            /// Wraps an identifier that is already a pseudonym.
            #[must_use]
            pub fn new(id: impl Into<Arc<str>>) -> Self {
                Self(id.into())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
identifier!(AccountId);
identifier!(OrganisationId);

/// What a TLS handshake tells of the client. One per connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TlsCapture {
    /// Negotiated protocol version: `1.3` or `1.2`. Empty when the handshake failed before.
    pub version: String,
    /// JA3 string, GREASE removed, extensions in wire order.
    pub ja3: String,
    /// MD5 of the JA3 string, 32 hex digits.
    pub ja3_md5: String,
    /// JA3S string of the final ServerHello. `None` when the handshake failed before it.
    pub ja3s: Option<String>,
    /// MD5 of the JA3S string, 32 hex digits.
    pub ja3s_md5: Option<String>,
    /// JA4 (FoxIO, BSD-3-Clause part).
    pub ja4: String,
    /// ALPN protocols offered, in order.
    pub alpn: Vec<String>,
    /// ALPN protocol chosen.
    pub alpn_selected: Option<String>,
    /// Server name asked for.
    pub sni: Option<String>,
    /// Whether a HelloRetryRequest came before the ServerHello (RFC 8446, section 4.1.4).
    pub hello_retry_request: bool,
    /// Whether the session was resumed (a PSK or a ticket that the server accepted).
    pub resumed: bool,
    /// TLS records that the first ClientHello came in.
    pub hello_records: u16,
    /// Socket reads that the first ClientHello came in.
    pub hello_reads: u16,
    /// Length of the first ClientHello message in bytes.
    pub hello_bytes: u32,
    /// Whether the hello carries GREASE values (RFC 8701).
    pub grease: bool,
    /// Whether the hello carries an encrypted_client_hello extension.
    pub ech: bool,
    /// Whether a post-quantum hybrid key share or group is offered (X25519MLKEM768 and kin).
    pub post_quantum: bool,
    /// Whether the hello offers a session ticket or a PSK.
    pub ticket: bool,
}

/// HTTP version of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum HttpVersion {
    /// HTTP/1.0
    #[serde(rename = "1.0")]
    Http10,
    /// HTTP/1.1
    #[serde(rename = "1.1")]
    Http11,
    /// HTTP/2
    #[serde(rename = "2")]
    Http2,
}

/// One header field in wire order and case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderField {
    /// Field name as sent.
    pub name: Arc<str>,
    /// Field value; `None` where it is a credential, a cookie, or not one that fingerprints use.
    pub value: Option<Arc<str>>,
}

/// An HTTP/2 PRIORITY frame or the priority part of a HEADERS frame (RFC 7540, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Priority {
    /// Stream that the priority is for.
    pub stream_id: u32,
    /// Exclusive flag.
    pub exclusive: bool,
    /// Stream that it depends on.
    pub depends_on: u32,
    /// Weight, 1 to 256.
    pub weight: u16,
}

/// What the opening of an HTTP/2 connection, and one request on it, tell of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Http2Capture {
    /// First SETTINGS frame: `(identifier, value)` in wire order.
    pub settings: Vec<(u16, u32)>,
    /// Increment of the first connection-level WINDOW_UPDATE before the first request; 0 if none.
    pub window_update: u32,
    /// PRIORITY frames before the first request.
    pub priority: Vec<Priority>,
    /// Pseudo-header order of this request, such as `m,a,s,p`.
    pub pseudo: String,
    /// Akamai-style fingerprint `settings|window_update|priority|pseudo` of the connection.
    pub akamai: String,
    /// Stream of this request.
    pub stream_id: u32,
    /// Priority part of this request's HEADERS frame.
    pub request_priority: Option<Priority>,
}

/// What a request's HTTP layer tells of the client.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpCapture {
    /// HTTP version.
    pub version: HttpVersion,
    /// Method.
    pub method: String,
    /// Path and query, credentials in the query replaced by `REDACTED`.
    pub path: String,
    /// Header fields in wire order and case, pseudo-headers left out.
    pub headers: Vec<HeaderField>,
    /// HTTP/2 only.
    pub h2: Option<Http2Capture>,
}

/// One exchange as seen.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Unique name of the exchange: `r` and 16 hex digits.
    pub id: String,
    /// Arrival of the request, unix milliseconds.
    pub at_ms: u64,
    /// Who asked; `None` when the request carried no credential.
    pub account: Option<AccountId>,
    /// The account's organisation, where the operator declares one.
    pub organisation: Option<OrganisationId>,
    /// Address of the client (of the PROXY header's source behind a trusted load balancer).
    pub ip: IpAddr,
    /// The network of that address.
    pub network: Network,
    /// Name of the route that the request took; empty when none matched.
    pub route: Arc<str>,
    /// TLS fingerprint; `None` on plain-text listeners.
    pub tls: Option<Arc<TlsCapture>>,
    /// HTTP fingerprint.
    pub http: HttpCapture,
    /// Provider format.
    pub format: Format,
    /// What was asked.
    pub conversation: Conversation,
    /// How many others' marks the prompt carries: what was served to them came back from here.
    pub foreign_marks: u32,
    /// Indicators of peers that the exchange shows.
    pub indicators: Vec<IndicatorHit>,
    /// What was answered.
    pub answer: Answer,
}
