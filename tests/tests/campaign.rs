//! A small campaign and some customers at one gateway, with real TLS clients from addresses of their
//! own: the campaign is slowed, marked and ended, nobody else notices, and a replay of the recorded
//! trace says the same.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use harness::clients::{Target, drive, driver};
use harness::{ADMIN_TOKEN, Gateway, Provider, balancer};
use serde_json::{Value, json};

const CAMPAIGN: usize = 16;
const TURNS: usize = 24;
const CUSTOMERS: usize = 16;
const TALKS: usize = 6;
const PATH: &str = "/v1/chat/completions";

#[test]
fn a_live_campaign_climbs_the_tiers_and_customers_stay_where_they_are() {
    let provider = Provider::start();
    // As shipped, but that limits do not keep the campaign from asking: what is refused is counted,
    // and the trace would say so too.
    let policy = include_str!("../../policies/default.toml");
    let policy = policy.replace("requests_per_minute = 20.0", "requests_per_minute = 600.0");
    let policy = policy.replace("requests_per_minute = 120.0", "requests_per_minute = 9_600.0");
    let policy = policy.replace("tokens_per_minute = ", "tokens_per_minute = 9_00");
    let mut gateway = Gateway::in_front_of(provider.address())
        .listener("proxy_protocol_from = [\"127.0.0.1/32\"]\ncertificates = [{ chain = \"chain.pem\", key = \"key.pem\" }]")
        .policy(&policy)
        .record_texts()
        .start();
    let behind = gateway.further_address(0);
    let (campaign, customers) = (campaign(behind), customers(behind));
    let target = Target::from(&gateway);
    let seen: Vec<Option<Vec<Value>>> = std::thread::scope(|scope| {
        let groups =
            campaign.chunks(CAMPAIGN * TURNS / 2).chain(customers.chunks(CUSTOMERS * TALKS));
        let run = |group| {
            let target = &target;
            scope.spawn(move || drive("http_clients.py", target, group))
        };
        let running: Vec<_> = groups.map(run).collect();
        running.into_iter().map(|one| one.join().expect("it ran")).collect()
    });
    let Some(seen) = seen.into_iter().collect::<Option<Vec<_>>>() else { return };
    let (harvested, talked) = (seen[..2].concat(), &seen[2]);
    for answer in talked {
        assert_eq!(answer["status"], 200, "{answer}");
        assert!(!has_marks(answer), "a customer was given marks: {answer}");
    }
    assert_eq!(harvested[0]["status"], 200, "{}", harvested[0]);
    assert!(harvested.iter().any(has_marks), "nothing of the campaign's was marked");
    assert_eq!(harvested.last().expect("many")["status"], 403, "the campaign is not ended");
    let clusters = gateway.admin("/v1/clusters").json();
    let cluster = clusters["clusters"][0]["cluster"].as_str().expect("a cluster").to_owned();
    let path = format!("/v1/clusters/{cluster}/takedown");
    let takedown = gateway.admin(&path).json();
    assert_eq!(takedown["status"], "active", "{takedown}");
    let indicators = &takedown["indicators"];
    let ips = indicators["ips"].as_array().expect("addresses");
    assert!(ips.iter().all(|ip| ip.as_str().is_some_and(|ip| ip.starts_with("203.0."))), "{ips:?}");
    for kind in ["subnets", "ja3", "ja4", "h2", "watermark_tokens", "accounts"] {
        assert!(indicators[kind].as_array().is_some_and(|all| !all.is_empty()), "{indicators}");
    }

    evidence(&gateway, &cluster);
    let accounts = accounts(&gateway);
    assert_eq!(accounts.len(), CAMPAIGN + CUSTOMERS);
    answers_are_as_documented(&gateway);
    let live: BTreeMap<String, Value> = accounts
        .keys()
        .map(|id| (id.clone(), gateway.admin(&format!("/v1/accounts/{id}")).json()))
        .collect();
    for (id, harvests) in &accounts {
        let actions = live[id]["actions"].as_array().expect("actions");
        let taken = |name: &str| {
            actions.iter().any(|action| action["action"] == name && action["shadow"] == false)
        };
        for action in ["pace", "watermark", "refuse"] {
            assert!(*harvests || !taken(action), "a customer met {action}: {}", live[id]);
        }
        assert!(!harvests || (taken("pace") && taken("refuse")), "{}", live[id]);
    }
    assert!(live.values().any(|explained| explained["suspended"]["cluster"] == *cluster));
    assert_eq!(
        gateway.admin_do("DELETE", &format!("{path}?reason=wrong"), "").status,
        200,
        "it is taken back"
    );
    for id in accounts.keys() {
        let explained = gateway.admin(&format!("/v1/accounts/{id}")).json();
        assert!(explained["suspended"].is_null(), "{explained}");
    }
    let review = gateway.admin("/v1/review?limit=1000").text();
    assert!(!review.contains("lighthouse") && review.contains("hydra"), "{review}");
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.wait(Duration::from_secs(40)).is_some(), "it does not end");
    let replayed = replay(&gateway);

    let mut table =
        String::from("tier      live    replay  (share of exchanges before it, mean; accounts)\n");
    for tier in ["medium", "high", "critical"] {
        let (mut shares, mut reached) = ([0.0, 0.0], [0, 0]);
        for (id, explained) in &live {
            let harvests = accounts[id];
            let requests = explained["requests"].as_f64().expect("a count");
            let first = [first_live(explained, tier), first_replayed(&replayed[&id[..17]], tier)];
            for (side, first) in first.into_iter().enumerate() {
                assert!(harvests || first.is_none(), "a customer at {tier}: {explained}");
                if harvests {
                    shares[side] +=
                        first.map_or(1.0, |first| (first - 1.0) / requests) / CAMPAIGN as f64;
                    reached[side] += usize::from(first.is_some());
                }
            }
        }
        table += &format!(
            "{tier:8}  {:.3}   {:.3}   {} and {} of {CAMPAIGN}\n",
            shares[0], shares[1], reached[0], reached[1]
        );
        assert!((shares[0] - shares[1]).abs() < 0.15, "live and replay differ\n{table}");
        assert!(reached[0] * 2 > CAMPAIGN, "{table}");
    }
    println!("{table}");
}

