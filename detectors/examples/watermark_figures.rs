//! What the marks survive, how much text they need, and how often they err, on English prose.
//!
//! `cargo run --release -p stillgate-detectors --example watermark_figures -- FILE...`
//!
//! Each file is plain text. All draws are from fixed seeds: the same files give the same figures.

#![expect(clippy::disallowed_methods, reason = "a report for a person, of files that are named")]

use std::sync::Arc;
use std::time::Instant;

use detectors::watermark::attribution::binomial_tail_ln;
use detectors::watermark::lexical::Tuples;
use detectors::watermark::zero_width::{FrameReader, account_tag};
use detectors::watermark::{
    FenceTracker, Identity, Layers, Marker, Marking, MasterKey, SlotsUsed, Wordings,
};
use unicode_normalization::UnicodeNormalization;

/// The week in every frame.
const EPOCH: u16 = 2968;
/// Windows of prose for layer A.
const WINDOWS: usize = 400;
const WINDOW_WORDS: usize = 300;
/// Samples of each length for layer B's power.
const SAMPLES: u32 = 200;
/// Keys that nobody has, for the rate of false attribution.
const WRONG_KEYS: u32 = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut prose = Vec::new();
    for path in std::env::args().skip(1) {
        // Paragraphs of some length: what is left of books without headings and listings.
        let text = std::fs::read_to_string(&path)?;
        let paragraphs = text
            .split("\n\n")
            .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
        prose.extend(paragraphs.filter(|text| {
            text.split(' ').count() >= 25 && text.ends_with('.') && !text.contains(['{', '|', '`'])
        }));
    }
    prose.sort_unstable();
    prose.dedup();
    if prose.is_empty() {
        return Err("give files of English prose".into());
    }
    Random(1).shuffle(&mut prose);
    let words: usize = prose.iter().map(|text| text.split(' ').count()).sum();
    println!("{} paragraphs, {words} words", prose.len());

    let figures = Figures {
        key: MasterKey::new(&[42; 32])?,
        wordings: Arc::new(Wordings::builtin()?),
        prose,
        words,
    };
    figures.supply();
    figures.pace_unmarked();
    figures.zero_width();
    figures.power();
    figures.errors();
    Ok(())
}

struct Figures {
    key: MasterKey,
    wordings: Arc<Wordings>,
    prose: Vec<String>,
    words: usize,
}

const ONLY_A: Layers = Layers { zero_width: true, lexical: false, canary: false };
const ONLY_B: Layers = Layers { zero_width: false, lexical: true, canary: false };

impl Figures {
    fn marking(&self, layers: Layers, subject: &str) -> Arc<Marking> {
        let identity = Identity { account: subject, subject, epoch: EPOCH };
        Arc::new(Marking::new(layers, &self.key, &self.wordings, identity, []))
    }

    fn mark(marking: &Arc<Marking>, text: &str) -> (String, SlotsUsed, usize) {
        let mut marker = Marker::new(Arc::clone(marking));
        let mut out = String::with_capacity(text.len() * 2);
        marker.push(text, &mut out);
        marker.finish(&mut out);
        (out, marker.slots_used(), marker.edits().len())
    }

    fn tuples<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Tuples {
        let mut tuples = Tuples::default();
        texts.into_iter().for_each(|text| tuples.read(&self.wordings, text));
        tuples
    }

