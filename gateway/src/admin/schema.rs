//! What the OpenAPI document says of types that know nothing of it, and of parameters.
//!
//! None of these is ever made: the answers are the gateway's own types, and a test that asks every
//! operation holds them to what stands here.

#![expect(dead_code, reason = "only their schemas are used")]

use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::audit::Act;

/// A pseudonym: 1 to 128 printable characters of ASCII.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 128, pattern = "^[!-~]+$", example = "acct-5f2b8c1d")]
pub(super) struct AccountName(String);

/// A policy, TOML.
#[derive(ToSchema)]
#[schema(min_length = 1, example = "[tiers]\nlow = 0.35\n")]
pub(super) struct PolicyText(String);

/// How much an account is distrusted.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Tier {
    None,
    Low,
    Medium,
    High,
    Critical,
}

/// An operator's word on an account.
#[derive(ToSchema)]
pub(super) struct Override {
    tier: Tier,
    /// Why.
    reason: String,
    /// The token's name and, after a slash, the person's.
    by: String,
    /// When it was set, unix milliseconds.
    since_ms: u64,
    /// When it ends, unix milliseconds; null: when it is removed.
    #[schema(required = true)]
    until_ms: Option<u64>,
}

/// A suspension by a takedown.
#[derive(ToSchema)]
pub(super) struct Suspension {
    /// The cluster that was taken down.
    cluster: String,
    /// When, unix milliseconds.
    since_ms: u64,
    /// When it ends, unix milliseconds.
    until_ms: u64,
}

/// What a detector finds.
#[derive(ToSchema)]
pub(super) struct Finding {
    detector: String,
    #[schema(minimum = 0, maximum = 1)]
    strength: f64,
    #[schema(minimum = 0, maximum = 1)]
    confidence: f64,
    /// What was seen, for a person to read. Never prompt text.
    evidence: Option<String>,
    weight: f64,
    /// Part in the suspicion, nats.
    nats: f64,
}

/// What ties an account to another.
#[derive(ToSchema)]
pub(super) struct Tie {
    account: AccountName,
    tier: Tier,
    /// How likely one hand is behind both, 0..1.
    #[schema(minimum = 0, maximum = 1)]
    weight: f64,
    /// Kinds of evidence, each with its nats.
    evidence: Vec<(String, f64)>,
}

/// A change of tier.
#[derive(ToSchema)]
pub(super) struct TierChange {
    at_ms: u64,
    /// The account's exchange, from 1.
    request: u32,
    before: Tier,
    tier: Tier,
    suspicion: f64,
    policy: String,
    /// Detectors with the largest part, each with its nats.
    because: Vec<(String, f64)>,
}

/// An action, the first and the last time in a row of the same.
#[derive(ToSchema)]
pub(super) struct ActionTaken {
    action: String,
    shadow: bool,
    first_ms: u64,
    last_ms: u64,
    count: u64,
    policy: String,
}

/// Everything that is known of an account.
#[derive(ToSchema)]
pub(super) struct Account {
    account: AccountName,
    tier: Tier,
    judged_tier: Tier,
    #[schema(minimum = 0, maximum = 1)]
    suspicion: f64,
    requests: u32,
    #[schema(required = true)]
    cluster: Option<String>,
    #[schema(required = true)]
    r#override: Option<Override>,
    #[schema(required = true)]
    suspended: Option<Suspension>,
    policy: String,
    findings: Vec<Finding>,
    ties: Vec<Tie>,
    decisions: Vec<TierChange>,
    actions: Vec<ActionTaken>,
}

