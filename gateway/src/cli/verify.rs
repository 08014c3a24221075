//! `stillgate verify INPUT...`: whose marks texts carry, and how sure that is.
//!
//! The texts are read once and never held; what is remembered are bounded sets of hashes. The
//! program ends well whether or not there is evidence: the answer is in what it prints.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use detectors::watermark::attribution::{DECOYS, WRONG_KEYS};
use detectors::watermark::{Candidate, Evidence, MasterKey, Report, Verdict, Wordings};
use serde_json::Value;

use crate::config::file::identity_key;
use crate::enforce::marks::master_key;
use crate::trace::{decompressed, read_line};

/// A text file is read in pieces of about this size, which are documents.
const DOCUMENT_BYTES: usize = 1024 * 1024;
/// More candidates than a gateway has accounts.
const CANDIDATES_MAX: usize = 1_000_000;
/// A key file is shorter.
const KEY_BYTES_MAX: u64 = 64 * 1024;
/// Fields in which data sets keep answers, and prompts.
const ANSWER_FIELDS: [&str; 6] =
    ["output", "completion", "response", "text", "messages", "conversations"];
const PROMPT_FIELDS: [&str; 6] =
    ["prompt", "instruction", "input", "question", "messages", "conversations"];
/// Rows of a table that are shown; `--json` has all.
const ROWS_SHOWN: usize = 12;
/// Width of the longest bar of the histogram.
const BAR_WIDTH: u32 = 40;

/// Arguments of `stillgate verify`.
#[derive(Debug, Args)]
pub struct Options {
    /// Texts, or data sets as .jsonl; plain, gzip or zstd; `-` reads standard input.
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// The gateway's `identity.key_file`: the marks' keys are derived from it.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Who may have been served: {"account", "cluster", "first_epoch", "last_epoch"} a line.
    #[arg(long, value_name = "FILE")]
    candidates: PathBuf,
    /// Prompts that led to the texts, as text or .jsonl: what stands there does not count.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The field of each line that has the text; inputs are then read as .jsonl.
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// The whole report as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is wrong with a file, in words for its owner.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), String> {
    let key = read_key(&options.key_file)?;
    let candidates = read_candidates(&options.candidates)?;
    let wordings = Wordings::builtin().map_err(|error| error.to_string())?;
    let mut evidence = Evidence::new(&wordings, &key);
    if let Some(path) = &options.prompts {
        read_texts(path, None, Side::Prompts, |text| evidence.read_prompt(text))?;
    }
    for path in &options.inputs {
        let field = options.field.as_deref();
        read_texts(path, field, Side::Answers, |text| evidence.read(text))?;
    }
    let report = evidence.report(&key, &candidates);
    let written = if options.json {
        serde_json::to_writer_pretty(&mut *out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        show(&report, out)
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write the report: {error}"))
        }
        _ => Ok(()),
    }
}

fn read_key(path: &Path) -> Result<MasterKey, String> {
    let mut secret = Vec::new();
    File::open(path)
        .and_then(|file| file.take(KEY_BYTES_MAX).read_to_end(&mut secret))
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let key = identity_key(&secret).map_err(|error| format!("{}: {error}", path.display()))?;
    master_key(&key).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_candidates(path: &Path) -> Result<Vec<Candidate>, String> {
    let mut candidates = Vec::new();
    lines(path, |line, number| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let candidate: Candidate = serde_json::from_str(line).map_err(|error| {
            // The error's own text quotes the line.
            let wanted = "needs account, cluster, first_epoch, last_epoch and nothing else";
            format!("{}:{number}:{}: {wanted}", path.display(), error.column())
        })?;
        let wrong = if candidate.account.is_empty() {
            Some("account is empty")
        } else if candidate.first_epoch > candidate.last_epoch {
            Some("first_epoch is after last_epoch")
        } else if candidates.len() >= CANDIDATES_MAX {
            Some("too many candidates")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return Err(format!("{}:{number}: {wrong}", path.display()));
        }
        candidates.push(candidate);
        Ok(())
    })?;
    if candidates.is_empty() {
        return Err(format!("{}: names no candidate", path.display()));
    }
    Ok(candidates)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Answers,
    Prompts,
}

