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
pub mod dns;
pub mod event;
pub mod hello;
pub mod hooks;
pub mod named;
pub mod netlink;
pub mod quic;
pub mod resolvers;
pub mod sighting;
pub mod stream;
pub mod testing;