/// An account that somebody should look at, with the evidence as it was.
#[derive(ToSchema)]
pub(super) struct ReviewEntry {
    account: AccountName,
    /// `tier`, `mark` or `takedown_waits`.
    reason: String,
    since_ms: u64,
    at_ms: u64,
    tier: Tier,
    suspicion: f64,
    #[schema(required = true)]
    cluster: Option<String>,
    requests: u32,
    policy: String,
    findings: Vec<Finding>,
    ties: Vec<Tie>,
    /// To whom was served what it handed in.
    marks_of: Vec<AccountName>,
    /// Who looks at it.
    taken_by: Option<String>,
    /// Since when, unix milliseconds.
    taken_ms: Option<u64>,
}

/// Whose doing something was.
#[derive(ToSchema)]
pub(super) struct Actor {
    /// `policy`, `operator`, `peer` or `system`.
    kind: String,
    name: Option<String>,
}

/// A takedown, done or waiting.
#[derive(ToSchema)]
pub(super) struct Takedown {
    cluster: String,
    /// `waiting`, `active`, `undone` or `shadow`.
    status: String,
    by: Actor,
    reason: String,
    at_ms: u64,
    until_ms: u64,
    trigger: AccountName,
    policy: String,
    suspended: Vec<AccountName>,
    /// Members that the guard rails spared, each with why.
    left_out: Vec<(String, String)>,
    /// What could be told to peers.
    indicators: Value,
}

/// An audit entry. Its exact text is what the chain is made over.
#[derive(ToSchema)]
pub(super) struct Entry {
    #[schema(minimum = 1)]
    seq: u64,
    at_ms: u64,
    gateway: String,
    actor: Actor,
    act: String,
    account: Option<AccountName>,
    cluster: Option<String>,
    reason: Option<String>,
    detail: Option<Value>,
}

/// Who was served marked answers.
#[derive(ToSchema)]
pub(super) struct Candidate {
    account: String,
    cluster: Option<String>,
    /// First and last week of marking.
    first_epoch: u16,
    last_epoch: u16,
}

/// How much was found: `no_evidence`, `weak` or `evidence`.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Verdict {
    NoEvidence,
    Weak,
    Evidence,
}

/// Layer A: frames of one account.
#[derive(ToSchema)]
pub(super) struct AccountFrames {
    accounts: Vec<String>,
    tag: String,
    epoch: u16,
    frames: u32,
    verdict: Verdict,
}

/// Layer B: choices of wording that agree with a subject's key.
#[derive(ToSchema)]
pub(super) struct SubjectVotes {
    subject: String,
    agreeing: u64,
    of: u64,
    /// Chance of as many, one-sided.
    p: f64,
    /// Its decimal logarithm; null where it is too small for a number.
    p_log10: Option<f64>,
    /// After Holm over all tests.
    p_holm: f64,
    verdict: Verdict,
}

/// Layer C: canaries of one subject.
#[derive(ToSchema)]
pub(super) struct SubjectCanaries {
    subject: String,
    found: Vec<(u16, String)>,
    p: f64,
    p_holm: f64,
    verdict: Verdict,
}

/// What an indicator is about.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum IocKind {
    Ip,
    Subnet,
    Ja3,
    Ja3s,
    Ja4,
    H2,
    PaymentHash,
    WatermarkToken,
    Account,
}

/// How indicators are written.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum IocFormat {
    Native,
    Stix,
}

/// An indicator that is held.
#[derive(ToSchema)]
pub(super) struct IocListed {
    /// `own/CLUSTER`, `peer/NAME` or `operator/NAME`.
    source: String,
    kind: IocKind,
    value: String,
    #[schema(minimum = 0, maximum = 1)]
    confidence: f64,
    /// What a hit weighs now: trust in the source times its confidence, halved with each week.
    #[schema(minimum = 0, maximum = 1)]
    weight: f64,
    first_seen_ms: u64,
    last_seen_ms: u64,
    told_ms: u64,
    /// Why an operator has dropped it.
    dropped: Option<String>,
}

/// A part of the list.
#[derive(ToSchema)]
pub(super) struct IocPage {
    indicators: Vec<IocListed>,
    /// To be asked after for the next part; null at the end.
    #[schema(required = true)]
    next: Option<String>,
}

