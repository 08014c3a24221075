//! `DnsTransport` (T-DIST-006): accounts whose addresses resolve names over encrypted DNS.
//!
//! Sees the resolver that an address was seen to use just before. Encrypted DNS is normal for people,
//! so alone it never comes near a tier; a resolver that few use joins the ties.
//!
//! Source: threat model T-DIST-006; RFC 7858, RFC 8484, RFC 9250.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::Finding;
use crate::merge_fields;
use crate::pivot::Family;
use crate::seen::Seen;
use crate::sketch::count;
use crate::ties::Kind;

/// The detector.
#[derive(Debug)]
pub struct DnsTransport;

/// Lookups so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Exchanges from an address that had just used encrypted DNS.
    encrypted: u32,
}

merge_fields!(Memory { encrypted });

impl Detector for DnsTransport {
    type Memory = Memory;

    const NAME: &'static str = "dns_transport";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-006"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[Family::Resolver];

    fn note(memory: &mut Memory, seen: &Seen) {
        count(&mut memory.encrypted, seen.resolver.is_some());
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let used = f64::from(memory.encrypted) / f64::from(context.account.requests.max(1));
        let shared = 1.0 - (1.0 + context.ties.of(Kind::Resolver)).powf(-0.7);
        let alone = 0.05 * used;
        Finding::new(Self::NAME, 1.0 - (1.0 - alone) * (1.0 - shared), 1.0).because(
            context.explain,
            || {
                format!(
                    "{} exchanges from addresses that use encrypted DNS; a rare resolver in common \
                     with {:.1} tied customers",
                    memory.encrypted,
                    context.ties.of(Kind::Resolver)
                )
            },
        )
    }
}
