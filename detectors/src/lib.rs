//! The pure half of Stillgate.
//!
//! Bytes become an [`Observation`] in the gateway; everything that is concluded from observations
//! belongs here. The crate does no IO, reads no clock, starts no thread and draws no random
//! number: `now` is an argument, and the same observations give the same conclusions, always.
//! `clippy.toml` beside this crate's manifest holds it to that.
//!
//! [`engine::Engine`] takes in [`Event`]s, remembers within bounds, and judges accounts:
//! [`seen::Seen`] is what one exchange shows, [`list`] the detectors that look at it, [`ties`] what
//! binds accounts together, [`fusion`] how findings become one suspicion, [`tier`] what follows.

mod client;
mod conversation;
mod event;
mod network;
mod observation;

pub use client::{
    ClientFacts, ClientKind, ClientReading, Contradiction, ContradictionKind, FactsError, FamilyId,
    FamilySet, FixedJa3, HeaderReason, Ja3sBaseline, PermutationWatch,
};
pub use conversation::{
    Answer, Conversation, Finish, Format, Role, Sampling, Text, TextFeatures, ToolCall, Turn, Usage,
};
pub use event::{
    Declared, DnsContact, DnsLookup, DnsTransport, Enforcement, EnforcementAction, Event,
    ModelRelease, Profile,
};
pub use indicator::{IndicatorHit, IndicatorKind};
pub use network::{Network, NetworkKind};
pub use observation::{
    AccountId, HeaderField, Http2Capture, HttpCapture, HttpVersion, Observation, OrganisationId,
    Priority, TlsCapture,
};

pub mod account;
pub mod detect;
pub mod detector;
pub mod dns;
pub mod engine;
pub mod facts;
pub mod finding;
pub mod fusion;
pub mod indicator;
pub mod keyed;
pub mod list;
pub mod pivot;
pub mod policy;
pub mod seen;
pub mod sketch;
pub mod snapshot;
pub mod text;
pub mod tier;
pub mod ties;
pub mod watermark;
