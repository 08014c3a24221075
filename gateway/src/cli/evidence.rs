//! `stillgate evidence`: what is known of a cluster and what was decided, as a folder that a third
//! party can check without Stillgate.
//!
//! What it holds and what it proves is said to its reader in the folder's own `README.txt`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::audit::each_link;
use crate::audit::{Act, Actor, Anchor, Chain, Chained, Entry, Link, Told};
use crate::config::file::read_bounded;
use crate::ioc::sign::{ED25519_SPKI, SigningKey, VerifyKey};
use crate::limits::{EVIDENCE_FILES_MAX, EVIDENCE_TEXT_BYTES_MAX};
use crate::policy::unix_ms;
use crate::store::{Reader, Table};

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The cluster, 16 hex digits.
    #[arg(value_name = "CLUSTER", required_unless_present = "check")]
    cluster: Option<String>,
    /// Data directory of a gateway, running or not, or a backup of one.
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    data: Option<PathBuf>,
    /// Folder to be made.
    #[arg(long, value_name = "FOLDER", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Sign it: an Ed25519 key in PEM (openssl genpkey -algorithm ed25519).
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Check a folder instead.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["cluster", "data", "out", "sign_key"])]
    check: Option<PathBuf>,
    /// With --check: the public key, in PEM, that must have signed it.
    #[arg(long, value_name = "FILE", requires = "check")]
    signer: Option<PathBuf>,
    /// With --check: a head of the audit that was kept, as NUMBER:HASH. May be repeated.
    #[arg(long, value_name = "HEAD", requires = "check")]
    anchor: Vec<Anchor>,
}

/// Runs the command.
///
/// # Errors
/// Why no folder was made, or what in a folder is not as it should be.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<(), String> {
    let said = match options {
        Options { check: Some(folder), .. } => {
            let checked = check(folder, options.signer.as_deref(), &options.anchor)?;
            let Checked { files, after, head, signed } = checked;
            let signed = match signed {
                Signed::By => "signed by the given key",
                Signed::Somebody => "signed, but --signer did not say by whom it must be",
                Signed::Not => "not signed",
            };
            format!("{files} files, entries {} to {}, head {head}; {signed}", after + 1, head.seq)
        }
        Options { cluster: Some(cluster), data: Some(data), out: Some(folder), .. } => {
            let key = options.sign_key.as_deref().map(read_key).transpose()?;
            let reader = Reader::open(data).map_err(|error| error.to_string())?;
            let told = make(cluster, &reader, folder, key.as_ref())?;
            let (accounts, head) = (told.accounts.len(), told.head);
            format!("{}: {accounts} accounts, audit up to {head}", folder.display())
        }
        // The parser asks for them.
        _ => return Err("give CLUSTER, --data and --out, or --check".to_owned()),
    };
    writeln!(out, "{said}").map_err(|error| error.to_string())
}

const README: &str = include_str!("evidence/README.txt");
const CHECK: &str = include_str!("evidence/check.py");
const SUMS: &str = "SHA256SUMS";
const SIGNATURE: &str = "SHA256SUMS.sig";
/// Files that hold nothing but entries of the audit, byte for byte.
const EXCERPTS: [&str; 3] = ["decisions.ndjson", "takedowns.ndjson", "marks.ndjson"];

/// `evidence.json`.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    /// The cluster, 16 hex digits.
    cluster: String,
    /// Everybody who was in it, suspended or spared.
    accounts: BTreeSet<String>,
    /// When the folder was made, unix milliseconds.
    made_ms: u64,
    /// By which program.
    made_by: String,
    /// What `audit.ndjson` begins after.
    after: Anchor,
    /// Its last entry: the audit's when the folder was made.
    head: Anchor,
}

/// Makes the folder.
fn make(
    cluster: &str,
    reader: &Reader,
    folder: &Path,
    key: Option<&Ed25519KeyPair>,
) -> Result<About, String> {
    if cluster.len() != 16 || !cluster.bytes().all(digits) {
        return Err(format!("\"{cluster}\" is no cluster: 16 hex digits in lower case"));
    }
    if folder.exists() {
        return Err(format!("{} is there already", folder.display()));
    }
    // A folder that was not finished never stands under its name.
    let mut unfinished = folder.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700).create(&unfinished).map_err(cannot(&unfinished))?;
    let made = fill(cluster, reader, &unfinished, key).and_then(|about| {
        fs::rename(&unfinished, folder).map_err(cannot(folder))?;
        Ok(about)
    });
    if made.is_err() {
        // It holds nothing that is not in the store.
        let _ = fs::remove_dir_all(&unfinished);
    }
    made
}

