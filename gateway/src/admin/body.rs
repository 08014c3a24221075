//! What operators send: small JSON objects and parameters, read strictly.
//!
//! A misspelt name is an error and never ignored. No error repeats what was sent.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use detectors::AccountId;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use serde_json::error::Category;

use super::access::Caller;
use super::answer::Refused;
use super::sensors;
use crate::audit::Said;
use crate::limits::{
    ADMIN_BODY_BYTES_MAX, ADMIN_PROFILES_BYTES_MAX, ADMIN_REASON_CHARS_MAX, ADMIN_TEXT_BYTES_MAX,
    IOC_ENVELOPE_BYTES_MAX, OUTSIDE_CHARS_MAX, SENSOR_REPORT_BYTES_MAX,
};

/// Largest whole number that a float holds beside its neighbours: 2^53.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

/// Longest name that a person gives themselves.
pub(super) const OPERATOR_CHARS_MAX: usize = 64;

/// A body that is read.
pub(super) trait Sent: DeserializeOwned {
    /// What it has to be, in words.
    const SHAPE: &'static str;
}

/// Bytes that the body of a path may have.
pub(super) fn bytes_max(path: &str) -> u64 {
    match path {
        "/v1/accounts/profiles" => ADMIN_PROFILES_BYTES_MAX,
        // A text of JSON may be six times as long as what it says.
        "/v1/marks/verify" => 6 * ADMIN_TEXT_BYTES_MAX,
        "/v1/iocs/import" | "/v1/iocs/stix" => IOC_ENVELOPE_BYTES_MAX as u64,
        "/v1/policy/validate" => ADMIN_TEXT_BYTES_MAX,
        sensors::REPORTS => SENSOR_REPORT_BYTES_MAX,
        _ => ADMIN_BODY_BYTES_MAX,
    }
}

/// A body beyond its bound.
pub(super) fn too_large() -> Refused {
    Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large")
}

/// A body's bytes, up to a bound.
pub(super) async fn bytes(body: Body, bytes_max: u64) -> Result<bytes::Bytes, Refused> {
    let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    to_bytes(body, limit).await.map_err(|_| too_large())
}

/// Reads a body as JSON.
pub(super) async fn read<T: Sent>(body: Body) -> Result<T, Refused> {
    let bytes = bytes(body, ADMIN_BODY_BYTES_MAX).await?;
    parse(&bytes).map_err(Refused::bad)
}

/// Reads JSON; where it is wrong, says what it has to be and not what it is.
pub(super) fn parse<T: Sent>(json: &[u8]) -> Result<T, String> {
    // A list of values in order would be read as well.
    if json.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(format!("line 1, column 1: this takes {}", T::SHAPE));
    }
    serde_json::from_slice(json).map_err(|fault| {
        let (line, column) = (fault.line(), fault.column());
        match fault.classify() {
            Category::Data => {
                format!("line {line}, column {column}: this takes {}", T::SHAPE)
            }
            _ => format!("line {line}, column {column}: this is not JSON; it takes {}", T::SHAPE),
        }
    })
}

/// A whole number, also where it is written as `5.0`, which JSON Schema takes for one.
pub(crate) fn whole<'de, D: Deserializer<'de>, T: TryFrom<i128>>(from: D) -> Result<T, D::Error> {
    let number = Number::deserialize(from)?;
    whole_of(&number).ok_or_else(|| D::Error::custom("not a whole number in range"))
}

/// As [`whole`], of what may be left out.
pub(super) fn maybe_whole<'de, D: Deserializer<'de>, T: TryFrom<i128>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(from)? else { return Ok(None) };
    whole_of(&number).map(Some).ok_or_else(|| D::Error::custom("not a whole number in range"))
}

fn whole_of<T: TryFrom<i128>>(number: &Number) -> Option<T> {
    let exact = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    let exact = exact.or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
        // Beyond, a float does not name one number.
        (float.abs() <= WHOLE_FLOAT_MAX).then_some(float as i128)
    });
    T::try_from(exact?).ok()
}

