//! `stillgate backup --to DIR`: a consistent copy of a store, also of a running gateway's.
//!
//! The copy is a store like any other: it is restored by naming it as `data_dir`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::config::{StoreKind, file};
use crate::store::backup::{Progress, backup};

/// What is copied, and where to.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: From,
    /// Directory of the copy, which is not there yet.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Where the store is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct From {
    /// Directory of the store.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration that names it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Copies, and tells how far it is on stderr.
///
/// # Errors
/// Why there is no copy.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), String> {
    let from = match (&options.from.data, &options.from.config) {
        (Some(data), _) => data.clone(),
        (None, Some(path)) => {
            let config = file::load(path).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                format!("the configuration is not valid\n{}", lines.join("\n"))
            })?;
            if config.store.kind == StoreKind::Memory {
                return Err("a store in memory cannot be copied".to_owned());
            }
            config.store.dir
        }
        (None, None) => return Err("name the store with --data or --config".to_owned()),
    };
    let shown = io::stderr().is_terminal();
    let mut told = (0, "");
    let bytes = backup(&from, &options.to, |progress| {
        let line = match progress {
            Progress::Copied { file, pages, of } => {
                let tenth = i64::from(pages) * 10 / i64::from(of.max(1));
                // On a terminal each step, else each tenth of what takes long.
                if !shown && (of < 100_000 || told == (tenth, file)) {
                    return;
                }
                told = (tenth, file);
                format!("{file}: {pages} of {of} pages")
            }
            Progress::Checking { file } => format!("{file}: reading the copy back"),
        };
        let end = if shown { "\x1b[K\r" } else { "\n" };
        let _ = write!(io::stderr(), "{line}{end}");
    });
    if shown {
        let _ = write!(io::stderr(), "\x1b[K");
    }
    let bytes = bytes.map_err(|error| error.to_string())?;
    let to = options.to.display();
    writeln!(out, "{to}: {bytes} bytes, read back and whole").map_err(|error| error.to_string())
}
