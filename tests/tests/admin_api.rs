//! The operators' API, held to its own OpenAPI document: by schemathesis, which makes requests of all
//! kinds from it, and call by call with tokens of every role.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Command;

use harness::sensor::SENSOR_TOKEN;
use harness::{ADMIN_TOKEN, Gateway, Provider, clients};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const VIEWER: &str = "viewer-token-0123456789abcdef";
const OPERATOR: &str = "operator-token-0123456789abcdef";
const GUESS: &str = "planted-guess";
const PEER: &str = "peer-token-0123456789abcdef";
const ROLES: [(&str, &str); 5] = [
    ("sensor", SENSOR_TOKEN),
    ("peer", PEER),
    ("viewer", VIEWER),
    ("operator", OPERATOR),
    ("admin", ADMIN_TOKEN),
];

/// Whether a token of one role may do what needs another: from the peer on each may do what the ones
/// before it may, and a sensor stands beside them.
fn may(role: &str, needed: &str) -> bool {
    let place =
        |role: &str| ROLES.iter().position(|(name, _)| *name == role).expect("a known role");
    match (role, needed) {
        ("admin", _) => true,
        ("sensor", _) | (_, "sensor") => role == needed,
        _ => place(role) >= place(needed),
    }
}

fn gateway(provider: &Provider) -> Gateway {
    let token = |name: &str| {
        format!(
            "[[admin.token]]\nname = \"{name}-1\"\nrole = \"{name}\"\nfile = \"{name}.token\"\n"
        )
    };
    Gateway::in_front_of(provider.address())
        .secret("sensor.token", SENSOR_TOKEN)
        .secret("peer.token", PEER)
        .secret("viewer.token", VIEWER)
        .secret("operator.token", OPERATOR)
        .table(&(token("sensor") + &token("peer") + &token("viewer") + &token("operator")))
        .policy("[tiers]\nlow = 0.30\n")
        .start()
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let Some(driver) = clients::driver("admin_hooks.py") else { return };
    let provider = Provider::start();
    let gateway = gateway(&provider);
    let hooks = Path::new(driver.get_args().next().expect("the script"));
    let ran = Command::new(driver.get_program())
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("http://{}/openapi.json", gateway.admin_address()))
        .args(["--header", &format!("Authorization: Bearer {ADMIN_TOKEN}")])
        // An answer without an end. What is asked without a token is limited, and has a test below.
        .args(["--exclude-path", "/v1/events"])
        .args(["--exclude-checks", "ignored_auth,missing_required_header"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1"])
        .args(["--generation-database", "none", "--warnings", "off", "--no-color"])
        .args(["--max-time", "45", "--request-timeout", "10", "--max-failures", "20"])
        .env("SCHEMATHESIS_HOOKS", "admin_hooks")
        .env("PYTHONPATH", hooks.parent().expect("a folder"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(gateway.folder())
        .output()
        .expect("schemathesis runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{}", said.split("SUMMARY").last().unwrap_or_default());
    let stderr = gateway.stderr();
    assert!(!stderr.contains("panicked"), "{stderr}");
    // It really came through: what it wrote is in the audit.
    let changes = gateway.admin("/v1/audit?act=override_set&limit=1").json();
    assert_eq!(changes["entries"].as_array().map(Vec::len), Some(1), "{changes}");
}

#[test]
fn every_operation_asks_for_a_token_and_its_role() {
    let provider = Provider::start();
    let gateway = gateway(&provider);
    let document = gateway.admin("/openapi.json").json();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut needed: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut attempts, mut from) = (0_u32, 1);
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let role = operation["security"][0]["token"][0].as_str().expect("a role");
            *needed.entry(role).or_default() += 1;
            let method = method.to_uppercase();
            let path = path
                .replace("{account}", "acct-1")
                .replace("{cluster}", "00000000000000aa")
                .replace("{model}", "model-1");
            // Attempts without a known token are limited by address.
            attempts += 4;
            if attempts >= 16 {
                (attempts, from) = (4, from + 1);
            }
            let ask = |token: Option<&str>| {
                runtime.block_on(ask(gateway.admin_address(), from, &method, &path, token))
            };
            let long = format!("{ADMIN_TOKEN}x");
            for wrong in [None, Some(GUESS), Some(&long), Some(&ADMIN_TOKEN[1..])] {
                let (status, body) = ask(wrong);
                assert_eq!(status, 401, "{method} {path} with {wrong:?}: {body}");
                tells_nothing(&body);
            }
            for (name, token) in ROLES {
                // Streams that have begun have no end to wait for.
                if may(name, role) && path == "/v1/events" {
                    continue;
                }
                let (status, body) = ask(Some(token));
                if !may(name, role) {
                    assert_eq!(status, 403, "{method} {path} as {name}: {body}");
                    assert!(body.contains(&format!("the role {role}")), "{body}");
                } else {
                    assert!(status != 401 && status != 403, "{method} {path} as {name}: {body}");
                    assert!(status < 500, "{method} {path} as {name}: {body}");
                }
                tells_nothing(&body);
            }
        }
    }
    assert!(needed.values().sum::<usize>() >= 30, "{needed:?}");
    assert_eq!(needed.len(), ROLES.len(), "{needed:?}");
    let refused = gateway.metric("stillgate_admin_refused_total{reason=\"unauthorised\"");
    assert_eq!(refused as usize, 4 * needed.values().sum::<usize>());
    // A path that is not there tells no more.
    let (status, body) =
        runtime.block_on(ask(gateway.admin_address(), 200, "GET", "/v1/nothing", None));
    assert_eq!(status, 404, "{body}");
}

fn tells_nothing(body: &str) {
    for secret in [SENSOR_TOKEN, VIEWER, OPERATOR, ADMIN_TOKEN, GUESS] {
        assert!(!body.contains(secret), "{body}");
    }
}

/// Status and body of a request from an address of its own.
async fn ask(
    admin: SocketAddr,
    from: u8,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> (u16, String) {
    let socket = TcpSocket::new_v4().expect("a socket");
    let own = SocketAddrV4::new(Ipv4Addr::new(127, 0, 7, from), 0);
    socket.bind(own.into()).expect("a loopback address");
    let mut stream = socket.connect(admin).await.expect("a connection");
    let authorization =
        token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: admin\r\n{authorization}content-length: 2\r\n\
         connection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}
