//! Registers as they are in Redis: a hash of each table, and a feed of what has changed in any.
//!
//! A word is a text: its stamp's time and gateway in a first line, then its JSON; nothing after that
//! line where it was removed. A script writes only what is later than what is there, and tells of it
//! in the feed, in one step. So it does not matter who writes first, how often, or after how long.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::connection::{bytes, list, pairs, text};
use crate::limits::{
    FLEET_FEED_MAX, FLEET_KEY_BYTES_MAX, FLEET_NAME_BYTES_MAX, FLEET_WORD_BYTES_MAX,
    FLEET_WORDS_PAGE,
};
use crate::store::{Register, Stamp, Table};

/// Times that a script can compare exactly: whole numbers of a double.
const AT_MS_MAX: u64 = 1 << 53;

/// KEYS: hash, feed. ARGV: most entries of the feed, table, gateway, then keys with their words.
/// Names are compared byte by byte, as every gateway does: `<` would go by the server's locale.
const PUT_LATER: &str = r"
local function after(a, b)
    for i = 1, math.min(#a, #b) do
        local x, y = string.byte(a, i), string.byte(b, i)
        if x ~= y then return x > y end
    end
    return #a > #b
end
local written = 0
for i = 4, #ARGV, 2 do
    local key, word = ARGV[i], ARGV[i + 1]
    local at, by = string.match(word, '^(%d+) ([^\n]*)\n')
    local held = redis.call('HGET', KEYS[1], key)
    local held_at, held_by
    if held then held_at, held_by = string.match(held, '^(%d+) ([^\n]*)\n') end
    at, held_at = tonumber(at), tonumber(held_at)
    if not held_at or at > held_at or (at == held_at and after(by, held_by)) then
        redis.call('HSET', KEYS[1], key, word)
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*',
            't', ARGV[2], 'k', key, 'w', word, 'g', ARGV[3])
        written = written + 1
    end
end
return written
";

/// KEYS: hash. ARGV: key, word. Forgets a word that is still the one that was looked at.
const DROP_SAME: &str = r"
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
";

/// Whether a table's words go to other gateways.
pub(super) fn is_shared(table: Table) -> bool {
    table != Table::Cursor
}

/// The word of a register; `None` where it is too large to be shared.
pub(super) fn encode(register: &Register) -> Option<String> {
    let Register { key, stamp, value, .. } = register;
    let value = value.as_deref().unwrap_or_default();
    let fits = key.len() <= FLEET_KEY_BYTES_MAX
        && value.len() <= FLEET_WORD_BYTES_MAX
        && stamp.at_ms < AT_MS_MAX
        && is_name(&stamp.by);
    fits.then(|| format!("{} {}\n{value}", stamp.at_ms, stamp.by))
}

/// A register from its place and its word.
pub(super) fn decode(table: Table, key: &str, word: &str) -> Option<Register> {
    if key.len() > FLEET_KEY_BYTES_MAX || !is_shared(table) {
        return None;
    }
    let (stamp, value) = word.split_once('\n')?;
    let (at_ms, by) = stamp.split_once(' ')?;
    let digits = !at_ms.is_empty() && at_ms.bytes().all(|byte| byte.is_ascii_digit());
    let at_ms = at_ms.parse().ok().filter(|at_ms| digits && *at_ms < AT_MS_MAX)?;
    if !is_name(by) || value.len() > FLEET_WORD_BYTES_MAX {
        return None;
    }
    let value = (!value.is_empty()).then(|| value.to_owned());
    let stamp = Stamp { at_ms, by: by.into() };
    Some(Register { table, key: key.to_owned(), stamp, value })
}

/// Whether it can be a gateway's name.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= FLEET_NAME_BYTES_MAX && !name.contains(char::is_control)
}

/// Where everything is: one slot of a Cluster, so that a script may touch several.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// A key in the shared slot.
    pub(super) fn shared(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.prefix)
    }

    /// The feed of words.
    pub(super) fn feed(&self) -> String {
        self.shared("feed")
    }

    /// The words of a table.
    pub(super) fn words(&self, table: Table) -> String {
        self.shared(&format!("words:{}", table as u8))
    }

    /// What every gateway remembers of an account: in a slot of its own.
    pub(super) fn account(&self, account: &str) -> String {
        format!("{}:a:{account}", self.prefix)
    }

    /// Writes words of one table where they are later.
    pub(super) fn put(&self, table: Table, node: &str, words: &[(String, String)]) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(PUT_LATER).arg(2).arg(self.words(table)).arg(self.feed());
        command.arg(FLEET_FEED_MAX).arg(table as u8).arg(node);
        for (key, word) in words {
            command.arg(key).arg(word);
        }
        command
    }

    /// Forgets a word, where it is still the same.
    pub(super) fn drop_same(&self, table: Table, key: &str, word: &str) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(DROP_SAME).arg(1).arg(self.words(table)).arg(key).arg(word);
        command
    }

    /// A page of a table's words.
    pub(super) fn page(&self, table: Table, cursor: &str) -> Cmd {
        let mut command = redis::cmd("HSCAN");
        command.arg(self.words(table)).arg(cursor).arg("COUNT").arg(FLEET_WORDS_PAGE);
        command
    }
}

