//! The modules of the gateway that make fingerprints.

#[path = "../../../gateway/src/capture/client_hello.rs"]
pub mod client_hello;
#[path = "../../../gateway/src/capture/handshake.rs"]
pub mod handshake;
#[path = "../../../gateway/src/capture/ja4.rs"]
pub mod ja4;
#[path = "../../../gateway/src/capture/server_hello.rs"]
pub mod server_hello;
