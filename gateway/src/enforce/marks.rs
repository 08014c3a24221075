//! Marks: for whom answers are marked, who was served marked ones, and whose come back in prompts.
//!
//! Marks are keyed from one secret, derived from the identity key, so that `stillgate verify` finds
//! them again with that key and a list of candidates ([`Marks::candidates`]). What comes back in a
//! prompt is looked for at once: zero-width frames by their key, canaries by a search over all that
//! were served. Earlier answers inside a conversation are the caller's own history and say nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use detectors::policy::Watermarks;
use detectors::watermark::zero_width::{FrameReader, account_tag};
use detectors::watermark::{
    CanarySearch, Candidate, Edit, Evidence, FenceTracker, Identity, Kind, Layers, Marker, Marking,
    MasterKey, Report, Wordings, canary, epoch, may_mark,
};
use detectors::{AccountId, Conversation, Role};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};

use super::hex_label;
use crate::limits::{CANARY_SUBJECTS_MAX, MARKED_MAX};
use crate::store::{Table, Write};
use crate::wire::{self, MarkerFor, TextMarker};

/// Epochs of a subject whose canaries are looked for in prompts.
const CANARY_EPOCHS: u16 = 8;

/// Epochs that are remembered of an account: a week each.
const EPOCHS_MAX: usize = 104;

/// Everything about marks.
pub struct Marks {
    key: MasterKey,
    wordings: Arc<Wordings>,
    served: Mutex<Served>,
    search: RwLock<Arc<Search>>,
}

/// Epochs, each with whether canaries were among its marks, the latest last.
type Epochs = Vec<(u16, bool)>;

#[derive(Default)]
struct Served {
    /// When marked answers were served, by account and the cluster that it was marked as one of.
    epochs: HashMap<(AccountId, Option<u64>), Epochs>,
    /// Accounts by what of them stands in a frame.
    tags: HashMap<u32, AccountId>,
    /// Who was served a canary: by subject and epoch.
    canaries: BTreeMap<(Arc<str>, u16), Arc<BTreeSet<AccountId>>>,
    /// A canary was served that is not searched for yet.
    unsearched: bool,
    overflow: u64,
}

/// The search for canaries, with who was served each.
#[derive(Default)]
struct Search {
    find: Option<CanarySearch>,
    owners: Vec<Arc<BTreeSet<AccountId>>>,
}

/// Whose marks a prompt carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// Accounts named by zero-width frames.
    pub zero_width: BTreeSet<AccountId>,
    /// Accounts that were served the canaries found.
    pub canary: BTreeSet<AccountId>,
}

/// Text of one choice as it went out so far, for marking that begins in its middle.
pub type Fences = HashMap<u32, FenceTracker>;

impl Marks {
    /// Marks under a secret.
    ///
    /// # Errors
    /// Never in a released gateway: the shipped wordings are held by a test.
    pub fn new(key: MasterKey) -> Result<Self, String> {
        let wordings = Wordings::builtin().map_err(|error| error.to_string())?;
        let wordings = Arc::new(wordings);
        Ok(Self { key, wordings, served: Mutex::default(), search: RwLock::default() })
    }

    /// Who marks the texts of an answer to this conversation; nobody where it must not be marked.
    /// `fences` is what its texts showed so far, where marking begins in its middle.
    #[must_use]
    pub fn marker(
        &self,
        account: &AccountId,
        cluster: Option<u64>,
        layers: Layers,
        conversation: &Conversation,
        fences: Option<Fences>,
        now_ms: u64,
    ) -> Option<MarkerFor> {
        if may_mark(conversation).is_err() {
            return None;
        }
        let epoch = epoch(now_ms / 1000);
        let subject = subject(account, cluster);
        let texts = conversation.turns.iter().map(|turn| turn.text.as_str());
        let marking = Arc::new(Marking::new(
            layers,
            &self.key,
            &self.wordings,
            Identity { account: account.as_str(), subject: &subject, epoch },
            texts.chain([conversation.system.as_str()]),
        ));
        Some(Box::new(move |text| {
            let marker = match &fences {
                None => Marker::new(marking.clone()),
                // What is not known of a text's beginning may be code.
                Some(fences) => Marker::resume(marking.clone(), fences.get(&text.choice)?.clone()),
            };
            Some(Box::new(Marked { marker, edits: Vec::new() }) as Box<dyn TextMarker>)
        }))
    }

