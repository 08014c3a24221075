//! An HPACK decoder for the HTTP/2 tap (RFC 7541).
//!
//! It hands out each field of a block in wire order as it is decoded, without an allocation for
//! those that the table holds, because the tap runs on every request. It is as strict as the
//! decoder that the connection has behind it (the h2 crate's): whatever that one refuses may be
//! refused here too, and what both take they must take for the same fields. It never stops in the
//! middle of a block for size, since the dynamic table has to follow the client's.
//!
//! Absent on purpose: an encoder, and decoding across the frames of a block (the tap puts blocks
//! together first).

use std::collections::VecDeque;

use bytes::Bytes;

/// Why a header block cannot be decoded. The connection's compression state is then lost
/// (RFC 9113, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a field.
    #[error("the header block ends inside a field")]
    Truncated,
    /// An integer of more than five bytes.
    #[error("an integer in the header block is too long")]
    Integer,
    /// An index that neither table holds.
    #[error("the header block refers to an entry that does not exist")]
    Index,
    /// A malformed Huffman string.
    #[error("a Huffman string of the header block is malformed")]
    Huffman,
    /// A table size update above the limit, or after the block's first field.
    #[error("the header block changes the table size where or to what it may not")]
    SizeUpdate,
}

/// The decoder of one connection's requests.
#[derive(Debug)]
pub struct Decoder {
    /// Dynamic table, newest entry first.
    entries: VecDeque<(Bytes, Bytes)>,
    /// Size of the entries as RFC 7541, section 4.1 counts it.
    size: usize,
    /// Size that the client chose.
    size_max: usize,
    /// Size that the client may choose.
    size_limit: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// A decoder with an empty table of at most `size_limit` bytes.
    #[must_use]
    pub fn new(size_limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            size_max: size_limit,
            size_limit,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Decodes a whole header block, calling `field` with each name and value in wire order.
    ///
    /// # Errors
    /// When the block is malformed. The table is then no longer the client's, and nothing further
    /// on the connection can be decoded.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut input = Input(block);
        let mut at_start = true;
        while let Some(first) = input.0.first().copied() {
            if first & 0x80 != 0 {
                let index = input.integer(7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                self.resize(&mut input, at_start)?;
                continue;
            } else {
                let indexed = first & 0x40 != 0;
                self.literal(&mut input, indexed, &mut field)?;
            }
            at_start = false;
        }
        Ok(())
    }

    /// A literal field (RFC 7541, section 6.2); `indexed` puts it into the table.
    fn literal(
        &mut self,
        input: &mut Input<'_>,
        indexed: bool,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let index = input.integer(if indexed { 6 } else { 4 })?;
        let mut name_buffer = std::mem::take(&mut self.name);
        let mut value_buffer = std::mem::take(&mut self.value);
        let name = match index {
            0 => Name::Sent(input.string(&mut name_buffer)?),
            _ => Name::Known(index),
        };
        let value = input.string(&mut value_buffer)?;
        let name_bytes = match name {
            Name::Sent(bytes) => bytes,
            Name::Known(index) => self.entry(index)?.0,
        };
        field(name_bytes, value);
        if indexed {
            // A name that the table holds is shared: a client can refer to a long one with a byte.
            let shared = match name {
                Name::Sent(bytes) => Bytes::copy_from_slice(bytes),
                Name::Known(index) => self.shared_name(index)?,
            };
            self.insert(shared, Bytes::copy_from_slice(value));
        }
        self.name = name_buffer;
        self.value = value_buffer;
        Ok(())
    }

    /// A dynamic table size update (RFC 7541, section 6.3).
    fn resize(&mut self, input: &mut Input<'_>, at_start: bool) -> Result<(), HpackError> {
        let size_max = input.integer(5)?;
        if !at_start || size_max > self.size_limit {
            return Err(HpackError::SizeUpdate);
        }
        self.size_max = size_max;
        self.evict();
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let position = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some((name, value)) = STATIC_TABLE.get(position) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) =
            self.entries.get(position - STATIC_TABLE.len()).ok_or(HpackError::Index)?;
        Ok((name, value))
    }