/// A STIX 2.1 bundle. Of its objects indicators are read; those with fields of another type, or with
/// patterns that are not understood, are skipped.
#[derive(ToSchema)]
pub(super) struct StixBundle {
    #[schema(rename = "type", pattern = "^bundle$")]
    kind: String,
    #[schema(required = false)]
    objects: Vec<Value>,
}

/// A signed bundle: a DSSE envelope.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct IocEnvelope {
    /// `application/vnd.stillgate.iocs.v1+json`.
    payload_type: String,
    /// The bundle's JSON in base64.
    payload: String,
    signatures: Vec<IocSignature>,
}

/// A signature.
#[derive(ToSchema)]
pub(super) struct IocSignature {
    keyid: String,
    /// In base64.
    sig: String,
}

/// What came of a bundle.
#[derive(ToSchema)]
pub(super) struct IocTaken {
    source: String,
    bundle: String,
    /// Values that hold now.
    taken: u64,
    /// Values that do not hold any more.
    revoked: u64,
    /// How many values were skipped, by why.
    skipped: std::collections::BTreeMap<String, u64>,
}

/// Which indicators are listed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct IocQuery {
    /// Sources that begin so: `own/`, `peer/NAME`, `operator/NAME`.
    #[param(required = false, max_length = 512)]
    source: Option<String>,
    /// Of this kind.
    #[param(required = false, inline)]
    kind: Option<IocKind>,
    /// Those after this one: `next` of the answer before.
    #[param(required = false, max_length = 512)]
    after: Option<String>,
    /// At most so many.
    #[param(required = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

/// Which bundles are exported, and how.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct IocExportQuery {
    /// Signed bundles, or STIX 2.1.
    #[param(required = false, inline)]
    format: Option<IocFormat>,
    /// Bundles after this one: `next` of the answer before. Of the native format alone.
    #[param(required = false, pattern = "^[0-9]{1,19}-[0-9a-f]{0,32}$")]
    after: Option<String>,
}

/// Under which name STIX is taken in, and on whose word.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct IocStixQuery {
    /// The name under which it is held, as `operator/NAME`.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9_.-]+$")]
    source: String,
    /// Confidence of indicators that state none, in hundredths.
    #[param(required = false, minimum = 70, maximum = 100, default = 70)]
    confidence: Option<u32>,
    /// Why; the audit tells it.
    #[param(
        min_length = 1,
        max_length = 500,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    reason: String,
    /// Who, beside the token's name.
    #[param(
        required = false,
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    operator: Option<String>,
}

/// An account in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AccountPath {
    /// The account's pseudonym.
    #[param(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    account: String,
}

/// A cluster in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ClusterPath {
    /// The cluster's name: 16 hex digits.
    #[param(pattern = "^[0-9a-f]{16}$", example = "00000000000000aa")]
    cluster: String,
}

/// A model in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ModelPath {
    /// The model's name, as requests give it.
    #[param(min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    model: String,
}

/// Why, where a request has no body.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WhyQuery {
    /// Why; the audit tells it.
    #[param(
        min_length = 1,
        max_length = 500,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    reason: String,
    /// Who, beside the token's name.
    #[param(
        required = false,
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    operator: Option<String>,
}

/// How many things.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LimitQuery {
    /// How many at most.
    #[param(required = false, minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// Which accounts.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AfterAccountQuery {
    /// Those after this account: `next` of the answer before.
    #[param(required = false, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    after: Option<String>,
}

/// Which entries.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Those after this number.
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_991u64)]
    after: Option<u64>,
    /// Of this account.
    #[param(required = false, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    account: Option<String>,
    /// Of this cluster.
    #[param(required = false, pattern = "^[0-9a-f]{16}$")]
    cluster: Option<String>,
    /// Of this act, such as `override_set`.
    #[param(required = false, inline)]
    act: Option<Act>,
    /// From this time on, unix milliseconds.
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_991u64)]
    since_ms: Option<u64>,
    /// Before this time, unix milliseconds.
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_991u64)]
    until_ms: Option<u64>,
}