    fn supply(&self) {
        let tuples = self.tuples(self.prose.iter().map(String::as_str));
        let text = self.prose.join("\n\n");
        let (_, used, edits) = Self::mark(&self.marking(ONLY_B, "supply"), &text);
        let per = |count: usize| count as f64 * 1000.0 / self.words as f64;
        println!(
            "layer B: {:.1} slots a thousand words, {:.1} distinct tuples over all the prose; \
             marked: {:.1} stand as asked, {:.1} of them changed",
            per(tuples.slots() as usize),
            per(tuples.len()),
            per(used.lexical as usize),
            per(edits),
        );
        let first: Vec<&str> = self.prose.iter().map(String::as_str).collect();
        let mut read = 0;
        let few: Vec<&str> = first
            .into_iter()
            .take_while(|text| {
                read += text.split(' ').count();
                read < 1000
            })
            .collect();
        let tuples = self.tuples(few.iter().copied());
        println!("  of the first 1000 words: {} slots, {} tuples", tuples.slots(), tuples.len());

        // As tokens: a word with the space before it.
        let marking = self.marking(Layers::ALL, "pace");
        let (mut pieces, mut held) = (0_u64, 0_u64);
        let begun = Instant::now();
        for text in &self.prose {
            let mut marker = Marker::new(Arc::clone(&marking));
            let mut out = String::with_capacity(text.len() * 2);
            let mut from = 0;
            for (at, _) in text.match_indices(' ').chain([(text.len(), "")]) {
                marker.push(&text[from..at], &mut out);
                held += u64::from(marker.holds());
                pieces += 1;
                from = at;
            }
            marker.finish(&mut out);
        }
        println!(
            "marking, all layers, a word at a time: {:.2} us a word; something held after {:.1} %",
            begun.elapsed().as_secs_f64() * 1e6 / pieces as f64,
            held as f64 * 100.0 / pieces as f64
        );
    }

    fn pace_unmarked(&self) {
        let (mut bytes, mut paragraphs) = (0, 0);
        let begun = Instant::now();
        for text in &self.prose {
            let mut tracker = FenceTracker::new();
            text.split_inclusive(' ').for_each(|word| tracker.push(word));
            bytes += text.len();
            paragraphs += usize::from(tracker.at_paragraph());
        }
        let ns = begun.elapsed().as_secs_f64() * 1e9 / bytes as f64;
        println!("following unmarked text, a word at a time: {ns:.1} ns a byte ({paragraphs})");
    }

    fn zero_width(&self) {
        let text = self.prose.join(" ");
        let words: Vec<&str> = text.split(' ').collect();
        let marking = self.marking(ONLY_A, "account");
        let tag = account_tag(&self.key.zero_width(), "account");
        let mut random = Random(2);
        type Change = fn(&str, &mut Random) -> String;
        let changes: [(&str, Change); 8] = [
            ("as it is", |text, _| text.to_owned()),
            ("NFKC", |text, _| text.nfkc().collect()),
            ("white space collapsed", |text, _| {
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            }),
            ("a random half in one piece", |text, random| part(text, 2, random)),
            ("a random third in one piece", |text, random| part(text, 3, random)),
            ("every sentence kept by a coin", |text, random| {
                text.split_inclusive(". ").filter(|_| random.below(2) == 0).collect()
            }),
            ("NFKC, collapsed, a random half", |text, random| {
                let text: String = text.nfkc().collect();
                part(&text.split_whitespace().collect::<Vec<_>>().join(" "), 2, random)
            }),
            ("default-ignorables stripped", |text, _| {
                text.replace(['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'], "")
            }),
        ];
        println!("layer A in {WINDOWS} windows of {WINDOW_WORDS} words: one frame; two that agree");
        for (name, change) in changes {
            let (mut one, mut two) = (0, 0);
            for _ in 0..WINDOWS {
                let from = random.below(words.len().saturating_sub(WINDOW_WORDS).max(1));
                let window = words[from..(from + WINDOW_WORDS).min(words.len())].join(" ");
                let (marked, _, _) = Self::mark(&marking, &window);
                let mut reader = FrameReader::new(self.key.zero_width());
                reader.read(&change(&marked, &mut random));
                let found = reader.frames().found.get(&(tag, EPOCH)).copied().unwrap_or(0);
                one += u32::from(found >= 1);
                two += u32::from(found >= 2);
            }
            let share = |count: u32| f64::from(count) * 100.0 / WINDOWS as f64;
            println!("  {name}: {:.1} %; {:.1} %", share(one), share(two));
        }
    }