    /// What must be on record before an answer carries such marks; nothing where it is.
    #[must_use]
    pub fn unregistered(
        &self,
        account: &AccountId,
        cluster: Option<u64>,
        layers: Layers,
        now_ms: u64,
    ) -> Option<Write> {
        let epoch = epoch(now_ms / 1000);
        let served = self.served.lock();
        let known = served.epochs.get(&(account.clone(), cluster));
        let has = |held: &&(u16, bool)| held.0 == epoch && (held.1 || !layers.canary);
        if known.is_some_and(|epochs| epochs.iter().rev().any(|held| has(&held))) {
            return None;
        }
        let cluster = cluster.map_or_else(|| "-".to_owned(), hex_label);
        let kinds = if layers.canary { "canary" } else { "text" };
        let key = format!("{} {cluster} {epoch} {kinds}", account.as_str());
        Some(Write::put(Table::Mark, key, &true))
    }

    /// Takes in that marks are on record. Of what is damaged or beyond the bounds nothing is taken.
    pub fn apply(&self, key: &str) {
        let mut parts = key.split(' ');
        let mut next = || parts.next().unwrap_or_default();
        let (account, cluster, epoch, kinds) = (next(), next(), next(), next());
        let cluster = u64::from_str_radix(cluster, 16).ok();
        let Some(epoch) = epoch.parse::<u16>().ok().filter(|_| !account.is_empty()) else { return };
        let (account, canary) = (AccountId::new(account), kinds == "canary");
        let mut served = self.served.lock();
        let known = (account.clone(), cluster);
        if !served.epochs.contains_key(&known) {
            if served.epochs.len() >= MARKED_MAX {
                served.overflow += 1;
                return;
            }
            let tag = account_tag(&self.key.zero_width(), account.as_str());
            served.tags.insert(tag, account.clone());
        }
        let epochs = served.epochs.entry(known).or_default();
        match epochs.binary_search_by_key(&epoch, |(held, _)| *held) {
            Ok(place) => epochs[place].1 |= canary,
            Err(place) => epochs.insert(place, (epoch, canary)),
        }
        if epochs.len() > EPOCHS_MAX {
            epochs.remove(0);
        }
        if !canary {
            return;
        }
        let full = served.canaries.len() >= CANARY_SUBJECTS_MAX;
        let place = (subject(&account, cluster).into(), epoch);
        if let Some(accounts) = served.canaries.get_mut(&place) {
            if !accounts.contains(&account) {
                Arc::make_mut(accounts).insert(account);
                served.unsearched = true;
            }
        } else if full {
            served.overflow += 1;
        } else {
            served.canaries.insert(place, Arc::new(BTreeSet::from([account])));
            served.unsearched = true;
        }
    }

