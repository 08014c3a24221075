//! Measures the text reading: the static embedding against feature hashing.
//!
//!     cargo run --release -p stillgate-detectors --example text_compare
//!     cargo run --release -p stillgate-detectors --example text_compare -- rates < texts.jsonl
//!
//! The first form prints how well each tells `data/paraphrases.toml`'s extraction prompts from its
//! honest ones, and what it costs. The second reads lines of `{"source": …, "text": …, "system": …}`
//! and prints, by source, how often the archetypes, phrases and safety categories speak.
#![expect(clippy::print_stdout, reason = "a report for a person")]

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::time::Duration;

use detectors::text::{Family, TextFacts, fold};
use toml::de::{DeTable, DeValue};

const HASHED: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let facts = TextFacts::builtin()?;
    match std::env::args().nth(1).as_deref() {
        Some("rates") => rates(&facts),
        _ => compare(&facts),
    }
}

fn compare(facts: &TextFacts) -> Result<(), Box<dyn Error>> {
    let paraphrases = groups(include_str!("../data/paraphrases.toml"))?;
    let archetypes = groups(include_str!("../data/archetypes.toml"))?;
    let of = |groups: &[Group], table: &str| -> Vec<Group> {
        groups.iter().filter(|g| g.table == table).cloned().collect()
    };
    let (extraction, honest) = (of(&paraphrases, "extraction"), of(&paraphrases, "honest"));
    let kinds: Vec<(String, Vec<Vec<f32>>)> = hashed_all(&of(&archetypes, "kind"));
    let contrast: Vec<Vec<f32>> =
        hashed_all(&of(&archetypes, "contrast")).into_iter().flat_map(|(_, v)| v).collect();

    let names = facts.archetypes().names();
    let by_table = |text: &str| {
        let near = facts.nearness(text);
        (names[usize::from(near.kind)].clone(), near.margin)
    };
    let by_hash = |text: &str| {
        let vector = hashed(text);
        let near = kinds.iter().map(|(name, of)| (nearest_three(of, &vector), name));
        let best = near.max_by(|a, b| a.0.total_cmp(&b.0));
        let honest = nearest_three(&contrast, &vector);
        best.map_or((String::new(), -1.0), |(c, name)| (name.clone(), c - honest))
    };
    let by_phrase = |text: &str| {
        let reading = facts.read("", text);
        (String::new(), reading.phrases.iter().copied().fold(0.0, f32::max))
    };
    println!("{:<28}{:>8}{:>12}{:>12}{:>12}", "", "AUC", "found", "false", "right kind");
    report("static table, margin", &by_table, &extraction, &honest);
    report("feature hashing, margin", &by_hash, &extraction, &honest);
    report("phrases, greatest weight", &by_phrase, &extraction, &honest);

    let found = |groups: &[Group]| {
        let texts = groups.iter().flat_map(|g| &g.texts);
        let count = groups.iter().map(|g| g.texts.len()).sum::<usize>();
        let hits = texts.filter(|t| strength(facts, t) >= 0.5).count();
        format!("{hits} of {count}")
    };
    println!(
        "strength of 0.5 and more: extraction {}, honest {}",
        found(&extraction),
        found(&honest)
    );
    for group in &extraction {
        println!("  {:<26}{}", group.name, found(std::slice::from_ref(group)));
    }

    let builtin_us =
        microseconds(&[""], &|_| TextFacts::builtin().map_or(0, |f| f.phrases().len()));
    println!("\nreading the data files: {:.0} ms", builtin_us / 1000.0);
    println!("microseconds a prompt{:>10}{:>10}{:>10}{:>10}", "fold", "embed", "read", "hash");
    let lines: Vec<&str> =
        honest.iter().chain(&extraction).flat_map(|g| &g.texts).map(String::as_str).collect();
    let all = lines.join(" ");
    for length in [62, 900, 2000] {
        // Different stretches of the text, so that caches do not know the next one.
        let prompts: Vec<&str> = (0..64).map(|i| &all[i * 180..i * 180 + length]).collect();
        let fold_us = microseconds(&prompts, &|p| fold(p).text.len());
        let embed_us = microseconds(&prompts, &|p| facts.embed(p).numbers().len());
        let read_us = microseconds(&prompts, &|p| facts.read("", p).tricks.total() as usize);
        let hash_us = microseconds(&prompts, &|p| hashed(p).len());
        println!(
            "{length:>10} characters {fold_us:>10.1}{embed_us:>10.1}{read_us:>10.1}{hash_us:>10.1}"
        );
    }
    Ok(())
}

