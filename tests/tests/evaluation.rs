//! The judgement over generated traffic, scored by somebody else's scorer, where a folder with both
//! lies beside the repository. It is a tenth of the traffic, with campaigns of as few as four
//! accounts, so its bounds are wide; what they catch is a judgement that has gone astray.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[test]
fn generated_campaigns_are_found_and_customers_left_alone() {
    let Some(tools) = tools() else {
        eprintln!("SKIP: no traffic generator beside the repository");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("small");
    python(
        &tools,
        &["generate.py", "dev.toml", "--out", text(&base), "--scale", "0.1", "--no-compress"],
    );
    let trace = folder.path().join("small.trace.jsonl");
    let labels = folder.path().join("small.labels.csv");
    let (verdicts, score) = (folder.path().join("v.jsonl"), folder.path().join("s.json"));
    let done = Command::new(harness::binary())
        .args(["replay", text(&trace), "--out", text(&verdicts)])
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    python(&tools, &["score.py", text(&labels), text(&verdicts), "--json", text(&score)]);
    let score: Value =
        serde_json::from_slice(&std::fs::read(&score).expect("a score")).expect("JSON");
    let benign = &score["fpr"]["overall"];
    assert_eq!(benign["high"]["k"], 0, "{benign}");
    assert!(benign["medium"]["k"].as_u64().unwrap() <= 1, "{benign}");
    assert!(benign["low"]["k"].as_u64().unwrap() <= 6, "{benign}");
    for (evasion, least) in [("E0", 0.4), ("E1", 0.6), ("E2", 0.2)] {
        let recall = score["recall"]["evasion"][evasion]["medium"].as_f64().unwrap();
        assert!(recall >= least, "{evasion}: {recall}");
    }
    assert!(score["clusters"]["purity"].as_f64().unwrap() >= 0.9, "{}", score["clusters"]);
}

fn tools() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/eval");
    folder.join("generate.py").is_file().then_some(folder)
}

fn python(folder: &Path, arguments: &[&str]) {
    let done = Command::new("python3").args(arguments).current_dir(folder).output();
    let done = done.expect("python3 runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}
