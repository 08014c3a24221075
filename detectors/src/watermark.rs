//! Marks in answers, and whose marks a text carries (T-DIST-008).
//!
//! Three layers, each for another way in which an answer comes back: [`zero_width`] for text that
//! is copied, [`lexical`] for data sets that were cleaned, [`canary`] for what a model learnt. A
//! rewording by another model removes the first two. [`marker`] puts them into a text as it
//! streams by, within what [`guard`] allows; all keys come from one secret ([`keys`]).

pub mod attribution;
pub mod canary;
pub mod guard;
pub mod keys;
pub mod lexical;
pub mod marker;
mod words;
pub mod zero_width;

pub use attribution::{Candidate, Evidence, Report, Verdict};
pub use canary::{CanarySearch, Kind, canary};
pub use guard::{FenceTracker, Reason, may_mark};
pub use keys::{MasterKey, epoch};
pub use lexical::Wordings;
pub use marker::{Edit, Identity, Layers, Marker, Marking, SlotsUsed, apply, restore};
