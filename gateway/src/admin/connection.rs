//! One connection to the endpoint, as its requests see it.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::ADMIN_CONNECTION_TIMEOUT;

/// What a request may know of its connection, and tell it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The other side's address.
    pub(super) peer: Option<IpAddr>,
    ended: watch::Receiver<bool>,
    until: Arc<Mutex<Instant>>,
}

impl Connection {
    pub(super) fn new(peer: Option<IpAddr>, ended: watch::Receiver<bool>) -> Self {
        let until = Arc::new(Mutex::new(Instant::now() + ADMIN_CONNECTION_TIMEOUT));
        Self { peer, ended, until }
    }

    /// When it ends, unless something moves.
    pub(super) fn until(&self) -> Instant {
        *self.until.lock()
    }

    /// Something long moves on: the other side takes what it is sent, or sends. The connection has
    /// its time from now.
    pub(super) fn moved(&self) {
        *self.until.lock() = Instant::now() + ADMIN_CONNECTION_TIMEOUT;
    }

    /// Waits until the process is to end.
    pub(super) async fn ended(&mut self) {
        // An error means that the server is gone, which is an end as well.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}
