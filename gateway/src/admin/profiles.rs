//! What operators know of accounts: told one by one, or as lines.
//!
//! A payment instrument is hashed under the identity key before anything is kept, so that whatever
//! the operator's own reference to it is, it stays theirs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use bytes::{Buf, BytesMut};
use detectors::AccountId;
use futures::StreamExt;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Fault, Refused};
use super::body::{Named, Params, Sent, account, maybe_whole, parse, read, said, too_large};
use super::connection::Connection;
use super::schema::{AccountPath, WhyQuery};
use super::{AdminState, blocking, schema};
use crate::audit::Said;
use crate::enforce::kept::ProfileWord;
use crate::limits::{
    ADMIN_FAULTS_MAX, ADMIN_PROFILE_LINE_BYTES_MAX, ADMIN_PROFILES_BATCH, ADMIN_PROFILES_BYTES_MAX,
    ADMIN_PROFILES_LINES_MAX, OUTSIDE_CHARS_MAX,
};
use crate::policy::unix_ms;
use crate::store::Table;

/// Latest creation: the year 9999.
const CREATED_S_MAX: i64 = 253_402_300_799;
/// Largest first six digits of a card.
const BIN_MAX: u32 = 999_999;

/// What was told of an account, not looked at yet.
struct Told {
    organisation: Option<String>,
    created_s: Option<i64>,
    payment: Option<String>,
    bin: Option<u32>,
    verified: bool,
}

/// What an operator knows of an account, and why it is told. It replaces what was told before as a
/// whole.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetProfile {
    /// Accounts of one organisation openly belong together.
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    organisation: Option<String>,
    /// Creation of the account, unix seconds.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 0, maximum = 253_402_300_799_i64)]
    created_s: Option<i64>,
    /// What names the payment instrument, the same for the same one: a processor's fingerprint or a
    /// hash. Only a keyed hash of it is kept.
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    payment: Option<String>,
    /// First six digits of the card.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 0, maximum = 999_999)]
    bin: Option<u32>,
    /// Whether somebody checked who the holder is.
    #[serde(default)]
    #[schema(required = false)]
    verified: bool,
    /// Why; the audit tells it.
    #[schema(
        min_length = 1,
        max_length = 500,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    reason: String,
    /// Who, beside the token's name.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    operator: Option<String>,
}

const SHAPE: &str = "an object with any of organisation, created_s (unix seconds), payment, bin (six \
                     digits) and verified (true or false)";

impl Sent for SetProfile {
    const SHAPE: &'static str = "an object with reason, and any of operator, organisation, created_s \
                                 (unix seconds), payment, bin (six digits) and verified (true or \
                                 false)";
}

/// A profile in a line.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileLine {
    /// The account's pseudonym.
    #[schema(value_type = schema::AccountName)]
    account: String,
    /// Accounts of one organisation openly belong together.
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    organisation: Option<String>,
    /// Creation of the account, unix seconds.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 0, maximum = 253_402_300_799_i64)]
    created_s: Option<i64>,
    /// What names the payment instrument. Only a keyed hash of it is kept.
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    payment: Option<String>,
    /// First six digits of the card.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 0, maximum = 999_999)]
    bin: Option<u32>,
    /// Whether somebody checked who the holder is.
    #[serde(default)]
    #[schema(required = false)]
    verified: bool,
}

impl Sent for ProfileLine {
    const SHAPE: &'static str = "an object with account, and any of organisation, created_s (unix \
                                 seconds), payment, bin (six digits) and verified (true or false)";
}

/// What is kept of an account's profile.
#[derive(Serialize, ToSchema)]
pub(super) struct Profile {
    #[schema(value_type = schema::AccountName)]
    account: AccountId,
    /// When it was told, unix milliseconds.
    at_ms: u64,
    #[schema(required = true)]
    organisation: Option<String>,
    /// Creation, unix seconds.
    #[schema(required = true)]
    created_s: Option<i64>,
    /// A keyed hash of what names the payment instrument.
    #[schema(required = true)]
    payment: Option<String>,
    /// First six digits of the card.
    #[schema(required = true)]
    bin: Option<u32>,
    verified: bool,
}

/// What came of many profiles.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Taken {
    /// Profiles that are kept now.
    taken: u64,
    /// Lines that are not: those with a fault, and those of the same 500 lines.
    left_out: u64,
    /// What is wrong, up to 100 lines.
    faults: Vec<Fault>,
}

/// What was told of an account.
#[utoipa::path(get, path = "/v1/accounts/{account}/profile", tag = "profiles", params(AccountPath),
    responses((status = 200, body = Profile), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn show(
    State(state): State<AdminState>,
    Named(id): Named,
    asked: Params,
) -> Answer<Profile> {
    asked.finish()?;
    let account = account(&id)?;
    let key = account.as_str().to_owned();
    let store = state.enforcer.store().clone();
    let found = blocking(move || store.get(Table::Profile, &key)).await??;
    let word = found.and_then(|register| serde_json::from_str(register.value.as_deref()?).ok());
    let word = word.ok_or_else(|| Refused::not_found("nothing was told of the account"))?;
    Ok(Json(shown(account, word)))
}

/// Tells what is known of an account.
#[utoipa::path(put, path = "/v1/accounts/{account}/profile", tag = "profiles", params(AccountPath),
    request_body = SetProfile, responses((status = 200, body = Profile)),
    security(("token" = ["operator"])))]