/// Every operation that looks, with what there is to see now, answers as the document says.
fn answers_are_as_documented(gateway: &Gateway) {
    let base = format!("http://{}", gateway.admin_address());
    let Some(mut driver) = driver("admin_answers.py") else { return };
    let checked = driver.args([&base, ADMIN_TOKEN]).output().expect("Python runs");
    let (said, wrong) = (&checked.stdout, &checked.stderr);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(wrong));
    let said = String::from_utf8_lossy(said);
    for path in ["/v1/accounts/{account}\"", "/v1/clusters/{cluster}/takedown\"", "/v1/review\""] {
        let shown =
            said.lines().any(|line| line.contains(path) && line.contains("\"status\": 200"));
        assert!(shown, "{path} was not shown: {said}");
    }
}

fn has_marks(answer: &Value) -> bool {
    answer["body"]
        .as_str()
        .is_some_and(|body| body.contains(['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}']))
}

/// Sixteen accounts of one operator: one template, one client, three neighbouring subnets, in turn.
fn campaign(behind: std::net::SocketAddr) -> Vec<Value> {
    let doors: Vec<_> = (0..CAMPAIGN)
        .map(|number| format!("203.0.{}.{}:5000", 113 + number % 3, 10 + number % 5))
        .map(|client| balancer::seen_as(client.parse().expect("an address"), behind))
        .collect();
    let mut scenarios = Vec::new();
    for turn in 0..TURNS {
        for (number, door) in doors.iter().enumerate() {
            let text = format!(
                "Work through the following exercise step by step and explain every inference before \
                 you give the final answer.\n\nExercise {}: a lighthouse blinks {} times a minute and a \
                 ship counts {} of them, how long was it in sight?",
                turn * CAMPAIGN + number,
                turn * 3 + number + 2,
                turn * 7 + 3 * number + 5,
            );
            let body = json!({"model": "still-1", "max_tokens": 8192, "temperature": 0.6, "stream": true,
                "messages": [{"role": "user", "content": text}]});
            scenarios.push(scenario(door, &format!("sk-harvest-{number:02}"), "httpx:h2", &body));
        }
    }
    scenarios
}

