//! Native capture: what the bytes below HTTP tell of a client.
//!
//! ```text
//! TCP stream -> Tee (hello bytes, both ways) -> TLS -> ClientIo (HTTP tap, write gathering) -> HTTP
//! ```
//! Everything seen is bound to the connection's [`Connection`](crate::connection::Connection);
//! there is no side map that could mix up two clients.

pub mod client_hello;
pub mod client_io;
pub mod handshake;
pub mod hpack;
pub mod http1;
pub mod http2;
pub mod ja4;
pub mod server_hello;
pub mod tee;

/// Passes the per-connection facts that pingora asks of an IO layer on to the layer below.
macro_rules! delegate_digests {
    ($type:ty $(where $param:ident)?, $field:ident) => {
        impl $(<$param: pingora_core::protocols::IO>)? pingora_core::protocols::UniqueID for $type {
            fn id(&self) -> pingora_core::protocols::UniqueIDType {
                self.$field.id()
            }
        }
        impl $(<$param: pingora_core::protocols::IO>)? pingora_core::protocols::GetTimingDigest
            for $type
        {
            fn get_timing_digest(&self) -> Vec<Option<pingora_core::protocols::TimingDigest>> {
                self.$field.get_timing_digest()
            }
            fn get_read_pending_time(&self) -> std::time::Duration {
                self.$field.get_read_pending_time()
            }
            fn get_write_pending_time(&self) -> std::time::Duration {
                self.$field.get_write_pending_time()
            }
        }
        impl $(<$param: pingora_core::protocols::IO>)? pingora_core::protocols::GetProxyDigest
            for $type
        {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::raw_connect::ProxyDigest>> {
                self.$field.get_proxy_digest()
            }
        }
        impl $(<$param: pingora_core::protocols::IO>)? pingora_core::protocols::GetSocketDigest
            for $type
        {
            fn get_socket_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::SocketDigest>> {
                self.$field.get_socket_digest()
            }
            fn set_socket_digest(&mut self, digest: pingora_core::protocols::SocketDigest) {
                self.$field.set_socket_digest(digest);
            }
        }
        impl $(<$param: pingora_core::protocols::IO>)? pingora_core::protocols::Peek for $type {}
    };
}
pub(crate) use delegate_digests;