/// Who wants a change, and why. A reason is needed, and a short one.
pub(super) fn said(caller: &Caller, reason: &str, name: Option<&str>) -> Result<Said, Refused> {
    let reason = line(reason, ADMIN_REASON_CHARS_MAX).ok_or_else(|| {
        Refused::bad(format!(
            "reason must have 1 to {ADMIN_REASON_CHARS_MAX} characters and no control characters"
        ))
    })?;
    let actor = match name {
        None => caller.name.clone(),
        Some(name) => {
            let name = line(name, OPERATOR_CHARS_MAX).ok_or_else(|| {
                Refused::bad(format!(
                    "operator must have 1 to {OPERATOR_CHARS_MAX} characters and no control \
                     characters"
                ))
            })?;
            // A token's name has no slash.
            format!("{}/{name}", caller.name)
        }
    };
    Ok(Said::by_operator(actor, reason))
}

/// A text of one line; `None` where it is empty, too long or holds what is no character to read.
pub(super) fn line(given: &str, chars_max: usize) -> Option<&str> {
    let text = given.trim();
    let fits = given.chars().count() <= chars_max && !text.is_empty();
    (fits && !text.chars().any(char::is_control)).then_some(text)
}

/// An account's pseudonym.
pub(super) fn account(given: &str) -> Result<AccountId, Refused> {
    let plain = given.bytes().all(|b| b.is_ascii_graphic());
    if given.is_empty() || given.len() > OUTSIDE_CHARS_MAX || !plain {
        return Err(Refused::bad("that is not an account's pseudonym"));
    }
    Ok(AccountId::new(given))
}

/// A cluster's name.
pub(super) fn cluster(given: &str) -> Result<String, Refused> {
    let hex = given.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if given.len() != 16 || !hex {
        return Err(Refused::bad("a cluster's name has 16 hex digits, in lower case"));
    }
    Ok(given.to_owned())
}

/// What stands in a path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(Refused::bad("the path is not UTF-8 where it names something")),
        }
    }
}

/// A request's parameters. Each is asked for once; what nobody asked for is an error.
pub(super) struct Params {
    given: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let read = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(given) = read.map_err(|_| Refused::bad("the parameters cannot be read"))?;
        Ok(Self { given })
    }
}