fn fill(
    cluster: &str,
    reader: &Reader,
    folder: &Path,
    key: Option<&Ed25519KeyPair>,
) -> Result<About, String> {
    let store = |error: crate::store::StoreError| error.to_string();
    let mut accounts = BTreeSet::new();
    let takedown = reader.get(Table::Takedown, cluster).map_err(store)?;
    let takedown: Option<Value> =
        takedown.and_then(|register| serde_json::from_str(&register.value?).ok());
    if let Some(takedown) = &takedown {
        add_accounts(&mut accounts, takedown);
    }
    // Who was ever in it; the audit is checked on the way. Then what it says of them.
    let mut chain = Chain::default();
    let head = reader.audit_head().map_err(store)?;
    let broken = |broken: crate::audit::Broken| format!("the audit is damaged: {broken}");
    each_up_to(reader, head.seq, |chained| {
        chain.check(&Link::shown(chained.clone())).map_err(broken)?;
        if let Ok(entry) = chained.entry()
            && entry.cluster.as_deref() == Some(cluster)
        {
            accounts.extend(entry.account.map(|account| account.as_str().to_owned()));
            add_accounts(&mut accounts, &entry.detail);
        }
        Ok(())
    })?;
    let head = chain.finish().map_err(broken)?;

    let mut audit = Lines::create(folder, "audit.ndjson")?;
    let [mut decisions, mut takedowns, mut marks] =
        EXCERPTS.map(|name| Lines::create(folder, name));
    let mut policies = BTreeSet::new();
    let mut before = Anchor::default();
    let mut after = None;
    each_up_to(reader, head.seq, |chained| {
        let place = Anchor { seq: chained.seq, hash: chained.hash.clone() };
        let entry = chained.entry().ok();
        let about = entry.as_ref().is_some_and(|entry| concerns(entry, cluster, &accounts));
        if about && after.is_none() {
            after = Some(before.clone());
        }
        before = place;
        if after.is_none() {
            return Ok(());
        }
        let Some(entry) = entry.filter(|entry| about || tells_of_policy(entry)) else {
            return audit.write(&Link::withheld(&chained).line());
        };
        policies.extend(entry.detail.get("policy").and_then(Value::as_str).map(str::to_owned));
        if let Actor::Policy(version) = entry.actor {
            policies.insert(version);
        }
        let excerpt = match entry.act {
            Act::MarkReturned => &mut marks,
            Act::TakedownWaits | Act::TakenDown | Act::TakedownJoined | Act::TakedownUndone => {
                &mut takedowns
            }
            _ => &mut decisions,
        };
        excerpt.as_mut().map_err(|error| error.clone())?.write(&chained.text)?;
        audit.write(&Link::shown(chained).line())
    })?;
    let Some(after) = after else {
        return Err(format!("no entry of the audit tells of cluster {cluster}"));
    };
    audit.finish()?;
    for excerpt in [decisions, takedowns, marks] {
        excerpt?.finish()?;
    }

    let texts = folder.join("policies");
    fs::create_dir(&texts).map_err(cannot(&texts))?;
    for version in &policies {
        let register = reader.get(Table::Policy, version).map_err(store)?;
        let text =
            register.and_then(|register| serde_json::from_str::<String>(&register.value?).ok());
        // A version is a hash, so nothing of it leads out of the folder.
        if let Some(text) = text.filter(|_| version.bytes().all(digits)) {
            write(folder, &format!("policies/{version}.toml"), text.as_bytes())?;
        }
    }
    // The takedown with its own indicators. A bundle signed for peers has its place beside it.
    write_json(folder, "indicators.json", &takedown.unwrap_or_default())?;
    let served = reader.scan(Table::Mark).map_err(store)?;
    let served: Vec<Value> = served
        .iter()
        .filter(|register| register.value.is_some())
        .filter_map(|register| register.key.split_once(' '))
        .filter(|(account, of)| accounts.contains(*account) || *of == cluster)
        .map(|(account, of)| json!({ "account": account, "marked_as_cluster": of }))
        .collect();
    write_json(folder, "served.json", &served)?;
    let made_by = format!("stillgate {}", env!("CARGO_PKG_VERSION"));
    let cluster = cluster.to_owned();
    let about = About { cluster, accounts, made_ms: unix_ms(), made_by, after, head };
    write_json(folder, "evidence.json", &about)?;
    write(folder, "README.txt", README.as_bytes())?;
    write(folder, "check.py", CHECK.as_bytes())?;
    if let Some(key) = key {
        write(folder, "signer.pem", public_pem(key.public_key().as_ref()).as_bytes())?;
    }
    let mut sums = String::new();
    for name in files(folder)? {
        sums.push_str(&format!("{}  {name}\n", hash_file(&folder.join(&name))?));
    }
    write(folder, SUMS, sums.as_bytes())?;
    if let Some(key) = key {
        let signature = key.try_sign(sums.as_bytes()).map_err(|_| "cannot be signed".to_owned())?;
        write(folder, SIGNATURE, signature.as_ref())?;
    }
    Ok(about)
}

