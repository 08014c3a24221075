//! The DNS transport sensor (T-DIST-006): how hosts resolve names, seen in the kernel and told to the
//! gateway, which ties it to accounts by address.
//!
//! ```text
//! kernel programs ──> Event ──> Classifier ──> Sighting ──> Tally ──> Report ──> gateway
//! (bpf/)              (what was   (what it     (a lookup    (counted,  (a batch)
//!                      copied)     means)       or contact)  hashed)
//! ```
//!
//! Only `hooks` talks to the kernel and needs a capability; everything to the right of it is a function
//! of bytes and times.

mod aging;
pub mod classify;
pub mod cli;
pub mod config;
pub mod dns;
pub mod event;
#[cfg(test)]
mod folder;
pub mod hello;
pub mod hooks;
pub mod limits;
pub mod metrics;
pub mod named;
pub mod netlink;
mod notify;
pub mod quic;
pub mod report;
pub mod resolver_files;
pub mod resolvers;
pub mod sighting;
pub mod source;
pub mod stream;
pub mod tally;
pub mod testing;
pub mod watcher;