    /// Everybody who was served marked answers: the candidates of `stillgate verify`.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let served = self.served.lock();
        let mut candidates: Vec<Candidate> = served
            .epochs
            .iter()
            .map(|((account, cluster), epochs)| Candidate {
                account: account.as_str().to_owned(),
                cluster: cluster.map(hex_label),
                first_epoch: epochs.first().map_or(0, |(epoch, _)| *epoch),
                last_epoch: epochs.last().map_or(0, |(epoch, _)| *epoch),
            })
            .collect();
        candidates.sort_by(|a, b| (&a.account, &a.cluster).cmp(&(&b.account, &b.cluster)));
        candidates
    }

    /// Whose marks a text carries, against up to `candidates_max` candidates, the ones marked last;
    /// and how many there are beyond. `prompt` led to the text: what stands there does not count.
    #[must_use]
    pub fn verify(
        &self,
        text: &str,
        prompt: Option<&str>,
        candidates_max: usize,
    ) -> (Report, usize) {
        let mut candidates = self.candidates();
        let left_out = candidates.len().saturating_sub(candidates_max);
        if left_out > 0 {
            candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.last_epoch));
            candidates.truncate(candidates_max);
        }
        let mut evidence = Evidence::new(&self.wordings, &self.key);
        if let Some(prompt) = prompt {
            evidence.read_prompt(prompt);
        }
        evidence.read(text);
        (evidence.report(&self.key, &candidates), left_out)
    }

    /// What an indicator bundle says of an account's marks: its frame tag and its canaries.
    #[must_use]
    pub fn tokens(&self, account: &AccountId) -> Vec<String> {
        let served = self.served.lock();
        if !served.epochs.keys().any(|(known, _)| known == account) {
            return Vec::new();
        }
        let tag = account_tag(&self.key.zero_width(), account.as_str());
        let mut tokens = vec![format!("zw:{tag:06x}")];
        let of_account = served.canaries.iter().filter(|(_, accounts)| accounts.contains(account));
        for ((subject, epoch), _) in of_account {
            let key = self.key.canary();
            tokens.extend(Kind::ALL.map(|kind| canary(&key, subject, *epoch, kind, 0)));
        }
        tokens
    }

    /// Whose marks what the caller says carries. Looks at prompts and system prompts only.
    #[must_use]
    pub fn returned(&self, conversation: &Conversation) -> Returned {
        let mut returned = Returned::default();
        let search = self.search.read().clone();
        let said = conversation.turns.iter().filter(|turn| turn.role == Role::User);
        let texts = said.map(|turn| turn.text.as_str()).chain([conversation.system.as_str()]);
        let mut frames: Option<FrameReader> = None;
        for text in texts {
            if carries_zero_width(text) {
                let reader = frames.get_or_insert_with(|| FrameReader::new(self.key.zero_width()));
                reader.read(text);
            }
            for owner in search.find.iter().flat_map(|find| find.find(text)) {
                if let Some(accounts) = search.owners.get(owner) {
                    returned.canary.extend(accounts.iter().cloned());
                }
            }
        }
        if let Some(frames) = frames {
            let served = self.served.lock();
            let tags = frames.frames().found.keys().map(|(tag, _)| tag);
            returned.zero_width.extend(tags.filter_map(|tag| served.tags.get(tag)).cloned());
        }
        returned
    }

    /// Looks for the canaries served since from now on. Takes as long as there are many.
    pub fn refresh_search(&self) {
        let (subjects, newest) = {
            let mut served = self.served.lock();
            if !std::mem::take(&mut served.unsearched) {
                return;
            }
            let newest = served.canaries.keys().map(|(_, epoch)| *epoch).max().unwrap_or(0);
            // Requests wait for this lock: names and sets are shared, not copied.
            let subjects: Vec<_> =
                served.canaries.iter().map(|(place, all)| (place.clone(), all.clone())).collect();
            (subjects, newest)
        };
        let key = self.key.canary();
        let (mut texts, mut owners) = (Vec::new(), Vec::new());
        for ((subject, epoch), accounts) in subjects {
            if epoch + CANARY_EPOCHS < newest {
                continue;
            }
            for kind in Kind::ALL {
                texts.push(canary(&key, &subject, epoch, kind, 0));
                owners.push(accounts.clone());
            }
        }
        let find = Some(CanarySearch::new(texts.iter().map(String::as_str)));
        *self.search.write() = Arc::new(Search { find, owners });
    }
}

/// The secret of the marks, derived from the identity key.
///
/// # Errors
/// Never: a digest is as long as a key has to be.
pub fn master_key(identity_key: &[u8]) -> Result<MasterKey, String> {
    let digest = Sha256::new().chain_update(b"stillgate marks").chain_update([0]);
    let digest = digest.chain_update(identity_key).finalize();
    MasterKey::new(&digest).map_err(|error| error.to_string())
}

/// What the policy has the marks be.
#[must_use]
pub fn layers(watermark: bool, canary: bool, settings: &Watermarks) -> Option<Layers> {
    let layers = Layers {
        zero_width: watermark && settings.zero_width,
        lexical: watermark && settings.lexical,
        canary,
    };
    (layers.zero_width || layers.lexical || layers.canary).then_some(layers)
}

/// What layers B and C are keyed with: the cluster's name, or the account's where it has none.
fn subject(account: &AccountId, cluster: Option<u64>) -> String {
    cluster.map_or_else(|| account.as_str().to_owned(), hex_label)
}

/// Whether a text has a character of the alphabet of layer A: most are told by one pass of a
/// vectorised search.
fn carries_zero_width(text: &str) -> bool {
    let bytes = text.as_bytes();
    memchr::memchr_iter(0xe2, bytes)
        .any(|at| matches!(bytes.get(at + 1..at + 3), Some([0x80, 0x8b..=0x8d] | [0x81, 0xa0])))
}

/// A marker as the rewriter takes it.
struct Marked {
    marker: Marker,
    edits: Vec<wire::Edit>,
}

impl Marked {
    fn note_edits(&mut self) {
        let new = self.marker.edits().get(self.edits.len()..).unwrap_or_default();
        let lengths = |edit: &Edit| wire::Edit {
            at: edit.at,
            removed: edit.removed.len(),
            inserted: edit.inserted.len(),
        };
        self.edits.extend(new.iter().map(lengths));
    }
}

impl TextMarker for Marked {
    fn push(&mut self, piece: &str, out: &mut String) {
        self.marker.push(piece, out);
        self.note_edits();
    }

    fn flush(&mut self, out: &mut String) {
        self.marker.flush(out);
        self.note_edits();
    }

    fn finish(&mut self, out: &mut String) {
        self.marker.finish(out);
        self.note_edits();
    }

    fn holds(&self) -> bool {
        self.marker.holds()
    }

