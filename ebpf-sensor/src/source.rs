//! Where events come from: the kernel programs, or memory in tests.

use crate::event::Flow;
use crate::hooks::{HookState, Hooks, KernelCounters};

/// Events, oldest first, and what their source is told and counts.
pub trait Source {
    /// Gives at most `max` events to `take`; tells how many there were. Nobody is woken by new ones: to
    /// be called every [`POLL_INTERVAL`](crate::hooks::POLL_INTERVAL).
    fn drain(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> usize;

    /// Says that enough of a stream was read.
    fn close_stream(&mut self, flow: &Flow);

    /// What was counted since the start.
    fn counters(&self) -> KernelCounters;

    /// Looks for links that came or went. Tells whether hooks changed.
    fn refresh(&mut self) -> bool;

    /// The hooks, and what became of them.
    fn states(&self) -> &[HookState];
}

impl Source for Hooks {
    fn drain(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> usize {
        Hooks::drain(self, max, take)
    }

    fn close_stream(&mut self, flow: &Flow) {
        Hooks::close_stream(self, flow);
    }

    fn counters(&self) -> KernelCounters {
        Hooks::counters(self)
    }

    fn refresh(&mut self) -> bool {
        Hooks::refresh(self)
    }

    fn states(&self) -> &[HookState] {
        Hooks::states(self)
    }
}
