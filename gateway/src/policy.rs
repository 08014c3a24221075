//! The policy in force: read, replaced as a whole, rolled back.
//!
//! A policy is read and checked before anything changes; one with an error changes nothing. Whoever
//! decides takes the policy once and decides by that one, so no decision mixes two. Its version is
//! the hash of its text: the same text is the same version, on every gateway.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use detectors::policy::Policy;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::file::{FileStamp, read_bounded};
use crate::limits::POLICIES_KEPT;

/// A policy with its version.
#[derive(Debug)]
pub struct Version {
    /// First 16 hex digits of the SHA-256 of its text.
    pub version: Arc<str>,
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its text.
    pub text: Arc<str>,
    /// When it came into force, unix milliseconds.
    pub since_ms: u64,
}

/// One version as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionReport {
    /// Its version.
    pub version: Arc<str>,
    /// When it came into force, unix milliseconds.
    pub since_ms: u64,
    /// Whether it is in force now.
    pub in_force: bool,
}

/// The policy in force and the ones before it.
#[derive(Debug)]
pub struct PolicyStore {
    file: Option<PathBuf>,
    stamp: Mutex<Option<FileStamp>>,
    in_force: RwLock<Arc<Version>>,
    /// The last good ones, the one in force last. Its lock is held while one is replaced.
    kept: Mutex<VecDeque<Arc<Version>>>,
}

impl PolicyStore {
    /// Reads the policy's file; the shipped default where none is named.
    ///
    /// # Errors
    /// Everything that is wrong with it, one a line, with file, line and key.
    pub fn load(file: Option<PathBuf>) -> Result<Self, String> {
        let stamp = file.as_deref().and_then(FileStamp::of);
        let first = Arc::new(match &file {
            Some(path) => read(path)?,
            None => Version::of(include_str!("../../policies/default.toml"), Policy::default()),
        });
        Ok(Self {
            file,
            stamp: Mutex::new(stamp),
            in_force: RwLock::new(first.clone()),
            kept: Mutex::new(VecDeque::from([first])),
        })
    }

    /// Whether the policy comes from a file, and not with the program.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The policy in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<Version> {
        self.in_force.read().clone()
    }

    /// The last good versions, the newest first.
    #[must_use]
    pub fn versions(&self) -> Vec<VersionReport> {
        let kept = self.kept.lock();
        let report = |(place, version): (usize, &Arc<Version>)| VersionReport {
            version: version.version.clone(),
            since_ms: version.since_ms,
            in_force: place == 0,
        };
        kept.iter().rev().enumerate().map(report).collect()
    }

    /// Reads the file again. `None` where its text is the one in force.
    ///
    /// # Errors
    /// Everything that is wrong with it; the policy in force stays.
    pub fn reload(&self) -> Result<Option<Arc<Version>>, String> {
        let Some(path) = &self.file else {
            return Err("no policy file is configured, the shipped default is in force".to_owned());
        };
        // Before it is read: a change in between is then seen as one.
        *self.stamp.lock() = FileStamp::of(path);
        let read = read(path)?;
        if read.version == self.in_force().version {
            return Ok(None);
        }
        Ok(Some(self.replace(read)))
    }

    /// Reads the file again where it looks different from when it was last read.
    ///
    /// # Errors
    /// As [`Self::reload`]; once for each change of the file.
    pub fn reload_changed(&self) -> Result<Option<Arc<Version>>, String> {
        let now = self.file.as_deref().and_then(FileStamp::of);
        // A file that is away for a moment is being replaced.
        if now.is_none() || *self.stamp.lock() == now {
            return Ok(None);
        }
        self.reload()
    }

    /// Brings a kept version into force again: the one before, or the one that is named. It stays
    /// until the file changes or a reload is asked for.
    ///
    /// # Errors
    /// When there is none.
    pub fn roll_back(&self, version: Option<&str>) -> Result<Arc<Version>, String> {
        let found = {
            let kept = self.kept.lock();
            let mut earlier = kept.iter().rev().skip(1);
            earlier.find(|kept| version.is_none_or(|wanted| *kept.version == *wanted)).cloned()
        };
        let found = found.ok_or_else(|| match version {
            Some(wanted) => format!("no earlier policy of version {wanted} is kept"),
            None => "no earlier policy is kept".to_owned(),
        })?;
        Ok(self.replace(Version {
            since_ms: unix_ms(),
            policy: found.policy.clone(),
            text: found.text.clone(),
            version: found.version.clone(),
        }))
    }

    fn replace(&self, next: Version) -> Arc<Version> {
        let next = Arc::new(next);
        let mut kept = self.kept.lock();
        kept.push_back(next.clone());
        if kept.len() > POLICIES_KEPT {
            kept.pop_front();
        }
        *self.in_force.write() = next.clone();
        next
    }
}