    fn edits(&self) -> &[wire::Edit] {
        &self.edits
    }
}

#[cfg(test)]
mod tests {
    use detectors::{Text, Turn};

    use super::*;
    use crate::demo::prose;
    use crate::wire::TextId;

    const NOW_MS: u64 = 1_795_000_000_000;

    fn marks() -> Marks {
        Marks::new(master_key(b"a key of some length").unwrap()).unwrap()
    }

    fn long() -> String {
        (0..12).map(prose::answer).collect::<Vec<_>>().join("\n\n")
    }

    fn asks(text: &str) -> Conversation {
        let turn =
            Turn { role: Role::User, text: Text::new(text), tool_calls: vec![], attachments: 0 };
        Conversation { turns: vec![turn], ..Conversation::default() }
    }

    fn marked(marks: &Marks, account: &str, text: &str) -> String {
        let account = AccountId::new(account);
        let write = marks.unregistered(&account, Some(7), Layers::ALL, NOW_MS).unwrap();
        marks.apply(&write.key);
        assert!(marks.unregistered(&account, Some(7), Layers::ALL, NOW_MS).is_none());
        let marker = marks.marker(&account, Some(7), Layers::ALL, &asks("Tell me."), None, NOW_MS);
        let mut marker = marker.unwrap()(TextId::default()).unwrap();
        let mut out = String::new();
        for piece in text.split_inclusive(' ') {
            marker.push(piece, &mut out);
        }
        marker.finish(&mut out);
        out
    }

    #[test]
    fn what_was_served_is_recognised_and_says_to_whom() {
        let marks = marks();
        let prose = long();
        let text = format!("{prose} John Doe sent the order from example.com.");
        let served = marked(&marks, "acct-1", &text);
        assert_ne!(served, text);
        marks.refresh_search();
        let returned = marks.returned(&asks(&served));
        let expected = BTreeSet::from([AccountId::new("acct-1")]);
        assert_eq!((&returned.zero_width, &returned.canary), (&expected, &expected));
        assert_eq!(marks.returned(&asks(&text)), Returned::default(), "unmarked");
        let mut history = asks("Go on.");
        history.turns.insert(
            0,
            Turn {
                role: Role::Assistant,
                text: Text::new(served),
                tool_calls: vec![],
                attachments: 0,
            },
        );
        assert_eq!(marks.returned(&history), Returned::default(), "one's own history");
        let candidates = marks.candidates();
        assert_eq!(candidates.len(), 1);
        assert_eq!(candidates[0].cluster.as_deref(), Some("0000000000000007"));
        assert_eq!(marks.tokens(&AccountId::new("acct-1")).len(), 1 + Kind::ALL.len());
        assert!(marks.tokens(&AccountId::new("acct-2")).is_empty());
    }

    #[test]
    fn another_key_recognises_nothing() {
        let served = marked(&marks(), "acct-1", &long());
        let other = Marks::new(master_key(b"another key of some length").unwrap()).unwrap();
        marked(&other, "acct-1", &long());
        other.refresh_search();
        assert_eq!(other.returned(&asks(&served)), Returned::default());
    }

    #[test]
    fn a_register_that_cannot_be_read_is_left() {
        let marks = marks();
        for key in ["", "acct-1", "acct-1 - x text", "acct-1 - 70000 text", " - 1 text"] {
            marks.apply(key);
        }
        assert!(marks.candidates().is_empty());
        for epoch in 0..2 * EPOCHS_MAX {
            marks.apply(&format!("acct-1 - {epoch} text"));
        }
        let candidates = marks.candidates();
        assert_eq!(usize::from(candidates[0].first_epoch), EPOCHS_MAX);
    }

    #[test]
    fn what_must_not_be_marked_is_not() {
        let marks = marks();
        let account = AccountId::new("acct-1");
        let mut json = asks("Tell me.");
        json.sampling.structured = true;
        for conversation in [json, asks("Repeat the following text verbatim: Hello there.")] {
            let marker = marks.marker(&account, None, Layers::ALL, &conversation, None, NOW_MS);
            assert!(marker.is_none());
        }
        assert!(marks.candidates().is_empty(), "nobody was served anything");
    }

    #[test]
    fn a_text_whose_beginning_is_not_known_is_left() {
        let marks = marks();
        let fences = Fences::from([(0, FenceTracker::new())]);
        let account = AccountId::new("acct-1");
        let conversation = asks("Tell me.");
        let mut marker =
            marks.marker(&account, None, Layers::ALL, &conversation, Some(fences), NOW_MS).unwrap();
        assert!(marker(TextId { choice: 1, ..TextId::default() }).is_none());
        assert!(marker(TextId::default()).is_some());
    }
}