/// What a DNS sensor saw, in a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SensorReport {
    /// The sensor's name.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$", example = "egress-1")]
    sensor: String,
    /// Which of its starts.
    #[schema(pattern = "^[0-9a-f]{16}$", example = "5f0c1d2e3a4b5c6d")]
    run: String,
    /// Number of the report in this run; one that comes again is taken once.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_992_u64)]
    sequence: u64,
    /// The sensor's clock as it sends this, unix milliseconds.
    #[schema(maximum = 253_402_300_799_999_u64)]
    sent_at_ms: u64,
    lost: SensorLost,
    /// With the contacts 1000 at most.
    #[schema(max_items = 1_000)]
    lookups: Vec<SensorLookup>,
    #[schema(max_items = 1_000)]
    contacts: Vec<SensorContact>,
}

/// What a sensor could not tell since it started.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SensorLost {
    /// Events that the kernel could not hand over.
    #[schema(maximum = 9_007_199_254_740_992_u64)]
    kernel: u64,
    /// Entries that found the tally full.
    #[schema(maximum = 9_007_199_254_740_992_u64)]
    full: u64,
    /// Entries of reports that were given up.
    #[schema(maximum = 9_007_199_254_740_992_u64)]
    unsent: u64,
}

/// An IP address in its canonical form (RFC 5952), an IPv4 one as such.
#[derive(Deserialize, ToSchema)]
#[schema(format = "canonical-ip", example = "203.0.113.7")]
pub(super) struct CanonicalAddress(String);

/// How a name was looked up.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SensorTransport {
    Udp,
    Tcp,
    Dot,
    Doq,
    Doh,
    Doh3,
}

/// By what a lookup was recognised.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SensorSign {
    Port,
    Address,
    Name,
}

/// A transport protocol.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SensorProtocol {
    Tcp,
    Udp,
}

/// Lookups that are alike.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SensorLookup {
    /// The first of them by the sensor's clock, unix milliseconds.
    #[schema(maximum = 253_402_300_799_999_u64)]
    first_ms: u64,
    /// The last of them, not before the first.
    #[schema(maximum = 253_402_300_799_999_u64)]
    last_ms: u64,
    /// Who asked, as this gateway sees it.
    address: CanonicalAddress,
    /// Which host behind the address.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    host: String,
    /// Whether that host was seen to connect to the API; null where that is unknown.
    client: Option<bool>,
    transport: SensorTransport,
    /// The resolver.
    server: CanonicalAddress,
    /// Who runs it; null where that is unknown.
    #[schema(pattern = r"^[^\x00-\x1f\x7f-\x9f]{0,64}$")]
    provider: Option<String>,
    sign: SensorSign,
    /// The name, or a keyed hash of it; null where it is encrypted.
    #[schema(pattern = r"^[^\x00-\x1f\x7f-\x9f]{0,1020}$")]
    name: Option<String>,
    /// How many.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_992_u64)]
    count: u64,
}

/// Contacts that are alike, to an address that no plain DNS answer had named.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SensorContact {
    /// The first of them by the sensor's clock, unix milliseconds.
    #[schema(maximum = 253_402_300_799_999_u64)]
    first_ms: u64,
    /// The last of them, not before the first.
    #[schema(maximum = 253_402_300_799_999_u64)]
    last_ms: u64,
    /// Who made it, as this gateway sees it.
    address: CanonicalAddress,
    /// Which host behind the address.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    host: String,
    /// Whether that host was seen to connect to the API; null where that is unknown.
    client: Option<bool>,
    /// Where to.
    destination: CanonicalAddress,
    #[schema(maximum = 65_535)]
    port: u16,
    protocol: SensorProtocol,
    /// How many.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_992_u64)]
    count: u64,
}