    /// Words needed for p < 1e-6 at 95 % power. Each sample is another run of paragraphs.
    fn power(&self) {
        println!("layer B: words for p < 1e-6 in 95 % of {SAMPLES} samples (median p there)");
        let marked: Vec<String> = {
            let marking = self.marking(ONLY_B, "power");
            // Contexts at the beginning of a paragraph need the words before it.
            self.prose.iter().map(|text| Self::mark(&marking, text).0).collect()
        };
        let key = self.key.lexical("power");
        for (name, keep) in [("all slots marked", 100), ("a quarter of paragraphs marked", 25)] {
            let mut needed = None;
            let mut length = 500_usize;
            while length < self.words / 2 {
                let mut random = Random(3);
                let mut p_values: Vec<f64> = (0..SAMPLES)
                    .map(|_| {
                        let mut at = random.below(self.prose.len());
                        let mut tuples = Tuples::default();
                        let mut read = 0;
                        while read < length {
                            let kept = random.below(100) < keep;
                            let text = if kept { &marked[at] } else { &self.prose[at] };
                            tuples.read(&self.wordings, text);
                            read += text.split(' ').count();
                            at = (at + 1) % self.prose.len();
                        }
                        let votes = tuples.votes(&key);
                        binomial_tail_ln(votes.agreeing, votes.of).exp()
                    })
                    .collect();
                p_values.sort_unstable_by(f64::total_cmp);
                let at_95 = p_values[SAMPLES as usize * 95 / 100 - 1];
                if at_95 < 1e-6 {
                    needed = Some((length, p_values[SAMPLES as usize / 2]));
                    break;
                }
                length += (length / 10).max(50);
            }
            match needed {
                Some((words, median)) => println!("  {name}: {words} words ({median:.1e})"),
                None => println!("  {name}: more than {} words", self.words / 2),
            }
        }
    }

    /// How often a key that nobody has, or a text that nobody marked, looks guilty.
    fn errors(&self) {
        println!("false attribution: share of p-values below 0.05, 0.01, 0.001, 0.0001, 1e-6");
        let marking = self.marking(ONLY_B, "errors");
        let chunks = [("1,000 words", 1000), ("10,000 words", 10_000), ("all words", usize::MAX)];
        for (size, length) in chunks {
            for marked in [false, true] {
                // Several texts of a length, so that all trials do not share one.
                let texts = if length == usize::MAX { 1 } else { 10 };
                let mut random = Random(4);
                let mut below = [0_u32; 5];
                let mut trials = 0;
                for text in 0..texts {
                    let mut at = random.below(self.prose.len());
                    let mut tuples = Tuples::default();
                    let (mut read, mut paragraphs) = (0, 0);
                    while read < length && paragraphs < self.prose.len() {
                        let paragraph = &self.prose[at];
                        if marked {
                            tuples.read(&self.wordings, &Self::mark(&marking, paragraph).0);
                        } else {
                            tuples.read(&self.wordings, paragraph);
                        }
                        read += paragraph.split(' ').count();
                        paragraphs += 1;
                        at = (at + 1) % self.prose.len();
                    }
                    let keys = if length == usize::MAX { 5000 } else { WRONG_KEYS };
                    for index in 0..keys {
                        let votes = tuples.votes(&self.key.wrong(text * WRONG_KEYS + index));
                        let p = binomial_tail_ln(votes.agreeing, votes.of).exp();
                        for (count, bound) in below.iter_mut().zip([0.05, 0.01, 1e-3, 1e-4, 1e-6]) {
                            *count += u32::from(p < bound);
                        }
                        trials += 1;
                    }
                }
                let shares: Vec<String> = below
                    .iter()
                    .map(|count| format!("{:.2e}", f64::from(*count) / f64::from(trials)))
                    .collect();
                let what = if marked { "marked for another" } else { "unmarked" };
                println!("  {size}, {what}, {trials} trials: {}", shares.join(", "));
            }
        }
        let mut reader = FrameReader::new(self.key.zero_width());
        self.prose.iter().for_each(|text| reader.read(text));
        let other = self.marking(ONLY_A, "account");
        let stranger = MasterKey::new(&[43; 32]).map(|key| FrameReader::new(key.zero_width()));
        if let Ok(mut stranger) = stranger {
            for text in &self.prose {
                stranger.read(&Self::mark(&other, text).0);
            }
            println!(
                "  layer A: {} frames in unmarked prose, {} with a wrong key from {} attempts",
                reader.frames().found.len(),
                stranger.frames().found.len(),
                stranger.frames().attempts
            );
        }
    }
}

/// A run of words, one part of so many, from a random place on.
fn part(text: &str, of: usize, random: &mut Random) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let len = words.len() / of;
    let from = random.below(words.len() - len + 1);
    words[from..from + len].join(" ")
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}
