//! The gateway's reading of hello messages, to be compared with another's in `tests/ja3.rs`.

pub mod capture;
#[path = "../../../gateway/src/limits.rs"]
pub mod limits;
