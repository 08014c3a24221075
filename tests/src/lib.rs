//! The harness: a gateway process with a configuration of its own, fake providers behind it, and
//! real clients in front of it.
//!
//! Everything runs on loopback. A [`Provider`] answers any path with the exact bytes of a stream
//! and keeps what it received; a [`Gateway`] is the `stillgate` binary on ports of its own and is
//! ended when it goes out of scope; [`clients`] starts the drivers under `clients/` and reads what
//! they saw. What needs a tool that is not installed says `SKIP: needs …`, or fails where
//! `STILLGATE_REQUIRE_CLIENTS=1` is set.

mod authority;
pub mod balancer;
pub mod clients;
mod gateway;
pub mod hello;
pub mod http1;
pub mod http2;
pub mod netns;
mod provider;
pub mod redis;
pub mod sensor;
pub mod streams;
pub mod upstream;

pub use authority::{Authority, Identity};
pub use gateway::{
    ADMIN_TOKEN, Gateway, GatewayBuilder, binary, free_port, may_mount, sensor_binary,
};
pub use provider::{Provider, Received};
pub use upstream::RawUpstream;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Says that a test is skipped for want of something, or fails where everything must be there.
///
/// # Panics
/// If `STILLGATE_REQUIRE_CLIENTS` is `1`.
pub fn skip(needs: &str) {
    assert!(
        std::env::var("STILLGATE_REQUIRE_CLIENTS").as_deref() != Ok("1"),
        "needs {needs}, and STILLGATE_REQUIRE_CLIENTS=1 forbids skipping"
    );
    eprintln!("SKIP: needs {needs}");
}

/// Calls `probe` until it gives something, and fails with `what` after `limit`.
///
/// # Panics
/// If nothing came in time.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of this package, with links resolved.
fn package_folder() -> PathBuf {
    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("streams");
    let streams = streams.canonicalize().expect("tests/streams is there");
    streams.parent().expect("it has a parent").to_path_buf()
}
