//! Reports of a DNS sensor, as it sends them to the gateway.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::http1::{self, Response};

/// A token for `[[admin.token]]` with the role `sensor`.
pub const SENSOR_TOKEN: &str = "sensor-token-0123456789abcdef";
/// Its table, for [`crate::GatewayBuilder::table`]; the file is `sensor.token`.
pub const SENSOR_TOKEN_TABLE: &str =
    "[[admin.token]]\nname = \"egress\"\nrole = \"sensor\"\nfile = \"sensor.token\"\n";
/// Where reports go.
const PATH: &str = "/v1/sensor/reports";

/// A report of one run, `number` from 1.
#[must_use]
pub fn report(sensor: &str, number: u64, lookups: &[Value], contacts: &[Value]) -> Value {
    json!({
        "sensor": sensor, "run": "00000000000000a1", "sequence": number, "sent_at_ms": now_ms(),
        "lost": {"kernel": 0, "full": 0, "unsent": 0}, "lookups": lookups, "contacts": contacts,
    })
}

/// A lookup of just now by the one host at an address, which is a client of the API. What runs the
/// resolver is told where `provider` is not empty.
#[must_use]
pub fn lookup(address: &str, transport: &str, server: &str, provider: &str) -> Value {
    json!({
        "first_ms": now_ms() - 1_000, "last_ms": now_ms() - 500, "address": address,
        "host": host_of(address), "client": true, "transport": transport, "server": server,
        "provider": (!provider.is_empty()).then_some(provider), "sign": "address", "name": null,
        "count": 1,
    })
}

/// A contact of just now by the one host at an address, which is a client of the API.
#[must_use]
pub fn contact(address: &str, destination: &str) -> Value {
    json!({
        "first_ms": now_ms() - 1_000, "last_ms": now_ms() - 500, "address": address,
        "host": host_of(address), "client": true, "destination": destination, "port": 443,
        "protocol": "tcp", "count": 1,
    })
}

/// Sends a report to the admin address.
#[must_use]
pub fn post(admin: SocketAddr, token: &str, report: &Value) -> Response {
    let authorization = format!("authorization: Bearer {token}\r\n");
    http1::plain(admin, &request(&authorization, report.to_string().as_bytes()))
}

/// Sends a report over the Unix socket.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn post_on_socket(path: &Path, report: &Value) -> Response {
    http1::exchange(&mut connect(path), &request("", report.to_string().as_bytes()))
}

/// Opens a connection to the Unix socket.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path);
    let stream = stream.unwrap_or_else(|error| panic!("connect {}: {error}", path.display()));
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a valid timeout");
    stream
}

/// The bytes of a request to report; `fields` are further lines of its head.
#[must_use]
pub fn request(fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n{fields}\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A host's hash: one for each address.
fn host_of(address: &str) -> String {
    let hash = address.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("a time")
}
