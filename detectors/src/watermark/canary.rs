//! Layer C: placeholders that nobody else uses.
//!
//! Sees: names, sample numbers and sample domains that were made for one subject and one week.
//! Why: a model invents the same few placeholders over and over ("John Doe", "12345",
//! "example.com"). Where an answer's are exchanged for rare ones, these can be looked for in a data
//! set, or in what another model says, long after the wording around them is gone (T-DIST-008).
//! Wrong when: whoever collects the answers normalises placeholders. A hit is judged against
//! decoys: canaries made in the same way and never served. If none of N decoys is there, the
//! chance of the hit is at most 1/(N+1).
//! Source: rank of a canary among unused ones, after Carlini et al., "The Secret Sharer", 2019.
//!
//! Domains are labels below `example.com`, `.org` and `.net`, which RFC 2606 reserves. Surnames are
//! two made from syllables with a hyphen; the first name stays, as a text goes on to use it.

use aho_corasick::AhoCorasick;
use hashbrown::HashSet;
use serde::Serialize;

use super::keys::Prf;
use super::words::{Words, invisible};
use crate::keyed;

/// A placeholder that a model invents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The surname of "John Doe".
    JohnDoe,
    /// The surname of "Jane Doe".
    JaneDoe,
    /// The surname of "John Smith".
    JohnSmith,
    /// The surname of "Jane Smith".
    JaneSmith,
    /// "12345" and its like as the number of an order, a user, a ticket.
    Number,
    /// A label before "example.com".
    Domain,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::JohnDoe,
        Self::JaneDoe,
        Self::JohnSmith,
        Self::JaneSmith,
        Self::Number,
        Self::Domain,
    ];

    fn index(self) -> usize {
        self as usize
    }

    /// What in a prompt makes the placeholder the caller's own; lower case.
    fn claims(self) -> &'static [&'static str] {
        match self {
            Self::JohnDoe => &["john", "mr. doe"],
            Self::JaneDoe => &["jane", "ms. doe"],
            Self::JohnSmith => &["john", "smith"],
            Self::JaneSmith => &["jane", "smith"],
            Self::Number => &["12345", "1234"],
            Self::Domain => &["example.com", "example.org", "example.net"],
        }
    }
}

const NAMES: [(&str, Kind); 4] = [
    ("John Doe", Kind::JohnDoe),
    ("Jane Doe", Kind::JaneDoe),
    ("John Smith", Kind::JohnSmith),
    ("Jane Smith", Kind::JaneSmith),
];
/// The longest first.
const NUMBERS: [&str; 4] = ["12345678", "1234567", "123456", "12345"];
const DOMAINS: [&str; 3] = ["example.com", "example.org", "example.net"];
const NUMBERED: [&str; 14] = [
    "order",
    "user",
    "customer",
    "ticket",
    "invoice",
    "product",
    "employee",
    "student",
    "account",
    "transaction",
    "member",
    "tracking",
    "reference",
    "confirmation",
];

/// Two of 64 onsets and 64 endings make a surname.
const ONSETS: [&str; 64] = [
    "Al", "Ash", "Bar", "Beck", "Bel", "Ben", "Bir", "Black", "Brad", "Bran", "Brook", "Bur",
    "Cal", "Car", "Chad", "Clay", "Col", "Corn", "Cran", "Crom", "Dal", "Dar", "Den", "Dun",
    "East", "Ed", "El", "Fair", "Farn", "Fen", "Gar", "Glad", "Gran", "Hal", "Ham", "Har", "Hart",
    "Haw", "Hol", "Hunt", "Ing", "Kel", "Ken", "Kirk", "Lang", "Lin", "Mal", "Mar", "Mel", "Nor",
    "Oak", "Pem", "Pen", "Rad", "Red", "Ros", "Sel", "Shel", "Stan", "Thorn", "Wal", "West",
    "Whit", "Win",
];
const ENDINGS: [&str; 64] = [
    "acre", "bank", "beck", "bell", "berry", "bourne", "bridge", "brook", "burn", "bury", "by",
    "castle", "church", "cliff", "combe", "cote", "croft", "dale", "dean", "den", "don", "fax",
    "field", "fold", "ford", "gate", "grave", "ham", "hart", "haven", "hill", "holme", "house",
    "hurst", "kirk", "lake", "land", "leigh", "ley", "lock", "low", "man", "mead", "mere", "mond",
    "more", "mouth", "over", "pool", "port", "ridge", "shaw", "side", "stead", "stone", "stow",
    "thorpe", "ton", "vale", "wall", "well", "wick", "wood", "worth",
];
const CONSONANTS: &[u8; 16] = b"bdfghklmnprstvwz";
const VOWELS: &[u8; 4] = b"aeio";

