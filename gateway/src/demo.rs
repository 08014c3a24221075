//! What `stillgate demo` embeds.

pub mod cast;
pub mod client;
pub mod prose;
pub mod report;
pub mod sample_upstream;
pub mod show;
