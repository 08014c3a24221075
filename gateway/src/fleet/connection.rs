//! The way to Redis: one server or a Cluster behind one link, with a bound on every wait.

use std::collections::BTreeMap;
use std::path::PathBuf;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr,
};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, TlsCertificates, Value,
};

use crate::config::Redis;
use crate::config::file::read_bounded;
use crate::limits::{FLEET_CONNECT_TIMEOUT, FLEET_RESPONSE_TIMEOUT};
use crate::metrics::Metrics;

/// Further tries of the Cluster's client where a slot has moved or its master does not answer.
const CLUSTER_RETRIES: u32 = 3;
/// Longest wait between two of them, milliseconds.
const CLUSTER_RETRY_WAIT_MS: u64 = 200;

/// Why something was not had from Redis. Never carries a server's words: they may quote what was
/// sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
    /// A certificate or key cannot be read.
    #[error("{path} cannot be read: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// It cannot be reached, or has gone away.
    #[error("Redis cannot be reached ({0})")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("Redis does not answer in time")]
    Late,
    /// It refuses: credentials, rights, memory, a Cluster that is down.
    #[error("Redis refuses ({0})")]
    Refused(String),
    /// It answered with something that is not what was asked for.
    #[error("Redis answered with something else")]
    Unexpected,
    /// It holds the state of gateways with another identity key.
    #[error("Redis holds the state of gateways that have another identity key under this prefix")]
    OtherKey,
    /// Another process is connected by this gateway's name: each would take the other's words and
    /// memories for its own.
    #[error("another running gateway has this one's name: give each a `node` of its own")]
    SameName,
}

impl LinkError {
    /// The `kind` label of the metric.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } | Self::OtherKey | Self::SameName => "setting",
            Self::Unreachable(_) => "unreachable",
            Self::Late => "late",
            Self::Refused(_) => "refused",
            Self::Unexpected => "unexpected",
        }
    }
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        if error.is_timeout() {
            Self::Late
        } else if let Some(code) = error.code() {
            Self::Refused(code.chars().take(32).collect())
        } else {
            Self::Unreachable(format!("{:?}", error.kind()))
        }
    }
}

/// A connection, or those to a Cluster.
pub(super) struct Link<'m> {
    way: Way,
    metrics: &'m Metrics,
}