/// Makes the canary of a subject, an epoch and a kind. `decoy` 0 is the one that is served; each
/// other number is a decoy. There are at least 2^24 of each kind.
#[must_use]
pub fn canary(key: &Prf, subject: &str, epoch: u16, kind: Kind, decoy: u32) -> String {
    let hash = key.hash(
        b"canary",
        &[subject.as_bytes(), &epoch.to_be_bytes(), &[kind as u8], &decoy.to_be_bytes()],
    );
    match kind {
        Kind::JohnDoe | Kind::JaneDoe | Kind::JohnSmith | Kind::JaneSmith => {
            let part = |list: &[&'static str; 64], at: usize| list[usize::from(hash[at] % 64)];
            format!(
                "{}{}-{}{}",
                part(&ONSETS, 0),
                part(&ENDINGS, 1),
                part(&ONSETS, 2),
                part(&ENDINGS, 3)
            )
        }
        Kind::Number => {
            // Eight digits, the first not zero; 90,000,000 > 2^26.
            let number = hash[..8].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            (10_000_000 + number % 90_000_000).to_string()
        }
        Kind::Domain => hash[..4]
            .iter()
            .flat_map(|byte| {
                [CONSONANTS[usize::from(byte % 16)], VOWELS[usize::from(byte >> 4 & 3)]]
            })
            .map(char::from)
            .collect(),
    }
}

/// The canaries served to a subject in an epoch.
#[derive(Clone, Debug)]
pub struct Canaries {
    texts: [Option<String>; Kind::ALL.len()],
}

/// A placeholder at some place of a text.
pub(crate) enum Placeholder {
    Nothing,
    More,
    Found {
        kind: Kind,
        /// Bytes of the text.
        len: usize,
        replacement: String,
    },
}

impl Canaries {
    /// Makes them.
    #[must_use]
    pub fn new(key: &Prf, subject: &str, epoch: u16) -> Self {
        Self { texts: Kind::ALL.map(|kind| Some(canary(key, subject, epoch, kind, 0))) }
    }

    /// Gives up the kinds whose placeholder stands in a prompt: there it is the caller's own.
    pub fn spare(&mut self, prompt: &str) {
        let prompt = prompt.to_ascii_lowercase();
        for kind in Kind::ALL {
            if kind.claims().iter().any(|claim| prompt.contains(claim)) {
                self.texts[kind.index()] = None;
            }
        }
    }

    /// The kinds that are left, with what is served for them.
    pub fn served(&self) -> impl Iterator<Item = (Kind, &str)> {
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.texts[kind.index()].as_deref()?)))
    }

    /// What stands at the beginning of `rest`.
    pub(crate) fn look(&self, words: &Words, rest: &str, end: bool) -> Placeholder {
        let Some(first) = rest.as_bytes().first() else {
            return Placeholder::More;
        };
        match first {
            b'J' if words.at_boundary() => self.look_name(words, rest, end),
            b'1' if words.latest == '#' || words.latest == ' ' => {
                self.look_number(words, rest, end)
            }
            b'e' if words.at_boundary() || words.latest == '@' && words.chunk_local => {
                self.look_domain(rest, end)
            }
            _ => Placeholder::Nothing,
        }
    }

    fn look_name(&self, words: &Words, rest: &str, end: bool) -> Placeholder {
        // Captain John Smith was a person.
        if matches!(words.last(), "captain" | "sir" | "explorer" | "lord" | "president")
            && !words.sentence_start
        {
            return Placeholder::Nothing;
        }
        for (name, kind) in NAMES {
            let Some(canary) = &self.texts[kind.index()] else { continue };
            match begins(rest, name, end, |c| c == '\'' || c == '\u{2019}') {
                Begins::No => {}
                Begins::More => return Placeholder::More,
                Begins::Yes => {
                    // A capital behind it makes it part of another name.
                    let after = &rest[name.len()..];
                    let mut chars = after.chars();
                    match (chars.next(), chars.next()) {
                        (Some(' '), None) if !end => return Placeholder::More,
                        (Some(' '), Some(c)) if c.is_uppercase() => return Placeholder::Nothing,
                        _ => {}
                    }
                    let given = name.split(' ').next().unwrap_or_default();
                    let replacement = format!("{given} {canary}");
                    return Placeholder::Found { kind, len: name.len(), replacement };
                }
            }
        }
        Placeholder::Nothing
    }

    fn look_number(&self, words: &Words, rest: &str, end: bool) -> Placeholder {
        let Some(canary) = &self.texts[Kind::Number.index()] else {
            return Placeholder::Nothing;
        };
        let [last, before] = words.last_two();
        let named = NUMBERED.contains(&last) && words.latest == '#'
            || matches!(last, "id" | "number") && NUMBERED.contains(&before);
        if !named {
            return Placeholder::Nothing;
        }
        for number in NUMBERS {
            match begins(rest, number, end, |_| false) {
                Begins::No => {}
                Begins::More => return Placeholder::More,
                Begins::Yes => {
                    let replacement = canary.clone();
                    return Placeholder::Found {
                        kind: Kind::Number,
                        len: number.len(),
                        replacement,
                    };
                }
            }
        }
        Placeholder::Nothing
    }

    fn look_domain(&self, rest: &str, end: bool) -> Placeholder {
        let Some(canary) = &self.texts[Kind::Domain.index()] else {
            return Placeholder::Nothing;
        };
        for domain in DOMAINS {
            match begins(rest, domain, end, |_| false) {
                Begins::No => {}
                Begins::More => return Placeholder::More,
                Begins::Yes => {
                    let replacement = format!("{canary}.{domain}");
                    return Placeholder::Found {
                        kind: Kind::Domain,
                        len: domain.len(),
                        replacement,
                    };
                }
            }
        }
        Placeholder::Nothing
    }
}