/// Area under the ROC curve, hits and false alarms at the best accuracy, and how often an
/// extraction prompt's kind is right.
fn report(
    name: &str,
    score: &dyn Fn(&str) -> (String, f32),
    extraction: &[Group],
    honest: &[Group],
) {
    let scored = |groups: &[Group]| -> Vec<(bool, f32)> {
        let texts = groups.iter().flat_map(|g| g.texts.iter().map(move |t| (g, t)));
        let scores = texts.map(|(g, t)| (g, score(t)));
        scores.map(|(g, (kind, s))| (kind == g.name, s)).collect()
    };
    let (yes, no) = (scored(extraction), scored(honest));
    let pairs = yes.iter().flat_map(|(_, y)| no.iter().map(move |(_, n)| (*y, *n)));
    let won: f64 = pairs
        .map(|(y, n)| {
            if y > n {
                1.0
            } else if y < n {
                0.0
            } else {
                0.5
            }
        })
        .sum();
    let share = |some: &[(bool, f32)], at: f32| {
        some.iter().filter(|(_, s)| *s >= at).count() as f64 / some.len() as f64
    };
    let thresholds = yes.iter().map(|(_, s)| *s).filter(|s| *s != 0.0);
    let best = thresholds.max_by(|a, b| {
        (share(&yes, *a) - share(&no, *a)).total_cmp(&(share(&yes, *b) - share(&no, *b)))
    });
    let at = best.unwrap_or(f32::MAX);
    let right = yes.iter().filter(|(right, _)| *right).count() as f64 / yes.len() as f64;
    println!(
        "{name:<28}{:>8.3}{:>11.1}%{:>11.1}%{:>11.1}%",
        won / (yes.len() * no.len()) as f64,
        100.0 * share(&yes, at),
        100.0 * share(&no, at),
        100.0 * right
    );
}

fn rates(facts: &TextFacts) -> Result<(), Box<dyn Error>> {
    #[derive(Default)]
    struct Counts {
        all: u32,
        half: u32,
        any: u32,
        phrases: u32,
        system_phrases: u32,
        safety: u32,
        tricks: u32,
        kinds: BTreeMap<u8, u32>,
        margins: Vec<f32>,
    }
    let mut sources: BTreeMap<String, Counts> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let row: serde_json::Value = serde_json::from_str(&line?)?;
        let text = |key: &str| row.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        let reading = facts.read(text("system"), text("text"));
        let counts = sources.entry(text("source").to_owned()).or_default();
        counts.all += 1;
        if let Some((kind, strength)) = reading.archetype {
            counts.any += 1;
            if strength >= 0.5 {
                counts.half += 1;
                *counts.kinds.entry(kind).or_default() += 1;
            }
        }
        let strong = |weights: &[f32]| u32::from(weights.iter().any(|&w| w >= 0.6));
        counts.phrases += strong(&reading.phrases);
        counts.system_phrases += strong(&reading.system_phrases);
        counts.safety += u32::from(reading.safety.is_some_and(|(_, s)| s >= 0.5));
        counts.tricks += u32::from(reading.tricks.total() > 0);
        counts.margins.push(facts.nearness(text("text")).margin);
    }
    println!(
        "{:<34}{:>7}{:>7}{:>7}{:>7}{:>8}{:>8}{:>8}{:>7} kinds",
        "source", "texts", ">=.5 %", "any %", "phr %", "sysphr %", "safety %", "tricks %", "m98"
    );
    let names = facts.archetypes().names();
    for (source, mut c) in sources {
        c.margins.sort_by(f32::total_cmp);
        let percent = |n: u32| 100.0 * f64::from(n) / f64::from(c.all);
        let mut kinds: Vec<_> =
            c.kinds.iter().map(|(k, n)| (*n, &names[usize::from(*k)])).collect();
        kinds.sort_by(|a, b| b.cmp(a));
        let kinds: Vec<String> = kinds.iter().take(3).map(|(n, k)| format!("{k} {n}")).collect();
        println!(
            "{source:<34}{:>7}{:>7.1}{:>7.1}{:>7.1}{:>8.1}{:>8.1}{:>8.1}{:>7.2} {}",
            c.all,
            percent(c.half),
            percent(c.any),
            percent(c.phrases),
            percent(c.system_phrases),
            percent(c.safety),
            percent(c.tricks),
            c.margins[c.margins.len() * 98 / 100],
            kinds.join(", ")
        );
    }
    let families: Vec<&str> = Family::ALL.iter().map(|f| f.name()).collect();
    println!("families: {}", families.join(", "));
    Ok(())
}

