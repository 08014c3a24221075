//! Reading JSON that others wrote: only the fields that are used, whatever the rest holds.
//!
//! A field of an unexpected type reads as absent and spoils nothing else; a key that is given
//! twice counts with its last value, as in the parsers that model servers use. What is not read
//! is skipped without being built, and skipping does not recurse, so depth costs no stack; what
//! is read nests at most 128 deep (serde_json's own bound).
//!
//! A body that our parser refuses and the model's server accepts would be a way past every
//! detector that reads text. [`read`] therefore tries again after [`mend`]ing what common servers
//! forgive: UTF-16 and UTF-32 bodies, a byte order mark, broken UTF-8, lone surrogate escapes,
//! `NaN` and `Infinity` (all of these pass Python's `json.loads`).
//!
//! Source: RFC 8259.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::sse::Boundary;
use crate::limits::{EVENT_BYTES_MAX, JSON_ITEMS_MAX};

/// Reads with `reader`, and once more from a mended copy where the bytes are not JSON as they are.
///
/// The error, if any, is that of the bytes as they came.
pub(crate) fn read<R>(
    bytes: &[u8],
    mut reader: impl FnMut(&[u8]) -> serde_json::Result<R>,
) -> serde_json::Result<R> {
    reader(bytes).or_else(|error| {
        if error.is_data() {
            return Err(error);
        }
        match mend(bytes) {
            Some(mended) => reader(&mended).map_err(|_| error),
            None => Err(error),
        }
    })
}

/// Defines the visitor methods that read the listed types as absent.
macro_rules! absent {
    ($($kind:ident)*) => { $(crate::wire::framing::json::absent!(@ $kind);)* };
    (@ bool) => {
        fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (@ number) => {
        fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (@ string) => {
        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (@ null) => {
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (@ array) => {
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut items: A,
        ) -> Result<Self::Value, A::Error> {
            while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
    (@ object) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut fields: A,
        ) -> Result<Self::Value, A::Error> {
            while fields
                .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
                .is_some()
            {}
            Ok(Default::default())
        }
    };
}
pub(crate) use absent;

/// Defines a struct that reads its fields from an object, by one or more keys each.
macro_rules! object {
    (@ read [$($generics:tt)*] $name:ty { $($($key:literal)|+ => $field:ident,)* }) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> serde::de::Visitor<'de> for Fields {
                    type Value = $name;
                    crate::wire::framing::json::absent!(bool number string null array);
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("any JSON")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut fields: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut out: Self::Value = Default::default();
                        while let Some(key) =
                            fields.next_key::<crate::wire::framing::json::Str<'de>>()?
                        {
                            match key.as_str() {
                                $($($key)|+ => out.$field = fields.next_value()?,)*
                                _ => {
                                    fields.next_value::<serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(out)
                    }
                }
                input.deserialize_any(Fields)
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident<'de> {
        $($($key:literal)|+ => $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Default)]
        $vis struct $name<'de> { $($vis $field: $type,)* }
        crate::wire::framing::json::object!(@ read ['de] $name<'de> {
            $($($key)|+ => $field,)*
        });
    };
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($($key:literal)|+ => $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Default)]
        $vis struct $name { $($vis $field: $type,)* }
        crate::wire::framing::json::object!(@ read [] $name { $($($key)|+ => $field,)* });
    };
}
pub(crate) use object;

/// Defines a type that reads from any JSON through the visitor methods given.
macro_rules! reads {
    ([$($generics:tt)*] $name:ty, $($methods:tt)*) => {
        impl<'de, $($generics)*> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                input.deserialize_any(Any::<$name>(std::marker::PhantomData))
            }
        }
        impl<'de, $($generics)*> Visitor<'de> for Any<$name> {
            type Value = $name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            $($methods)*
        }
    };
}

/// The visitor of the types below.
struct Any<T>(std::marker::PhantomData<T>);

/// A string, if it is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Str<'de>(Option<Cow<'de, str>>);

impl Str<'_> {
    /// The string; empty when absent.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// The string, unless it is absent or empty.
    pub(crate) fn filled(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| !text.is_empty())
    }

    /// The string as its own; empty when absent.
    pub(crate) fn into_string(self) -> String {
        self.0.unwrap_or_default().into_owned()
    }
}

reads! { [] Str<'de>,
    absent!(bool number null array object);
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Str<'de>, E> {
        Ok(Str(Some(Cow::Borrowed(text))))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Str<'de>, E> {
        Ok(Str(Some(Cow::Owned(text.to_owned()))))
    }
}