impl Params {
    /// A parameter's text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refused> {
        let Some(place) = self.given.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, value) = self.given.swap_remove(place);
        if self.given.iter().any(|(given, _)| given == name) {
            return Err(Refused::bad(format!("{name} is given twice")));
        }
        Ok(Some(value))
    }

    /// A whole number.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refused> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        // `parse` would take a sign as well.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse().ok().filter(|number| digits && range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refused::bad(format!(
                "{name} must be a number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// How many things are wanted, 1 to `most`.
    pub(super) fn limit(&mut self, default: usize, most: usize) -> Result<usize, Refused> {
        let limit = self.number("limit", 1..=most as u64)?;
        Ok(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(default))
    }

    /// One of the names of something that is written in lower case and underscores.
    pub(super) fn choice<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        allowed: &'static str,
    ) -> Result<Option<T>, Refused> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let read = serde_json::from_value(serde_json::Value::String(text));
        read.map(Some).map_err(|_| Refused::bad(format!("{name} must be {allowed}")))
    }

    /// Who wants a change, and why: `reason` and `operator`.
    pub(super) fn said(mut self, caller: &Caller) -> Result<Said, Refused> {
        let (reason, operator) = (self.text("reason")?, self.text("operator")?);
        self.finish()?;
        said(caller, reason.as_deref().unwrap_or_default(), operator.as_deref())
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), Refused> {
        if self.given.is_empty() {
            return Ok(());
        }
        Err(Refused::bad("there is a parameter that this path does not take"))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether it is read matters")]
    struct Small {
        reason: String,
        #[serde(default, deserialize_with = "maybe_whole")]
        seconds: Option<u64>,
    }

    impl Sent for Small {
        const SHAPE: &'static str = "an object with reason and seconds";
    }

    fn params(query: &str) -> Result<Params, Refused> {
        let uri = format!("/x?{query}");
        let Ok(request) = Request::get(uri).body(()) else { return Err(Refused::bad("no URI")) };
        let (mut parts, ()) = request.into_parts();
        futures::executor::block_on(Params::from_request_parts(&mut parts, &()))
    }

    #[test]
    fn parameters_are_read_once_and_whole() {
        let read = |query: &str| {
            let mut given = params(query)?;
            let found = (given.limit(50, 1000)?, given.text("after")?);
            given.finish()?;
            Ok::<_, Refused>(found)
        };
        assert_eq!(read("").unwrap(), (50, None));
        assert_eq!(read("limit=007&after=a%2Fb+c").unwrap(), (7, Some("a/b c".to_owned())));
        for wrong in [
            "limit=0",
            "limit=1001",
            "limit=%2B5",
            "limit=-5",
            "limit=",
            "limit",
            "limit=99999999999999999999999",
            "limit=1&limit=1",
            "after=a&after=b",
            "count=1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point() {
        let read = |seconds: &str| {
            let json = format!(r#"{{"reason": "x", "seconds": {seconds}}}"#);
            parse::<Small>(json.as_bytes()).map(|small| small.seconds)
        };
        for (given, expected) in
            [("5", Some(5)), ("5.0", Some(5)), ("1e3", Some(1_000)), ("null", None)]
        {
            assert_eq!(read(given).unwrap(), expected, "{given}");
        }
        for wrong in ["5.5", "-1", "-1.0", "1e300", "1e17", "\"5\"", "true", "[]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_sent_is_never_repeated() {
        for wrong in [
            r#"{"reason": "x", "planted-secret": 1}"#,
            r#"{"reason": "x", "seconds": "planted-secret"}"#,
            r#"{"reason": "x"} planted-secret"#,
            r#"["planted-secret"]"#,
        ] {
            let error = parse::<Small>(wrong.as_bytes()).unwrap_err();
            assert!(!error.contains("planted") && error.contains("line 1"), "{error}");
            assert!(error.contains(Small::SHAPE), "{error}");
        }
    }

    proptest! {
        #[test]
        fn bodies_are_read_without_a_panic_and_errors_repeat_nothing(
            sent in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..400),
                "\\{\"reason\": *\"[a-z]{0,9}\"(, *\"(seconds|zzzzzz)\": *([0-9]{1,30}|\"zzzzzz\"|null))?\\}"
                    .prop_map(String::into_bytes),
            ]
        ) {
            if let Err(error) = parse::<Small>(&sent) {
                prop_assert!(error.ends_with(Small::SHAPE) && !error.contains("zzzzzz"));
            }
        }

        #[test]
        fn parameters_are_read_without_a_panic(query in "[ -~]{0,200}") {
            let query = query.replace(['#', ' '], "+");
            if let Ok(mut given) = params(&query) {
                let _ = given.limit(1, 9);
                let _ = given.text("after");
                let _ = given.choice::<crate::audit::Act>("act", "an act");
                let _ = given.finish();
            }
        }

        #[test]
        fn lines_have_nothing_that_a_log_would_stumble_over(given in any::<String>()) {
            if let Some(text) = line(&given, 500) {
                prop_assert!(!text.is_empty() && text.chars().count() <= 500);
                prop_assert!(!text.chars().any(char::is_control));
            }
        }

        #[test]
        fn names_of_accounts_and_clusters_are_plain(given in any::<String>()) {
            if let Ok(id) = account(&given) {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!((1..=OUTSIDE_CHARS_MAX).contains(&id.as_str().len()));
            }
            prop_assert!(cluster(&given).is_err() || u64::from_str_radix(&given, 16).is_ok());
        }
    }
}
