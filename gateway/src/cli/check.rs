//! `stillgate check FILE...`: says everything that is wrong with configuration and policy files.
//!
//! It runs in front of a restart or a deployment, so it does what `run` does up to the point of
//! binding addresses: keys, tokens, certificates and the store are read too. Errors and warnings go to
//! stderr, one a line with file, line and key; the exit code says whether any file has an error.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use detectors::list::LIST;

use super::replay::load_policy;
use super::run::store_key_check;
use crate::config::{Config, StoreKind, file};
use crate::store::{Store, StoreError};

/// All files are in order.
pub const EXIT_OK: u8 = 0;
/// A file has an error, or none was given.
pub const EXIT_ERROR: u8 = 1;

/// Checks each file and gives the exit code.
///
/// # Errors
/// When the outcome cannot be written.
pub fn run(files: &[PathBuf], out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    if files.is_empty() {
        writeln!(err, "check: name at least one file")?;
        return Ok(EXIT_ERROR);
    }
    let mut exit = EXIT_OK;
    for path in files {
        if is_policy(path) {
            match load_policy(path) {
                Ok(policy) => {
                    let on = LIST.iter().filter(|entry| policy.enabled(entry.name)).count();
                    let off = LIST.len() - on;
                    let shadow =
                        if policy.enforcement.shadow { ", every action in shadow" } else { "" };
                    let path = path.display();
                    writeln!(out, "{path}: ok ({on} detectors on, {off} off{shadow})")?;
                }
                Err(faults) => {
                    exit = EXIT_ERROR;
                    writeln!(err, "{faults}")?;
                }
            }
            continue;
        }
        match file::load(path) {
            Ok(config) => {
                for warning in &config.warnings {
                    writeln!(err, "{warning} (warning)")?;
                }
                if config.store.kind != StoreKind::Memory
                    && let Err(error) = check_store(&config)
                {
                    exit = EXIT_ERROR;
                    writeln!(err, "{}: data_dir: {error}", path.display())?;
                    continue;
                }
                writeln!(out, "{}: ok ({})", path.display(), summary(&config))?;
            }
            Err(errors) => {
                exit = EXIT_ERROR;
                for error in errors {
                    writeln!(err, "{error}")?;
                }
            }
        }
    }
    Ok(exit)
}

fn check_store(config: &Config) -> Result<(), StoreError> {
    Store::check(&config.store.dir, &store_key_check(&config.identity.key))
}

/// Tables that a policy may have.
const POLICY_TABLES: &[&str] = &[
    "fusion",
    "tiers",
    "detector",
    "allow",
    "memory",
    "enforcement",
    "fleet",
    "action",
    "rule",
    "limit",
    "watermark",
    "words",
    "takedown",
];

/// Whether a file is a policy: it has one of a policy's tables and none that only a configuration
/// has. What cannot be read or parsed is reported as a configuration.
fn is_policy(path: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    let has = |tables: &[&str]| {
        text.lines().any(|line| {
            let table = line.trim().trim_start_matches('[').split([']', '.']).next().unwrap_or("");
            line.trim().starts_with('[') && tables.contains(&table.trim())
        })
    };
    has(POLICY_TABLES) && !has(&["listener", "upstream", "route", "identity", "admin"])
}

fn summary(config: &Config) -> String {
    let certificates =
        config.listeners.iter().filter_map(|l| l.tls.as_ref()).map(|tls| tls.certificates.len());
    let addresses = config.upstreams.iter().map(|upstream| upstream.addresses.len());
    [
        count(config.listeners.len(), "listener", "listeners"),
        count(certificates.sum(), "certificate", "certificates"),
        count(config.routes.len(), "route", "routes"),
        count(config.upstreams.len(), "upstream", "upstreams"),
        count(addresses.sum(), "address", "addresses"),
        count(config.warnings.len(), "warning", "warnings"),
    ]
    .join(", ")
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::tests::TestDirectory;

    fn check(files: &[PathBuf]) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(files, &mut out, &mut err).unwrap();
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn each_file_is_reported_and_one_bad_file_fails_the_whole() {
        let directory = TestDirectory::new();
        let good = directory.minimal_config("good.toml", "");
        let bad = directory.minimal_config("bad.toml", "[log]\nlevle = \"info\"\nformat = 3\n");
        let absent = directory.path().join("absent.toml");

        let (exit, out, err) = check(std::slice::from_ref(&good));
        let expected =
            "ok (1 listener, 0 certificates, 1 route, 1 upstream, 1 address, 0 warnings)";
        assert_eq!((exit, err.as_str()), (EXIT_OK, ""));
        assert_eq!(out, format!("{}: {expected}\n", good.display()));

        let (exit, out, err) = check(&[bad.clone(), good, absent.clone()]);
        assert_eq!((exit, out.lines().count()), (EXIT_ERROR, 1));
        let lines: Vec<&str> = err.lines().collect();
        assert_eq!(lines.len(), 3, "{err}");
        assert!(lines[0].starts_with(&format!("{}:", bad.display())), "{err}");
        assert!(lines[0].contains("log.levle: unknown key; did you mean \"level\"?"), "{err}");
        assert!(lines[2].starts_with(&format!("{}: cannot be read", absent.display())), "{err}");
    }

    #[test]
    fn a_warning_is_shown_and_does_not_fail() {
        let directory = TestDirectory::new();
        let more = "[upstream.spare]\naddresses = [\"127.0.0.1:2\"]\n";
        let file = directory.minimal_config("warned.toml", more);
        let (exit, out, err) = check(&[file]);
        assert_eq!(exit, EXIT_OK);
        assert!(out.contains("1 warning)"), "{out}");
        assert!(err.contains("upstream.spare: no route leads to it (warning)"), "{err}");
    }

    #[test]
    fn a_policy_is_known_by_its_tables() {
        let directory = TestDirectory::new();
        let (good, bad) = (directory.path().join("good.toml"), directory.path().join("bad.toml"));
        std::fs::write(&good, "[detector.cot]\nenabled = false\n").unwrap();
        std::fs::write(&bad, "[tiers]\nlow = 0.4\nlowe = 0.3\n").unwrap();
        let (exit, out, err) = check(std::slice::from_ref(&good));
        assert_eq!((exit, err.as_str()), (EXIT_OK, ""));
        assert_eq!(out, format!("{}: ok (16 detectors on, 1 off)\n", good.display()));
        let (exit, _, err) = check(std::slice::from_ref(&bad));
        assert_eq!(exit, EXIT_ERROR);
        assert!(err.starts_with(&format!("{}:3: unknown field `lowe`", bad.display())), "{err}");
        for table in POLICY_TABLES {
            let header =
                if *table == "rule" { "[[rule]]".to_owned() } else { format!("[{table}]") };
            std::fs::write(&good, header).unwrap();
            assert!(is_policy(&good), "{table}");
        }
        let shipped = ["default", "observe", "strict"]
            .map(|name| format!("{}/../policies/{name}.toml", env!("CARGO_MANIFEST_DIR")).into());
        let (exit, out, err) = check(&shipped);
        assert_eq!((exit, err.as_str(), out.lines().count()), (EXIT_OK, "", 3));
        assert_eq!(out.matches("in shadow").count(), 1);
    }

    #[test]
    fn no_file_is_an_error() {
        assert_eq!(check(&[]).0, EXIT_ERROR);
    }
}