/// A number, if it is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Num {
    #[default]
    Absent,
    Whole(i128),
    Fraction(f64),
}

impl Num {
    /// The number as a count; fractions are cut, negative numbers are none.
    pub(crate) fn count(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Whole(whole) => u64::try_from(whole).ok(),
            Self::Fraction(fraction) => (fraction >= 0.0).then_some(fraction as u64),
        }
    }

    /// The number as a small count; larger ones are as large as fits.
    pub(crate) fn small(self) -> Option<u32> {
        self.count().map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// The number as a signed whole number.
    pub(crate) fn whole(self) -> Option<i64> {
        match self {
            Self::Whole(whole) => i64::try_from(whole).ok(),
            Self::Absent | Self::Fraction(_) => None,
        }
    }

    /// The number as a float.
    pub(crate) fn float(self) -> Option<f64> {
        match self {
            Self::Absent => None,
            Self::Whole(whole) => Some(whole as f64),
            Self::Fraction(fraction) => Some(fraction),
        }
    }
}

reads! { [] Num,
    absent!(bool string null array object);
    fn visit_i64<E: Error>(self, number: i64) -> Result<Num, E> {
        Ok(Num::Whole(number.into()))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Num, E> {
        Ok(Num::Whole(number.into()))
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<Num, E> {
        Ok(Num::Fraction(number))
    }
}

/// A string or a whole number, as text: error codes are either.
#[derive(Debug, Default)]
pub(crate) struct Code(Option<String>);

impl Code {
    /// The code, unless it is absent or empty.
    pub(crate) fn filled(&self) -> Option<&str> {
        self.0.as_deref().filter(|code| !code.is_empty())
    }
}

reads! { [] Code,
    absent!(bool null array object);
    fn visit_i64<E: Error>(self, number: i64) -> Result<Code, E> {
        Ok(Code(Some(number.to_string())))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Code, E> {
        Ok(Code(Some(number.to_string())))
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Code, E> {
        Ok(Code(None))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Code, E> {
        Ok(Code(Some(text.to_owned())))
    }
}

/// A yes or no, and whether a count above zero was given in its place (`logprobs: 5`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flag(pub(crate) bool);

reads! { [] Flag,
    absent!(string null array object);
    fn visit_bool<E: Error>(self, yes: bool) -> Result<Flag, E> {
        Ok(Flag(yes))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<Flag, E> {
        Ok(Flag(number > 0))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Flag, E> {
        Ok(Flag(number > 0))
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<Flag, E> {
        Ok(Flag(number > 0.0))
    }
}

/// Whether anything but `null` and `false` is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Present(pub(crate) bool);

reads! { [] Present,
    absent!(null);
    fn visit_bool<E: Error>(self, yes: bool) -> Result<Present, E> {
        Ok(Present(yes))
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Present, E> {
        Ok(Present(true))
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<Present, E> {
        Ok(Present(true))
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Present, E> {
        Ok(Present(true))
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<Present, E> {
        Ok(Present(true))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Present, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Present(true))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Present, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Present(true))
    }
}

/// Whether an array with any element is there, however long it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled(pub(crate) bool);

reads! { [] Filled,
    absent!(bool number string null object);
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Filled, A::Error> {
        let mut filled = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            filled = true;
        }
        Ok(Filled(filled))
    }
}

/// An object, if it is one.
#[derive(Debug)]
pub(crate) struct Maybe<T>(pub(crate) Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Self(None)
    }
}

reads! { [T: Deserialize<'de>] Maybe<T>,
    absent!(bool number string null array);
    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Maybe<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(|value| Maybe(Some(value)))
    }
}

/// An array, if it is one. More than [`JSON_ITEMS_MAX`] elements are an error.
#[derive(Debug)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

reads! { [T: Deserialize<'de>] List<T>,
    absent!(bool number string null object);
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == JSON_ITEMS_MAX {
                return Err(A::Error::custom("too many items"));
            }
            list.push(item);
        }
        Ok(List(list))
    }
}

/// A string, or a `T` where an object or an array stands.
#[derive(Debug, Default)]
pub(crate) enum StrOr<'de, T> {
    #[default]
    Absent,
    Str(Cow<'de, str>),
    Other(T),
}

reads! { [T: Deserialize<'de>] StrOr<'de, T>,
    absent!(bool number null);
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<StrOr<'de, T>, E> {
        Ok(StrOr::Str(Cow::Borrowed(text)))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<StrOr<'de, T>, E> {
        Ok(StrOr::Str(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<StrOr<'de, T>, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(items)).map(StrOr::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<StrOr<'de, T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(StrOr::Other)
    }
}

/// A value as it is spelt in the body; `None` when absent or `null`.
pub(crate) type Raw<'de> = Option<&'de RawValue>;

/// The text of a value as spelt; empty when absent.
pub(crate) fn spelt(raw: Raw<'_>) -> &str {
    raw.map(RawValue::get).unwrap_or_default()
}

/// Too much of something to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// What takes in a string, an object, or an array of these, piece by piece in order.
///
/// Nothing is built but what the taker keeps, so a body of millions of empty parts costs no more
/// memory than its bytes.
pub(crate) trait Gather: Default {
    /// What an object is read as.
    type Item<'de>: Deserialize<'de>;
    /// Takes a string.
    fn string(&mut self, text: &str) -> Result<(), TooMany>;
    /// Takes an object.
    fn object(&mut self, item: Self::Item<'_>) -> Result<(), TooMany>;
    /// Takes a number.
    fn number(&mut self) {}
    /// An array has ended.
    fn end_of_array(&mut self) -> Result<(), TooMany> {
        Ok(())
    }
}

/// Reads any JSON into a [`Gather`].
#[derive(Debug, Default)]
pub(crate) struct Gathered<G>(pub(crate) G);

impl<'de, G: Gather> Deserialize<'de> for Gathered<G> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut gather = G::default();
        Pour(&mut gather).deserialize(input)?;
        Ok(Self(gather))
    }
}

struct Pour<'g, G>(&'g mut G);

impl<'de, G: Gather> DeserializeSeed<'de> for Pour<'_, G> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de, G: Gather> Visitor<'de> for Pour<'_, G> {
    type Value = ();

    absent!(bool null);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.0.number();
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.0.number();
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.0.number();
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.string(text).map_err(too_many)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Pour(&mut *self.0))?.is_some() {}
        self.0.end_of_array().map_err(too_many)
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<(), A::Error> {
        let item = G::Item::deserialize(MapAccessDeserializer::new(fields))?;
        self.0.object(item).map_err(too_many)
    }
}

fn too_many<E: Error>(_: TooMany) -> E {
    E::custom("too many items")
}

/// A copy of the body in which everything that common servers forgive is put right, or `None`
/// where there is nothing to put right.
fn mend(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = to_utf8(bytes);
    let mut changed = matches!(text, Cow::Owned(_));
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    let mut in_string = false;
    while let [byte, ..] = *rest {
        let (taken, put): (usize, &[u8]) = match byte {
            b'"' => {
                in_string = !in_string;
                (1, &rest[..1])
            }
            b'\\' if in_string => {
                let taken = rest.len().min(2);
                match (escaped_unit(rest), escaped_unit(rest.get(6..).unwrap_or_default())) {
                    (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, &rest[..12]),
                    (Some(0xd800..=0xdfff), _) => (6, b"\\ufffd"),
                    _ => (taken, &rest[..taken]),
                }
            }
            b'N' if !in_string && rest.starts_with(b"NaN") => (3, b"null"),
            b'I' if !in_string && rest.starts_with(b"Infinity") => (8, b"null"),
            b'-' if !in_string && rest.starts_with(b"-Infinity") => (9, b"null"),
            _ => (1, &rest[..1]),
        };
        changed |= &rest[..taken] != put;
        out.extend_from_slice(put);
        rest = &rest[taken..];
    }
    changed.then_some(out)
}

/// The UTF-16 unit that a `\u` escape with its four digits at the start of `bytes` stands for.
fn escaped_unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = u16::try_from(char::from(*digit).to_digit(16)?).ok()?;
        Some(unit << 4 | digit)
    })
}

/// The body as UTF-8, whatever Unicode encoding it is in. JSON starts with an ASCII character, so
/// that the places of zero bytes tell the encoding even without a byte order mark.
fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => Cow::Owned(String::from_utf8_lossy(rest).into_owned()),
        [0xff, 0xfe, 0, 0, rest @ ..] => utf32(rest, u32::from_le_bytes),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf32(rest, u32::from_be_bytes),
        [_, 0, 0, 0, ..] => utf32(bytes, u32::from_le_bytes),
        [0, 0, 0, _, ..] => utf32(bytes, u32::from_be_bytes),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [_, 0, ..] => utf16(bytes, u16::from_le_bytes),
        [0, _, ..] => utf16(bytes, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes),
    }
}

