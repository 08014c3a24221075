//! The first packets of a QUIC client, which anybody on the path can read: their keys come from a
//! connection id in the clear.
//!
//! Sources: RFC 9000, sections 12.2 (coalesced packets), 16 (integers), 17.2 (long headers) and 19
//! (frames); RFC 9001, section 5 (protection); RFC 9369 (version 2); RFC 8999 (what all versions
//! share). Keys, header protection and AEAD are rustls'.
//!
//! A ClientHello with post-quantum shares needs two datagrams, and clients scatter it over frames in any
//! order. The keys of all of a client's Initials come from the destination connection id of its first one
//! (RFC 9001, section 5.2), though later ones carry the id that the server chose; after a Retry the keys
//! are made anew from the id in it, and the client begins again.

use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{DirectionalKeys, Version};

use crate::hello::{self, Hello, NotHello};
use crate::stream::Pieces;

/// Version 1 (RFC 9000).
pub const V1: u32 = 1;
/// Version 2 (RFC 9369).
pub const V2: u32 = 0x6b33_43cf;
/// Packets of one datagram that are looked at.
const PACKETS_MAX: usize = 8;
/// Times that one client's keys are made: at first, after a Retry, for a further connection.
const KEYS_MAX: usize = 4;
/// Datagrams of one client that are looked at until its hello is whole.
const DATAGRAMS_MAX: usize = 32;
/// The longest connection id of versions 1 and 2 (RFC 9000, section 17.2).
const ID_BYTES_MAX: usize = 20;
/// Of the tag at a packet's end, and of the sample for header protection.
const TAG_BYTES: usize = 16;

/// Why a datagram tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It begins with no long header of a version that is known here.
    #[error("no QUIC long header of a known version")]
    NotQuic,
    /// Nothing in it could be decrypted.
    #[error("no Initial could be decrypted")]
    Protected,
    /// What it carries is no ClientHello.
    #[error("{0}")]
    NotHello(#[from] NotHello),
    /// More than is looked at.
    #[error("too many packets without a ClientHello")]
    TooMany,
}

/// What one client has sent.
#[derive(Default)]
pub struct Client {
    keys: Option<Keys>,
    keys_made: usize,
    datagrams: usize,
    crypto: Pieces,
}

struct Keys {
    version: u32,
    id: Vec<u8>,
    keys: DirectionalKeys,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("datagrams", &self.datagrams).finish_non_exhaustive()
    }
}

impl Client {
    /// Takes in a datagram; gives the hello as far as it is known.
    ///
    /// # Errors
    /// When the datagram is none of a QUIC client, or what it carries is no ClientHello.
    pub fn take(&mut self, datagram: &[u8]) -> Result<Hello, Unread> {
        self.datagrams += 1;
        if self.datagrams > DATAGRAMS_MAX {
            return Err(Unread::TooMany);
        }
        let mut rest = datagram;
        let mut read = Err(Unread::Protected);
        // All packets of a datagram have one id (RFC 9000, section 12.2).
        let mut may_make = true;
        for index in 0..PACKETS_MAX {
            let packet = match Packet::parse(rest) {
                Ok(packet) => packet,
                Err(error) if index == 0 => return Err(error),
                // A short header, or padding behind the last packet.
                Err(_) => break,
            };
            rest = &rest[packet.bytes.len()..];
            if packet.initial
                && let Some(frames) = self.decrypt(&packet, &mut may_make)
            {
                self.read_frames(&frames)?;
                read = Ok(());
            }
            if rest.is_empty() {
                break;
            }
        }
        read?;
        Ok(self.hello()?)
    }

    /// The hello as far as it is known.
    ///
    /// # Errors
    /// When what was sent is no ClientHello.
    pub fn hello(&self) -> Result<Hello, NotHello> {
        hello::from_handshake(self.crypto.start())
    }

    /// The frames of an Initial: with the keys that are there, else with those of its own id.
    fn decrypt(&mut self, packet: &Packet<'_>, may_make: &mut bool) -> Option<Vec<u8>> {
        if let Some(keys) = &self.keys
            && keys.version == packet.version
            && let Some(frames) = packet.decrypt(&keys.keys)
        {
            return Some(frames);
        }
        let same = self
            .keys
            .as_ref()
            .is_some_and(|keys| keys.version == packet.version && keys.id == packet.destination_id);
        if same || !*may_make || self.keys_made >= KEYS_MAX {
            return None;
        }
        *may_make = false;
        self.keys_made += 1;
        let keys = client_keys(packet.version, packet.destination_id)?;
        let frames = packet.decrypt(&keys)?;
        // Keys that fit belong to a connection that begins here.
        let id = packet.destination_id.to_vec();
        self.keys = Some(Keys { version: packet.version, id, keys });
        self.crypto = Pieces::default();
        Some(frames)
    }