fn strength(facts: &TextFacts, text: &str) -> f32 {
    facts.read("", text).archetype.map_or(0.0, |(_, s)| s)
}

fn microseconds(prompts: &[&str], work: &dyn Fn(&str) -> usize) -> f64 {
    let rounds = if prompts.len() > 1 { 40 } else { 1 };
    // The best of several runs: what the work costs when nothing else runs.
    let mut best = Duration::MAX;
    for _ in 0..7 {
        #[expect(clippy::disallowed_methods, reason = "a measurement, not a conclusion")]
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            for prompt in prompts {
                black_box(work(black_box(prompt)));
            }
        }
        best = best.min(started.elapsed());
    }
    best.as_secs_f64() * 1e6 / (rounds * prompts.len()) as f64
}

/// The baseline: words, pairs of words and trigrams of characters, each hashed to one of 512
/// dimensions with a sign.
fn hashed(text: &str) -> Vec<f32> {
    let folded = fold(text).text;
    let mut vector = vec![0.0_f32; HASHED];
    let mut add = |seed: u64, parts: &[&[u8]]| {
        let mut h = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
        for &b in parts.iter().flat_map(|p| p.iter().chain(b" ")) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        h ^= h >> 29;
        let sign = if h >> 63 == 1 { 1.0 } else { -1.0 };
        vector[h as usize % HASHED] += sign;
    };
    let words: Vec<&str> =
        folded.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    for word in &words {
        add(1, &[word.as_bytes()]);
    }
    for pair in words.windows(2) {
        add(2, &[pair[0].as_bytes(), pair[1].as_bytes()]);
    }
    for three in folded.as_bytes().windows(3) {
        add(3, &[three]);
    }
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-9);
    vector.iter_mut().for_each(|v| *v /= norm);
    vector
}

fn hashed_all(groups: &[Group]) -> Vec<(String, Vec<Vec<f32>>)> {
    groups.iter().map(|g| (g.name.clone(), g.texts.iter().map(|t| hashed(t)).collect())).collect()
}

/// The rule that the archetypes use: the mean cosine to the three nearest examples.
fn nearest_three(examples: &[Vec<f32>], vector: &[f32]) -> f32 {
    let mut cosines: Vec<f32> = examples.iter().map(|e| dot(e, vector)).collect();
    cosines.sort_by(|a, b| b.total_cmp(a));
    cosines.iter().take(3).sum::<f32>() / 3.0
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[derive(Clone)]
struct Group {
    table: String,
    name: String,
    texts: Vec<String>,
}

/// Named lists of texts: `[table] name = […]` or `[[table]] name = "…", examples = […]`.
fn groups(text: &str) -> Result<Vec<Group>, Box<dyn Error>> {
    let root = DeTable::parse(text)?;
    let mut groups = Vec::new();
    let texts = |value: &DeValue<'_>| -> Vec<String> {
        let list = value.as_array().into_iter().flat_map(|a| a.iter());
        list.filter_map(|t| t.get_ref().as_str().map(str::to_owned)).collect()
    };
    for (table, value) in root.get_ref() {
        let table = table.get_ref().to_string();
        match value.get_ref() {
            DeValue::Table(lists) => {
                for (name, list) in lists {
                    let name = name.get_ref().to_string();
                    groups.push(Group { table: table.clone(), name, texts: texts(list.get_ref()) });
                }
            }
            DeValue::Array(array) => {
                for entry in array.iter().filter_map(|e| e.get_ref().as_table()) {
                    let field = |key: &str| entry.get(key).map(|v| v.get_ref());
                    let name =
                        field("name").and_then(|n| n.as_str()).unwrap_or_default().to_owned();
                    let texts = field("examples").map(texts).unwrap_or_default();
                    groups.push(Group { table: table.clone(), name, texts });
                }
            }
            _ => {}
        }
    }
    Ok(groups)
}