fn digits(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Gives every entry up to a number: the audit grows while it is read.
fn each_up_to(
    reader: &Reader,
    last: u64,
    mut take: impl FnMut(Chained) -> Result<(), String>,
) -> Result<(), String> {
    reader.audit_each(0, |entry| if entry.seq <= last { take(entry) } else { Ok(()) })
}

/// Accounts that a takedown names.
fn add_accounts(accounts: &mut BTreeSet<String>, told: &Value) {
    let lists = ["members", "suspended", "left_out"].iter().filter_map(|key| told.get(key));
    let named = lists.filter_map(Value::as_array).flatten();
    // An account alone, or with why.
    let named = named.filter_map(|element| element.as_str().or_else(|| element.get(0)?.as_str()));
    let trigger = told.get("trigger").and_then(Value::as_str);
    accounts.extend(named.chain(trigger).map(str::to_owned));
}

/// Whether an entry is about the cluster or one of its accounts.
fn concerns(entry: &Entry, cluster: &str, accounts: &BTreeSet<String>) -> bool {
    let owners = entry.detail.get("owners").and_then(Value::as_array).into_iter().flatten();
    entry.cluster.as_deref() == Some(cluster)
        || entry.account.as_ref().is_some_and(|account| accounts.contains(account.as_str()))
        || owners.filter_map(Value::as_str).any(|owner| accounts.contains(owner))
}

/// Which policy was in force when is shown too; it is about nobody.
fn tells_of_policy(entry: &Entry) -> bool {
    matches!(entry.act, Act::Started | Act::PolicyChanged) && entry.account.is_none()
}

/// A file of lines under way.
struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn create(folder: &Path, name: &str) -> Result<Self, String> {
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(cannot(&path))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn write(&mut self, line: &str) -> Result<(), String> {
        let written =
            self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(cannot(&self.path))
    }

    fn finish(mut self) -> Result<(), String> {
        self.file.flush().map_err(cannot(&self.path))
    }
}

fn cannot(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(cannot(&path))
}

fn write_json(folder: &Path, name: &str, value: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| format!("{name}: {error}"))?;
    write(folder, name, format!("{text}\n").as_bytes())
}

/// Names of the files that `SHA256SUMS` lists, sorted: the folder's and its folders', no deeper.
fn files(folder: &Path) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((path, prefix)) = folders.pop() {
        for entry in fs::read_dir(&path).map_err(cannot(&path))? {
            let entry = entry.map_err(cannot(&path))?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(format!("{}: a name in it is not text", path.display()));
            };
            let kind = entry.file_type().map_err(cannot(&path))?;
            if kind.is_dir() && prefix.is_empty() {
                folders.push((entry.path(), format!("{name}/")));
            } else if !kind.is_file() {
                return Err(format!("{} is no file", entry.path().display()));
            } else if !(prefix.is_empty() && [SUMS, SIGNATURE].contains(&name.as_str())) {
                names.push(format!("{prefix}{name}"));
            }
            if names.len() > EVIDENCE_FILES_MAX {
                return Err(format!("has more than {EVIDENCE_FILES_MAX} files"));
            }
        }
    }
    names.sort();
    Ok(names)
}