impl Default for PolicyStore {
    /// The shipped default.
    fn default() -> Self {
        let shipped = include_str!("../../policies/default.toml");
        let first = Arc::new(Version::of(shipped, Policy::default()));
        Self {
            file: None,
            stamp: Mutex::default(),
            in_force: RwLock::new(first.clone()),
            kept: Mutex::new(VecDeque::from([first])),
        }
    }
}

impl Version {
    fn of(text: &str, policy: Policy) -> Self {
        let mut version = hex::encode(Sha256::digest(text));
        version.truncate(16);
        Self {
            version: version.into(),
            policy: Arc::new(policy),
            text: text.into(),
            since_ms: unix_ms(),
        }
    }
}

/// Reads a policy from its file.
///
/// # Errors
/// Everything that is wrong with it, one a line, with file, line and key.
pub fn read(path: &Path) -> Result<Version, String> {
    let cannot =
        |error: &dyn std::fmt::Display| format!("{}: cannot be read: {error}", path.display());
    let bytes = read_bounded(path).map_err(|error| cannot(&error))?;
    let text = String::from_utf8(bytes).map_err(|_| cannot(&"it is not UTF-8"))?;
    let policy = Policy::parse(&text).map_err(|faults| {
        let lines: Vec<_> =
            faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect();
        lines.join("\n")
    })?;
    Ok(Version::of(&text, policy))
}

pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_replaced_whole_or_not_at_all() {
        let folder = tempfile_folder();
        let path = folder.join("policy.toml");
        std::fs::write(&path, "[tiers]\nlow = 0.30\n").unwrap();
        let store = PolicyStore::load(Some(path.clone())).unwrap();
        let first = store.in_force();
        assert_eq!(store.reload().unwrap().map(|next| next.version.clone()), None, "unchanged");

        std::fs::write(&path, "[tiers]\nlow = 0.30\nmedum = 1.0\n").unwrap();
        let error = store.reload_changed().unwrap_err();
        assert!(
            error.starts_with(&format!("{}:3: unknown field `medum`", path.display())),
            "{error}"
        );
        assert_eq!(store.in_force().version, first.version);
        assert_eq!(store.reload_changed().unwrap().map(|_| ()), None, "said once");

        std::fs::write(&path, "[tiers]\nlow = 0.31\n").unwrap();
        let second = store.reload_changed().unwrap().unwrap();
        assert_eq!(second.policy.tiers.low, 0.31);
        assert_ne!(second.version, first.version);

        let back = store.roll_back(None).unwrap();
        assert_eq!((&back.version, back.policy.tiers.low), (&first.version, 0.30));
        assert!(store.roll_back(Some("nothing")).unwrap_err().contains("version nothing"));
        assert_eq!(store.roll_back(Some(&second.version)).unwrap().version, second.version);
        let versions = store.versions();
        assert!(versions[0].in_force && versions[0].version == second.version);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_kept_versions_are_bounded() {
        let folder = tempfile_folder();
        let path = folder.join("policy.toml");
        std::fs::write(&path, "").unwrap();
        let store = PolicyStore::load(Some(path.clone())).unwrap();
        for low in 1..=2 * POLICIES_KEPT {
            std::fs::write(&path, format!("[tiers]\nlow = 0.1{low:03}\n")).unwrap();
            store.reload().unwrap().unwrap();
        }
        assert_eq!(store.versions().len(), POLICIES_KEPT);
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn tempfile_folder() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("stillgate-policy-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}
