//! Events of a source through the classifier: what `run` counts and `watch` prints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use crate::classify::Classifier;
use crate::event::{Event, Flow};
use crate::hooks::{HookState, Outcome, POLL_INTERVAL};
use crate::limits::{EVENTS_AT_ONCE, TAKES_AT_END_MAX};
use crate::metrics::{Metrics, raise};
use crate::resolvers::Resolvers;
use crate::sighting::{Origin, Sighting};
use crate::source::Source;
use crate::stream::Streams;
use crate::tally::boot_ns;

/// A source and what makes sense of it.
#[derive(Debug)]
pub struct Watcher<S> {
    source: S,
    classifier: Classifier,
    metrics: Metrics,
    /// Whether the last look left events behind.
    more: bool,
    own: OwnAddresses,
}

/// Streams of which enough was read.
#[derive(Default)]
struct Closed(Vec<Flow>);

impl Streams for Closed {
    fn close(&mut self, flow: &Flow) {
        self.0.push(*flow);
    }
}

impl<S: Source> Watcher<S> {
    /// A watcher of this source.
    #[must_use]
    pub fn new(source: S, classifier: Classifier, metrics: Metrics) -> Self {
        metrics.hooks(source.states());
        Self { source, classifier, metrics, more: false, own: OwnAddresses::find() }
    }

    /// Waits until it is time to look.
    pub async fn wait(&self) {
        if self.more {
            // The runtime looks after everything else before there is more of this.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Takes what waits, [`EVENTS_AT_ONCE`] at most.
    pub fn take(&mut self, sightings: &mut Vec<Sighting>) {
        let Self { source, classifier, metrics, .. } = self;
        let first = sightings.len();
        let mut closed = Closed::default();
        let taken = source.drain(EVENTS_AT_ONCE, &mut |bytes| match Event::parse(bytes) {
            Ok(event) => {
                metrics.event(&event);
                classifier.take(&event, &mut closed, sightings);
            }
            Err(_) => metrics.malformed.inc(),
        });
        self.more = taken == EVENTS_AT_ONCE;
        self.close(closed);
        self.finish(sightings, first);
    }

    /// Takes all that waits, as much as a few rings hold at most: what comes meanwhile may have no end.
    pub fn take_all(&mut self, sightings: &mut Vec<Sighting>) {
        for _ in 0..TAKES_AT_END_MAX {
            self.take(sightings);
            if !self.more {
                return;
            }
        }
    }

    /// What follows from time alone, and what was counted. To be called every [`TICK_INTERVAL`](crate::limits::TICK_INTERVAL).
    pub fn tick(&mut self, sightings: &mut Vec<Sighting>) {
        let (first, now_ns) = (sightings.len(), boot_ns());
        let kernel = self.source.counters();
        if kernel.dropped > self.metrics.lost_kernel.get() {
            self.classifier.lost(now_ns);
        }
        raise(&self.metrics.kernel_emitted, kernel.emitted);
        raise(&self.metrics.lost_kernel, kernel.dropped);
        raise(&self.metrics.kernel_suppressed, kernel.suppressed);
        let mut closed = Closed::default();
        self.classifier.tick(now_ns, &mut closed, sightings);
        self.close(closed);
        self.finish(sightings, first);
        self.metrics.classifier(self.classifier.counters());
    }

    /// Looks for links that came or went, and for our own addresses.
    pub fn refresh(&mut self) {
        self.own = OwnAddresses::find();
        if self.source.refresh() {
            say_hooks(&self.source);
            self.metrics.hooks(self.source.states());
        }
    }

    /// Events that the kernel could not hand over, and those of an unknown layout.
    #[must_use]
    pub fn lost(&self) -> (u64, u64) {
        (self.source.counters().dropped, self.metrics.malformed.get())
    }

    /// Judges by these lists from now on.
    pub fn set_resolvers(&mut self, resolvers: Arc<Resolvers>) {
        self.classifier.set_resolvers(resolvers);
    }

    /// Completes sightings from `first` on and counts them.
    fn finish(&self, sightings: &mut [Sighting], first: usize) {
        for sighting in sightings.iter_mut().skip(first) {
            let origin = match sighting {
                Sighting::Lookup(lookup) => &mut lookup.origin,
                Sighting::Contact(contact) => &mut contact.origin,
                Sighting::Client { origin, .. } => origin,
            };
            self.own.fill(origin);
            self.metrics.sighting(sighting);
        }
    }

    fn close(&mut self, closed: Closed) {
        for flow in closed.0 {
            self.source.close_stream(&flow);
        }
    }
}

/// Says which hooks are attached and which are not, and why.
pub fn say_hooks(source: &impl Source) {
    let attached = |state: &HookState| state.outcome == Outcome::Attached;
    let packets =
        source.states().iter().any(|state| state.hook.starts_with("cgroup_skb") && attached(state));
    for state in source.states() {
        // Calls tell little that packets do not.
        let of_calls = matches!(state.hook, "fentry" | "kprobe" | "tp_btf");
        match &state.outcome {
            Outcome::Refused(_) if !(packets && of_calls) => tracing::warn!("{state}"),
            _ => tracing::info!("{state}"),
        }
    }
}

/// The addresses by which this machine reaches others, for sockets that had none yet when they were
/// seen. The kernel is asked for a route; nothing is sent.
#[derive(Clone, Copy, Debug, Default)]
struct OwnAddresses {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl OwnAddresses {
    fn find() -> Self {
        // Any address of the internet does; these are for documentation (RFC 5737, RFC 3849).
        let towards = |any: IpAddr, to: IpAddr| {
            let socket = UdpSocket::bind((any, 0)).ok()?;
            socket.connect((to, 9)).ok()?;
            let address = socket.local_addr().ok()?.ip();
            (!address.is_unspecified()).then_some(address)
        };
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        Self {
            v4: towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
            v6: towards(Ipv6Addr::UNSPECIFIED.into(), documentation.into()),
        }
    }

    fn fill(&self, origin: &mut Origin) {
        if !origin.address.is_unspecified() {
            return;
        }
        let own = if origin.address.is_ipv4() { self.v4 } else { self.v6 };
        if let Some(own) = own {
            origin.address = own;
        }
    }
}
