//! The table of client facts: `data/clients.toml` as written, checked and resolved to bit masks.
//!
//! What it sees: a TOML text. Why it matters: what software looks like changes with every release,
//! so the facts are data that an operator can replace without a build. When it is wrong: a trait
//! that a future version drops makes that version look inconsistent; the file's own header says
//! which traits may be written down. Source: the file names them.
//!
//! Parsing is strict: unknown keys, unknown references, doubled names and impossible values are
//! errors, each with its line, and all that can be found in one pass are returned together.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{FamilyId, FamilySet};

/// Longest header name that is looked up; longer ones are nobody's habit.
pub(super) const NAME_BYTES_MAX: usize = 40;
/// Slots of the name table; a power of two, several times the names in use.
const NAME_SLOTS: usize = 1024;

/// What is wrong with a table of client facts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {key}: {problem}")]
pub struct FactsError {
    /// Line of the text, from 1.
    pub line: usize,
    /// Entry and key that the problem is in.
    pub key: String,
    /// What is wrong, in words.
    pub problem: String,
}

/// What is known of client software. See `data/clients.toml`.
#[derive(Clone, Debug)]
pub struct ClientFacts {
    pub(super) tls: Vec<TlsStack>,
    pub(super) http2: Vec<Http2Stack>,
    pub(super) families: Vec<Family>,
    /// Index into `families` by number.
    pub(super) by_number: [Option<u8>; 64],
    /// HTTP/2 stacks that some family runs over each TLS stack.
    pub(super) pairs: Vec<u64>,
    /// TLS stacks that some browser uses, and that something else than a browser uses.
    pub(super) browser_tls: u64,
    pub(super) script_tls: u64,
    pub(super) languages: Vec<(String, FamilySet)>,
    pub(super) names: Names,
    pub(super) value_prefixes: Vec<String>,
    pub(super) extensions: Vocabulary,
    pub(super) ciphers: Vocabulary,
    pub(super) groups: Vocabulary,
}

/// A TLS library as some program sets it up.
#[derive(Clone, Debug)]
pub(super) struct TlsStack {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) refines: u64,
    pub(super) middlebox: bool,
    pub(super) permutes: bool,
    pub(super) grease: Option<bool>,
    pub(super) extensions: AllNone,
    pub(super) ciphers: AllNone,
    pub(super) groups: AllNone,
    pub(super) ciphers_start: Vec<u16>,
    pub(super) cipher_count: Range<usize>,
    pub(super) tls13: Option<Tls13>,
    pub(super) point_formats: Option<String>,
    pub(super) ja4_b: Vec<String>,
}

/// Where the suites of TLS 1.3 stand among those of TLS 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tls13 {
    First,
    Last,
}

/// Members of a vocabulary that must be there, and that must not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AllNone {
    pub(super) all: u64,
    pub(super) none: u64,
}

impl AllNone {
    pub(super) fn holds(self, seen: u64) -> bool {
        seen & self.all == self.all && seen & self.none == 0
    }
}

/// An HTTP/2 library as some program sets it up.
#[derive(Clone, Debug)]
pub(super) struct Http2Stack {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) pseudo: Vec<String>,
    pub(super) settings_all: Vec<(u16, u32)>,
    pub(super) settings_none: Vec<(u16, u32)>,
    pub(super) ids_all: Vec<u16>,
    pub(super) ids_none: Vec<u16>,
    pub(super) ids_start: Vec<u16>,
    pub(super) window_update: (u32, u32),
    pub(super) window_update_usual: u32,
}

/// What a client is at heart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientKind {
    /// A person's web browser.
    Browser,
    /// A library or a command-line tool.
    Script,
    /// A gRPC library.
    Grpc,
}