    /// Takes the CRYPTO frames; an Initial has few other kinds (RFC 9000, section 17.2.2).
    fn read_frames(&mut self, frames: &[u8]) -> Result<(), Unread> {
        let mut frames = Reader(frames);
        while let Some(kind) = frames.integer() {
            let read = match kind {
                // PADDING, PING.
                0 | 1 => Some(()),
                2 | 3 => skip_ack(&mut frames, kind == 3),
                6 => {
                    let crypto = frames.integer().zip(frames.integer());
                    let data = crypto.and_then(|(offset, length)| {
                        Some((usize::try_from(offset).ok()?, frames.take(length)?))
                    });
                    match data.map(|(offset, data)| self.crypto.add(offset, data)) {
                        Some(Err(_)) => return Err(Unread::NotHello(NotHello::TooLong)),
                        Some(Ok(())) => Some(()),
                        None => None,
                    }
                }
                // CONNECTION_CLOSE, or what may not be here: nothing follows that is of use.
                _ => None,
            };
            if read.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// The keys that protect a client's Initials, from the id that its first one is sent to; `None` for
/// an unknown version.
#[must_use]
pub fn client_keys(version: u32, destination_id: &[u8]) -> Option<DirectionalKeys> {
    let version = match version {
        V1 => Version::V1,
        V2 => Version::V2,
        _ => return None,
    };
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?.quic_suite()?;
    Some(suite.keys(destination_id, Side::Client, version).local)
}

/// A packet with a long header, still protected.
#[derive(Debug)]
struct Packet<'a> {
    bytes: &'a [u8],
    version: u32,
    destination_id: &'a [u8],
    initial: bool,
    /// Where the packet number is.
    number_at: usize,
}

impl<'a> Packet<'a> {
    /// Reads the packet at the start of a datagram.
    fn parse(datagram: &'a [u8]) -> Result<Self, Unread> {
        Self::read(datagram).ok_or(Unread::NotQuic)
    }

    fn read(datagram: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(datagram);
        let first = reader.take(1)?[0];
        if first & 0x80 == 0 {
            return None;
        }
        let version = u32::from_be_bytes(*reader.take(4)?.first_chunk()?);
        let kind = match (version, first >> 4 & 3) {
            (V1, kind) => kind,
            // RFC 9369, section 3.2: Initial is 1, 0-RTT 2, Handshake 3, Retry 0.
            (V2, kind) => kind.wrapping_sub(1) & 3,
            _ => return None,
        };
        let destination_id = reader.id()?;
        reader.id()?;
        match kind {
            0 => {
                let token = reader.integer()?;
                reader.take(token)?;
            }
            1 | 2 => {}
            // A Retry; clients send none.
            _ => return None,
        }
        let length = reader.integer()?;
        let number_at = datagram.len() - reader.0.len();
        reader.take(length)?;
        let bytes = &datagram[..datagram.len() - reader.0.len()];
        Some(Self { bytes, version, destination_id, initial: kind == 0, number_at })
    }

    /// Removes the protection (RFC 9001, sections 5.3 and 5.4); `None` with the wrong keys.
    fn decrypt(&self, keys: &DirectionalKeys) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.to_vec();
        let (head, protected) = bytes.split_at_mut_checked(self.number_at)?;
        let sample = *protected.get(4..)?.first_chunk::<TAG_BYTES>()?;
        let (number, _) = protected.split_at_mut(4);
        keys.header.decrypt_in_place(&sample, head.first_mut()?, number).ok()?;
        let number_bytes = usize::from(head[0] & 3) + 1;
        // Clients whose Initials nobody has acknowledged yet write numbers in full.
        let number =
            number[..number_bytes].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (header, payload) = bytes.split_at_mut(self.number_at + number_bytes);
        let length = keys.packet.decrypt_in_place(number, header, payload).ok()?.len();
        bytes.drain(..self.number_at + number_bytes);
        bytes.truncate(length);
        Some(bytes)
    }
}

/// RFC 9000, section 19.3.
fn skip_ack(frames: &mut Reader<'_>, with_ecn: bool) -> Option<()> {
    frames.integer()?;
    frames.integer()?;
    let ranges = frames.integer()?;
    frames.integer()?;
    for _ in 0..ranges {
        frames.integer()?;
        frames.integer()?;
    }
    if with_ecn {
        for _ in 0..3 {
            frames.integer()?;
        }
    }
    Some(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// RFC 9000, section 16.
    fn integer(&mut self) -> Option<u64> {
        let first = *self.0.first()?;
        let bytes = self.take(1 << (first >> 6))?;
        Some(
            bytes[1..]
                .iter()
                .fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)),
        )
    }