/// Reads each text of a file.
fn read_texts(
    path: &Path,
    field: Option<&str>,
    side: Side,
    mut read: impl FnMut(&str),
) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let stem = name.trim_end_matches(".gz").trim_end_matches(".zst");
    let as_lines =
        field.is_some() || [".jsonl", ".ndjson"].iter().any(|ending| stem.ends_with(ending));
    if as_lines {
        return lines(path, |line, number| {
            if line.trim().is_empty() {
                return Ok(());
            }
            let wrong = |what: &str| format!("{}:{number}: {what}", path.display());
            let value: Value =
                serde_json::from_str(line).map_err(|_| wrong("is not a line of JSON"))?;
            let texts = texts(&value, field, side);
            if texts.is_empty() {
                return Err(match field {
                    Some(field) => wrong(&format!("has no text in {field:?}")),
                    None if side == Side::Answers => {
                        wrong("has no field with an answer; use --field")
                    }
                    None => wrong("has no field with a prompt"),
                });
            }
            texts.into_iter().for_each(&mut read);
            Ok(())
        });
    }
    let mut document = String::new();
    lines(path, |line, _| {
        document.push_str(line);
        document.push('\n');
        if document.len() >= DOCUMENT_BYTES {
            read(&document);
            document.clear();
        }
        Ok(())
    })?;
    if !document.is_empty() {
        read(&document);
    }
    Ok(())
}

/// The texts of a line: the named field, or the first that is known.
fn texts<'v>(value: &'v Value, field: Option<&str>, side: Side) -> Vec<&'v str> {
    let known = match side {
        Side::Answers => ANSWER_FIELDS,
        Side::Prompts => PROMPT_FIELDS,
    };
    let mut found = Vec::new();
    match (value, field) {
        (Value::String(text), None) => found.push(text.as_str()),
        (_, Some(field)) => gather(value.get(field), side, &mut found),
        (_, None) => {
            for field in known {
                gather(value.get(field), side, &mut found);
                // A prompt may stand in several fields; an answer stands in one.
                if !found.is_empty() && side == Side::Answers {
                    break;
                }
            }
        }
    }
    found
}

