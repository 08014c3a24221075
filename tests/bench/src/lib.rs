//! The measuring stand: a fake model API, a load generator and what is needed to run proxies
//! between them, used by the programs in `src/bin`.
//!
//! - `bench` compares the gateway with bare Pingora and prints a table,
//! - `soak` watches the gateway's memory and descriptors under long, impolite load,
//! - `bare`, `upstream` and `load` are the processes that both start.

pub mod answer;
pub mod client;
pub mod figures;
pub mod http1;
pub mod load;
pub mod prompt;
pub mod prose;
pub mod proxies;
pub mod samples;
pub mod system;
pub mod table;