/// What a page holds: the next cursor, and keys with their words.
pub(super) fn page(answer: &Value) -> Option<(String, Vec<(&str, &str)>)> {
    let [cursor, entries] = list(answer) else { return None };
    let entry = |(key, word)| Some((text(key)?, text(word)?));
    Some((text(cursor)?.to_owned(), pairs(entries).into_iter().filter_map(entry).collect()))
}

/// An entry of a stream: its identifier and its fields.
pub(super) struct Entry<'v> {
    pub(super) id: &'v str,
    fields: Vec<(&'v Value, &'v Value)>,
}

impl<'v> Entry<'v> {
    pub(super) fn bytes(&self, name: &str) -> Option<&'v [u8]> {
        let found = self.fields.iter().find(|(field, _)| text(field) == Some(name));
        found.and_then(|(_, value)| bytes(value))
    }

    pub(super) fn text(&self, name: &str) -> Option<&'v str> {
        std::str::from_utf8(self.bytes(name)?).ok()
    }

    /// The word that an entry of the feed tells of.
    pub(super) fn register(&self) -> Option<Register> {
        let table = Table::of(self.text("t")?.parse().ok()?)?;
        decode(table, self.text("k")?, self.text("w")?)
    }
}

/// The entries of each stream that XREAD gave.
pub(super) fn streams(answer: &Value) -> Vec<(&str, Vec<Entry<'_>>)> {
    pairs(answer)
        .into_iter()
        .filter_map(|(name, entries)| Some((text(name)?, self::entries(entries))))
        .collect()
}

/// The entries of one stream.
pub(super) fn entries(value: &Value) -> Vec<Entry<'_>> {
    let entry = |entry| match list(entry) {
        [id, fields] => Some(Entry { id: text(id)?, fields: pairs(fields) }),
        _ => None,
    };
    list(value).iter().filter_map(entry).collect()
}

/// Words of one table in lists of a size that a script takes without holding up the server.
pub(super) fn parcels(words: Vec<(String, String)>) -> Vec<Vec<(String, String)>> {
    const WORDS_MAX: usize = 128;
    const BYTES_MAX: usize = 256 * 1024;
    let (mut parcels, mut parcel, mut size) = (Vec::new(), Vec::new(), 0);
    for (key, word) in words {
        let bytes = key.len() + word.len();
        if !parcel.is_empty() && (parcel.len() == WORDS_MAX || size + bytes > BYTES_MAX) {
            parcels.push(std::mem::take(&mut parcel));
            size = 0;
        }
        size += bytes;
        parcel.push((key, word));
    }
    if !parcel.is_empty() {
        parcels.push(parcel);
    }
    parcels
}

/// A register's stamp alone, for a comparison with what is in Redis.
pub(super) type Held = HashMap<String, Stamp>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_removal_is_a_word_and_a_cursor_is_none() {
        let gone = decode(Table::Override, "a", "17 gw-1\n").unwrap();
        assert_eq!((gone.value.as_ref(), gone.stamp.at_ms, &*gone.stamp.by), (None, 17, "gw-1"));
        assert!(decode(Table::Cursor, "a", "17 gw-1\n{}").is_none());
        for wrong in
            ["", "17", "17 gw", "x gw\n", "+1 gw\n", "1 \n{}", " gw\n", "99999999999999999 g\n"]
        {
            assert!(decode(Table::Override, "a", wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn parcels_are_bounded_and_lose_nothing() {
        let words: Vec<_> = (0..1_000).map(|n| (n.to_string(), "w".repeat(n * 10))).collect();
        let parcels = parcels(words.clone());
        for parcel in &parcels {
            let bytes: usize = parcel.iter().map(|(key, word)| key.len() + word.len()).sum();
            assert!(parcel.len() <= 128 && (bytes <= 256 * 1024 || parcel.len() == 1), "{bytes}");
        }
        assert_eq!(parcels.concat(), words);
    }

    proptest! {
        #[test]
        fn a_word_comes_back_as_it_went(
            at_ms in 0..AT_MS_MAX, by in "[a-z0-9.-]{1,40}", value in "[ -~\\n]{0,80}",
        ) {
            let register = Register {
                table: Table::Tier,
                key: "acct".to_owned(),
                stamp: Stamp { at_ms, by: by.as_str().into() },
                value: (!value.is_empty()).then_some(value),
            };
            let word = encode(&register).unwrap();
            prop_assert_eq!(decode(Table::Tier, "acct", &word), Some(register));
        }

        #[test]
        fn nothing_from_outside_panics(key in any::<String>(), word in any::<String>()) {
            if let Some(register) = decode(Table::Mark, &key, &word) {
                prop_assert!(encode(&register).is_some());
            }
        }
    }
}