fn hash_file(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(cannot(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(cannot(path))? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Reads a text of a folder that came from somebody else.
fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(cannot(path))?;
    file.take(EVIDENCE_TEXT_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot(path))?;
    if text.len() as u64 > EVIDENCE_TEXT_BYTES_MAX {
        return Err(format!("{}: more than {EVIDENCE_TEXT_BYTES_MAX} bytes", path.display()));
    }
    Ok(text)
}

fn read_key(path: &Path) -> Result<Ed25519KeyPair, String> {
    let pem = read_bounded(path).map_err(cannot(path))?;
    match SigningKey::ed25519(&pem) {
        Ok(SigningKey::Ed25519 { pair, .. }) => Ok(pair),
        Ok(SigningKey::Hmac { .. }) => Err(format!("{} is no Ed25519 key", path.display())),
        Err(wrong) => Err(format!("{} {wrong}", path.display())),
    }
}

fn public_pem(key: &[u8]) -> String {
    let der = STANDARD.encode([&ED25519_SPKI, key].concat());
    format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
}

fn read_public(path: &Path) -> Result<[u8; 32], String> {
    let pem = read_bounded(path).map_err(cannot(path))?;
    match VerifyKey::ed25519(&pem) {
        Ok(VerifyKey::Ed25519 { public, .. }) => Ok(public),
        Ok(VerifyKey::Hmac { .. }) => Err(format!("{} is no Ed25519 key", path.display())),
        Err(wrong) => Err(format!("{} {wrong}", path.display())),
    }
}

/// Whether a folder is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signed {
    /// By the key that was given.
    By,
    /// By the key that is in the folder, which anybody can have put there.
    Somebody,
    Not,
}

/// A folder that is whole.
#[derive(Debug, PartialEq, Eq)]
struct Checked {
    files: usize,
    /// Number before the first entry.
    after: u64,
    head: Anchor,
    signed: Signed,
}

/// Checks a folder.
fn check(folder: &Path, signer: Option<&Path>, anchors: &[Anchor]) -> Result<Checked, String> {
    let sums = read_text(&folder.join(SUMS))?;
    let signature = folder.join(SIGNATURE);
    let signed = match (signer, signature.exists()) {
        (None, false) => Signed::Not,
        (Some(_), false) => return Err("it is not signed".to_owned()),
        (signer, true) => {
            let own = folder.join("signer.pem");
            let key = read_public(signer.unwrap_or(&own))?;
            let signature = read_bounded(&signature).map_err(cannot(&signature))?;
            UnparsedPublicKey::new(&ED25519, key)
                .verify(sums.as_bytes(), &signature)
                .map_err(|_| format!("{SIGNATURE} is no signature of {SUMS} by this key"))?;
            if signer.is_some() { Signed::By } else { Signed::Somebody }
        }
    };
    let mut listed = Vec::new();
    for line in sums.lines() {
        let (digest, name) =
            line.split_once("  ").ok_or_else(|| format!("{SUMS}: not a sum: {line}"))?;
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(format!("{SUMS}: \"{name}\" is no file of the folder"));
        }
        if hash_file(&folder.join(name))? != digest {
            return Err(format!("{name} was changed"));
        }
        listed.push(name.to_owned());
    }
    listed.sort();
    if files(folder)? != listed {
        return Err(format!("the files are not those that {SUMS} lists"));
    }
    let about: About = serde_json::from_str(&read_text(&folder.join("evidence.json"))?)
        .map_err(|error| format!("evidence.json: {error}"))?;
    let mut anchors = anchors.to_vec();
    anchors.push(about.after.clone());
    let first = about.after.seq.saturating_add(1);
    let mut chain = Chain::through(anchors, first).map_err(|broken| broken.to_string())?;
    // Hashes of texts, not texts: there may be many.
    let mut shown = BTreeSet::new();
    each_link(&folder.join("audit.ndjson"), |link| {
        chain.check(&link).map_err(|broken| broken.to_string())?;
        if let Told::Text(text) = &link.told {
            shown.insert(<[u8; 32]>::from(Sha256::digest(text)));
        }
        Ok(())
    })?;
    let head = chain.finish().map_err(|broken| broken.to_string())?;
    if head != about.head {
        return Err("the chain does not end at its head".to_owned());
    }
    for name in EXCERPTS {
        for (number, text) in (1..).zip(read_text(&folder.join(name))?.lines()) {
            if !shown.contains(&<[u8; 32]>::from(Sha256::digest(text))) {
                return Err(format!("{name}:{number}: is not in the audit"));
            }
        }
    }
    for name in listed.iter().filter_map(|name| name.strip_prefix("policies/")) {
        let hash = hash_file(&folder.join("policies").join(name))?;
        if name.strip_suffix(".toml") != hash.get(..16) {
            return Err(format!("policies/{name} is not the policy of this version"));
        }
    }
    Ok(Checked { files: listed.len(), after: about.after.seq, head, signed })
}