fn gather<'v>(value: Option<&'v Value>, side: Side, found: &mut Vec<&'v str>) {
    match value {
        Some(Value::String(text)) => found.push(text),
        Some(Value::Array(parts)) => {
            for part in parts {
                let speaker = part.get("role").or_else(|| part.get("from")).and_then(Value::as_str);
                let answers = matches!(speaker, Some("assistant" | "gpt" | "model" | "bot"));
                if speaker.is_some() && answers != (side == Side::Answers) {
                    continue;
                }
                let inner = ["content", "value", "text", "parts"].iter().find_map(|k| part.get(k));
                match (part, inner) {
                    (Value::String(text), _) => found.push(text),
                    (_, Some(Value::String(text))) => found.push(text),
                    (_, Some(Value::Array(inner))) => {
                        let inner = inner.iter().filter_map(|part| part.get("text")?.as_str());
                        found.extend(inner);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Calls for each line of a file, with its number from 1.
fn lines(path: &Path, mut each: impl FnMut(&str, u64) -> Result<(), String>) -> Result<(), String> {
    let opened = |error: io::Error| format!("{}: cannot be read: {error}", path.display());
    let (mut input, _): (Box<dyn BufRead + Send>, bool) = if path == Path::new("-") {
        decompressed(io::stdin()).map_err(opened)?
    } else {
        File::open(path).and_then(decompressed).map_err(opened)?
    };
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        let wrong = |what: &str| format!("{}:{number}: {what}", path.display());
        match read_line(&mut input, &mut line) {
            Ok(None) => return Ok(()),
            Ok(Some(false)) => return Err(wrong("the line is too long")),
            Ok(Some(true)) => {}
            Err(error) => return Err(wrong(&format!("cannot be read further: {error}"))),
        }
        let text = std::str::from_utf8(&line).map_err(|error| {
            wrong(&format!("is not UTF-8 from byte {} on", error.valid_up_to() + 1))
        })?;
        each(text.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(text), number)?;
    }
}

fn show(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let verdict = match report.verdict {
        Verdict::Evidence => "evidence",
        Verdict::Weak => "weak signs, not enough to name anybody",
        Verdict::NoEvidence => "no evidence",
    };
    writeln!(out, "verdict: {verdict}")?;
    writeln!(
        out,
        "read {} documents, {} bytes, against {} candidates",
        report.documents, report.bytes, report.candidates
    )?;

    writeln!(out, "\nlayer A, zero-width frames: {} cells read", report.frames.cells)?;
    if report.zero_width.is_empty() {
        writeln!(out, "  none")?;
    }
    for one in report.zero_width.iter().take(ROWS_SHOWN) {
        let who = match &one.accounts[..] {
            [] => format!("an account that is no candidate (tag {})", one.tag),
            accounts => accounts.join(" or "),
        };
        let (frames, week) = (one.frames, one.epoch);
        let verdict = name(one.verdict);
        writeln!(out, "  {who}: {frames} frames of week {week}: {verdict}")?;
    }
    more(report.zero_width.len(), out)?;

    let (slots, tuples, excluded) = (report.slots, report.tuples, report.tuples_excluded);
    writeln!(
        out,
        "\nlayer B, choice of wording: {slots} slots, {tuples} different with their context, \
         {excluded} left out for the prompts"
    )?;
    for one in report.lexical.iter().take(ROWS_SHOWN) {
        writeln!(
            out,
            "  {}: {} of {} as the key asks, p = {}, after Holm {}: {}",
            one.subject,
            one.votes.agreeing,
            one.votes.of,
            scientific(one.p_log10),
            scientific(one.p_holm.log10()),
            name(one.verdict)
        )?;
    }
    more(report.lexical.len(), out)?;

    writeln!(out, "\nlayer C, canaries, each against {DECOYS} decoys")?;
    if report.canaries.is_empty() {
        writeln!(out, "  none")?;
    }
    for one in report.canaries.iter().take(ROWS_SHOWN) {
        let (subject, found, p, p_holm) = (&one.subject, one.found.len(), one.p, one.p_holm);
        let verdict = name(one.verdict);
        writeln!(out, "  {subject}: {found} found, p = {p}, after Holm {p_holm}: {verdict}")?;
    }
    more(report.canaries.len(), out)?;

    if report.tuples > 0 {
        writeln!(
            out,
            "\np-values of {WRONG_KEYS} keys that nobody has; even bars mean that p-values can be \
             trusted\n(few slots give few different p-values); the smallest is {:.1e}",
            report.wrong_keys_p_min
        )?;
        let most = report.wrong_keys.iter().copied().max().unwrap_or(1).max(1);
        for (at, count) in report.wrong_keys.iter().enumerate() {
            let bar = "#".repeat((count * BAR_WIDTH / most) as usize);
            writeln!(out, "  0.{at} {count:>4} {bar}")?;
        }
    }
    if report.overflow > 0 {
        writeln!(out, "\n{} places were not counted for want of room", report.overflow)?;
    }
    if report.verdict != Verdict::Evidence {
        writeln!(
            out,
            "\nThis excludes little: a rewording by a model removes layers A and B, and so does \
             stripping\nof invisible characters for layer A alone. What then remains are canaries, \
             and the evidence\nof the campaign's traffic."
        )?;
    }
    Ok(())
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Evidence => "evidence",
        Verdict::Weak => "weak",
        Verdict::NoEvidence => "nothing beyond chance",
    }
}

fn more(rows: usize, out: &mut impl Write) -> io::Result<()> {
    match rows.checked_sub(ROWS_SHOWN) {
        None | Some(0) => Ok(()),
        Some(left) => writeln!(out, "  and {left} more; --json shows all"),
    }
}

/// A number by its decimal logarithm, also where it is too small for a float.
fn scientific(log10: f64) -> String {
    if log10 > -3.0 {
        return format!("{:.3}", 10_f64.powf(log10));
    }
    if !log10.is_finite() {
        return "below 1e-300".to_owned();
    }
    let exponent = log10.floor();
    format!("{:.1}e{exponent}", 10_f64.powf(log10 - exponent))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use detectors::watermark::{Identity, Layers, Marker, Marking};

    use super::*;
    use crate::config::file::tests::TestDirectory;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const CANDIDATES: &str = concat!(
        r#"{"account":"acc-1","cluster":"c-1","first_epoch":2960,"last_epoch":2970}"#,
        "\n",
        r#"{"account":"acc-2","cluster":null,"first_epoch":2960,"last_epoch":2970}"#,
        "\n"
    );

    fn prose() -> String {
        (0..40)
            .map(|at| {
                let word: String =
                    format!("{at:03}").bytes().map(|b| char::from(b - b'0' + b'k')).collect();
                format!(
                    "The {word}s do not wait for it in the end, and that is the {word} which may \
                     help improve all of the others. It is often said of {word} that they can be. "
                )
            })
            .collect()
    }

    fn marked() -> String {
        let key = master_key(&hex::decode(KEY).unwrap()).unwrap();
        let wordings = Arc::new(Wordings::builtin().unwrap());
        let identity = Identity { account: "acc-1", subject: "c-1", epoch: 2965 };
        let marking = Marking::new(Layers::ALL, &key, &wordings, identity, []);
        let mut marker = Marker::new(Arc::new(marking));
        let mut out = String::new();
        marker.push(&prose(), &mut out);
        marker.finish(&mut out);
        out
    }

    fn verify(files: &[(&str, &[u8])], change: impl Fn(&mut Options)) -> Result<String, String> {
        let directory = TestDirectory::new();
        let path = |name: &str| directory.path().join(name);
        let standard = [("key", KEY.as_bytes()), ("candidates", CANDIDATES.as_bytes())];
        for (name, bytes) in standard.iter().chain(files) {
            std::fs::write(path(name), bytes).unwrap();
        }
        let mut options = Options {
            inputs: files.iter().take(1).map(|(name, _)| path(name)).collect(),
            key_file: path("key"),
            candidates: path("candidates"),
            prompts: None,
            field: None,
            json: false,
        };
        change(&mut options);
        options.prompts = options.prompts.map(|name| directory.path().join(name));
        let mut out = Vec::new();
        run(&options, &mut out)
            .map(|()| String::from_utf8(out).unwrap())
            .map_err(|error| error.replace(&format!("{}/", directory.path().display()), ""))
    }

    #[test]
    fn marked_texts_are_attributed_from_every_kind_of_file() {
        let line = |value: Value| format!("{value}\n").into_bytes();
        let messages = serde_json::json!({"messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "text", "text": marked()}]},
        ]});
        let output = line(serde_json::json!({"input": "a", "output": marked()}));
        let files: [(&str, Vec<u8>); 4] = [
            ("a.txt", marked().into_bytes()),
            ("a.jsonl", output.clone()),
            ("b.jsonl.zst", zstd::encode_all(&output[..], 1).unwrap()),
            ("c.ndjson", line(messages)),
        ];
        for (name, bytes) in &files {
            let report = verify(&[(name, bytes)], |_| {}).unwrap();
            assert!(report.starts_with("verdict: evidence"), "{name}: {report}");
            assert!(report.contains("  acc-1: ") && report.contains("  c-1: "), "{report}");
        }
        let named = line(serde_json::json!({"odd": marked()}));
        let field = |options: &mut Options| options.field = Some("odd".into());
        assert!(verify(&[("a", &named)], field).unwrap().contains("evidence"));
    }

    #[test]
    fn unmarked_texts_are_no_evidence_and_the_report_says_what_that_means() {
        let report = verify(&[("a.txt", prose().as_bytes())], |_| {}).unwrap();
        assert!(report.starts_with("verdict: no evidence"), "{report}");
        assert!(report.contains("This excludes little") && report.contains("  0.9"), "{report}");
    }

    #[test]
    fn prompts_are_left_out_and_json_is_whole() {
        let files: [(&str, &[u8]); 2] =
            [("a.txt", marked().leak().as_bytes()), ("p.txt", prose().leak().as_bytes())];
        let report = verify(&files, |options| {
            options.prompts = Some("p.txt".into());
            options.json = true;
        });
        let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
        // A few are left: where a wording is exchanged, the next slot has another word before it.
        assert!(report["tuples"].as_u64().is_some_and(|left| left < 5), "{}", report["tuples"]);
        assert_eq!(report["lexical"].as_array().unwrap().len(), 2);
        assert_eq!(report["zero_width"][0]["accounts"][0], "acc-1");
        assert_eq!(report["verdict"], "evidence");
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let ok: (&str, &[u8]) = ("a.txt", b"text");
        for (files, expected) in [
            (
                vec![("a.jsonl", &b"{\"output\":\"a\"}\n{\n"[..])],
                "a.jsonl:2: is not a line of JSON",
            ),
            (vec![("a.jsonl", b"{\"x\":1}\n")], "a.jsonl:1: has no field with an answer"),
            (vec![("a.txt", b"a\n\xff\n")], "a.txt:2: is not UTF-8 from byte 1 on"),
            (vec![ok, ("candidates", b"\n{\"account\":1}\n")], "candidates:2:"),
            (vec![ok, ("candidates", b"\n")], "candidates: names no candidate"),
            (
                vec![ok, ("candidates", b"{\"account\":\"a\",\"first_epoch\":2,\"last_epoch\":1}")],
                "candidates:1: first_epoch is after last_epoch",
            ),
            (vec![ok, ("key", b"short")], "key: has 5 bytes"),
        ] {
            let error = verify(&files, |_| {}).unwrap_err();
            assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
        }
        let gone = |options: &mut Options| options.inputs = vec!["/nonexistent".into()];
        assert!(verify(&[ok], gone).unwrap_err().starts_with("/nonexistent: cannot be read"));
    }

    #[test]
    fn small_numbers_are_written() {
        assert_eq!(scientific(-0.5), "0.316");
        assert_eq!(scientific(-400.3), "5.0e-401");
        assert_eq!(scientific(f64::NEG_INFINITY), "below 1e-300");
    }
}