/// Software that names itself, and what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) id: String,
    pub(super) number: FamilyId,
    pub(super) name: String,
    pub(super) kind: ClientKind,
    pub(super) user_agent: Vec<RawUserAgent>,
    pub(super) stainless_lang: Vec<String>,
    pub(super) stainless_runtime: Vec<String>,
    pub(super) version_after: Vec<String>,
    pub(super) permutes_from: Option<u32>,
    pub(super) tls: u64,
    pub(super) tls_strength: f32,
    pub(super) tls_unknown_strength: f32,
    pub(super) http2: u64,
    pub(super) http2_strength: f32,
    pub(super) http2_unknown_strength: f32,
    pub(super) headers: HeaderHabits,
}

/// What a family's header block looks like.
#[derive(Clone, Debug)]
pub(super) struct HeaderHabits {
    pub(super) since: Option<u32>,
    pub(super) present: u64,
    pub(super) present_on_post: u64,
    pub(super) absent: u64,
    /// Field of the name table, and what its value contains.
    pub(super) values: Vec<(u8, String)>,
    /// Neighbours of the chains: the first stands before the second where both are there.
    pub(super) order: Vec<(u8, u8)>,
    pub(super) missing: [f32; 3],
    pub(super) order_strength: f32,
    pub(super) h1_title: bool,
}

impl ClientFacts {
    /// The facts that ship with this version.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the file is compiled in and a test parses it")]
    pub fn builtin() -> Self {
        Self::parse(include_str!("../../data/clients.toml"))
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())
            .expect("the table that ships is valid")
    }

    /// Reads a table of facts.
    ///
    /// # Errors
    /// Everything that is wrong with the text; a syntax error or an unknown key hides what would
    /// follow from the rest.
    pub fn parse(text: &str) -> Result<Self, Vec<FactsError>> {
        let raw: RawFacts = toml::from_str(text).map_err(|error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            let key = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            let key = key.split('=').next().unwrap_or_default().trim().to_owned();
            vec![FactsError { line, key, problem: error.message().to_owned() }]
        })?;
        Resolver { text, errors: Vec::new() }.resolve(raw)
    }

    pub(super) fn family(&self, id: FamilyId) -> Option<&Family> {
        let index = self.by_number.get(usize::from(id.0)).copied().flatten()?;
        self.families.get(usize::from(index))
    }

    /// Names of the families in a set, by number.
    #[must_use]
    pub fn family_ids(&self, set: FamilySet) -> Vec<&str> {
        (0..64)
            .filter(|&n| set.contains(FamilyId(n)))
            .filter_map(|n| self.family(FamilyId(n)).map(|family| family.id.as_str()))
            .collect()
    }

    /// The family of that name in the table.
    #[must_use]
    pub fn family_of(&self, id: &str) -> Option<FamilyId> {
        self.families.iter().find(|family| family.id == id).map(|family| family.number)
    }

    /// What a family is called in evidence.
    #[must_use]
    pub fn family_name(&self, id: FamilyId) -> &str {
        self.family(id).map_or("software not in the table", |family| &family.name)
    }
}

/// Numbers that some rule speaks of; each has a bit.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary(Vec<u16>);

impl Vocabulary {
    fn of<'a>(lists: impl Iterator<Item = &'a Vec<u16>>) -> Self {
        let mut all: Vec<u16> = lists.flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// The bit of a number; 0 for one that no rule speaks of.
    pub(super) fn bit(&self, number: u16) -> u64 {
        match self.0.binary_search(&number) {
            Ok(at) if at < 64 => 1 << at,
            _ => 0,
        }
    }

    fn mask(&self, numbers: &[u16]) -> u64 {
        numbers.iter().fold(0, |mask, &number| mask | self.bit(number))
    }
}

/// What a header name is to the reader.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NameFact {
    /// Its field in family rules, if any speaks of it.
    pub(super) field: Option<u8>,
    /// Left out of the shape.
    pub(super) ignored: bool,
    /// Its value is part of the shape.
    pub(super) value: bool,
    /// Its value names a version or a machine.
    pub(super) machine: bool,
    /// Says that something stands between.
    pub(super) intermediary: bool,
}