    fn shared_name(&self, index: usize) -> Result<Bytes, HpackError> {
        let position = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some((name, _)) = STATIC_TABLE.get(position) {
            return Ok(Bytes::from_static(name.as_bytes()));
        }
        let entry = self.entries.get(position - STATIC_TABLE.len()).ok_or(HpackError::Index)?;
        Ok(entry.0.clone())
    }

    /// An entry that is larger than the table empties it (RFC 7541, section 4.4).
    fn insert(&mut self, name: Bytes, value: Bytes) {
        self.size += entry_size(&name, &value);
        self.entries.push_front((name, value));
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.size_max {
            let Some((name, value)) = self.entries.pop_back() else { break };
            self.size -= entry_size(&name, &value);
        }
    }
}

/// Where a literal's name comes from.
#[derive(Clone, Copy)]
enum Name<'a> {
    Sent(&'a [u8]),
    Known(usize),
}

/// Size of a field in the table and in a header list: 32 bytes over its text (RFC 7541,
/// section 4.1; RFC 9113, section 6.5.2).
#[must_use]
pub fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + 32
}

/// The undecoded rest of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.0.split_first().ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer whose first byte has a prefix of `bits` bits (RFC 7541, section 5.1). Five bytes
    /// hold every length that can occur, and cannot overflow.
    fn integer(&mut self, bits: u32) -> Result<usize, HpackError> {
        let mask = (1_usize << bits) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(HpackError::Integer)
    }

    /// A string literal (RFC 7541, section 5.2): a slice of the block, or of `buffer` where it is
    /// Huffman-coded.
    fn string<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], HpackError>
    where
        'a: 'b,
    {
        let coded = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError::Truncated)?;
        self.0 = rest;
        if !coded {
            return Ok(text);
        }
        buffer.clear();
        huffman::decode(text, buffer)?;
        Ok(buffer)
    }
}

/// The static Huffman code (RFC 7541, appendix B).
mod huffman {
    use super::HpackError;

    /// Decodes `text` onto the end of `output`.
    pub(super) fn decode(text: &[u8], output: &mut Vec<u8>) -> Result<(), HpackError> {
        // The shortest code has five bits.
        output.reserve(text.len() * 8 / 5);
        let mut input = text.iter();
        let mut bits: u64 = 0;
        let mut count: u32 = 0;
        loop {
            while count <= 56
                && let Some(byte) = input.next()
            {
                bits = bits << 8 | u64::from(*byte);
                count += 8;
            }
            // The next 32 bits from the top, ones where the input has ended: the padding of a
            // string is the start of the end-of-string code, which is all ones.
            let window = if count >= 32 {
                (bits >> (count - 32)) as u32
            } else {
                (bits << (32 - count)) as u32 | u32::MAX.checked_shr(count).unwrap_or(0)
            };
            let (symbol, length) = next_symbol(window);
            if length > count {
                // Less than a code is left: it must be padding, shorter than a byte.
                return if count < 8 && window == u32::MAX {
                    Ok(())
                } else {
                    Err(HpackError::Huffman)
                };
            }
            let Ok(byte) = u8::try_from(symbol) else { return Err(HpackError::Huffman) };
            output.push(byte);
            count -= length;
        }
    }

