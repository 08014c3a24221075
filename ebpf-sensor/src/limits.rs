//! Every bound and timeout of the sensor, in one place. Where a bound is hit, that is counted.

use std::time::Duration;

/// Bytes of a configuration file.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// `[[link]]` in it.
pub const LINKS_MAX: usize = 64;
/// Pairs in `seen_as`.
pub const SEEN_AS_MAX: usize = 1024;
/// Networks in `api`, and in `ignore`.
pub const NETWORKS_MAX: usize = 1024;
/// Files in `[resolvers]`.
pub const RESOLVER_FILES_MAX: usize = 64;
/// `[[report]]` in it.
pub const TARGETS_MAX: usize = 16;

/// Kinds of lookups that differ in a period; further ones are counted as lost.
pub const LOOKUPS_MAX: usize = 12_000;
/// Those of them that have a name; further ones are counted without theirs.
pub const NAMED_LOOKUPS_MAX: usize = 10_000;
/// Contacts that differ in a period; further ones are counted as lost.
pub const CONTACTS_MAX: usize = 8_000;
/// Entries of one host in a period; further ones are counted as lost. A host that scans a network
/// does not hide what the others do.
pub const HOST_ENTRIES_MAX: u32 = 2_000;
/// Hosts known to open connections to the API; the longest unseen are forgotten first.
pub const CLIENTS_MAX: usize = 65_536;
/// Entries that a gateway is told again after its restart; the oldest are forgotten first.
pub const RETOLD_MAX: usize = 65_536;
/// Time between two times that one gateway is told the last day.
pub const RETELL_INTERVAL: Duration = Duration::from_secs(60);
/// Processes behind a gateway's address that are known.
pub const INSTANCES_MAX: usize = 16;
/// How long a host is known as a client, and an entry is told again.
pub const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Characters of a name that is told in the clear; longer ones are told without.
pub const NAME_CHARS_MAX: usize = 4 * 255;
/// Entries of one report.
pub const REPORT_ENTRIES_MAX: usize = 1_000;
/// Bytes of one report's body.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;
/// Reports that wait for one gateway; beyond, the oldest is given up and counted.
pub const QUEUED_REPORTS_MAX: usize = 64;
/// Bytes of them.
pub const QUEUED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time for a connection to a gateway, each of its addresses.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one report and its answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read, so that the connection can be used again.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Least time between two attempts at a report that was not taken.
pub const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// Most time between them, unless the gateway asks for more.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// The most that a gateway may ask for (`Retry-After`).
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Time to tell what is there when the sensor ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence after which an empty report says that the sensor is alive. The gateway calls it silent after
/// 60 s.
pub const HEARTBEAT: Duration = Duration::from_secs(20);
/// Time between two lines of the log about one gateway.
pub const REPORT_LOG_EVERY: Duration = Duration::from_secs(10);

/// Events taken from the kernel before anything else gets its turn.
pub const EVENTS_AT_ONCE: usize = 4_096;
/// Times that so many are taken when the sensor ends.
pub const TAKES_AT_END_MAX: usize = 16;
/// How often what follows from time alone is looked for.
pub const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// How often links and files of resolvers are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Connections to the metrics at once; further ones wait to be taken.
pub const METRICS_CONNECTIONS_MAX: usize = 16;
/// Time for one request there, from the connection on.
pub const METRICS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head there.
pub const METRICS_HEAD_BYTES_MAX: usize = 8 * 1024;
