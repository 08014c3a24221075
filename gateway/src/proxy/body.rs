//! Request bodies: read once within bounds, decoded for inspection, replayed byte for byte.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora_core::protocols::http::ServerSession;
use pingora_error::ErrorType;
use tokio::time::{Instant, timeout, timeout_at};

use super::framing::FramingFault;
use crate::connection::Connection;
use crate::limits::Limits;

/// Bytes decoded at a time.
const DECODING_STEP_BYTES: u64 = 64 * 1024;

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// Larger than the limit.
    TooLarge,
    /// A content-coding that is not understood, or more than one.
    UnsupportedEncoding,
    /// Not what its content-coding says.
    Undecodable,
    /// Ill-formed chunks.
    Framing(FramingFault),
    /// Too many bodies are held at once.
    Crowded,
    /// The client stopped sending.
    TimedOut,
    /// The client went away: pingora's kind of error, whose text may quote the body.
    Gone(&'static str),
}

/// The memory that request bodies, and the texts read from them, may take together.
#[derive(Debug)]
pub struct BodyMemory {
    taken: AtomicUsize,
    max: usize,
}

/// A part of it, given back on drop.
#[derive(Debug)]
pub struct BodyShare {
    memory: Arc<BodyMemory>,
    bytes: usize,
}

impl BodyMemory {
    /// Room for `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { taken: AtomicUsize::new(0), max }
    }

    /// An empty share.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> BodyShare {
        BodyShare { memory: Arc::clone(self), bytes: 0 }
    }
}