    /// The symbol that `window` begins with, and its length in bits.
    pub(super) fn next_symbol(window: u32) -> (u16, u32) {
        let (symbol, length) = CODE.short[(window >> 24) as usize];
        if length > 0 {
            return (symbol, u32::from(length));
        }
        for length in 9..LENGTH_MAX {
            let code = window >> (32 - length);
            let index = code.wrapping_sub(CODE.first[length]);
            if index < u32::from(CODE.count[length]) {
                return (
                    CODE.symbols[usize::from(CODE.start[length]) + index as usize],
                    length as u32,
                );
            }
        }
        // The code is complete, so what is left has 30 bits: end of string among them.
        let index = (window >> 2).wrapping_sub(CODE.first[LENGTH_MAX]).min(3);
        (CODE.symbols[usize::from(CODE.start[LENGTH_MAX]) + index as usize], LENGTH_MAX as u32)
    }

    const LENGTH_MAX: usize = 30;
    const SYMBOLS: usize = 257;

    /// Code lengths in bits of the bytes and of the end of string. The code is canonical (codes
    /// count up by length, then by symbol), so that the lengths give all of it.
    #[rustfmt::skip]
    const LENGTHS: [u8; SYMBOLS] = [
        13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
        28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
         6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
         5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
        13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
         7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
        15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
         6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
        20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
        24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
        22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
        21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
        26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
        19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
        20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
        26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
        30,
    ];

    struct Code {
        /// Symbol and length by the next eight bits; length 0 where the code is longer.
        short: [(u16, u8); 256],
        /// First code of each length.
        first: [u32; LENGTH_MAX + 1],
        /// Codes of each length.
        count: [u16; LENGTH_MAX + 1],
        /// Where each length's symbols start in `symbols`.
        start: [u16; LENGTH_MAX + 1],
        /// Symbols by length, then by value.
        symbols: [u16; SYMBOLS],
    }

    static CODE: Code = build();