fn utf16<'a>(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Cow<'a, str> {
    let (units, _) = bytes.as_chunks::<2>();
    char::decode_utf16(units.iter().map(|bytes| unit(*bytes)))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

fn utf32<'a>(bytes: &[u8], unit: fn([u8; 4]) -> u32) -> Cow<'a, str> {
    let (units, _) = bytes.as_chunks::<4>();
    units
        .iter()
        .map(|bytes| char::from_u32(unit(*bytes)).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// An element of an array that comes in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element<'a> {
    /// The element's bytes.
    Whole(&'a [u8]),
    /// An element longer than [`EVENT_BYTES_MAX`], which was not kept.
    TooLong,
}

/// What a byte means for the array that it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing for the elements' bounds.
    Within,
    /// An element begins with this byte.
    Begins,
    /// The element ended before this byte.
    EndedBefore,
    /// The element ends with this byte.
    EndsHere,
}

/// Where the elements of a JSON array begin and end.
///
/// What is inside an element is left to its reader; here only strings and brackets are told
/// apart.
#[derive(Clone, Copy, Debug, Default)]
struct ArrayState {
    /// Brackets and braces open, the array's own included.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    in_element: bool,
}

impl ArrayState {
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            if self.after_backslash {
                self.after_backslash = false;
            } else if byte == b'\\' {
                self.after_backslash = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return Step::Within;
        }
        let mut step = Step::Within;
        // A bare element (a number, a word) ends at the comma or the array's own bracket.
        if self.in_element && self.depth == 1 && matches!(byte, b',' | b']') {
            self.in_element = false;
            step = Step::EndedBefore;
        }
        let opens_element = self.depth == 1 && !matches!(byte, b',' | b']') && {
            !self.in_element && !byte.is_ascii_whitespace()
        };
        if opens_element {
            self.in_element = true;
            step = Step::Begins;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth = self.depth.saturating_add(1),
            b']' | b'}' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 1 && self.in_element {
                    self.in_element = false;
                    step = Step::EndsHere;
                }
            }
            _ => {}
        }
        step
    }
}