/// Header names in lower case, found by an open-addressed hash table.
#[derive(Clone, Debug)]
pub(super) struct Names {
    facts: Vec<(String, NameFact)>,
    slots: Vec<u8>,
}

impl Names {
    fn new(known: BTreeMap<String, NameFact>) -> Self {
        let facts: Vec<(String, NameFact)> = known.into_iter().collect();
        let mut slots = vec![u8::MAX; NAME_SLOTS];
        for (index, (name, _)) in facts.iter().enumerate() {
            let mut slot = Self::slot(name.as_bytes());
            while slots[slot] != u8::MAX {
                slot = (slot + 1) % NAME_SLOTS;
            }
            slots[slot] = u8::try_from(index).unwrap_or(u8::MAX);
        }
        Self { facts, slots }
    }

    /// Looks up a name that is already in lower case.
    pub(super) fn get(&self, lower: &[u8]) -> Option<NameFact> {
        let mut slot = Self::slot(lower);
        loop {
            let (name, fact) = self.facts.get(usize::from(self.slots[slot]))?;
            if name.as_bytes() == lower {
                return Some(*fact);
            }
            slot = (slot + 1) % NAME_SLOTS;
        }
    }

    fn slot(name: &[u8]) -> usize {
        // FNV-1a: the table is ours, so nobody gains by choosing names that collide.
        let hash = name.iter().fold(0x811c_9dc5_u32, |hash, &byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        (hash ^ (hash >> 16)) as usize % NAME_SLOTS
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1
}

struct Resolver<'a> {
    text: &'a str,
    errors: Vec<FactsError>,
}

impl Resolver<'_> {
    fn resolve(mut self, raw: RawFacts) -> Result<ClientFacts, Vec<FactsError>> {
        self.unique("tls", raw.tls.iter().map(|stack| &stack.id));
        self.unique("http2", raw.http2.iter().map(|stack| &stack.id));
        self.unique("family", raw.family.iter().map(|family| &family.id));
        let extensions = Vocabulary::of(
            raw.tls.iter().flat_map(|stack| [&stack.extensions_all, &stack.extensions_none]),
        );
        let ciphers = Vocabulary::of(
            raw.tls.iter().flat_map(|stack| [&stack.ciphers_all, &stack.ciphers_none]),
        );
        let groups = Vocabulary::of(
            raw.tls.iter().flat_map(|stack| [&stack.groups_all, &stack.groups_none]),
        );
        for (what, size) in [
            ("extension", extensions.0.len()),
            ("cipher", ciphers.0.len()),
            ("group", groups.0.len()),
        ] {
            if size > 64 {
                self.at(0, "tls", format!("more than 64 different {what} numbers"));
            }
        }
        let tls_ids: Vec<String> = raw.tls.iter().map(|stack| stack.id.get_ref().clone()).collect();
        let http2_ids: Vec<String> =
            raw.http2.iter().map(|stack| stack.id.get_ref().clone()).collect();

        let mut tls = Vec::new();
        for stack in raw.tls {
            let refined: Vec<String> = stack.refines.iter().cloned().collect();
            let refines = self.references(&stack.id, "refines", &refined, &tls_ids);
            let [least, most] = stack.cipher_count.unwrap_or([0, usize::MAX - 1]);
            if least > most {
                self.entry(&stack.id, "cipher_count", "the least is above the most".to_owned());
            }
            for hash in &stack.ja4_b {
                if hash.len() != 12 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    self.entry(&stack.id, "ja4_b", format!("`{hash}` is not 12 hex digits"));
                }
            }
            let of = |words: &Vocabulary, all: &[u16], none: &[u16]| AllNone {
                all: words.mask(all),
                none: words.mask(none),
            };
            tls.push(TlsStack {
                refines,
                middlebox: stack.middlebox,
                permutes: stack.permutes,
                grease: stack.grease,
                extensions: of(&extensions, &stack.extensions_all, &stack.extensions_none),
                ciphers: of(&ciphers, &stack.ciphers_all, &stack.ciphers_none),
                groups: of(&groups, &stack.groups_all, &stack.groups_none),
                ciphers_start: stack.ciphers_start,
                cipher_count: least..most.saturating_add(1),
                tls13: stack.tls13,
                point_formats: stack.point_formats,
                ja4_b: stack.ja4_b,
                id: stack.id.into_inner(),
                name: stack.name,
            });
        }
        let mut http2 = Vec::new();
        for stack in raw.http2 {
            let [least, most] = stack.window_update.unwrap_or([0, u32::MAX]);
            if least > most {
                self.entry(&stack.id, "window_update", "the least is above the most".to_owned());
            }
            if let Some(order) = stack.pseudo.iter().find(|order| !is_pseudo_order(order)) {
                self.entry(&stack.id, "pseudo", format!("`{order}` is not an order of m, a, s, p"));
            }
            http2.push(Http2Stack {
                id: stack.id.into_inner(),
                name: stack.name,
                pseudo: stack.pseudo,
                settings_all: stack.settings_all,
                settings_none: stack.settings_none,
                ids_all: stack.ids_all,
                ids_none: stack.ids_none,
                ids_start: stack.ids_start,
                window_update: (least, most),
                window_update_usual: stack.window_update_usual,
            });
        }

