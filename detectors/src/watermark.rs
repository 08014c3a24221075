//! Marks in answers, and whose marks a text carries (T-DIST-008).
//!
//! Three layers, each for another way in which an answer comes back: [`zero_width`] for text that
//! is copied, [`lexical`] for data sets that were cleaned, [`canary`] for what a model learnt. A
//! rewording by another model removes the first two. [`marker`] puts them into a text as it
//! streams by, within what [`guard`] allows; all keys come from one secret ([`keys`]).

use std::sync::{Arc, LazyLock};

pub mod attribution;
pub mod canary;
pub mod guard;
pub mod keys;
pub mod lexical;
pub mod marker;
mod words;
pub mod zero_width;

pub use attribution::{
    AccountFrames, Candidate, Evidence, Report, SubjectCanaries, SubjectVotes, Verdict,
};
pub use canary::{CanarySearch, Kind, canary};
pub use guard::{FenceTracker, Reason, may_mark};
pub use keys::{MasterKey, epoch};
pub use lexical::Wordings;
pub use marker::{Edit, Identity, Layers, Marker, Marking, SlotsUsed, apply, restore};

/// Arbitrary bytes as an answer that is marked, and as a text whose marks are looked for: must not
/// panic, must not depend on the pieces, and the original must come back.
#[doc(hidden)]
pub fn fuzz_watermark(data: &[u8]) {
    static WORDINGS: LazyLock<Option<Arc<Wordings>>> =
        LazyLock::new(|| Wordings::builtin().ok().map(Arc::new));
    let (Some(wordings), Ok(key)) = (&*WORDINGS, MasterKey::new(&[7; 32])) else { return };
    let Some((&[cut, resumed, flushed], text)) = data.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    // English before it opens layer B.
    let text = format!("It is the one that you have, and this is for you. {text}");
    let identity = Identity { account: "a", subject: "s", epoch: 1 };
    let marking = Arc::new(Marking::new(Layers::ALL, &key, wordings, identity, []));
    let marked = |size: usize, flushed: bool| {
        let mut marker = match resumed % 2 {
            0 => Marker::new(Arc::clone(&marking)),
            _ => Marker::resume(Arc::clone(&marking), FenceTracker::new()),
        };
        let mut out = String::new();
        let mut rest = &*text;
        while !rest.is_empty() {
            let mut end = size.clamp(1, rest.len());
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            marker.push(&rest[..end], &mut out);
            if flushed {
                marker.flush(&mut out);
            }
            rest = &rest[end..];
        }
        marker.finish(&mut out);
        assert_eq!(restore(&out, marker.edits()).as_deref(), Some(&*text));
        out
    };
    let whole = marked(usize::MAX, false);
    assert_eq!(whole, marked(usize::from(cut), false), "the pieces mattered");
    marked(usize::from(cut), flushed % 2 == 1);
    let mut frames = zero_width::FrameReader::new(key.zero_width());
    let mut tuples = lexical::Tuples::default();
    let mut sightings = canary::Sightings::default();
    for text in [&*text, &whole] {
        frames.read(text);
        tuples.read(wordings, text);
        sightings.read(text);
    }
    let votes = tuples.votes(&key.lexical("s"));
    assert!(votes.agreeing <= votes.of);
}
