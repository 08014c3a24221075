//! gRPC: how many messages went by, and how long they were.
//!
//! Messages are opaque to the gateway; that they are there, how many and how large, is what
//! T-DIST-010 (harvesting over a side transport) needs. Nothing is held but one message prefix.
//!
//! Source: the gRPC over HTTP/2 protocol, "Length-Prefixed-Message": one flag byte, four bytes of
//! length (big endian), the message. gRPC-Web sends its trailers as a frame whose flag has the
//! top bit set; such a frame is no message.

const PREFIX_BYTES: usize = 5;
const FLAG_COMPRESSED: u8 = 0x01;
const FLAG_TRAILERS: u8 = 0x80;

/// Counts the messages of one direction of a call, in whatever pieces they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageCounter {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the current message that are still to come.
    remaining: u64,
    messages: u64,
    message_bytes: u64,
    compressed: u64,
}

impl MessageCounter {
    /// A counter at the start of a call.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece of the body.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            let in_message = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
            self.remaining -= in_message as u64;
            bytes = &bytes[in_message..];
            if self.remaining > 0 {
                return;
            }
            if self.prefix_bytes == PREFIX_BYTES {
                self.end_of_message();
            }
            let wanted = (PREFIX_BYTES - self.prefix_bytes).min(bytes.len());
            if wanted == 0 {
                return;
            }
            self.prefix[self.prefix_bytes..][..wanted].copy_from_slice(&bytes[..wanted]);
            self.prefix_bytes += wanted;
            bytes = &bytes[wanted..];
            if self.prefix_bytes < PREFIX_BYTES {
                return;
            }
            self.remaining = self.length();
        }
    }

    /// Whole messages so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of whole messages so far, prefixes left out.
    #[must_use]
    pub fn message_bytes(&self) -> u64 {
        self.message_bytes
    }

    /// Whole messages whose flag says that they are compressed.
    #[must_use]
    pub fn compressed(&self) -> u64 {
        self.compressed
    }

    /// Whether the body so far ends where a message ends.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.prefix_bytes == 0
    }

    fn end_of_message(&mut self) {
        self.prefix_bytes = 0;
        if self.prefix[0] & FLAG_TRAILERS == 0 {
            self.messages += 1;
            self.message_bytes += self.length();
            self.compressed += u64::from(self.prefix[0] & FLAG_COMPRESSED);
        }
    }

    fn length(&self) -> u64 {
        let [_, a, b, c, d] = self.prefix;
        u64::from(u32::from_be_bytes([a, b, c, d]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(flag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], body].concat()
    }

    /// Messages, their bytes, those compressed, and whether the body ends with a message.
    type Count = (u64, u64, u64, bool);

    fn count(pieces: &[&[u8]]) -> Count {
        let mut counter = MessageCounter::new();
        for piece in pieces {
            counter.feed(piece);
        }
        (counter.messages(), counter.message_bytes(), counter.compressed(), counter.at_boundary())
    }

    #[test]
    fn messages_are_counted_wherever_the_body_is_cut() {
        let cases: &[(Vec<u8>, Count)] = &[
            (vec![], (0, 0, 0, true)),
            (message(0, b""), (1, 0, 0, true)),
            ([message(0, b"abc"), message(1, b"de")].concat(), (2, 5, 1, true)),
            ([message(0, b"abc"), message(0x80, b"grpc-status:0\r\n")].concat(), (1, 3, 0, true)),
            (message(0, b"abc")[..7].to_vec(), (0, 0, 0, false)),
            (message(0, b"abc")[..2].to_vec(), (0, 0, 0, false)),
            (b"\x00\xff\xff\xff\xffabc".to_vec(), (0, 0, 0, false)),
        ];
        for (body, expected) in cases {
            assert_eq!(count(&[body]), *expected, "{body:?}");
            for at in 0..=body.len() {
                let (head, tail) = body.split_at(at);
                assert_eq!(count(&[head, tail]), *expected, "{body:?} cut at {at}");
            }
            let bytes: Vec<&[u8]> = body.chunks(1).collect();
            assert_eq!(count(&bytes), *expected, "{body:?} byte by byte");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_count_the_same_in_any_pieces(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..9),
            size in 1_usize..9,
        ) {
            let whole: Vec<u8> =
                bodies.iter().flat_map(|body| message(0, body)).chain(tail).collect();
            let pieces: Vec<&[u8]> = whole.chunks(size).collect();
            prop_assert_eq!(count(&pieces), count(&[&whole]));
            prop_assert!(count(&[&whole]).0 >= bodies.len() as u64);
        }
    }
}