pub(super) async fn set(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(id): Named,
    asked: Params,
    body: Body,
) -> Answer<Profile> {
    asked.finish()?;
    let account = account(&id)?;
    let set: SetProfile = read(body).await?;
    let said = said(&caller, &set.reason, set.operator.as_deref())?;
    let SetProfile { organisation, created_s, payment, bin, verified, .. } = set;
    let told = Told { organisation, created_s, payment, bin, verified };
    let word = told.word(&state.payment_key).map_err(Refused::bad)?;
    state.enforcer.set_profiles(&[(account.clone(), word.clone())], &said).durable().await?;
    Ok(Json(shown(account, word)))
}

/// Tells what is known of many accounts, one a line.
///
/// Up to 100,000 lines and 64 MB. The lines are taken in batches of 500: of a batch in which a line
/// is faulty none is taken, and every other batch is. An answer of 400 with faults means that none
/// was.
#[utoipa::path(post, path = "/v1/accounts/profiles", tag = "profiles", params(WhyQuery),
    request_body(content = ProfileLine, content_type = "application/x-ndjson",
        description = "A profile a line."),
    responses((status = 200, body = Taken)), security(("token" = ["operator"])))]
pub(super) async fn set_many(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    connection: Option<Extension<Connection>>,
    asked: Params,
    body: Body,
) -> Answer<Taken> {
    let said = asked.said(&caller)?;
    let _place = state.stream()?;
    let mut lines = Lines::new(state, said);
    let mut pieces = body.into_data_stream();
    let mut bytes = 0_u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Refused::bad("the body cannot be read to its end"))?;
        bytes += piece.len() as u64;
        if bytes > ADMIN_PROFILES_BYTES_MAX {
            return Err(lines.cut(too_large()));
        }
        if lines.push(&piece).await?
            && let Some(Extension(connection)) = &connection
        {
            connection.moved();
        }
    }
    if bytes == 0 {
        return Err(Refused::bad("the body is empty: it takes a profile a line"));
    }
    let taken = lines.end().await?;
    if taken.taken == 0 && taken.left_out > 0 {
        return Err(Refused::bad("none of the profiles was taken").faults(taken.faults));
    }
    Ok(Json(taken))
}

fn shown(account: AccountId, word: ProfileWord) -> Profile {
    let ProfileWord { at_ms, organisation, created_s, payment, bin, verified } = word;
    Profile { account, at_ms, organisation, created_s, payment, bin, verified }
}

impl Told {
    /// As it is kept.
    fn word(self, payment_key: &[u8]) -> Result<ProfileWord, String> {
        let named = |text: &Option<String>| {
            text.as_deref().is_none_or(|text| {
                (1..=OUTSIDE_CHARS_MAX).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_graphic())
            })
        };
        let fits = named(&self.organisation)
            && named(&self.payment)
            && self.created_s.is_none_or(|at_s| (0..=CREATED_S_MAX).contains(&at_s))
            && self.bin.is_none_or(|bin| bin <= BIN_MAX);
        if !fits {
            return Err(format!(
                "this takes {SHAPE}; organisation and payment have 1 to {OUTSIDE_CHARS_MAX} \
                 printable characters of ASCII without spaces, created_s is 0 to {CREATED_S_MAX}"
            ));
        }
        let payment = self.payment.map(|payment| payment_hash(payment_key, &payment));
        Ok(ProfileWord {
            at_ms: unix_ms(),
            organisation: self.organisation,
            created_s: self.created_s,
            payment,
            bin: self.bin,
            verified: self.verified,
        })
    }
}

/// What is kept of a payment instrument: 128 bits of an HMAC-SHA256 (RFC 2104).
fn payment_hash(key: &[u8], payment: &str) -> String {
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    let digest = mac.chain_update(payment).finalize().into_bytes();
    hex::encode(&digest[..16])
}

/// Lines as they come in, and what became of them.
struct Lines {
    state: AdminState,
    said: Said,
    buffer: BytesMut,
    number: u64,
    batch: Vec<(AccountId, ProfileWord)>,
    /// Lines of the batch, faulty ones too.
    in_batch: u64,
    faulty: bool,
    taken: Taken,
}

impl Lines {
    fn new(state: AdminState, said: Said) -> Self {
        Self {
            state,
            said,
            buffer: BytesMut::new(),
            number: 0,
            batch: Vec::new(),
            in_batch: 0,
            faulty: false,
            taken: Taken::default(),
        }
    }

