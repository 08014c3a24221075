//! `AsnClassifier` (T-DIST-013): where requests come from, and whether tied accounts all come from
//! hosting providers.
//!
//! Sees the kind of each address's network. A script in a data centre is the normal customer of an
//! API, so one account's hosting address says next to nothing; a cluster of different customers of
//! which most sit at hosting providers says more. Tor and sold proxies are a little odd for anybody.
//!
//! Source: threat model T-DIST-013 (at least 60 % of a cluster on data-centre networks).

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::network::NetworkKind;
use crate::seen::Seen;

/// The detector.
#[derive(Debug)]
pub struct AsnClassifier;

impl Detector for AsnClassifier {
    type Memory = Nothing;

    const NAME: &'static str = "asn_classifier";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-013", "T-DIST-002b", "T-DIST-004"];
    const PACE: Pace = Pace::Inline;

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let networks = &context.account.networks;
        let total = f64::from(networks.total().max(1));
        let share = |kind: NetworkKind| f64::from(networks.counts()[kind as usize]) / total;
        let lone = 0.01 * share(NetworkKind::Hosting)
            + 0.02 * share(NetworkKind::Vpn)
            + 0.2 * share(NetworkKind::Proxy)
            + 0.4 * share(NetworkKind::Tor);
        let ties = context.ties;
        let cluster = 0.5 * ramp(ties.hosting, 0.4, 0.8) * share(NetworkKind::Hosting);
        let cluster = cluster * ties.corroboration();
        Finding::new(Self::NAME, 1.0 - (1.0 - lone) * (1.0 - cluster), 1.0).because(
            context.explain,
            || {
                format!(
                    "{:.0} % of exchanges from hosting providers, {:.0} % of tied accounts too",
                    share(NetworkKind::Hosting) * 100.0,
                    ties.hosting * 100.0
                )
            },
        )
    }
}