#[cfg(test)]
mod tests {
    use detectors::AccountId;

    use super::*;
    use crate::audit::{Draft, Said};
    use crate::config::file::tests::TestDirectory;
    use crate::store::{Batch, Store, Write as Word};

    const CLUSTER: &str = "00000000000000aa";
    const POLICY: &str = "[tier]\n";

    /// Entries about a cluster of two and about others, between them.
    fn store(dir: &Path) -> std::sync::Arc<Store> {
        let store = Store::open(dir, Some("a"), "k").unwrap();
        let version = hex::encode(Sha256::digest(POLICY))[..16].to_owned();
        let policy = || Actor::Policy(version.clone());
        let tier = |account: &str, cluster: Option<&str>| {
            let mut draft = Draft::new(policy(), Act::TierChanged)
                .account(&AccountId::new(account))
                .detail(json!({ "tier": "high", "policy": version }));
            draft.cluster = cluster.map(str::to_owned);
            draft
        };
        let takedown =
            json!({ "suspended": ["acct-1", "acct-2"], "left_out": [["acct-3", "override"]] });
        let detail = json!({ "members": ["acct-1", "acct-2"], "policy": version });
        let audit = vec![
            Draft::new(Actor::System, Act::Started),
            tier("acct-9", None).because("somebody else"),
            tier("acct-1", None),
            tier("acct-2", Some(CLUSTER)),
            tier("acct-8", Some("00000000000000bb")).because("somebody else"),
            Draft::new(policy(), Act::TakenDown).cluster(CLUSTER).detail(detail),
            Draft::new(Actor::System, Act::MarkReturned)
                .account(&AccountId::new("acct-7"))
                .detail(json!({ "owners": ["acct-1"] })),
            Said::by_operator("o", "spared")
                .entry(Act::OverrideSet)
                .account(&AccountId::new("acct-3")),
            tier("acct-9", None).because("somebody else"),
        ];
        let writes = vec![
            Word::put(Table::Policy, &version, &POLICY),
            Word::put(Table::Takedown, CLUSTER, &takedown),
            Word::put(Table::Mark, format!("acct-1 {CLUSTER}"), &true),
            Word::put(Table::Mark, "acct-9 -", &true),
        ];
        store.commit(Batch { writes, audit }).wait().unwrap();
        store
    }

    fn key() -> Ed25519KeyPair {
        Ed25519KeyPair::generate().unwrap()
    }