/// Customers who talk about one thing each, over clients of several kinds.
fn customers(behind: std::net::SocketAddr) -> Vec<Value> {
    let clients = ["httpx:h1", "requests:", "curl_cffi:chrome", "aiohttp:", "httpx:h2"];
    let subjects = [
        "soup",
        "a garden",
        "an old bicycle",
        "the neighbours",
        "sailing",
        "a choir",
        "mushrooms",
        "a broken lamp",
        "the tax office",
        "cats",
        "a speech",
        "bread",
        "bees",
        "maps",
        "a wedding",
        "paint",
    ];
    let doors: Vec<_> = (0..CUSTOMERS)
        .map(|number| format!("198.51.{}.{}:6000", 100 + 9 * number, 7 + number))
        .map(|client| balancer::seen_as(client.parse().expect("an address"), behind))
        .collect();
    let mut scenarios = Vec::new();
    for talk in 0..TALKS {
        for (number, door) in doors.iter().enumerate() {
            let subject = subjects[number % subjects.len()];
            let mut messages = Vec::new();
            for turn in 0..=talk {
                messages.push(json!({"role": "user", "content":
                    format!("Thank you. My question number {turn} on {subject}: what would you do about it?")}));
                if turn < talk {
                    messages.push(
                        json!({"role": "assistant", "content": "That depends on the weather."}),
                    );
                }
            }
            let body = json!({"model": format!("still-{}", number % 3), "stream": true,
                "max_tokens": 200 + 10 * number, "messages": messages});
            let client = clients[number % clients.len()];
            scenarios.push(scenario(door, &format!("sk-customer-{number:02}"), client, &body));
        }
    }
    scenarios
}

fn scenario(door: &std::net::SocketAddr, key: &str, client: &str, body: &Value) -> Value {
    json!({
        "name": key, "client": client, "method": "POST", "path": PATH,
        "base_url": format!("https://localhost:{}", door.port()), "key": key,
        "headers": [["content-type", "application/json"], ["x-provider", "stream=own/openai-chat/text.sse"]],
        "body": body.to_string(),
    })
}

/// Every account seen, and whether it harvests.
fn accounts(gateway: &Gateway) -> BTreeMap<String, bool> {
    let exchanges = gateway.exchanges(1000);
    let of = |exchange: &Value| {
        let id = exchange["account"].as_str()?.to_owned();
        Some((id, exchange["conversation"]["sampling"]["max_tokens"] == 8192))
    };
    exchanges.iter().filter_map(of).collect()
}

fn first_live(explained: &Value, tier: &str) -> Option<f64> {
    let reached = |change: &&Value| rank(&change["tier"]) >= rank(&json!(tier));
    let changes = explained["decisions"].as_array().expect("decisions");
    changes.iter().filter(reached).filter_map(|change| change["request"].as_f64()).reduce(f64::min)
}

fn first_replayed(verdict: &Value, tier: &str) -> Option<f64> {
    let reached = ["medium", "high", "critical"]
        .into_iter()
        .filter(|other| rank(&json!(other)) >= rank(&json!(tier)));
    reached.filter_map(|tier| verdict["first"][tier]["request"].as_f64()).reduce(f64::min)
}

fn rank(tier: &Value) -> usize {
    let tiers = ["none", "low", "medium", "high", "critical"];
    tiers.iter().position(|name| tier == name).expect("a tier")
}

fn replay(gateway: &Gateway) -> BTreeMap<String, Value> {
    let folder = gateway.folder();
    let (trace, out) = (folder.join("trace.jsonl"), folder.join("verdicts.jsonl"));
    // Lines are appended as exchanges end; a replay wants them in the order of their arrival.
    let text = fs::read_to_string(&trace).expect("a trace");
    let mut lines: Vec<(f64, &str)> = text
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).expect("a line");
            (value["ts"].as_f64().expect("a time"), line)
        })
        .collect();
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let sorted: Vec<&str> = lines.into_iter().map(|(_, line)| line).collect();
    fs::write(&trace, sorted.join("\n")).expect("a written trace");
    let policy = folder.join("policy.toml");
    let output = Command::new(harness::binary())
        .arg("replay")
        .arg(&trace)
        .args(["--policy".as_ref(), policy.as_os_str(), "--out".as_ref(), out.as_os_str()])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&out).expect("verdicts");
    let verdicts = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a verdict"));
    verdicts
        .map(|verdict| (verdict["account"].as_str().expect("an account").to_owned(), verdict))
        .collect()
}