enum Begins {
    Yes,
    No,
    More,
}

/// Whether the text begins with a placeholder that ends where a word ends.
fn begins(rest: &str, text: &str, end: bool, also: fn(char) -> bool) -> Begins {
    if rest.len() <= text.len() && text.starts_with(rest) && !end {
        return Begins::More;
    }
    let Some(after) = rest.strip_prefix(text) else {
        return Begins::No;
    };
    let mut chars = after.chars();
    match (chars.next(), chars.next()) {
        (None, _) => Begins::Yes,
        (Some(c), _) if c.is_whitespace() || also(c) => Begins::Yes,
        (Some(',' | '.' | ';' | ':' | '!' | '?' | ')' | '*'), None) if !end => Begins::More,
        (Some(',' | '.' | ';' | ':' | '!' | '?' | ')' | '*'), second)
            if second.is_none_or(char::is_whitespace) =>
        {
            Begins::Yes
        }
        _ => Begins::No,
    }
}

/// A set of canaries to look for, as a gateway does in prompts.
#[derive(Clone, Debug)]
pub struct CanarySearch(Option<AhoCorasick>);

impl CanarySearch {
    /// Takes the canaries; an empty or too large set finds nothing.
    #[must_use]
    pub fn new<'t>(canaries: impl IntoIterator<Item = &'t str>) -> Self {
        let canaries: Vec<&str> = canaries.into_iter().filter(|text| !text.is_empty()).collect();
        Self((!canaries.is_empty()).then(|| AhoCorasick::new(canaries).ok()).flatten())
    }

    /// Which of the canaries stand in a text, in the order of their places; a number is that of
    /// the canary in the set, empty ones not counted.
    pub fn find<'s>(&'s self, text: &'s str) -> impl Iterator<Item = usize> + 's {
        self.0.iter().flat_map(move |search| search.find_iter(text)).filter_map(move |found| {
            let before = text[..found.start()].chars().next_back();
            let after = text[found.end()..].chars().next();
            let apart = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
            (apart(before) && apart(after)).then(|| found.pattern().as_usize())
        })
    }
}

/// Hashes of what looks like a canary, which are kept: 8 bytes each.
pub const SIGHTINGS_MAX: usize = 1 << 19;

