//! Our own data files, read strictly: every mistake is reported, with file, line and key.
//!
//! A misspelt key in a data file must not silently switch a phrase or an archetype off, so unknown
//! keys are errors, and all errors come out together rather than one per attempt.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The data file's name.
    pub file: &'static str,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The key it is about, empty for syntax.
    pub key: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// Every mistake found in the data files.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct DataError {
    /// The mistakes, in the order of the files.
    pub problems: Vec<Problem>,
}

/// A data file under reading: its mistakes so far.
pub(super) struct Source<'a> {
    file: &'static str,
    text: &'a str,
    problems: Vec<Problem>,
}

/// A value and where it stands.
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

impl<'a> Source<'a> {
    /// Parses the syntax. A file that is not TOML gives an empty table and its problems.
    pub(super) fn open(file: &'static str, text: &'a str) -> (Self, DeTable<'a>) {
        let mut source = Self { file, text, problems: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            source.problem(error.span().map_or(0, |s| s.start), "", error.message());
        }
        (source, table.into_inner())
    }

    /// Notes a mistake at a byte of the file.
    pub(super) fn problem(&mut self, at: usize, key: &str, what: impl Into<String>) {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        self.problems.push(Problem {
            file: self.file,
            line,
            key: key.to_owned(),
            what: what.into(),
        });
    }

    /// The value if nothing was wrong, otherwise every mistake.
    pub(super) fn close<T>(self, value: T) -> Result<T, DataError> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(DataError { problems: self.problems })
        }
    }

    /// The mistakes, for a caller that noted at least one.
    pub(super) fn failed(self) -> DataError {
        DataError { problems: self.problems }
    }

    /// Reports the keys of `table` that are not in `known`.
    pub(super) fn only(&mut self, table: &DeTable<'a>, known: &[&str]) {
        for key in table.keys().filter(|k| !known.contains(&k.get_ref().as_ref())) {
            self.problem(key.span().start, key.get_ref(), "unknown key");
        }
    }

    /// A string that must be there and not be blank.
    pub(super) fn string(&mut self, table: &DeTable<'a>, at: usize, key: &str) -> Placed<String> {
        let Some(value) = table.get(key) else {
            self.problem(at, key, "missing");
            return Placed { value: String::new(), at };
        };
        self.as_string(value, key)
    }

    /// A number within a range that must be there.
    pub(super) fn number(&mut self, table: &DeTable<'a>, key: &str, least: f32, most: f32) -> f32 {
        self.number_at(table, 0, key, least, most)
    }

    /// A number within a range that must be there, in a table that begins at `at`.
    pub(super) fn number_at(
        &mut self,
        table: &DeTable<'a>,
        at: usize,
        key: &str,
        least: f32,
        most: f32,
    ) -> f32 {
        let Some(value) = table.get(key) else {
            self.problem(at, key, "missing");
            return least;
        };
        let number = match value.get_ref() {
            DeValue::Float(n) => n.as_str().replace('_', "").parse::<f32>().ok(),
            DeValue::Integer(n) => n.as_str().replace('_', "").parse::<f32>().ok(),
            _ => None,
        };
        match number {
            Some(n) if (least..=most).contains(&n) => n,
            Some(n) => {
                let what = format!("{n} is outside {least} to {most}");
                self.problem(value.span().start, key, what);
                least
            }
            None => {
                self.problem(value.span().start, key, "not a number");
                least
            }
        }
    }

    /// A list of strings that must be there, with at least `least` entries and no entry twice.
    pub(super) fn strings(
        &mut self,
        table: &DeTable<'a>,
        at: usize,
        key: &str,
        least: usize,
    ) -> Vec<Placed<String>> {
        let Some(value) = table.get(key) else {
            self.problem(at, key, "missing");
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.problem(value.span().start, key, "not a list");
            return Vec::new();
        };
        let mut strings: Vec<Placed<String>> = Vec::with_capacity(array.len());
        for item in array {
            let string = self.as_string(item, key);
            if strings.iter().any(|s| s.value == string.value) {
                self.problem(string.at, key, "stands here twice");
            }
            strings.push(string);
        }
        if strings.len() < least {
            self.problem(value.span().start, key, format!("fewer than {least} entries"));
        }
        strings
    }

    /// The tables of `[[key]]`, at least one, each with where it begins.
    pub(super) fn tables<'t>(
        &mut self,
        table: &'t DeTable<'a>,
        key: &str,
    ) -> Vec<Placed<&'t DeTable<'a>>> {
        let Some(value) = table.get(key) else {
            self.problem(0, key, "missing");
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.problem(value.span().start, key, "not a list of tables");
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for item in array {
            match item.get_ref() {
                DeValue::Table(value) => tables.push(Placed { value, at: item.span().start }),
                _ => self.problem(item.span().start, key, "not a table"),
            }
        }
        tables
    }

    fn as_string(&mut self, value: &Spanned<DeValue<'a>>, key: &str) -> Placed<String> {
        let at = value.span().start;
        match value.get_ref() {
            DeValue::String(s) if !s.trim().is_empty() => {
                Placed { value: s.clone().into_owned(), at }
            }
            DeValue::String(_) => {
                self.problem(at, key, "blank");
                Placed { value: String::new(), at }
            }
            _ => {
                self.problem(at, key, "not a string");
                Placed { value: String::new(), at }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let text = "margin = 3\nodd = 1\n[[kind]]\nname = \"\"\nlist = [\"a\", \"a\", 2]\n";
        let (mut source, table) = Source::open("x.toml", text);
        source.only(&table, &["margin", "kind"]);
        source.number(&table, "margin", 0.0, 1.0);
        for kind in source.tables(&table, "kind") {
            source.string(kind.value, kind.at, "name");
            source.strings(kind.value, kind.at, "list", 4);
            source.string(kind.value, kind.at, "note");
        }
        let said = source.close(()).unwrap_err().to_string();
        let expected = "x.toml:2: odd: unknown key\n\
                        x.toml:1: margin: 3 is outside 0 to 1\n\
                        x.toml:4: name: blank\n\
                        x.toml:5: list: stands here twice\n\
                        x.toml:5: list: not a string\n\
                        x.toml:5: list: fewer than 4 entries\n\
                        x.toml:3: note: missing";
        assert_eq!(said, expected);
    }

    #[test]
    fn a_file_that_is_not_toml_says_where() {
        let (source, _) = Source::open("x.toml", "a = 1\nb = \n");
        let said = source.close(()).unwrap_err().to_string();
        assert!(said.starts_with("x.toml:2: "), "{said}");
    }
}