    #[test]
    fn a_folder_holds_what_concerns_the_cluster_and_of_others_nothing() {
        let directory = TestDirectory::new();
        let data = directory.path().join("data");
        let _store = store(&data);
        let reader = Reader::open(&data).unwrap();
        let folder = directory.path().join("out");
        let about = make(CLUSTER, &reader, &folder, None).unwrap();
        assert_eq!(about.accounts.iter().collect::<Vec<_>>(), ["acct-1", "acct-2", "acct-3"]);
        assert_eq!((about.after.seq, about.head.seq), (2, 9), "it begins with the first entry");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let acts = |name: &str| {
            read(name)
                .lines()
                .map(|line| serde_json::from_str::<Entry>(line).unwrap().act)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            acts("decisions.ndjson"),
            [Act::TierChanged, Act::TierChanged, Act::OverrideSet]
        );
        assert_eq!(acts("takedowns.ndjson"), [Act::TakenDown]);
        assert_eq!(acts("marks.ndjson"), [Act::MarkReturned]);
        assert_eq!(read("audit.ndjson").matches(r#""digest":"#).count(), 2);
        let all: String = files(&folder).unwrap().iter().map(|name| read(name)).collect();
        for other in ["acct-8", "acct-9", "somebody else", "00000000000000bb"] {
            assert!(!all.contains(other), "{other}");
        }
        let served: Value = serde_json::from_str(&read("served.json")).unwrap();
        assert_eq!(served, json!([{ "account": "acct-1", "marked_as_cluster": CLUSTER }]));

        let checked = check(&folder, None, &[]).unwrap();
        assert_eq!((checked.after, &checked.head, checked.signed), (2, &about.head, Signed::Not));
        let other = Anchor { seq: 9, hash: "1".repeat(64) };
        assert!(check(&folder, None, &[other]).unwrap_err().contains("written anew"));
        assert!(make(CLUSTER, &reader, &folder, None).unwrap_err().contains("is there already"));
        let none = directory.path().join("none");
        for (cluster, said) in [("00000000000000cc", "no entry"), ("../../etc", "is no cluster")] {
            assert!(make(cluster, &reader, &none, None).unwrap_err().contains(said));
        }
        assert!(!none.exists() && !directory.path().join("none.unfinished").exists());
    }

    #[test]
    fn whatever_is_changed_in_a_folder_is_found_even_where_its_sums_are_made_right() {
        let directory = TestDirectory::new();
        let data = directory.path().join("data");
        let _store = store(&data);
        let folder = directory.path().join("out");
        let signer = key();
        make(CLUSTER, &Reader::open(&data).unwrap(), &folder, Some(&signer)).unwrap();
        let public = directory.write("signer.pem", public_pem(signer.public_key().as_ref()));
        let stranger = directory.write("stranger.pem", public_pem(key().public_key().as_ref()));
        assert_eq!(check(&folder, Some(&public), &[]).unwrap().signed, Signed::By);
        assert_eq!(check(&folder, None, &[]).unwrap().signed, Signed::Somebody);
        assert!(check(&folder, Some(&stranger), &[]).unwrap_err().contains("by this key"));

        let resum = || {
            let line =
                |name: &String| format!("{}  {name}\n", hash_file(&folder.join(name)).unwrap());
            let sums: String = files(&folder).unwrap().iter().map(line).collect();
            fs::write(folder.join(SUMS), sums).unwrap();
        };
        let whole = fs::read(folder.join(SUMS)).unwrap();
        for name in files(&folder).unwrap() {
            let path = folder.join(&name);
            let bytes = fs::read(&path).unwrap();
            for at in [0, bytes.len() / 3, bytes.len() - 1] {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                fs::write(&path, changed).unwrap();
                let error = check(&folder, None, &[]).unwrap_err();
                assert!(error.contains("was changed") || name == "signer.pem", "{name}: {error}");
            }
            fs::write(&path, bytes).unwrap();
        }
        fs::write(folder.join("more.txt"), "").unwrap();
        assert!(check(&folder, None, &[]).unwrap_err().contains("are not those"));
        fs::remove_file(folder.join("more.txt")).unwrap();
        // A forger without the key: the signature has to go, the chain and the excerpts hold.
        fs::remove_file(folder.join(SIGNATURE)).unwrap();
        let forge = |name: &str, from: &str, to: &str| {
            let path = folder.join(name);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            resum();
            let error = check(&folder, None, &[]).unwrap_err();
            fs::write(&path, text).unwrap();
            fs::write(folder.join(SUMS), &whole).unwrap();
            error
        };
        assert!(forge("decisions.ndjson", "high", "none").contains("is not in the audit"));
        assert!(forge("audit.ndjson", "high", "none").contains("entry 3 was changed"));
        assert!(forge("evidence.json", "\"seq\": 9", "\"seq\": 8").contains("its head"));
        let policy = format!("policies/{}.toml", &hex::encode(Sha256::digest(POLICY))[..16]);
        assert!(forge(&policy, "tier", "Tier").contains("is not the policy"));
        assert!(check(&folder, Some(&public), &[]).unwrap_err().contains("is not signed"));
    }
}