#[derive(Clone)]
enum Way {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl<'m> Link<'m> {
    /// Connects and signs in.
    pub(super) async fn connect(settings: &Redis, metrics: &'m Metrics) -> Result<Self, LinkError> {
        let certificates = certificates(settings)?;
        let connecting = async {
            if settings.cluster {
                cluster(settings, certificates).await
            } else {
                one(settings, certificates).await
            }
        };
        // Above the bound on each connection: several servers, or all of a Cluster's, in turn.
        let way = tokio::time::timeout(FLEET_CONNECT_TIMEOUT * 3, connecting).await;
        Ok(Self { way: way.map_err(|_| LinkError::Late)??, metrics })
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value, LinkError> {
        self.metrics.fleet_bytes.with_label_values(&["out"]).inc_by(packed_bytes(command));
        let asking = async {
            match &mut self.way {
                Way::One(connection) => connection.req_packed_command(command).await,
                Way::Cluster(connection) => connection.req_packed_command(command).await,
            }
        };
        let answer = tokio::time::timeout(FLEET_RESPONSE_TIMEOUT * 2, asking).await;
        let answer = answer.map_err(|_| LinkError::Late)??.extract_error()?;
        self.metrics.fleet_bytes.with_label_values(&["in"]).inc_by(value_bytes(&answer));
        Ok(answer)
    }

    /// Asks for several things at once, each of commands on one key; the answers in their places.
    pub(super) async fn ask_all(
        &mut self,
        groups: &[Pipeline],
    ) -> Result<Vec<Vec<Value>>, LinkError> {
        let bytes = groups.iter().flat_map(Pipeline::cmd_iter).map(packed_bytes).sum();
        self.metrics.fleet_bytes.with_label_values(&["out"]).inc_by(bytes);
        // Keys are at different servers, and to each go together what is asked at the same time.
        let ask = |group: &Pipeline| {
            let (way, group) = (self.way.clone(), group.clone());
            async move {
                let count = group.len();
                match way {
                    Way::One(mut one) => one.req_packed_commands(&group, 0, count).await,
                    Way::Cluster(mut all) => all.req_packed_commands(&group, 0, count).await,
                }
            }
        };
        let asking = futures::future::try_join_all(groups.iter().map(ask));
        let answers = tokio::time::timeout(FLEET_RESPONSE_TIMEOUT * 2, asking).await;
        let mut read = Vec::with_capacity(groups.len());
        for (group, answers) in groups.iter().zip(answers.map_err(|_| LinkError::Late)??) {
            let answers = answers.into_iter().map(Value::extract_error);
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            if answers.len() != group.len() {
                return Err(LinkError::Unexpected);
            }
            let bytes = answers.iter().map(value_bytes).sum();
            self.metrics.fleet_bytes.with_label_values(&["in"]).inc_by(bytes);
            read.push(answers);
        }
        Ok(read)
    }

    /// A slot of each server that takes writes; `None` stands for the only one.
    pub(super) async fn masters(&mut self) -> Result<Vec<Option<u16>>, LinkError> {
        if matches!(self.way, Way::One(_)) {
            return Ok(vec![None]);
        }
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let answer = self.ask(&slots).await?;
        let mut masters = BTreeMap::new();
        for range in list(&answer) {
            let [Value::Int(first), _, master, ..] = list(range) else { continue };
            let [_, port, rest @ ..] = list(master) else { continue };
            let name =
                rest.first().and_then(text).map_or_else(|| format!("{port:?}"), str::to_owned);
            let first = u16::try_from(*first).map_err(|_| LinkError::Unexpected)?;
            masters.entry(name).or_insert(Some(first));
        }
        Ok(masters.into_values().collect())
    }

    /// Asks the server that a slot is at.
    pub(super) async fn ask_at(
        &mut self,
        slot: Option<u16>,
        command: Cmd,
    ) -> Result<Value, LinkError> {
        let (Way::Cluster(connection), Some(slot)) = (&mut self.way, slot) else {
            return self.ask(&command).await;
        };
        self.metrics.fleet_bytes.with_label_values(&["out"]).inc_by(packed_bytes(&command));
        let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
        let asking = connection.route_command(command, RoutingInfo::SingleNode(route));
        let answer = tokio::time::timeout(FLEET_RESPONSE_TIMEOUT * 2, asking).await;
        let answer = answer.map_err(|_| LinkError::Late)??.extract_error()?;
        self.metrics.fleet_bytes.with_label_values(&["in"]).inc_by(value_bytes(&answer));
        Ok(answer)
    }

    /// Asks every server that takes writes; the answers in no order.
    pub(super) async fn ask_masters(&mut self, command: Cmd) -> Result<Vec<Value>, LinkError> {
        let Way::Cluster(connection) = &mut self.way else {
            return Ok(vec![self.ask(&command).await?]);
        };
        let route = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let asking = connection.route_command(command, route);
        let answer = tokio::time::timeout(FLEET_RESPONSE_TIMEOUT * 2, asking).await;
        match answer.map_err(|_| LinkError::Late)??.extract_error()? {
            Value::Map(answers) => Ok(answers.into_iter().map(|(_, answer)| answer).collect()),
            Value::Array(answers) => Ok(answers),
            _ => Err(LinkError::Unexpected),
        }
    }
}

/// The first of the servers that answers and takes writes.
async fn one(settings: &Redis, certificates: Option<TlsCertificates>) -> Result<Way, LinkError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(FLEET_CONNECT_TIMEOUT))
        .set_response_timeout(Some(FLEET_RESPONSE_TIMEOUT));
    let mut last = LinkError::Unexpected;
    for info in infos(settings)? {
        let client = match &certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        };
        let connection = client?.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                last = error.into();
                continue;
            }
        };
        let mut role = redis::cmd("INFO");
        role.arg("replication");
        match connection.req_packed_command(&role).await {
            Ok(answer) if text(&answer).is_some_and(|text| text.contains("role:slave")) => {
                last = LinkError::Refused("a replica".to_owned());
            }
            // Who may not ask may be let in all the same.
            Ok(_) => return Ok(Way::One(connection)),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

async fn cluster(
    settings: &Redis,
    certificates: Option<TlsCertificates>,
) -> Result<Way, LinkError> {
    let mut builder = ClusterClient::builder(infos(settings)?)
        .retries(CLUSTER_RETRIES)
        .max_retry_wait(CLUSTER_RETRY_WAIT_MS)
        .connection_timeout(FLEET_CONNECT_TIMEOUT)
        .response_timeout(FLEET_RESPONSE_TIMEOUT)
        .overall_response_timeout(Some(FLEET_RESPONSE_TIMEOUT * 2));
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    Ok(Way::Cluster(builder.build()?.get_async_connection().await?))
}

fn infos(settings: &Redis) -> Result<Vec<ConnectionInfo>, LinkError> {
    let mut redis = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = &settings.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &settings.password {
        redis = redis.set_password(password.expose());
    }
    let info = |(host, port): &(String, u16)| {
        let (host, port) = (host.clone(), *port);
        let address = if settings.tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(redis.clone()))
    };
    settings.addresses.iter().map(info).collect()
}