/// Finds where the elements of an array end, and holds no bytes itself: the counterpart of
/// [`Boundaries`](super::sse::Boundaries).
///
/// What stands between two elements counts to the second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArrayBoundaries {
    state: ArrayState,
    open_bytes: usize,
}

impl ArrayBoundaries {
    /// Begins inside an array, behind one of its elements.
    pub(crate) fn behind_an_element() -> Self {
        let state = ArrayState { depth: 1, ..ArrayState::default() };
        Self { state, open_bytes: 0 }
    }

    /// The next end of an element in `bytes`, or `None` when they hold none.
    ///
    /// Bytes up to the end (or all of them) are then consumed: go on with those after it.
    pub(crate) fn next_end(&mut self, bytes: &[u8]) -> Option<Boundary> {
        for (at, &byte) in bytes.iter().enumerate() {
            let before = self.state;
            let end = match self.state.step(byte) {
                Step::EndsHere => at + 1,
                Step::EndedBefore => {
                    // The byte is looked at again, as the first one behind the element.
                    self.state = ArrayState { in_element: false, ..before };
                    at
                }
                Step::Within | Step::Begins => continue,
            };
            let event_bytes = std::mem::take(&mut self.open_bytes) + end;
            return Some(Boundary { end, event_bytes });
        }
        self.open_bytes = self.open_bytes.saturating_add(bytes.len());
        None
    }

    /// Bytes since the last end.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open_bytes
    }
}

/// The element in what [`ArrayBoundaries`] cut out, without the bracket or the comma before it.
pub(crate) fn element_of(block: &[u8]) -> &[u8] {
    let block = block.trim_ascii_start();
    match block {
        [b'[' | b',', rest @ ..] => rest.trim_ascii_start(),
        _ => block,
    }
}

/// Splits a JSON array into its elements as they come (Gemini streams such an array).
///
/// An element that lies whole in one piece is handed out in place.
#[derive(Debug, Default)]
pub(crate) struct ArrayReader {
    /// The beginning of an element whose end has not come yet.
    open: Vec<u8>,
    /// Length of the open element so far.
    open_bytes: usize,
    state: ArrayState,
}