    /// Takes in a piece of the body; whether a batch was written.
    async fn push(&mut self, piece: &[u8]) -> Result<bool, Refused> {
        self.buffer.extend_from_slice(piece);
        let mut written = false;
        while let Some(end) = memchr::memchr(b'\n', &self.buffer) {
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            written |= self.line(&line).await?;
        }
        if self.buffer.len() > ADMIN_PROFILE_LINE_BYTES_MAX {
            let message = format!("a line may have {ADMIN_PROFILE_LINE_BYTES_MAX} bytes");
            return Err(self.cut(Refused::bad(message)));
        }
        Ok(written)
    }

    async fn line(&mut self, line: &[u8]) -> Result<bool, Refused> {
        self.number += 1;
        if line.trim_ascii().is_empty() {
            return Ok(false);
        }
        if self.number > ADMIN_PROFILES_LINES_MAX {
            let message = format!("there may be {ADMIN_PROFILES_LINES_MAX} lines");
            return Err(self.cut(Refused::bad(message)));
        }
        self.in_batch += 1;
        match read_line(line, &self.state.payment_key) {
            Ok(profile) => self.batch.push(profile),
            Err(message) => {
                self.faulty = true;
                if self.taken.faults.len() < ADMIN_FAULTS_MAX {
                    self.taken.faults.push(Fault { line: self.number, message });
                }
            }
        }
        if self.in_batch < ADMIN_PROFILES_BATCH as u64 {
            return Ok(false);
        }
        self.write().await.map(|()| true)
    }

    async fn write(&mut self) -> Result<(), Refused> {
        let (batch, lines) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.in_batch));
        if std::mem::take(&mut self.faulty) {
            self.taken.left_out += lines;
        } else if lines > 0 {
            let change = self.state.enforcer.set_profiles(&batch, &self.said);
            if let Err(error) = change.durable().await {
                return Err(self.cut(error.into()));
            }
            self.taken.taken += lines;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<Taken, Refused> {
        let last = self.buffer.split();
        self.line(&last).await?;
        self.write().await?;
        Ok(self.taken)
    }

    /// Why no further line is taken, with where that was: those before were.
    fn cut(&self, why: Refused) -> Refused {
        let message = format!("{} profiles of the lines before were taken", self.taken.taken);
        why.faults(vec![Fault { line: self.number.max(1), message }])
    }
}

fn read_line(given: &[u8], payment_key: &[u8]) -> Result<(AccountId, ProfileWord), String> {
    if given.len() > ADMIN_PROFILE_LINE_BYTES_MAX {
        return Err(format!("a line may have {ADMIN_PROFILE_LINE_BYTES_MAX} bytes"));
    }
    let ProfileLine { account: id, organisation, created_s, payment, bin, verified } =
        parse(given)?;
    let account = account(&id).map_err(|_| "that is not an account's pseudonym".to_owned())?;
    let told = Told { organisation, created_s, payment, bin, verified };
    Ok((account, told.word(payment_key)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_payment_is_hashed_under_the_key_and_never_kept() {
        let (_, word) =
            read_line(br#"{"account": "a", "payment": "card-4242", "bin": 424242}"#, b"k").unwrap();
        let payment = word.payment.clone().unwrap();
        assert_eq!((payment.len(), word.bin), (32, Some(424_242)));
        assert!(!serde_json::to_string(&word).unwrap().contains("card-4242"));
        assert_eq!(payment, payment_hash(b"k", "card-4242"));
        assert_ne!(payment, payment_hash(b"other", "card-4242"));
    }

    #[test]
    fn what_a_line_may_not_be_is_said() {
        for (line, part) in [
            (r#"{"account": "a b"}"#, "pseudonym"),
            (r#"{"organisation": "o"}"#, "an object with account"),
            (r#"{"account": "a", "payments": "secret-4242"}"#, "an object with account"),
            (r#"{"account": "a", "payment": 4242}"#, "an object with account"),
            (r#"{"account": "a", "payment": "4242 4242"}"#, "without spaces"),
            (r#"{"account": "a", "bin": 1000000}"#, "six digits"),
            (r#"{"account": "a", "created_s": -1}"#, "created_s is 0 to"),
            ("not JSON", "not JSON"),
        ] {
            let error = read_line(line.as_bytes(), b"k").unwrap_err();
            assert!(error.contains(part) && !error.contains("4242"), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn lines_are_read_without_a_panic(
            given in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                "\\{\"account\": \"[!-~]{0,20}\"(, \"(payment|organisation)\": \"[ -~]{0,20}\")?\
                 (, \"(bin|created_s)\": -?[0-9]{1,13})?\\}".prop_map(String::into_bytes),
            ]
        ) {
            if let Ok((account, word)) = read_line(&given, b"k") {
                prop_assert!(!account.as_str().is_empty());
                prop_assert!(word.payment.is_none_or(|payment| payment.len() == 32));
                prop_assert!(word.bin.is_none_or(|bin| bin <= BIN_MAX));
            }
        }
    }
}