    fn id(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        if usize::from(length) > ID_BYTES_MAX {
            return None;
        }
        self.take(length.into())
    }
}

/// For `fuzz/`: datagrams (each with two bytes of length) of one client; frames as they would be after
/// decryption.
pub fn fuzz_quic_initial(bytes: &[u8]) {
    let mut client = Client::default();
    let _ = client.take(bytes);
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let _ = client.take(&after[..length]);
        rest = &after[length..];
    }
    let mut client = Client::default();
    if client.read_frames(bytes).is_ok() {
        let _ = hello::from_handshake(client.crypto.start());
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Instant;

    use bytes::BytesMut;
    use proptest::prelude::*;
    use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    use quinn_proto::{
        ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig,
        Incoming, ServerConfig,
    };

    use super::*;
    use crate::testing::{client_hello, crypto_frame, quic_initial};

    /// The id and the CRYPTO frame of both RFCs' examples.
    const ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
    const CRYPTO: &str = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f\
        06a2b69484c00000413011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006\
        001d0017001800100007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559\
        fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e0403050306030203080408050806\
        002d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075300\
        901100f088394c8f03e51570806048000ffff";

    /// RFC 9001 and RFC 9369, appendix A.2. The tag at the end vouches for all the bytes between.
    #[test]
    fn the_examples_of_both_versions_are_read() {
        let examples = [
            (
                V1,
                "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
                "e221af44860018ab0856972e194cd934",
            ),
            (
                V2,
                "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
                "a18b2faa745b6fe189cf772a9f84cbfc",
            ),
        ];
        for (version, start, tag) in examples {
            let packet = quic_initial(version, &ID, &ID, 2, &hex::decode(CRYPTO).unwrap());
            assert_eq!(packet.len(), 1200);
            assert_eq!(hex::encode(&packet[..32]), start);
            assert_eq!(hex::encode(&packet[1200 - 16..]), tag);
            let hello = Client::default().take(&packet).unwrap();
            assert_eq!(hello.server_name.as_deref(), Some("example.com"));
            assert_eq!((hello.alpn, hello.whole), (vec!["alpn".to_owned()], true));
        }
    }

    fn name_of(hello: &Result<Hello, Unread>) -> Option<&str> {
        hello.as_ref().ok()?.server_name.as_deref()
    }

    /// Frames of `size` bytes, every second one first, with PINGs and an ACK between.
    fn scattered(hello: &[u8], size: usize) -> Vec<u8> {
        let frames: Vec<_> = hello
            .chunks(size)
            .enumerate()
            .map(|(index, part)| crypto_frame(u16::try_from(index * size).unwrap(), part))
            .collect();
        let mut all = vec![2, 0, 0, 0, 0, 3, 5, 0, 1, 0, 1, 1, 7, 7, 7];
        for frame in frames.iter().skip(1).step_by(2).chain(frames.iter().step_by(2)) {
            all.extend_from_slice(frame);
            all.extend([1, 0, 0, 1]);
        }
        all
    }

    #[test]
    fn a_hello_is_put_together_from_scattered_frames() {
        let hello = client_hello(Some("dns.example"), &["h3"], false, 200);
        for size in [7, 30, 100, 1000] {
            let packet = quic_initial(V1, &ID, &ID, 0, &scattered(&hello, size));
            let read = Client::default().take(&packet).unwrap();
            assert_eq!((read.server_name.as_deref(), read.whole), (Some("dns.example"), true));
        }
    }

    #[test]
    fn a_hello_is_put_together_from_two_datagrams_in_any_order() {
        let hello = client_hello(Some("dns.example"), &["doq"], false, 1300);
        let first = quic_initial(V2, &ID, &ID, 0, &crypto_frame(0, &hello[..1000]));
        let second = quic_initial(V2, &ID, &ID, 1, &crypto_frame(1000, &hello[1000..]));
        for datagrams in [[&first, &second], [&second, &first]] {
            let mut client = Client::default();
            assert_eq!(name_of(&client.take(datagrams[0])), None);
            assert_eq!(name_of(&client.take(datagrams[1])), Some("dns.example"));
        }
    }

    #[test]
    fn later_initials_carry_the_id_that_the_server_chose() {
        let hello = client_hello(Some("dns.example"), &["h3"], false, 1300);
        let mut client = Client::default();
        let first = quic_initial(V1, &ID, &ID, 0, &crypto_frame(0, &hello[..1000]));
        assert_eq!(name_of(&client.take(&first)), None);
        let second = quic_initial(V1, &ID, b"chosen", 1, &crypto_frame(1000, &hello[1000..]));
        assert_eq!(name_of(&client.take(&second)), Some("dns.example"));
        assert_eq!(client.keys_made, 1);
    }

    #[test]
    fn coalesced_packets_are_read() {
        let hello = client_hello(Some("dns.example"), &["h3"], false, 1300);
        let first = quic_initial(V1, &ID, &ID, 0, &crypto_frame(0, &hello[..1000]));
        let second = quic_initial(V1, &ID, &ID, 1, &crypto_frame(1000, &hello[1000..]));
        // Two Initials; a 0-RTT packet before them; a short header or zeros behind them.
        let early = [&[0xd0, 0, 0, 0, 1, 8][..], &ID, &[0, 5, 1, 2, 3, 4, 5]].concat();
        for (before, behind) in [(&[][..], &[][..]), (&early, &[0x40; 30]), (&[], &[0; 30])] {
            let datagram = [before, &first, &second, behind].concat();
            let read = Client::default().take(&datagram);
            assert_eq!(name_of(&read), Some("dns.example"));
        }
    }

    #[test]
    fn noise_tells_nothing() {
        let good =
            quic_initial(V1, &ID, &ID, 0, &crypto_frame(0, &client_hello(None, &[], false, 0)));
        let mut changed = good.clone();
        changed[600] ^= 1;
        let mut version = good.clone();
        version[4] = 9;
        let mut id = good.clone();
        id[5] = 21;
        let cases: [(&[u8], Unread); 7] = [
            (b"", Unread::NotQuic),
            (b"\xc0", Unread::NotQuic),
            (b"\x40 short header, or a datagram of another protocol", Unread::NotQuic),
            (&changed, Unread::Protected),
            (&version, Unread::NotQuic),
            (&id, Unread::NotQuic),
            (&good[..1199], Unread::NotQuic),
        ];
        for (datagram, expected) in cases {
            assert_eq!(Client::default().take(datagram), Err(expected));
        }
        let other = quic_initial(V1, &ID, &ID, 0, &crypto_frame(0, b"\x02\0\0\0"));
        assert_eq!(Client::default().take(&other), Err(Unread::NotHello(NotHello::Other)));
        let far = quic_initial(V1, &ID, &ID, 0, &crypto_frame(0x3fff, b"ab"));
        assert!(Client::default().take(&far).is_ok());
        let mut client = Client::default();
        for _ in 0..DATAGRAMS_MAX {
            assert_eq!(client.take(&changed), Err(Unread::Protected));
        }
        assert_eq!((client.take(&good), client.keys_made), (Err(Unread::TooMany), KEYS_MAX));
    }

    /// curl with ngtcp2 and BoringSSL, in Chrome's likeness: a post-quantum share over two datagrams.
    #[test]
    fn a_recorded_hello_over_http3_is_read() {
        let mut rest = &include_bytes!("../tests/hellos/chrome-h3.datagrams")[..];
        let mut datagrams = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let (datagram, after) = after.split_at(usize::from(u16::from_be_bytes(*length)));
            datagrams.push(datagram);
            rest = after;
        }
        let mut client = Client::default();
        let mut hello = None;
        for datagram in datagrams {
            hello = client.take(datagram).ok();
        }
        let hello = hello.unwrap();
        assert_eq!((hello.server_name.as_deref(), hello.whole), (Some("dns.example"), true));
        assert_eq!(hello.alpn, ["h3"]);
    }

    /// A client and a server of quinn in memory, with rustls' post-quantum key shares.
    struct Quinn {
        client: Endpoint,
        server: Endpoint,
        connection: Connection,
        handle: ConnectionHandle,
        now: Instant,
    }

    const CLIENT: &str = "192.0.2.1:50000";
    const SERVER: &str = "192.0.2.2:853";

    impl Quinn {
        fn new(name: &str) -> Self {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let signed = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
            let key =
                rustls::pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
            let mut roots = rustls::RootCertStore::empty();
            roots.add(signed.cert.der().clone()).unwrap();
            let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            tls.alpn_protocols = vec![b"doq".to_vec()];
            let mut server_tls = rustls::ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![signed.cert.der().clone()], key.into())
                .unwrap();
            server_tls.alpn_protocols = vec![b"doq".to_vec()];
            let server_tls = QuicServerConfig::try_from(server_tls).unwrap();
            let server = ServerConfig::with_crypto(Arc::new(server_tls));
            let endpoint = |server| {
                Endpoint::new(Arc::new(EndpointConfig::default()), server, false, Some([7; 32]))
            };
            let (mut client, server) = (endpoint(None), endpoint(Some(Arc::new(server))));
            let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
            let now = Instant::now();
            let to: SocketAddr = SERVER.parse().unwrap();
            let (handle, connection) = client.connect(now, config, to, name).unwrap();
            Self { client, server, connection, handle, now }
        }

        /// What the client sends now.
        fn flight(&mut self) -> Vec<Vec<u8>> {
            let mut flight = Vec::new();
            let mut buffer = Vec::new();
            while let Some(sent) = self.connection.poll_transmit(self.now, 1, &mut buffer) {
                flight.push(buffer[..sent.size].to_vec());
                buffer.clear();
            }
            flight
        }

        /// Gives a datagram to the server.
        fn server_gets(&mut self, datagram: &[u8]) -> Option<Incoming> {
            let from: SocketAddr = CLIENT.parse().unwrap();
            let data = BytesMut::from(datagram);
            match self.server.handle(self.now, from, None, None, data, &mut Vec::new()) {
                Some(DatagramEvent::NewConnection(incoming)) => Some(incoming),
                _ => None,
            }
        }

        fn client_gets(&mut self, datagram: &[u8]) {
            let from: SocketAddr = SERVER.parse().unwrap();
            let data = BytesMut::from(datagram);
            let event = self.client.handle(self.now, from, None, None, data, &mut Vec::new());
            let Some(DatagramEvent::ConnectionEvent(handle, event)) = event else {
                panic!("a datagram of the connection")
            };
            assert_eq!(handle, self.handle);
            self.connection.handle_event(event);
        }
    }

    #[test]
    fn quinns_hello_is_read_from_its_two_datagrams() {
        let mut quinn = Quinn::new("resolver.example");
        let flight = quinn.flight();
        assert!(flight.len() >= 2, "post-quantum shares need two datagrams");
        let mut client = Client::default();
        let reads: Vec<_> = flight.iter().map(|datagram| client.take(datagram)).collect();
        let last = reads.last().unwrap().as_ref().unwrap();
        assert_eq!((last.server_name.as_deref(), last.whole), (Some("resolver.example"), true));
        assert_eq!(last.alpn, ["doq"]);
    }

    #[test]
    fn quinns_hello_is_read_after_a_retry() {
        let mut quinn = Quinn::new("resolver.example");
        let first = quinn.flight();
        let incoming = quinn.server_gets(&first[0]).expect("a connection");
        let mut retry = Vec::new();
        let sent = quinn.server.retry(incoming, &mut retry).unwrap();
        quinn.client_gets(&retry[..sent.size]);
        let second = quinn.flight();
        assert!(second.len() >= 2);
        // The first datagram before the Retry, all after it; and what came after it alone.
        for before in [&first[..1], &[]] {
            let mut client = Client::default();
            let mut name = None;
            for datagram in before.iter().chain(&second) {
                name = client.take(datagram).unwrap().server_name;
            }
            assert_eq!(name.as_deref(), Some("resolver.example"));
            assert_eq!(client.keys_made, 1 + before.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_quic_initial(&bytes);
            fuzz_quic_initial(&[&[0xc0, 0, 0, 0, 1][..], &bytes].concat());
        }

        #[test]
        fn no_changed_initial_panics(at in 0_usize..64, value in any::<u8>(), end in any::<usize>()) {
            let mut packet = quic_initial(V1, &ID, &ID, 0, &crypto_frame(0, &client_hello(None, &[], false, 0)));
            packet[at] = value;
            packet.truncate(end % 1201);
            fuzz_quic_initial(&packet);
        }
    }
}