impl ArrayReader {
    /// Takes the next piece and hands out each element that it completes.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut on_element: impl FnMut(Element<'_>)) {
        let mut start = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            match self.state.step(byte) {
                Step::Within => {}
                Step::Begins => start = at,
                Step::EndedBefore => self.end_of_element(&bytes[start..at], &mut on_element),
                Step::EndsHere => self.end_of_element(&bytes[start..=at], &mut on_element),
            }
        }
        if self.state.in_element {
            let tail = &bytes[start..];
            self.open_bytes = self.open_bytes.saturating_add(tail.len());
            if self.open_bytes > EVENT_BYTES_MAX {
                self.open = Vec::new();
            } else {
                self.open.extend_from_slice(tail);
            }
        }
    }

    /// Whether nothing is open: the array has ended, or has not begun.
    pub(crate) fn at_boundary(&self) -> bool {
        self.state.depth == 0 && !self.state.in_string
    }

    fn end_of_element(&mut self, tail: &[u8], on_element: &mut impl FnMut(Element<'_>)) {
        if self.open_bytes.saturating_add(tail.len()) > EVENT_BYTES_MAX {
            on_element(Element::TooLong);
        } else if self.open_bytes == 0 {
            on_element(Element::Whole(tail));
        } else {
            self.open.extend_from_slice(tail);
            on_element(Element::Whole(&self.open));
        }
        self.open.clear();
        self.open_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    object! {
        struct Sample<'de> {
            "name" | "alias" => name: Str<'de>,
            "count" => count: Num,
            "yes" => yes: Flag,
            "there" => there: Present,
            "list" => list: List<Num>,
            "inner" => inner: Maybe<Inner>,
            "code" => code: Code,
        }
    }
    object! {
        struct Inner { "x" => x: Num, }
    }

    fn sample(json: &str) -> String {
        read(json.as_bytes(), |bytes| {
            serde_json::from_slice::<Sample<'_>>(bytes).map(|s| {
                format!(
                    "{:?} {:?} {} {} {:?} {:?} {:?}",
                    s.name.filled(),
                    s.count.count(),
                    s.yes.0,
                    s.there.0,
                    s.list.0.iter().map(|n| n.whole()).collect::<Vec<_>>(),
                    s.inner.0.map(|i| i.x.float()),
                    s.code.filled(),
                )
            })
        })
        .unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn fields_of_any_type_read_as_far_as_they_go() {
        let absent = "None None false false [] None None";
        let cases = [
            ("{}", absent),
            ("[]", absent),
            ("null", absent),
            (
                r#"{"name":"a","count":3,"yes":true,"there":{},"list":[1,2],"inner":{"x":0.5},"code":"c"}"#,
                r#"Some("a") Some(3) true true [Some(1), Some(2)] Some(Some(0.5)) Some("c")"#,
            ),
            (r#"{"alias":"a","code":429}"#, r#"Some("a") None false false [] None Some("429")"#),
            // The last of a repeated key counts.
            (r#"{"name":"a","name":"b"}"#, r#"Some("b") None false false [] None None"#),
            (
                r#"{"name":[1],"count":"3","yes":"y","there":null,"list":{},"inner":[],"code":{}}"#,
                absent,
            ),
            (
                r#"{"name":{"deep":[[]]},"count":[],"yes":[],"there":false,"list":7,"inner":1,"code":[0]}"#,
                absent,
            ),
            (r#"{"count":-1,"yes":0}"#, absent),
            (r#"{"count":1e3,"yes":5}"#, "None Some(1000) true false [] None None"),
            (
                r#"{"na\u006de":"escaped key"}"#,
                r#"Some("escaped key") None false false [] None None"#,
            ),
            // What servers forgive.
            ("\u{feff}{\"name\":\"bom\"}", r#"Some("bom") None false false [] None None"#),
            (
                r#"{"name":"\ud800 \ud83d\udc4b \\ud800"}"#,
                "Some(\"\u{fffd} 👋 \\\\ud800\") None false false [] None None",
            ),
            (
                r#"{"x":NaN,"y":-Infinity,"z":Infinity,"name":"NaN"}"#,
                r#"Some("NaN") None false false [] None None"#,
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(sample(json), expected, "{json}");
        }
    }

    #[test]
    fn any_unicode_encoding_is_read() {
        let json = r#"{"name":"grün 👋"}"#;
        let units: Vec<u16> = json.encode_utf16().collect();
        let encodings: [Vec<u8>; 6] = [
            units.iter().flat_map(|unit| unit.to_le_bytes()).collect(),
            units.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
            [0xfeff].iter().chain(&units).flat_map(|unit| unit.to_le_bytes()).collect(),
            json.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(),
            json.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
            ['\u{feff}']
                .into_iter()
                .chain(json.chars())
                .flat_map(|c| u32::from(c).to_be_bytes())
                .collect(),
        ];
        for bytes in encodings {
            let name = read(&bytes, |b| {
                serde_json::from_slice::<Sample<'_>>(b).map(|s| s.name.into_string())
            });
            assert_eq!(name.unwrap(), "grün 👋", "{bytes:?}");
        }
        let latin_1 = b"{\"name\":\"gr\xfcn\"}";
        let name = read(latin_1, |b| {
            serde_json::from_slice::<Sample<'_>>(b).map(|s| s.name.into_string())
        });
        assert_eq!(name.unwrap(), "gr\u{fffd}n");
    }

    #[test]
    fn depth_neither_overflows_the_stack_nor_hides_a_field() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let json = format!(r#"{{"unread":{deep},"name":"a"}}"#);
        assert_eq!(sample(&json), r#"Some("a") None false false [] None None"#);
        let json = format!(r#"{{"name":{deep}}}"#);
        assert!(!sample(&json).contains("Some"), "a read field nests at most 128 deep");
    }

    #[test]
    fn a_long_list_is_an_error() {
        let json = format!(r#"{{"list":[{}0]}}"#, "0,".repeat(JSON_ITEMS_MAX));
        assert!(sample(&json).starts_with("too many items"), "{}", sample(&json));
    }

    fn elements(pieces: &[&[u8]]) -> (Vec<Option<Vec<u8>>>, bool) {
        let mut out = Vec::new();
        let mut reader = ArrayReader::default();
        for piece in pieces {
            reader.feed(piece, |element| {
                out.push(match element {
                    Element::Whole(bytes) => Some(bytes.to_vec()),
                    Element::TooLong => None,
                });
            });
        }
        (out, reader.at_boundary())
    }

    #[test]
    fn an_array_splits_into_its_elements_wherever_it_is_cut() {
        let cases: [(&str, &[&str], bool); 8] = [
            ("[]", &[], true),
            ("[{}]", &["{}"], true),
            (
                "[{\"a\":[1,2]}\n,\r\n{\"b\":\"]},{\\\"\"}]",
                &["{\"a\":[1,2]}", "{\"b\":\"]},{\\\"\"}"],
                true,
            ),
            ("[1, true ,\"a,b\",[2,3]]", &["1", "true ", "\"a,b\"", "[2,3]"], true),
            ("[{\"a\":1}", &["{\"a\":1}"], false),
            ("[{\"a\":1},{\"b", &["{\"a\":1}"], false),
            ("[\"\\\\\",\"\\\"\"]", &["\"\\\\\"", "\"\\\"\""], true),
            ("", &[], true),
        ];
        for (input, expected, ended) in cases {
            let expected: Vec<_> =
                expected.iter().map(|element| Some(element.as_bytes().to_vec())).collect();
            let input = input.as_bytes();
            for at in 0..=input.len() {
                let (head, tail) = input.split_at(at);
                let (found, at_boundary) = elements(&[head, tail]);
                assert_eq!(found, expected, "{input:?} cut at {at}");
                assert_eq!(at_boundary, ended, "{input:?} cut at {at}");
            }
            assert_eq!(elements(&input.chunks(1).collect::<Vec<_>>()).0, expected);
        }
    }

    #[test]
    fn a_long_element_is_not_held() {
        let long = [b"[\"", &vec![b'x'; EVENT_BYTES_MAX][..], b"\",7]"].concat();
        for size in [1 << 16, long.len()] {
            let pieces: Vec<&[u8]> = long.chunks(size).collect();
            assert_eq!(elements(&pieces).0, [None, Some(b"7".to_vec())]);
        }
    }

    proptest! {
        #[test]
        fn any_array_splits_the_same_in_any_pieces(input in r#"[\[\]{},:"\\a 1]{0,60}"#, size in 1_usize..8) {
            let input = input.as_bytes();
            let pieces: Vec<&[u8]> = input.chunks(size).collect();
            prop_assert_eq!(elements(&pieces), elements(&[input]));
        }

        #[test]
        fn mending_never_panics_and_leaves_good_json_alone(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in ".{0,40}") {
            let _ = mend(&bytes);
            let json = serde_json::to_vec(&serde_json::json!({ "text": text })).unwrap();
            prop_assert_eq!(mend(&json), None);
        }
    }
}
