//! Placeholder while building.
fn main() {}