        let mut names: BTreeMap<String, NameFact> = BTreeMap::new();
        for name in raw.shape.ignore_names {
            names.entry(name).or_default().ignored = true;
        }
        for name in raw.shape.value_names {
            names.entry(name).or_default().value = true;
        }
        for name in raw.shape.machine_names {
            names.entry(name).or_default().machine = true;
        }
        for name in raw.intermediary.headers {
            names.entry(name).or_default().intermediary = true;
        }
        // The reader itself asks for these.
        let mut fields: Vec<String> = FIELDS.iter().map(ToString::to_string).collect();
        for family in &raw.family {
            let headers = &family.headers;
            let chains = headers.order.iter().flatten();
            let values = headers.values.iter().map(|value| &value.name);
            let lists =
                headers.present.iter().chain(&headers.present_on_post).chain(&headers.absent);
            for name in lists.chain(chains).chain(values) {
                if !fields.contains(name) {
                    fields.push(name.clone());
                }
            }
        }
        if fields.len() > 64 {
            self.at(0, "family", "header habits speak of more than 64 names".to_owned());
        }
        for (field, name) in fields.iter().enumerate() {
            names.entry(name.clone()).or_default().field = u8::try_from(field).ok();
        }
        if names.len() > 250 {
            self.at(0, "shape", "more than 250 header names".to_owned());
        }
        for name in names.keys() {
            if name.len() > NAME_BYTES_MAX || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let problem = format!("`{name}` is not a short header name in lower case");
                self.at(0, "header names", problem);
            }
        }

        let mut families = Vec::new();
        let mut by_number = [None; 64];
        for (index, family) in raw.family.into_iter().enumerate() {
            let number = *family.number.get_ref();
            match by_number.get_mut(usize::from(number)) {
                None => self.at(family.number.span().start, "number", "is above 63".to_owned()),
                Some(Some(_)) => {
                    let problem = format!("{number} is another family's");
                    self.at(family.number.span().start, "number", problem);
                }
                Some(free) => *free = u8::try_from(index).ok(),
            }
            if let Some(family) = self.family(family, &tls_ids, &http2_ids, &fields) {
                families.push(family);
            }
        }
        if !self.errors.is_empty() {
            self.errors.sort_by_key(|error| error.line);
            return Err(self.errors);
        }

        let all_http2 = mask_of_first(http2.len());
        let mut pairs = vec![0; tls.len()];
        let (mut browser_tls, mut script_tls) = (0, 0);
        let mut languages: Vec<(String, FamilySet)> = Vec::new();
        for family in &families {
            // An SDK inside a browser and an application with a browser inside are neither here
            // nor there.
            match family.kind {
                ClientKind::Browser if !family.version_after.is_empty() => {
                    browser_tls |= family.tls;
                }
                ClientKind::Browser => {}
                ClientKind::Script | ClientKind::Grpc => script_tls |= family.tls,
            }
            for language in &family.stainless_lang {
                match languages.iter_mut().find(|(known, _)| known == language) {
                    Some((_, set)) => set.insert(family.number),
                    None => {
                        let mut set = FamilySet::default();
                        set.insert(family.number);
                        languages.push((language.clone(), set));
                    }
                }
            }
        }
        for family in &families {
            for (stack, allowed) in pairs.iter_mut().enumerate() {
                let stack = 1 << stack;
                // Of the many that may run over a common library not all are known; over a
                // browser's own TLS there is nothing but what is listed.
                if family.tls & stack != 0 {
                    let open = family.http2 == 0 && browser_tls & stack == 0;
                    *allowed |= if open { all_http2 } else { family.http2 };
                }
            }
        }
        Ok(ClientFacts {
            tls,
            http2,
            families,
            by_number,
            pairs,
            browser_tls,
            script_tls,
            languages,
            names: Names::new(names),
            value_prefixes: raw.shape.value_prefixes,
            extensions,
            ciphers,
            groups,
        })
    }

    fn family(
        &mut self,
        raw: RawFamily,
        tls_ids: &[String],
        http2_ids: &[String],
        fields: &[String],
    ) -> Option<Family> {
        let id = &raw.id;
        if raw.user_agent.is_empty() && raw.stainless_lang.is_empty() {
            self.entry(id, "user_agent", "nothing says how it names itself".to_owned());
        }
        for pattern in &raw.user_agent {
            if pattern.exact.is_none() && pattern.starts.is_none() && pattern.contains.is_none() {
                self.entry(id, "user_agent", "a pattern matches everything".to_owned());
            }
        }
        let headers = raw.headers;
        let strengths = [
            raw.tls_strength,
            raw.tls_unknown_strength,
            raw.http2_strength,
            raw.http2_unknown_strength,
            headers.order_strength,
        ];
        if !strengths.iter().chain(&headers.missing).all(|s| (0.0..=1.0).contains(s)) {
            self.entry(id, "strength", "is not between 0 and 1".to_owned());
        }
        let tls = self.references(id, "tls", &raw.tls, tls_ids);
        let http2 = self.references(id, "http2", &raw.http2, http2_ids);
        let field = |name: &String| {
            fields.iter().position(|known| known == name).and_then(|at| u8::try_from(at).ok())
        };
        let mask = |names: &[String]| {
            names.iter().filter_map(field).fold(0_u64, |mask, at| mask | (1 << (at % 64)))
        };
        let order = headers
            .order
            .iter()
            .flat_map(|chain| chain.windows(2))
            .filter_map(|pair| Some((field(&pair[0])?, field(&pair[1])?)))
            .collect();
        let values = headers
            .values
            .iter()
            .filter_map(|value| Some((field(&value.name)?, value.contains.clone())))
            .collect();
        Some(Family {
            number: FamilyId(raw.number.into_inner()),
            name: raw.name,
            kind: raw.kind,
            user_agent: raw.user_agent,
            stainless_lang: raw.stainless_lang,
            stainless_runtime: raw.stainless_runtime,
            version_after: raw.version_after,
            permutes_from: raw.permutes_from,
            tls,
            tls_strength: raw.tls_strength,
            tls_unknown_strength: raw.tls_unknown_strength,
            http2,
            http2_strength: raw.http2_strength,
            http2_unknown_strength: raw.http2_unknown_strength,
            headers: HeaderHabits {
                since: headers.since,
                present: mask(&headers.present),
                present_on_post: mask(&headers.present_on_post),
                absent: mask(&headers.absent),
                values,
                order,
                missing: headers.missing,
                order_strength: headers.order_strength,
                h1_title: matches!(headers.h1_names, Some(NameCase::Title)),
            },
            id: raw.id.into_inner(),
        })
    }

    fn references(
        &mut self,
        entry: &Spanned<String>,
        key: &str,
        wanted: &[String],
        known: &[String],
    ) -> u64 {
        let mut mask = 0;
        for id in wanted {
            match known.iter().position(|other| other == id) {
                Some(at) => mask |= 1 << (at % 64),
                None => self.entry(entry, key, format!("there is no `{id}`")),
            }
        }
        mask
    }

    fn unique<'a>(&mut self, table: &str, ids: impl Iterator<Item = &'a Spanned<String>>) {
        let mut seen: Vec<&str> = Vec::new();
        for id in ids {
            if seen.contains(&id.get_ref().as_str()) {
                self.entry(id, table, "the id is used twice".to_owned());
            }
            seen.push(id.get_ref());
        }
        if seen.len() > 64 {
            self.at(0, table, "more than 64 entries".to_owned());
        }
    }

    fn entry(&mut self, id: &Spanned<String>, key: &str, problem: String) {
        self.at(id.span().start, &format!("{}.{key}", id.get_ref()), problem);
    }

    fn at(&mut self, at: usize, key: &str, problem: String) {
        let line = line_of(self.text, at);
        self.errors.push(FactsError { line, key: key.to_owned(), problem });
    }
}

