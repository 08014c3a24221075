//! Load balancers that say where a client comes from: each takes connections on a loopback port and
//! passes them on behind a PROXY header, version 2, so that clients have addresses of their own.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

/// Opens a port whose clients seem to come from `client`, and gives its address.
///
/// # Panics
/// If there is no port.
#[must_use]
pub fn seen_as(client: SocketAddr, gateway: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
    let address = listener.local_addr().expect("a bound address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || pass_on(stream, client, gateway));
        }
    });
    address
}

/// Takes connections at `address`, in the network namespace of the calling thread, and passes them on
/// with the addresses that their clients have.
///
/// # Panics
/// If the address cannot be bound.
pub fn listen(address: SocketAddr, gateway: SocketAddr) {
    let listener = TcpListener::bind(address).expect("the balancer's address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(client) = stream.peer_addr() else { continue };
            std::thread::spawn(move || pass_on(stream, client, gateway));
        }
    });
}

fn pass_on(client_side: TcpStream, client: SocketAddr, gateway: SocketAddr) {
    let Ok(mut gateway_side) = TcpStream::connect(gateway) else { return };
    if gateway_side.write_all(&header(client)).is_err() {
        return;
    }
    let (Ok(up), Ok(up_to)) = (client_side.try_clone(), gateway_side.try_clone()) else { return };
    let upwards = std::thread::spawn(move || copy(up, up_to));
    copy(gateway_side, client_side);
    let _ = upwards.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// A PROXY header, version 2, for a client's TCP connection (PROXY protocol, section 2.2).
///
/// # Panics
/// Never: an address has a fixed length.
#[must_use]
pub fn header(client: SocketAddr) -> Vec<u8> {
    let (family, mut addresses): (u8, Vec<u8>) = match client.ip() {
        IpAddr::V4(ip) => (0x11, [ip.octets(), [127, 0, 0, 1]].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(), [0; 16]].concat()),
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(443_u16.to_be_bytes());
    let length = u16::try_from(addresses.len()).expect("a short header");
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    bytes.push(family);
    bytes.extend(length.to_be_bytes());
    bytes.extend(addresses);
    bytes
}
