//! Putting new values into the places of old ones, and leaving every other byte alone.

use std::ops::Range;

use bytes::BytesMut;
use serde_json::value::RawValue;

use crate::wire::framing::json::Str;

/// A place in an event, and what is to stand there.
#[derive(Debug)]
pub(super) struct Slot {
    /// The old value, its quotes included.
    pub(super) span: Range<usize>,
    /// The new value.
    pub(super) put: Put,
}

/// A new value.
#[derive(Debug)]
pub(super) enum Put {
    /// A string. Where it is what stood there before, the old spelling stays.
    Text(String),
    /// A number.
    Number(u64),
}

/// Where `raw` lies in `block`; `None` when it is no part of it.
pub(super) fn span_of(block: &[u8], raw: &RawValue) -> Option<Range<usize>> {
    let start = (raw.get().as_ptr() as usize).checked_sub(block.as_ptr() as usize)?;
    let end = start.checked_add(raw.get().len())?;
    (end <= block.len()).then_some(start..end)
}

/// Writes `block` with the slots filled.
pub(super) fn write(out: &mut BytesMut, block: &[u8], slots: &mut [Slot]) {
    slots.sort_by_key(|slot| slot.span.start);
    let mut done = 0;
    for slot in slots {
        let Some(spelt) = block.get(slot.span.clone()).filter(|_| slot.span.start >= done) else {
            continue;
        };
        match &slot.put {
            Put::Text(text) => {
                let inner = spelt.get(1..spelt.len().saturating_sub(1)).unwrap_or_default();
                let escaped = memchr::memchr(b'\\', inner).is_some();
                let decoded = escaped.then(|| serde_json::from_slice::<Str<'_>>(spelt).ok());
                let before = match &decoded {
                    None => std::str::from_utf8(inner).ok(),
                    Some(decoded) => decoded.as_ref().map(Str::as_str),
                };
                if before == Some(text) {
                    continue;
                }
                // A server that spells everything in ASCII goes on doing so.
                let ascii = spelt.is_ascii() && before.is_some_and(|before| !before.is_ascii());
                out.extend_from_slice(&block[done..slot.span.start]);
                write_string(out, text, ascii);
            }
            Put::Number(number) => {
                out.extend_from_slice(&block[done..slot.span.start]);
                out.extend_from_slice(number.to_string().as_bytes());
            }
        }
        done = slot.span.end;
    }
    out.extend_from_slice(&block[done..]);
}

/// Writes a JSON string.
fn write_string(out: &mut BytesMut, text: &str, ascii: bool) {
    out.extend_from_slice(b"\"");
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let short: &[u8] = match c {
            '"' => b"\\\"",
            '\\' => b"\\\\",
            '\n' => b"\\n",
            '\r' => b"\\r",
            '\t' => b"\\t",
            // Some client libraries split a stream's lines at these.
            '\0'..='\x1f' | '\u{85}' | '\u{2028}' | '\u{2029}' => b"",
            _ if ascii && !c.is_ascii() => b"",
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        plain = at + c.len_utf8();
        if short.is_empty() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
            }
        } else {
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
    out.extend_from_slice(b"\"");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spliced(block: &str, puts: &[(&str, &str)]) -> String {
        let mut slots: Vec<Slot> = puts
            .iter()
            .map(|(old, new)| {
                let start = block.find(old).unwrap();
                Slot { span: start..start + old.len(), put: Put::Text((*new).to_owned()) }
            })
            .collect();
        let mut out = BytesMut::new();
        write(&mut out, block.as_bytes(), &mut slots);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_what_changes_is_spelt_anew() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: [Case; 6] = [
            (r#"{"a":"x" , "b":"y"}"#, &[(r#""x""#, "x")], r#"{"a":"x" , "b":"y"}"#),
            (
                r#"{"a":"x" , "b":"y"}"#,
                &[(r#""y""#, "\"\n"), (r#""x""#, "")],
                r#"{"a":"" , "b":"\"\n"}"#,
            ),
            // The old spelling stays where the value does.
            (r#"["\u0041\/"]"#, &[(r#""\u0041\/""#, "A/")], r#"["\u0041\/"]"#),
            (r#"["\u0041"]"#, &[(r#""\u0041""#, "Aé")], r#"["Aé"]"#),
            (r#"["\u00e9"]"#, &[(r#""\u00e9""#, "é👋")], r#"["\u00e9\ud83d\udc4b"]"#),
            (r#"["é"]"#, &[(r#""é""#, "\u{2028}é\u{1}")], "[\"\\u2028é\\u0001\"]"),
        ];
        for (block, puts, expected) in cases {
            assert_eq!(spliced(block, puts), expected, "{block}");
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text in any::<String>(), ascii in any::<bool>()) {
            let mut out = BytesMut::new();
            write_string(&mut out, &text, ascii);
            prop_assert!(!ascii || out.is_ascii());
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
