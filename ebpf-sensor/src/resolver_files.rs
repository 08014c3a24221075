//! Operators' lists of resolvers: read at the start and again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::read_bounded;
use crate::resolvers::{LIST_BYTES_MAX, Resolvers};

/// Files with lists, beside the shipped list.
#[derive(Debug)]
pub struct ResolverFiles {
    paths: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
}

/// What tells that a file was replaced or rewritten.
type Stamp = (Option<SystemTime>, u64, u64);

impl ResolverFiles {
    /// These files. Nothing is read yet.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, stamps: Vec::new() }
    }

    /// Whether a file is not what it was when it was read last.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.look() != self.stamps
    }

    /// Reads the shipped list and all files.
    ///
    /// # Errors
    /// What cannot be used, with its file and line. It is not looked at again until a file changes.
    pub fn load(&mut self) -> Result<Arc<Resolvers>, String> {
        // Before they are read: a change in between is seen at the next look.
        self.stamps = self.look();
        let mut builder = Resolvers::builder();
        for path in &self.paths {
            let shown = path.display();
            let bytes = read_bounded(path, LIST_BYTES_MAX as u64)
                .map_err(|error| format!("{shown} cannot be read: {error}"))?;
            let label = path.file_stem().unwrap_or_default().to_string_lossy();
            let read = builder.add(&label, &bytes).map_err(|error| format!("{shown}: {error}"))?;
            if let Some(first) = read.errors.first() {
                tracing::warn!("{shown}: {} lines were skipped, the first: {first}", read.skipped);
            }
        }
        // Ours last: who is named twice has the operator's name.
        let builder = builder.built_in().map_err(|error| error.to_string())?;
        Ok(Arc::new(builder.build()))
    }

    fn look(&self) -> Vec<Option<Stamp>> {
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
        };
        self.paths.iter().map(stamp).collect()
    }
}