/// Read at every connect, so that renewed certificates are taken.
fn certificates(settings: &Redis) -> Result<Option<TlsCertificates>, LinkError> {
    if !settings.tls {
        return Ok(None);
    }
    let read = |path: &PathBuf| {
        read_bounded(path)
            .map_err(|error| LinkError::File { path: path.clone(), message: error.to_string() })
    };
    let client_tls = match &settings.client_certificate {
        Some(certificate) => Some(ClientTlsConfig {
            client_cert: read(&certificate.chain)?,
            client_key: read(&certificate.key)?,
        }),
        None => None,
    };
    let root_cert = settings.ca.as_ref().map(read).transpose()?;
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

/// A string of Redis.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// Bytes of Redis.
pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// The elements of a list; none where it is something else.
pub(super) fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        _ => &[],
    }
}

/// Names with their values, as RESP 2 (a flat list) or RESP 3 (a map) tells them.
pub(super) fn pairs(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(entries) => entries.iter().map(|(name, value)| (name, value)).collect(),
        Value::Array(values) => match values.first() {
            Some(Value::Array(_)) => values.iter().filter_map(pair).collect(),
            _ => values.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        },
        _ => Vec::new(),
    }
}

fn pair(value: &Value) -> Option<(&Value, &Value)> {
    match list(value) {
        [name, value] => Some((name, value)),
        _ => None,
    }
}

fn packed_bytes(command: &Cmd) -> u64 {
    // What is around each argument on the wire: `$`, its length, two line ends.
    let argument = |argument: redis::Arg<&[u8]>| match argument {
        redis::Arg::Simple(bytes) => bytes.len() as u64 + 7,
        _ => 8,
    };
    command.args_iter().map(argument).sum()
}

fn value_bytes(value: &Value) -> u64 {
    match value {
        Value::BulkString(bytes) => bytes.len() as u64 + 7,
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.len() as u64 + 3,
        Value::Array(values) | Value::Set(values) => {
            5 + values.iter().map(value_bytes).sum::<u64>()
        }
        Value::Map(entries) => {
            let entry = |(name, value): &(Value, Value)| value_bytes(name) + value_bytes(value);
            5 + entries.iter().map(entry).sum::<u64>()
        }
        _ => 5,
    }
}
