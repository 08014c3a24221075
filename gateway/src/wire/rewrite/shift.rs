//! Where a place in the original text lies in the rewritten one.

use super::Edit;

/// Which end of a range a place is.
///
/// What was put in exactly at a place stays outside the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    Start,
    End,
}

/// The place in the rewritten text, in bytes, of the place `at` in the original.
///
/// A place inside a replaced stretch moves to that end of the replacement which keeps the
/// replacement inside the range.
pub(super) fn shifted(edits: &[Edit], at: usize, edge: Edge) -> usize {
    let (mut inserted, mut removed) = (0_usize, 0_usize);
    for edit in edits {
        let before = match edit.removed {
            0 => edit.at < at || (edit.at == at && edge == Edge::Start),
            length => edit.at.saturating_add(length) <= at,
        };
        if !before {
            if edit.at < at {
                let start = edit.at.saturating_add(inserted).saturating_sub(removed);
                return match edge {
                    Edge::Start => start,
                    Edge::End => start.saturating_add(edit.inserted),
                };
            }
            break;
        }
        inserted = inserted.saturating_add(edit.inserted);
        removed = removed.saturating_add(edit.removed);
    }
    at.saturating_add(inserted).saturating_sub(removed)
}

/// The same in characters, where `original` and `rewritten` are the text before and after.
/// A place past the original's end keeps its distance from it. `None` when the edits do not fit
/// the texts.
pub(super) fn shifted_chars(
    edits: &[Edit],
    original: &str,
    rewritten: &str,
    at: usize,
    edge: Edge,
) -> Option<usize> {
    let mut places = original.char_indices().map(|(byte, _)| byte);
    let (byte, past) = match places.nth(at) {
        Some(byte) => (byte, 0),
        None => (original.len(), at.checked_sub(original.chars().count())?),
    };
    let byte = shifted(edits, byte, edge);
    rewritten.get(..byte)?.chars().count().checked_add(past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_move_with_the_text() {
        // "one two three" -> "one^ 2 three^", where ^ has three bytes.
        let original = "one two three";
        let rewritten = "one\u{200b} 2 three\u{200b}";
        let edits = [
            Edit { at: 3, removed: 0, inserted: 3 },
            Edit { at: 4, removed: 3, inserted: 1 },
            Edit { at: 13, removed: 0, inserted: 3 },
        ];
        let cases = [
            (0, Edge::Start, 0, 0),
            (3, Edge::End, 3, 3),
            (3, Edge::Start, 6, 4),
            (4, Edge::Start, 7, 5),
            (5, Edge::Start, 7, 5),
            (5, Edge::End, 8, 6),
            (7, Edge::End, 8, 6),
            (8, Edge::Start, 9, 7),
            (13, Edge::End, 14, 12),
        ];
        for (at, edge, bytes, chars) in cases {
            assert_eq!(shifted(&edits, at, edge), bytes, "{at} {edge:?}");
            assert_eq!(
                shifted_chars(&edits, original, rewritten, at, edge),
                Some(chars),
                "{at} {edge:?}"
            );
        }
        assert_eq!(shifted_chars(&edits, original, "x", 13, Edge::End), None);
        assert_eq!(shifted_chars(&[], "é", "é", 3, Edge::End), Some(3));
    }
}
