//! `store`, `data_dir` and `node`: where what must last is kept, and this gateway's name.

use std::path::Path;

use super::Section;
use crate::config::{StoreKind, StoreSettings};

/// Days after which an account that did not come back is forgotten, and the most that can be set.
const KEEP_DAYS: u32 = 90;
const KEEP_DAYS_MAX: u32 = 3_650;
/// Characters of a gateway's name.
const NODE_CHARS_MAX: usize = 64;

pub(super) fn read(root: &mut Section<'_, '_>) -> Option<StoreSettings> {
    let kinds = [
        ("embedded", StoreKind::Embedded),
        ("redis", StoreKind::Redis),
        ("memory", StoreKind::Memory),
    ];
    let kind = match root.optional("store") {
        Some(item) => item.choice(&kinds)?,
        None => StoreKind::Embedded,
    };
    let dir = match root.optional("data_dir") {
        Some(item) if kind == StoreKind::Memory => {
            item.error("is not used with store = \"memory\"");
            None
        }
        Some(item) => item.path(),
        None => {
            let base = root.report.path.parent().unwrap_or(Path::new(""));
            Some(base.join("stillgate-data"))
        }
    };
    let node = match root.optional("node") {
        Some(item) => {
            let name = item.string()?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if name.is_empty() || name.len() > NODE_CHARS_MAX || !name.bytes().all(plain) {
                item.error(format!(
                    "must be 1 to {NODE_CHARS_MAX} letters, digits, hyphens, underscores or dots"
                ));
                return None;
            }
            Some(name)
        }
        None => None,
    };
    let keep_days = root.integer("keep_days", KEEP_DAYS, 1..=KEEP_DAYS_MAX);
    Some(StoreSettings { kind, dir: dir?, node, keep_days })
}