/// Header fields that the reader asks for by itself, in the order of their fields.
const FIELDS: [&str; 7] = [
    "user-agent",
    "sec-fetch-mode",
    "content-type",
    "x-stainless-lang",
    "x-stainless-runtime",
    "upgrade",
    "accept",
];
pub(super) const FIELD_USER_AGENT: u8 = 0;
pub(super) const FIELD_SEC_FETCH_MODE: u8 = 1;
pub(super) const FIELD_CONTENT_TYPE: u8 = 2;
pub(super) const FIELD_STAINLESS_LANG: u8 = 3;
pub(super) const FIELD_STAINLESS_RUNTIME: u8 = 4;
pub(super) const FIELD_UPGRADE: u8 = 5;
pub(super) const FIELD_ACCEPT: u8 = 6;

fn mask_of_first(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

fn is_pseudo_order(order: &str) -> bool {
    let mut letters: Vec<&str> = order.split(',').collect();
    letters.sort_unstable();
    letters == ["a", "m", "p", "s"]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFacts {
    shape: RawShape,
    intermediary: RawIntermediary,
    tls: Vec<RawTls>,
    http2: Vec<RawHttp2>,
    family: Vec<RawFamily>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShape {
    ignore_names: Vec<String>,
    value_names: Vec<String>,
    value_prefixes: Vec<String>,
    machine_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIntermediary {
    headers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    id: Spanned<String>,
    name: String,
    refines: Option<String>,
    #[serde(default)]
    middlebox: bool,
    #[serde(default)]
    permutes: bool,
    grease: Option<bool>,
    #[serde(default)]
    extensions_all: Vec<u16>,
    #[serde(default)]
    extensions_none: Vec<u16>,
    #[serde(default)]
    ciphers_all: Vec<u16>,
    #[serde(default)]
    ciphers_none: Vec<u16>,
    #[serde(default)]
    ciphers_start: Vec<u16>,
    cipher_count: Option<[usize; 2]>,
    tls13: Option<Tls13>,
    #[serde(default)]
    groups_all: Vec<u16>,
    #[serde(default)]
    groups_none: Vec<u16>,
    point_formats: Option<String>,
    #[serde(default)]
    ja4_b: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp2 {
    id: Spanned<String>,
    name: String,
    pseudo: Vec<String>,
    #[serde(default)]
    settings_all: Vec<(u16, u32)>,
    #[serde(default)]
    settings_none: Vec<(u16, u32)>,
    #[serde(default)]
    ids_all: Vec<u16>,
    #[serde(default)]
    ids_none: Vec<u16>,
    #[serde(default)]
    ids_start: Vec<u16>,
    window_update: Option<[u32; 2]>,
    #[serde(default)]
    window_update_usual: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFamily {
    id: Spanned<String>,
    number: Spanned<u8>,
    name: String,
    kind: ClientKind,
    #[serde(default)]
    user_agent: Vec<RawUserAgent>,
    #[serde(default)]
    stainless_lang: Vec<String>,
    #[serde(default)]
    stainless_runtime: Vec<String>,
    #[serde(default)]
    version_after: Vec<String>,
    permutes_from: Option<u32>,
    tls: Vec<String>,
    tls_strength: f32,
    #[serde(default)]
    tls_unknown_strength: f32,
    http2: Vec<String>,
    #[serde(default)]
    http2_strength: f32,
    #[serde(default)]
    http2_unknown_strength: f32,
    #[serde(default)]
    headers: RawHeaders,
}

/// One way in which a family names itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUserAgent {
    pub(super) exact: Option<String>,
    pub(super) starts: Option<String>,
    pub(super) contains: Option<String>,
    pub(super) without: Option<String>,
    /// Start of `x-stainless-runtime`.
    pub(super) runtime: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeaders {
    since: Option<u32>,
    #[serde(default)]
    present: Vec<String>,
    #[serde(default)]
    present_on_post: Vec<String>,
    #[serde(default)]
    absent: Vec<String>,
    #[serde(default)]
    values: Vec<RawValue>,
    #[serde(default)]
    order: Vec<Vec<String>>,
    #[serde(default)]
    missing: [f32; 3],
    #[serde(default)]
    order_strength: f32,
    h1_names: Option<NameCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawValue {
    name: String,
    contains: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NameCase {
    Title,
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
[shape]
ignore_names = []
value_names = []
value_prefixes = []
machine_names = []
[intermediary]
headers = []
[[tls]]
id = "t"
name = "T"
[[http2]]
id = "h"
name = "H"
pseudo = ["m,a,s,p"]
[[family]]
id = "f"
number = 1
name = "F"
kind = "script"
user_agent = [{ starts = "f/" }]
tls = ["t"]
tls_strength = 0.5
http2 = ["h"]
"#;

    fn errors(change: impl Fn(&str) -> String) -> Vec<String> {
        let errors = ClientFacts::parse(&change(LEAST)).expect_err("must be refused");
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_table_that_ships_is_valid() {
        let facts = ClientFacts::builtin();
        assert!(facts.families.len() > 30);
        for family in &facts.families {
            assert_eq!(facts.family_of(&family.id), Some(family.number));
        }
        assert!(ClientFacts::parse(LEAST).is_ok());
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let found = errors(|text| text.replace("name = \"F\"", "nam = \"F\""));
        assert!(found[0].starts_with("line 19: nam: unknown field"), "{found:?}");
        let found = errors(|text| {
            text.replace("tls = [\"t\"]", "tls = [\"x\"]")
                .replace("http2 = [\"h\"]", "http2 = [\"y\"]")
                .replace("m,a,s,p", "m,a,s")
                .replace("0.5", "1.5")
        });
        assert_eq!(
            found,
            [
                "line 13: h.pseudo: `m,a,s` is not an order of m, a, s, p",
                "line 17: f.strength: is not between 0 and 1",
                "line 17: f.tls: there is no `x`",
                "line 17: f.http2: there is no `y`",
            ]
        );
        let found = errors(|text| text.replace("number = 1", "number = 64"));
        assert_eq!(found, ["line 18: number: is above 63"]);
        let found = errors(|text| format!("{text}\n[[tls]]\nid = \"t\"\nname = \"again\"\n"));
        assert_eq!(found, ["line 27: t.tls: the id is used twice"]);
        let found = errors(|text| text.replace("{ starts = \"f/\" }", "{ without = \"f\" }"));
        assert_eq!(found, ["line 17: f.user_agent: a pattern matches everything"]);
    }
}
