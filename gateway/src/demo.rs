//! What `stillgate demo` embeds.

pub mod prose;
pub mod sample_upstream;
