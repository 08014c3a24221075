//! `DnsTransport` (T-DIST-006): accounts whose hosts resolve names where nobody sees it.
//!
//! Sees what sensors tell of the hosts behind an account's addresses, see [`crate::dns`]: encrypted
//! DNS, its resolver, and addresses contacted that no plain DNS answer had named. Encrypted DNS is
//! normal for people, so alone it never comes near a tier; a resolver that few use, or an unnamed
//! address that few contact, joins the ties.
//!
//! Wrong about: a company whose hosts all use one small resolver of their own while its accounts
//! declare no organisation.
//!
//! Source: threat model T-DIST-006; RFC 7858, RFC 8484, RFC 9250.

use std::fmt::Write as _;

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::Finding;
use crate::pivot::Family;
use crate::seen::Seen;
use crate::ties::Kind;

/// Strength where every exchange is from a host that uses encrypted DNS.
const ALONE: f64 = 0.05;

/// The detector.
#[derive(Debug)]
pub struct DnsTransport;

impl Detector for DnsTransport {
    type Memory = Nothing;

    const NAME: &'static str = "dns_transport";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-006"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[Family::Resolver, Family::Unnamed];

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let tied = context.ties.of(Kind::Resolver) + context.ties.of(Kind::Unnamed);
        let shared = 1.0 - (1.0 + tied).powf(-0.7);
        let strength = 1.0 - (1.0 - ALONE * context.dns.used) * (1.0 - shared);
        Finding::new(Self::NAME, strength, 1.0).because(context.explain, || evidence(context, tied))
    }
}

fn evidence(context: &Context<'_>, tied: f64) -> String {
    let dns = context.dns;
    let mut text = format!(
        "{} of {} exchanges from addresses that use encrypted DNS",
        dns.exchanges, context.account.requests
    );
    // Writing to a string cannot fail.
    if !dns.transports.is_empty() {
        let _ = write!(text, " ({})", dns.transports.names().join(", "));
    }
    let (encrypted, hosts) = dns.hosts;
    let _ = write!(
        text,
        "; at the latest {encrypted} of {hosts} client hosts, {:.0} customers",
        dns.customers
    );
    if let Some((resolver, customers)) = dns.resolver {
        let name = context.learnt.provider(resolver).unwrap_or("of a provider not known here");
        let covered = dns.covered;
        let _ = write!(text, "; resolver {name}, used by {customers:.0} of {covered:.0} customers");
        text.push_str(" that sensors cover");
    }
    if let Some((shared, customers)) = dns.unnamed {
        let _ = write!(text, "; in common with others {shared} contacted addresses that no plain");
        let _ = write!(text, " DNS answer had named, the rarest with {customers:.0} customers");
    }
    if tied > 0.0 {
        let _ = write!(text, "; a rare one of these in common with {tied:.1} tied customers");
    }
    text
}