/// What is known of the cluster, from the running gateway's directory, checked as a third party does:
/// with coreutils, openssl and Python; then with one byte of each file changed.
fn evidence(gateway: &Gateway, cluster: &str) {
    let data = gateway.folder().join("stillgate-data");
    let folder = gateway.folder().join("evidence");
    let key = gateway.folder().join("signer.key");
    let public = gateway.folder().join("signer.pem");
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).current_dir(&folder).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let ours = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(harness::binary()).args(arguments).output().expect("it runs");
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-out"])
        .arg(&key)
        .status()
        .is_ok_and(|status| status.success());
    if !made {
        harness::skip("openssl");
        return;
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public);
    assert!(openssl.status().expect("it runs").success());

    let (code, said) =
        ours(&["audit".as_ref(), "verify".as_ref(), "--data".as_ref(), data.as_ref()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(" entries, whole from 1 to "), "{said}");
    let (code, said) = ours(&[
        "evidence".as_ref(),
        cluster.as_ref(),
        "--data".as_ref(),
        data.as_ref(),
        "--out".as_ref(),
        folder.as_ref(),
        "--sign-key".as_ref(),
        key.as_ref(),
    ]);
    assert_eq!(code, Some(0), "{said}");
    println!("{said}");
    let check = || {
        [
            run("sha256sum", &["--check".as_ref(), "--strict".as_ref(), "SHA256SUMS".as_ref()]),
            run("python3", &["-B".as_ref(), "check.py".as_ref()]),
            ours(&[
                "evidence".as_ref(),
                "--check".as_ref(),
                folder.as_ref(),
                "--signer".as_ref(),
                public.as_ref(),
            ])
            .into_success(),
        ]
    };
    let verify: Vec<&std::ffi::OsStr> = ["pkeyutl", "-verify", "-pubin", "-rawin", "-inkey"]
        .map(std::ffi::OsStr::new)
        .into_iter()
        .chain([public.as_os_str()])
        .chain(["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"].map(std::ffi::OsStr::new))
        .collect();
    for (ok, said) in check().into_iter().chain([run("openssl", &verify)]) {
        assert!(ok, "{said}");
    }

    let read = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
    let decisions = read("decisions.ndjson");
    let risen = decisions.lines().filter(|line| line.contains(r#""act":"tier_changed""#)).count();
    assert!(risen > CAMPAIGN, "{decisions}");
    assert!(decisions.contains(r#""contributions":[{"#), "{decisions}");
    assert!(read("takedowns.ndjson").contains(r#""act":"taken_down""#));
    assert!(!read("served.json").trim().is_empty());
    assert_eq!(fs::read_dir(folder.join("policies")).expect("a folder").count(), 1);
    let all: String = ["audit.ndjson", "indicators.json", "evidence.json"].map(read).concat();
    for secret in ["lighthouse", "blinks", "sk-"] {
        assert!(!all.contains(secret), "{secret} is in the evidence");
    }

    let mut names = vec!["policies".to_owned()];
    for entry in fs::read_dir(&folder).expect("a folder") {
        names.push(entry.expect("a file").file_name().into_string().expect("text"));
    }
    for name in names {
        let mut path = folder.join(&name);
        if name == "policies" {
            path = fs::read_dir(&path).expect("it").next().expect("one").expect("a file").path();
        }
        let mut bytes = fs::read(&path).expect("a file");
        let Some(middle) = bytes.len().checked_sub(1).map(|last| last / 2) else { continue };
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).expect("written");
        let [(sums, _), (script, _), (own, said)] = check();
        let (openssl, _) = run("openssl", &verify);
        assert!(!own, "{name} was changed: {said}");
        match name.as_str() {
            "SHA256SUMS" => assert!(!(openssl || sums && script)),
            // The script cannot know Ed25519; openssl does.
            "SHA256SUMS.sig" => assert!(!openssl && sums && script),
            "check.py" => assert!(!sums),
            _ => assert!(!sums && !script, "{name} was changed"),
        }
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).expect("written");
    }
    assert!(check().iter().all(|(ok, _)| *ok), "what was changed is as it was");
}

/// Whether a command of ours did what it should.
trait Success {
    fn into_success(self) -> (bool, String);
}

impl Success for (Option<i32>, String) {
    fn into_success(self) -> (bool, String) {
        assert!(matches!(self.0, Some(0 | 1)), "{self:?}");
        (self.0 == Some(0), self.1)
    }
}