    const fn build() -> Code {
        let mut code = Code {
            short: [(0, 0); 256],
            first: [0; LENGTH_MAX + 1],
            count: [0; LENGTH_MAX + 1],
            start: [0; LENGTH_MAX + 1],
            symbols: [0; SYMBOLS],
        };
        let mut next_code: u32 = 0;
        let mut placed = 0;
        let mut length = 1;
        while length <= LENGTH_MAX {
            next_code <<= 1;
            code.first[length] = next_code;
            code.start[length] = placed as u16;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[placed] = symbol as u16;
                    placed += 1;
                    if length <= 8 {
                        let low = (next_code as usize) << (8 - length);
                        let mut at = low;
                        while at < low + (1 << (8 - length)) {
                            code.short[at] = (symbol as u16, length as u8);
                            at += 1;
                        }
                    }
                    next_code += 1;
                    code.count[length] += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        code
    }
}

/// RFC 7541, appendix A.
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::huffman::{decode as decode_huffman, next_symbol};
    use super::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
        Ok(fields)
    }

    fn check(decoder: &mut Decoder, block: &str, expected: &[(&str, &str)]) {
        let block = hex::decode(block.replace(' ', "")).expect("hex");
        let expected: Fields =
            expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        assert_eq!(decode(decoder, &block), Ok(expected));
    }

    /// RFC 7541, appendices C.3 and C.4: the same three requests, plain and Huffman-coded.
    #[test]
    fn the_requests_of_the_rfc() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new(4096);
            let start = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
            let authority = (":authority", "www.example.com");
            check(&mut decoder, blocks[0], &[&start[..], &[authority]].concat());
            let cache = ("cache-control", "no-cache");
            check(&mut decoder, blocks[1], &[&start[..], &[authority, cache]].concat());
            check(
                &mut decoder,
                blocks[2],
                &[
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":path", "/index.html"),
                    authority,
                    ("custom-key", "custom-value"),
                ],
            );
            assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
        }
    }

    #[test]
    fn what_the_rfc_forbids_is_refused() {
        let cases: [(&[u8], HpackError); 16] = [
            (&[0x80], HpackError::Index),
            (&[0xbe], HpackError::Index),
            (&[0x7f, 0x00, 0x00], HpackError::Index),
            (&[0xff], HpackError::Truncated),
            (&[0x40], HpackError::Truncated),
            (&[0x40, 0x01, b'a', 0x02, b'b'], HpackError::Truncated),
            (&[0xff, 0x80, 0x80, 0x80, 0x80, 0x00], HpackError::Integer),
            (&[0x3f, 0xe2, 0x1f], HpackError::SizeUpdate),
            (&[0x82, 0x20], HpackError::SizeUpdate),
            // One byte of padding too many, padding of zeros, half a code, an end of string.
            (&[0x04, 0x82, 0x1f, 0xff], HpackError::Huffman),
            (&[0x04, 0x81, 0xff], HpackError::Huffman),
            (&[0x04, 0x81, 0x18], HpackError::Huffman),
            (&[0x04, 0x82, 0xff, 0xa1], HpackError::Huffman),
            (&[0x04, 0x84, 0xff, 0xff, 0xff, 0xff], HpackError::Huffman),
            (&[0x04, 0x84, 0xff, 0xff, 0xff, 0xfc], HpackError::Huffman),
            (&[0x04, 0x85, 0x1f, 0xff, 0xff, 0xff, 0xff], HpackError::Huffman),
        ];
        for (block, expected) in cases {
            assert_eq!(decode(&mut Decoder::new(4096), block), Err(expected), "{block:02x?}");
        }
    }

    #[test]
    fn the_table_follows_size_updates() {
        let mut decoder = Decoder::new(4096);
        check(&mut decoder, "4001 6101 62 be", &[("a", "b"), ("a", "b")]);
        // Two updates at the start: down to nothing, then up again. The entry is gone.
        check(&mut decoder, "20 3fe11f 82", &[(":method", "GET")]);
        assert_eq!(decode(&mut decoder, &[0xbe]), Err(HpackError::Index));
        // An entry larger than the table empties it.
        let mut decoder = Decoder::new(64);
        check(&mut decoder, "4001 6101 62", &[("a", "b")]);
        let value = "63".repeat(40);
        check(&mut decoder, &format!("4001 6128 {value}"), &[("a", &"c".repeat(40))]);
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    /// Huffman-codes a string, from the code lengths alone and by the bit.
    pub(crate) fn huffman(text: &[u8]) -> Vec<u8> {
        let table = codes();
        let mut bits: Vec<bool> = Vec::new();
        for byte in text {
            let (code, length) = table[usize::from(*byte)];
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        bits.chunks(8)
            .map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | u8::from(*bit)))
            .collect()
    }

    /// Code and length of each byte, read off the decoder; the RFC's own examples and the
    /// independent decoder hold that one to the standard.
    fn codes() -> Vec<(u64, u32)> {
        let mut table = vec![(0, 0); 257];
        let mut window: u64 = 0;
        while window < 1 << 32 {
            let (symbol, length) = next_symbol(window as u32);
            table[usize::from(symbol)] = (window >> (32 - length), length);
            window += 1 << (32 - length);
        }
        assert_eq!(window, 1 << 32, "the code is complete");
        table
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_decoder(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..6),
        ) {
            let mut ours = Decoder::new(4096);
            let mut theirs = loona_hpack::Decoder::new();
            theirs.set_max_allowed_table_size(4096);
            for block in blocks {
                match (decode(&mut ours, &block), theirs.decode(&block)) {
                    (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                    // We refuse a late size update, it refuses one at the block's end.
                    (Err(HpackError::SizeUpdate), _) => break,
                    (Ok(_), Err(loona_hpack::decoder::DecoderError::SizeUpdateAtEnd)) => break,
                    (Err(_), Err(_)) => break,
                    (ours, theirs) => prop_assert!(false, "{:?} against {:?}", ours, theirs),
                }
            }
        }

        #[test]
        fn huffman_strings_come_back(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut output = Vec::new();
            prop_assert_eq!(decode_huffman(&huffman(&text), &mut output), Ok(()));
            prop_assert_eq!(output, text);
        }
    }
}
