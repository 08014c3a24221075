//! Reading a prompt: what it asks for, as numbers that may be kept.
//!
//! A text goes in, a [`Reading`] comes out, and no text is in it: phrase families, hiding tricks,
//! the nearest extraction archetype, a topic, a safety category, a vector and its hash. All of it
//! is weak on one request: pipelines that send bare exam questions look like exam questions, and
//! honest people ask for reasoning. Readings are meant to be gathered over an account and a
//! cluster; nothing here is a verdict.
//!
//! [`TextFacts`] holds what texts are compared with. It is made of the data files under `data/`, of
//! which `data/README.md` tells origin, sizes and measurements.

mod archetypes;
mod embedding;
mod normalise;
mod phrases;
mod reading;
mod source;
mod topics;

pub use archetypes::{Archetypes, KINDS_MAX, Nearness};
pub use embedding::{DIMENSIONS, Embedding, OPENING_TOKENS, TOKENS_MAX, Table, TableError};
pub use normalise::{Folded, HEAD_BYTES, TAIL_BYTES, Tricks, fold};
pub use phrases::{FAMILIES, Family, Phrases};
pub use reading::{Reading, TextFacts, TextFactsError};
pub use source::{DataError, Problem};
pub use topics::{Nearest, SAFETY_CATEGORIES_MAX, TOPICS, Topics};
