//! `stillgate-sensor check`: what this kernel can do; with `--config`, what is wrong with files.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::complain;
use crate::config::{self, Config, TargetAddress};
use crate::hooks::{self, HookState, Outcome};
use crate::report::check_tls;
use crate::resolver_files::ResolverFiles;

/// Prints what works here, one hook a line. Fails unless local processes or links can be watched.
pub(super) fn kernel() -> ExitCode {
    let states = match hooks::check() {
        Ok(states) => states,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let release = rustix::system::uname();
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "kernel {}", release.release().to_string_lossy());
    let _ = out.write_all(table(&states).as_bytes());
    if states.iter().any(|state| state.outcome == Outcome::Attached) {
        ExitCode::SUCCESS
    } else {
        complain("no hook works here: nothing could be watched");
        ExitCode::FAILURE
    }
}

fn table(states: &[HookState]) -> String {
    let width = |text: fn(&HookState) -> &str| states.iter().map(|state| text(state).len()).max();
    let hook_width = width(|state| state.hook).unwrap_or(0);
    let target_width = width(|state| &state.target).unwrap_or(0);
    let line = |state: &HookState| {
        let said = match &state.outcome {
            Outcome::Attached => "works".to_owned(),
            Outcome::NotNeeded(why) => format!("not needed: {why}"),
            Outcome::Refused(why) => format!("does not work: {why}"),
        };
        let HookState { hook, target, .. } = state;
        format!("{hook:hook_width$}  {target:target_width$}  {said}\n")
    };
    states.iter().map(line).collect()
}

/// Checks configuration files, with the files that they name.
pub(super) fn files(paths: &[PathBuf]) -> ExitCode {
    let mut exit = ExitCode::SUCCESS;
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for path in paths {
        match config::load(path) {
            Ok(config) => {
                for warning in &config.warnings {
                    let _ = writeln!(err, "{warning} (warning)");
                }
                let wrong = wrong_files(&config);
                if wrong.is_empty() {
                    let _ = writeln!(out, "{}: ok ({})", path.display(), summary(&config));
                    continue;
                }
                exit = ExitCode::FAILURE;
                for wrong in wrong {
                    let _ = writeln!(err, "{}: {wrong}", path.display());
                }
            }
            Err(errors) => {
                exit = ExitCode::FAILURE;
                for error in errors {
                    let _ = writeln!(err, "{error}");
                }
            }
        }
    }
    exit
}

/// What is wrong with lists of resolvers and certificates.
pub(super) fn wrong_files(config: &Config) -> Vec<String> {
    let lists = ResolverFiles::new(config.resolver_files.clone()).load();
    let mut wrong: Vec<String> =
        lists.err().into_iter().map(|wrong| format!("resolvers.files: {wrong}")).collect();
    for (index, target) in config.targets.iter().enumerate() {
        if let TargetAddress::Tcp { tls: Some(files), .. } = &target.address
            && let Err(error) = check_tls(files)
        {
            wrong.push(format!("report[{index}]: {error}"));
        }
    }
    wrong
}

fn summary(config: &Config) -> String {
    let local = if config.local { "local processes" } else { "no local processes" };
    let many = |count: usize, what: &str| {
        if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
    };
    let (links, targets) = (config.links.len(), config.targets.len());
    format!("{local}, {}, tells {}", many(links, "link"), many(targets, "gateway"))
}
