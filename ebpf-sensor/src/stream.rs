//! Bytes that come in pieces, put together by their offset: the start of a client's TCP stream, or the
//! CRYPTO frames of its QUIC Initials.
//!
//! Pieces may come out of order, repeated or overlapping; the first bytes at a place win, as they do
//! in the receivers that matter here (RFC 9293, section 3.10.7.4 leaves it open).

use crate::aging::Aging;
use crate::event::Flow;

/// Bytes of one stream that are kept.
pub const STREAM_BYTES_MAX: usize = 16 * 1024;
/// Streams that are put together at once; the one used longest ago is let go.
pub const STREAMS_MAX: usize = 4096;
/// Pieces of one stream with gaps between them.
const PIECES_MAX: usize = 64;

/// How the kernel is told that no more of a stream is needed.
pub trait Streams {
    /// No more bytes of this flow, which the client sends, shall be copied. May come again for the
    /// same flow.
    fn close(&mut self, flow: &Flow);
}

/// Leaves the kernel to its own limit.
impl Streams for () {
    fn close(&mut self, _: &Flow) {}
}

/// Why a piece was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It lies behind [`STREAM_BYTES_MAX`].
    #[error("the stream is too long")]
    TooLong,
    /// Too many gaps.
    #[error("the stream comes in too many pieces")]
    TooManyPieces,
}

/// One stream.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// Start and end of what is there: sorted, apart from each other.
    ranges: Vec<(usize, usize)>,
}

impl Pieces {
    /// Takes in a piece; what lies behind the bound is cut off.
    ///
    /// # Errors
    /// When nothing of it can be kept.
    pub fn add(&mut self, offset: usize, piece: &[u8]) -> Result<(), Refused> {
        if piece.is_empty() {
            return Ok(());
        }
        if offset >= STREAM_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        let end = offset.saturating_add(piece.len()).min(STREAM_BYTES_MAX);
        // The ranges that touch the piece.
        let first = self.ranges.partition_point(|range| range.1 < offset);
        let after = self.ranges.partition_point(|range| range.0 <= end);
        if first == after && self.ranges.len() >= PIECES_MAX {
            return Err(Refused::TooManyPieces);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let mut at = offset;
        let touched = self.ranges[first..after].iter().copied();
        for (start, stop) in touched.chain([(end, end)]) {
            if at < start {
                let until = start.min(end);
                self.bytes[at..until].copy_from_slice(&piece[at - offset..until - offset]);
            }
            at = at.max(stop);
        }
        let merged = self.ranges[first..after]
            .iter()
            .fold((offset, end), |all, range| (all.0.min(range.0), all.1.max(range.1)));
        self.ranges.splice(first..after, [merged]);
        Ok(())
    }

    /// The bytes from the start up to the first gap.
    #[must_use]
    pub fn start(&self) -> &[u8] {
        match self.ranges.first() {
            Some((0, end)) => &self.bytes[..*end],
            _ => &[],
        }
    }

    /// Lets go of the first `length` bytes, which are there; what follows begins at 0 from then on.
    pub fn advance(&mut self, length: usize) {
        let length = length.min(self.start().len());
        self.bytes.drain(..length);
        self.ranges.retain_mut(|range| {
            *range = (range.0.saturating_sub(length), range.1 - length);
            range.1 > 0
        });
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether bytes lie behind a gap.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        self.start().len() < self.bytes.len()
    }
}

/// The streams that are being put together.
#[derive(Debug)]
pub(crate) struct Assemblies {
    flows: Aging<Flow, Pieces>,
}

impl Assemblies {
    pub(crate) fn new() -> Self {
        Self { flows: Aging::new(STREAMS_MAX) }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes in a piece and gives the stream; and the flow that was let go for want of room.
    pub(crate) fn add(
        &mut self,
        flow: &Flow,
        at_ns: u64,
        offset: usize,
        piece: &[u8],
    ) -> (Result<&Pieces, Refused>, Option<Flow>) {
        let mut gone = None;
        if self.flows.get(flow).is_none() {
            gone = self.flows.insert(*flow, at_ns, Pieces::default()).map(|(flow, _)| flow);
        }
        let Some(pieces) = self.flows.use_mut(flow, at_ns) else {
            return (Err(Refused::TooManyPieces), gone);
        };
        (pieces.add(offset, piece).map(|()| &*pieces), gone)
    }

    pub(crate) fn remove(&mut self, flow: &Flow) -> Option<Pieces> {
        self.flows.remove(flow)
    }

    pub(crate) fn expire(&mut self, now_ns: u64, idle_ns: u64, gone: impl FnMut(Flow, Pieces)) {
        self.flows.expire(now_ns, idle_ns, gone);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_bytes_win() {
        let mut pieces = Pieces::default();
        pieces.add(3, b"def").unwrap();
        assert_eq!((pieces.start(), pieces.has_gap()), (&b""[..], true));
        pieces.add(8, b"ij").unwrap();
        pieces.add(0, b"abc---").unwrap();
        assert_eq!((pieces.start(), pieces.has_gap()), (&b"abcdef"[..], true));
        pieces.add(5, b"-gh--kl").unwrap();
        assert_eq!((pieces.start(), pieces.has_gap()), (&b"abcdefghijkl"[..], false));
        pieces.add(14, b"op").unwrap();
        pieces.advance(10);
        assert_eq!((pieces.start(), pieces.has_gap()), (&b"kl"[..], true));
        pieces.add(2, b"mn").unwrap();
        pieces.advance(usize::MAX);
        assert!(pieces.is_empty() && pieces.start().is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let mut pieces = Pieces::default();
        for piece in 0..PIECES_MAX {
            pieces.add(100 + 2 * piece, b"a").unwrap();
        }
        assert_eq!(pieces.add(10, b"a"), Err(Refused::TooManyPieces));
        pieces.add(101, b"b").unwrap();
        assert_eq!(pieces.add(STREAM_BYTES_MAX, b"a"), Err(Refused::TooLong));
        assert_eq!(pieces.add(usize::MAX, b"a"), Err(Refused::TooLong));
        pieces.add(0, &[7; 2 * STREAM_BYTES_MAX]).unwrap();
        assert_eq!(pieces.start().len(), STREAM_BYTES_MAX);
    }

    proptest! {
        /// Against the plain way: an array of optional bytes.
        #[test]
        fn pieces_are_put_together(
            pieces in proptest::collection::vec((0_usize..300, proptest::collection::vec(any::<u8>(), 0..60)), 0..40)
        ) {
            let mut plain = vec![None; 400];
            let mut assembled = Pieces::default();
            for (offset, piece) in &pieces {
                assembled.add(*offset, piece).unwrap();
                for (place, byte) in plain[*offset..].iter_mut().zip(piece) {
                    place.get_or_insert(*byte);
                }
            }
            let start: Vec<u8> = plain.iter().map_while(|byte| *byte).collect();
            prop_assert_eq!(assembled.start(), &start[..]);
            prop_assert_eq!(assembled.has_gap(), plain[start.len()..].iter().any(Option::is_some));
            prop_assert!(assembled.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