impl BodyShare {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`BodyError::Crowded`] where all shares together are past their bound.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BodyError> {
        let before = self.memory.taken.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > self.memory.max { Err(BodyError::Crowded) } else { Ok(()) }
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let given_back = self.bytes.saturating_sub(bytes);
        self.memory.taken.fetch_sub(given_back, Ordering::Relaxed);
        self.bytes -= given_back;
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Reads a whole body.
///
/// # Errors
/// See [`BodyError`]; nothing of the request has reached the upstream then.
pub async fn read_whole(
    session: &mut ServerSession,
    connection: &Connection,
    declared: Option<u64>,
    limits: &Limits,
    share: &mut BodyShare,
) -> Result<Bytes, BodyError> {
    let max = limits.body_bytes_max;
    if declared.is_some_and(|length| length > max as u64) {
        return Err(BodyError::TooLarge);
    }
    let deadline = Instant::now() + limits.body_timeout;
    let Some(first) = read_piece(session, connection, limits, deadline).await? else {
        return Ok(Bytes::new());
    };
    share.grow(first.len())?;
    // Most prompts arrive in one piece: it is used as it is.
    if session.is_body_done() {
        return if first.len() > max { Err(BodyError::TooLarge) } else { Ok(first) };
    }
    // What a client declares it need not send: room is made as bytes come.
    let expected = declared.map_or(0, |length| length as usize).min(1 << 20);
    let mut body = BytesMut::with_capacity(expected.max(first.len() * 2));
    body.extend_from_slice(&first);
    while let Some(piece) = read_piece(session, connection, limits, deadline).await? {
        if body.len() + piece.len() > max {
            return Err(BodyError::TooLarge);
        }
        share.grow(piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

async fn read_piece(
    session: &mut ServerSession,
    connection: &Connection,
    limits: &Limits,
    deadline: Instant,
) -> Result<Option<Bytes>, BodyError> {
    if session.is_body_done() {
        return Ok(None);
    }
    let until = deadline.min(Instant::now() + limits.body_idle_timeout);
    let read = timeout_at(until, session.read_request_body()).await;
    if let Some(fault) = connection.fault() {
        // The tap is stricter than pingora and saw the bytes first.
        return Err(BodyError::Framing(fault));
    }
    match read {
        Err(_) => Err(BodyError::TimedOut),
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(error)) if *error.etype() == ErrorType::ReadTimedout => Err(BodyError::TimedOut),
        Ok(Err(error)) => Err(BodyError::Gone(error.etype().as_str())),
    }
}

/// Reads and drops what is left of a refused request's body, within bounds, so that a client that
/// only reads after it has written sees the refusal.
pub async fn drain(session: &mut ServerSession, limits: &Limits) {
    let drained = async {
        let mut left = limits.drain_bytes_max;
        while !session.is_body_done() {
            match session.read_request_body().await {
                Ok(Some(piece)) if piece.len() <= left => left -= piece.len(),
                Ok(_) | Err(_) => return,
            }
        }
    };
    let _ = timeout(limits.drain_timeout.max(Duration::from_millis(1)), drained).await;
}

/// Undoes a request's content-coding for inspection. What is made is taken from `share`.
///
/// # Errors
/// [`BodyError::UnsupportedEncoding`], [`BodyError::Undecodable`], [`BodyError::TooLarge`] when the
/// decoded body passes `max` bytes, or [`BodyError::Crowded`].
pub fn decoded(
    body: &Bytes,
    encoding: Option<&[u8]>,
    max: usize,
    share: &mut BodyShare,
) -> Result<Bytes, BodyError> {
    let encoding = encoding.unwrap_or_default().trim_ascii();
    let coding = |name: &[u8]| encoding.eq_ignore_ascii_case(name);
    if encoding.is_empty() || coding(b"identity") {
        Ok(body.clone())
    } else if coding(b"gzip") || coding(b"x-gzip") {
        read_bounded(flate2::read::MultiGzDecoder::new(&body[..]), max, share)
    } else if coding(b"deflate") {
        read_bounded(flate2::read::ZlibDecoder::new(&body[..]), max, share)
    } else if coding(b"br") {
        read_bounded(brotli::Decompressor::new(&body[..], 4096), max, share)
    } else if coding(b"zstd") {
        let mut decoder =
            zstd::stream::read::Decoder::new(&body[..]).map_err(|_| BodyError::Undecodable)?;
        // RFC 9659: HTTP content needs windows of at most 8 MB.
        decoder.window_log_max(23).map_err(|_| BodyError::Undecodable)?;
        read_bounded(decoder, max, share)
    } else {
        Err(BodyError::UnsupportedEncoding)
    }
}

/// Decodes step by step: a few bytes may stand for very many, and each step is paid for before
/// the next is made.
fn read_bounded(
    mut decoder: impl Read,
    max: usize,
    share: &mut BodyShare,
) -> Result<Bytes, BodyError> {
    let mut out = Vec::new();
    loop {
        let step = decoder.by_ref().take(DECODING_STEP_BYTES).read_to_end(&mut out);
        let made = step.map_err(|_| BodyError::Undecodable)?;
        if out.len() > max {
            return Err(BodyError::TooLarge);
        }
        share.grow(made)?;
        if made == 0 {
            return Ok(out.into());
        }
    }
}

#[doc(hidden)]
pub fn fuzz_decoded(data: &[u8]) {
    let Some((coding, body)) = data.split_first() else { return };
    let codings: [&[u8]; 4] = [b"gzip", b"deflate", b"br", b"zstd"];
    let coding = codings[usize::from(*coding) % codings.len()];
    let mut share = Arc::new(BodyMemory::new(1 << 20)).share();
    if let Ok(out) = decoded(&Bytes::copy_from_slice(body), Some(coding), 1 << 16, &mut share) {
        assert!(out.len() <= 1 << 16);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn ample() -> BodyShare {
        Arc::new(BodyMemory::new(1 << 20)).share()
    }

    fn encode(coding: &str, body: &[u8]) -> Bytes {
        match coding {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap().into()
            }
            "deflate" => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap().into()
            }
            "br" => {
                let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
                encoder.write_all(body).unwrap();
                encoder.into_inner().into()
            }
            "zstd" => zstd::encode_all(body, 3).unwrap().into(),
            _ => Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn codings_are_undone_within_the_bound() {
        let body = vec![b'a'; 5000];
        for coding in ["identity", "", "gzip", "deflate", "br", "zstd", "GZIP"] {
            let encoded = encode(&coding.to_ascii_lowercase(), &body);
            let out = decoded(&encoded, Some(coding.as_bytes()), 5000, &mut ample()).unwrap();
            assert_eq!(out, body, "{coding}");
        }
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let encoded = encode(coding, &body);
            assert!(
                matches!(
                    decoded(&encoded, Some(coding.as_bytes()), 4999, &mut ample()),
                    Err(BodyError::TooLarge)
                ),
                "{coding}"
            );
        }
    }

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let memory = Arc::new(BodyMemory::new(10));
        let mut first = memory.share();
        first.grow(6).unwrap();
        {
            let mut second = memory.share();
            second.grow(4).unwrap();
            assert!(matches!(second.grow(1), Err(BodyError::Crowded)));
        }
        first.grow(4).unwrap();
        first.shrink_to(3);
        memory.share().grow(7).unwrap();
        drop(first);
        memory.share().grow(10).unwrap();
    }

    #[test]
    fn what_a_few_bytes_stand_for_is_paid_for() {
        let zeros = vec![0; 4 << 20];
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let encoded = encode(coding, &zeros);
            assert!(encoded.len() < 1 << 16, "{coding}");
            let memory = Arc::new(BodyMemory::new(1 << 20));
            let mut share = memory.share();
            let outcome = decoded(&encoded, Some(coding.as_bytes()), 8 << 20, &mut share);
            assert!(matches!(outcome, Err(BodyError::Crowded)), "{coding}");
            // It stopped at the bound, not at the end.
            assert!(share.bytes <= (1 << 20) + DECODING_STEP_BYTES as usize, "{coding}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let body = Bytes::from_static(b"{}");
        for coding in ["compress", "gzip, br", "aes128gcm"] {
            let outcome = decoded(&body, Some(coding.as_bytes()), 100, &mut ample());
            assert!(matches!(outcome, Err(BodyError::UnsupportedEncoding)), "{coding}");
        }
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let outcome = decoded(&body, Some(coding.as_bytes()), 100, &mut ample());
            assert!(matches!(outcome, Err(BodyError::Undecodable)), "{coding}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(data in proptest::collection::vec(any::<u8>(), 0..256)) {
            fuzz_decoded(&data);
        }
    }
}