/// What in any number of texts has a canary's form. Holds hashes only.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    seen: HashSet<u64, keyed::KeyedState>,
    overflow: u64,
}

impl Sightings {
    /// Takes in a text.
    pub fn read(&mut self, text: &str) {
        let cleaned: String;
        let text = if text.is_ascii() {
            text
        } else {
            cleaned = text.chars().filter(|c| !invisible(*c)).collect();
            &cleaned
        };
        let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        for part in parts.filter(|part| canary_form(part)) {
            if self.seen.len() < SIGHTINGS_MAX {
                self.seen.insert(sighting(part));
            } else if !self.seen.contains(&sighting(part)) {
                self.overflow += 1;
            }
        }
    }

    /// Whether a canary was there.
    #[must_use]
    pub fn has(&self, canary: &str) -> bool {
        self.seen.contains(&sighting(canary))
    }

    /// Sightings not kept for want of room.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

fn sighting(text: &str) -> u64 {
    // Case is what a copy changes first.
    keyed::hash(b"stillgate mark c", text.to_ascii_lowercase().as_bytes())
}

fn canary_form(part: &str) -> bool {
    let bytes = part.as_bytes();
    match bytes.len() {
        8 if bytes[0].is_ascii_digit() => bytes.iter().all(u8::is_ascii_digit),
        8 if bytes.iter().all(u8::is_ascii_alphabetic) => bytes.chunks_exact(2).all(|pair| {
            CONSONANTS.contains(&pair[0].to_ascii_lowercase())
                && VOWELS.contains(&pair[1].to_ascii_lowercase())
        }),
        9..=40 => {
            let mut hyphens = part.split('-');
            let both = hyphens.next().zip(hyphens.next());
            both.is_some_and(|(a, b)| [a, b].iter().all(|name| name.len() > 3))
                && hyphens.next().is_none()
                && bytes.iter().all(|b| b.is_ascii_alphabetic() || *b == b'-')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::MasterKey;
    use super::*;

    fn key() -> Prf {
        MasterKey::new(&[3; 32]).unwrap().canary()
    }

    #[test]
    fn canaries_differ_and_keep_their_form() {
        let mut all = std::collections::BTreeSet::new();
        for kind in Kind::ALL {
            for decoy in 0..1000 {
                let text = canary(&key(), "c1", 2900, kind, decoy);
                assert!(canary_form(&text), "{text}");
                all.insert((kind, text));
            }
        }
        // Of 2^24, two of a thousand meet in a case of thirty.
        assert!(all.len() > 5990, "{}", all.len());
        let of = |subject, epoch| canary(&key(), subject, epoch, Kind::Domain, 0);
        assert_ne!(of("c1", 1), of("c2", 1));
        assert_ne!(of("c1", 1), of("c1", 2));
    }

    #[test]
    fn placeholders_of_the_prompt_are_spared() {
        let mut canaries = Canaries::new(&key(), "c1", 1);
        canaries.spare("Write to JANE about it, see http://example.com/");
        let kinds: Vec<Kind> = canaries.served().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [Kind::JohnDoe, Kind::JohnSmith, Kind::Number]);
    }

    #[test]
    fn canaries_are_found_again() {
        let canaries = Canaries::new(&key(), "c1", 1);
        let served: Vec<&str> = canaries.served().map(|(_, text)| text).collect();
        let text = format!(
            "Dear John {}, order #{}, user@{}.example.com",
            served[0], served[4], served[5]
        );
        let search = CanarySearch::new(served.iter().copied());
        assert_eq!(search.find(&text).collect::<Vec<_>>(), [0, 4, 5]);
        let mut sightings = Sightings::default();
        sightings.read(&text.to_lowercase());
        let seen: Vec<bool> = served.iter().map(|canary| sightings.has(canary)).collect();
        assert_eq!(seen, [true, false, false, false, true, true]);
        let other = Canaries::new(&key(), "c2", 1);
        assert!(other.served().all(|(_, canary)| !sightings.has(canary)));
        assert_eq!(CanarySearch::new([]).find("a").count(), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read(text in "\\PC*") {
            let mut sightings = Sightings::default();
            sightings.read(&text);
            let canaries = Canaries::new(&key(), "c1", 1);
            prop_assert!(canaries.served().all(|(_, canary)| !sightings.has(canary)));
        }
    }
}
