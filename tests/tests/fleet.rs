//! Several gateways that act as one: what one is told all act on, what all see one judges by, limits
//! hold for all together; and whatever becomes of Redis, no request fails or waits, and nothing is
//! lost.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::redis::{self, Cluster, Server, Way};
use harness::{Authority, Gateway, GatewayBuilder, Provider, balancer, http1, wait_for};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const GATEWAYS: usize = 3;
/// Words, and the use of limits: as shipped.
const WITHIN: Duration = Duration::from_secs(1);
/// Until gateways agree again after trouble.
const AGREED_MAX: Duration = Duration::from_secs(30);

/// Accounts are judged, and nothing is done about them.
const SHADOW: &str = "[enforcement]\nshadow = true\n";

/// A gateway of a fleet that meets at these addresses.
fn member(provider: &Provider, number: usize, redis: &[SocketAddr], more: &str) -> GatewayBuilder {
    let scheme = if more.contains("ca = ") { "rediss" } else { "redis" };
    let urls: Vec<String> = redis.iter().map(|at| format!("\"{scheme}://{at}\"")).collect();
    Gateway::in_front_of(provider.address())
        .setting("store = \"redis\"")
        .setting(&format!("node = \"gateway-{number}\""))
        .table(&format!("[redis]\nurls = [{}]\n{more}", urls.join(", ")))
}

fn in_step(gateways: &[Gateway]) {
    for gateway in gateways {
        wait_for("gateway in step", AGREED_MAX, || {
            (gateway.metric("stillgate_fleet_connected") == 1.0).then_some(())
        });
    }
}

fn fleet(provider: &Provider, redis: &[SocketAddr], more: &str, policy: &str) -> Vec<Gateway> {
    let start = |number| member(provider, number, redis, more).policy(policy).start();
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(start).collect();
    in_step(&gateways);
    gateways
}

fn chat(text: &str) -> Value {
    json!({"model": "still-1", "stream": true, "max_tokens": 300,
        "messages": [{"role": "user", "content": text}]})
}

fn request(key: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         connection: close\r\ncontent-type: application/json\r\n\
         x-provider: stream=own/openai-chat/text.sse\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn ask(gateway: &Gateway, key: &str, text: &str) -> u16 {
    http1::plain(gateway.plain_address(), &request(key, &chat(text))).status
}

/// Makes an account known at a gateway; its pseudonym.
fn account(gateway: &Gateway, key: &str) -> String {
    let before = gateway.metric("stillgate_requests_total");
    assert_eq!(ask(gateway, key, "How are you?"), 200);
    wait_for("its exchange", Duration::from_secs(5), || {
        (gateway.metric("stillgate_requests_total") > before).then_some(())
    });
    let exchanges = gateway.exchanges(1);
    exchanges[0]["account"].as_str().expect("an account").to_owned()
}

fn explained(gateway: &Gateway, account: &str) -> Value {
    let answer = gateway.admin(&format!("/v1/accounts/{account}"));
    if answer.status == 200 { answer.json() } else { Value::Null }
}

/// What must be the same at every gateway.
fn state(gateway: &Gateway, accounts: &[String]) -> Vec<Value> {
    let of = |account: &String| {
        let all = explained(gateway, account);
        json!({"account": account, "override": all["override"]["tier"], "tier": all["tier"],
            "judged": all["judged_tier"], "requests": all["requests"]})
    };
    accounts.iter().map(of).collect()
}

/// Waits until all gateways say the same of these accounts; what they say.
fn agreed(gateways: &[Gateway], accounts: &[String]) -> Vec<Value> {
    agreed_on(gateways, accounts, |_| true)
}

/// Waits until all say the same, and that.
fn agreed_on(
    gateways: &[Gateway],
    accounts: &[String],
    is_right: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let states: Vec<_> = gateways.iter().map(|gateway| state(gateway, accounts)).collect();
        if states.windows(2).all(|pair| pair[0] == pair[1]) && is_right(&states[0]) {
            return states.into_iter().next().expect("a gateway");
        }
        assert!(begun.elapsed() < AGREED_MAX, "the gateways do not agree: {states:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How long it takes until a gateway answers an account so.
fn answered_so(gateway: &Gateway, key: &str, status: u16) -> Duration {
    let begun = Instant::now();
    wait_for("the answer", Duration::from_secs(10), || {
        (ask(gateway, key, "And now?") == status).then_some(())
    });
    begun.elapsed()
}

/// Customers who keep asking at every gateway.
struct Traffic {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<(Vec<Duration>, Vec<u16>)>>,
}

impl Traffic {
    fn start(gateways: &[Gateway], pause: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let run = |(number, gateway): (usize, &Gateway)| {
            let (stop, address) = (stop.clone(), gateway.plain_address());
            std::thread::spawn(move || {
                let (mut took, mut wrong) = (Vec::new(), Vec::new());
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let text = format!("What is {turn} plus {number}, and does it matter?");
                    let begun = Instant::now();
                    let key = format!("sk-customer-{number}-{}", turn % 4);
                    let answer = http1::plain(address, &request(&key, &chat(&text)));
                    took.push(begun.elapsed());
                    if answer.status != 200 || !answer.complete {
                        wrong.push(answer.status);
                    }
                    std::thread::sleep(pause);
                }
                (took, wrong)
            })
        };
        let running = gateways.iter().enumerate().map(run).collect();
        Self { stop, running }
    }

    /// How long requests took, in order of length; none may have failed.
    fn stop(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for running in self.running {
            let (took, wrong) = running.join().expect("it ran");
            assert!(
                wrong.is_empty(),
                "{} of {} requests failed: {wrong:?}",
                wrong.len(),
                took.len()
            );
            all.extend(took);
        }
        all.sort_unstable();
        all
    }
}

#[test]
fn a_word_said_to_one_acts_on_all_within_a_second_over_tls_with_an_acl() {
    if !redis::is_there() {
        return;
    }
    let (authority, password) = (Authority::new(), "a-password-of-the-test");
    let identity = authority.sign("redis");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (name, pem) in [
        ("ca.pem", authority.pem()),
        ("chain.pem", &identity.chain_pem),
        ("key.pem", &identity.key_pem),
    ] {
        fs::write(path(name), pem).expect("a written file");
    }
    // All that the deployment's documentation asks for, and no more.
    let acl = format!(
        "user default off\n\
         user cli on >{password} allkeys +@all\n\
         user stillgate on >{password} resetchannels ~sg:* ~{{sg}}:* -@all +eval +hget +hset +hdel \
         +hscan +hgetall +xadd +xread +xrange +xrevrange +set +get +expire +scan +info\n"
    );
    fs::write(path("users.acl"), acl).expect("a written file");
    let settings = |_: &std::path::Path, port: u16| {
        let port = port.to_string();
        [
            ["--port", "0"],
            ["--tls-port", &port],
            ["--tls-cert-file", &path("chain.pem")],
            ["--tls-key-file", &path("key.pem")],
            ["--tls-ca-cert-file", &path("ca.pem")],
            ["--tls-auth-clients", "yes"],
            ["--aclfile", &path("users.acl")],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    };
    let (ca, chain, key) = (path("ca.pem"), path("chain.pem"), path("key.pem"));
    let cli = ["--tls", "--cacert", &ca, "--cert", &chain, "--key", &key, "--no-auth-warning"];
    let cli = [&cli[..], &["--user", "cli", "--pass", password]].concat();
    let server = Server::with(settings, &cli);
    let provider = Provider::start();
    let more = format!(
        "ca = \"{ca}\"\nusername = \"stillgate\"\npassword_file = \"redis.password\"\n\
         client_certificate = {{ chain = \"{chain}\", key = \"{key}\" }}\n"
    );
    let start = |number| {
        member(&provider, number, &[server.address()], &more)
            .file("redis.password", password)
            .start()
    };
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(start).collect();
    in_step(&gateways);
    let account = account(&gateways[0], "sk-one");
    let mut longest = Duration::ZERO;
    for (tier, status) in [("critical", 403), ("none", 200), ("critical", 403)] {
        gateways[1].set_tier(&account, tier);
        let took = gateways.iter().map(|gateway| answered_so(gateway, "sk-one", status));
        longest = longest.max(took.max().expect("gateways"));
        std::thread::sleep(Duration::from_millis(300));
    }
    let path = format!("/v1/accounts/{account}/override?reason=over");
    assert_eq!(gateways[2].admin_do("DELETE", &path, "").status, 200);
    longest = longest.max(answered_so(&gateways[0], "sk-one", 200));
    println!("a word acts on three gateways after {longest:?} at most");
    assert!(longest < WITHIN, "{longest:?}");
    for gateway in &gateways {
        for secret in [password, "PRIVATE KEY"] {
            assert!(!gateway.stderr().contains(secret), "a secret is in the log");
        }
        assert_eq!(gateway.metric("stillgate_fleet_errors_total"), 0.0);
    }
    let dump = server.cli(&["HGETALL", "{sg}:words:1"]);
    assert!(dump.contains(&account) && !dump.contains("How are you"), "{dump}");
}

/// Twelve accounts of one operator, one template and three networks, and as many customers who each
/// talk about their own thing: so many rounds, each over the doors of the next gateway.
fn harvest(doors: &[BTreeMap<String, SocketAddr>], rounds: usize, pause: Duration) {
    for round in 0..rounds {
        for number in 0..12 {
            let door = &doors[(round + number) % doors.len()];
            let exercise = format!(
                "Work through the following exercise step by step and explain every inference before \
                 you give the final answer.\n\nExercise {}: a lighthouse blinks {} times a minute and \
                 a ship counts {} of them, how long was it in sight?",
                round * 12 + number,
                round * 3 + number + 2,
                round * 7 + 3 * number + 5,
            );
            let body = json!({"model": "still-1", "max_tokens": 8192, "temperature": 0.6,
                "stream": true, "messages": [{"role": "user", "content": exercise}]});
            let key = format!("sk-harvest-{number:02}");
            let _ = http1::plain(door[&key], &request(&key, &body));
            if round % 4 == 0 {
                let key = format!("sk-customer-{number:02}");
                let _ = http1::plain(door[&key], &talk(&key, number, round / 4));
            }
        }
        std::thread::sleep(pause);
    }
}

/// The next turn of a customer's conversation on a thing of their own, from a client of their own.
fn talk(key: &str, number: usize, turn: usize) -> Vec<u8> {
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
    ];
    let agents = ["curl/8.5.0", "PostmanRuntime/7.37", "Go-http-client/1.1", "axios/1.7.2"];
    let openings = ["Please tell me about", "Now then, what of", "I wonder about", "So,"];
    let subject = subjects[number];
    let ask = |turn: usize| {
        let opening = openings[(number + turn) % openings.len()];
        format!("{opening} {subject}, the {} part?", ["first", "second", "odd"][turn % 3])
    };
    let mut messages = vec![json!({"role": "user", "content": ask(0)})];
    for turn in 1..=turn {
        let answer = format!("That depends on {subject} and on {turn} other things.");
        messages.push(json!({"role": "assistant", "content": answer}));
        messages.push(json!({"role": "user", "content": ask(turn)}));
    }
    let model = format!("still-{}", number % 3);
    let body = json!({"model": model, "max_tokens": 200 + 10 * number, "messages": messages});
    let (body, agent) = (body.to_string(), agents[number % agents.len()]);
    let mut fields = [
        format!("user-agent: {agent}"),
        format!("authorization: Bearer {key}"),
        "content-type: application/json".to_owned(),
        "accept: */*".to_owned(),
        "x-provider: stream=own/openai-chat/text.sse".to_owned(),
        "connection: close".to_owned(),
    ];
    fields.rotate_left(number % 6);
    let head = fields.join("\r\n");
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// For each key a port whose clients seem to come from its address.
fn doors(gateway: &Gateway) -> BTreeMap<String, SocketAddr> {
    let harvest = (0..12).map(|number| {
        let client = format!("203.0.{}.{}:5000", 113 + number % 3, 10 + number % 5);
        (format!("sk-harvest-{number:02}"), client)
    });
    let customers = (0..12).map(|number| {
        let client = format!("198.51.{}.{}:6000", 100 + 9 * number, 7 + number);
        (format!("sk-customer-{number:02}"), client)
    });
    let open = |(key, client): (String, String)| {
        let client = client.parse().expect("an address");
        (key, balancer::seen_as(client, gateway.further_address(0)))
    };
    harvest.chain(customers).map(open).collect()
}

/// Every account's tier as it was judged, and how many exchanges are known of it.
fn tiers(gateway: &Gateway, accounts: &[String]) -> Vec<(String, String, u64)> {
    let of = |account: &String| {
        let all = explained(gateway, account);
        let tier = all["judged_tier"].as_str().unwrap_or("unknown").to_owned();
        (account.clone(), tier, all["requests"].as_u64().unwrap_or(0))
    };
    accounts.iter().map(of).collect()
}

#[test]
fn a_campaign_spread_over_three_gateways_is_judged_as_by_one() {
    const ROUNDS: usize = 20;
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let policy = SHADOW;
    let behind = "proxy_protocol_from = [\"127.0.0.1/32\"]";
    let alone = Gateway::in_front_of(provider.address()).listener(behind).policy(policy).start();
    let start = |number| {
        let member = member(&provider, number, &[server.address()], "");
        member.listener(behind).policy(policy).start()
    };
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(start).collect();
    in_step(&gateways);
    let one = [doors(&alone)];
    let spread: Vec<_> = gateways.iter().map(doors).collect();
    let pause = Duration::from_millis(400);
    std::thread::scope(|scope| {
        scope.spawn(|| harvest(&one, ROUNDS, pause));
        scope.spawn(|| harvest(&spread, ROUNDS, pause));
    });
    // What was seen last is told; then each account is seen once more.
    std::thread::sleep(Duration::from_secs(7));
    std::thread::scope(|scope| {
        scope.spawn(|| harvest(&one, 1, Duration::ZERO));
        scope.spawn(|| harvest(&spread, 1, Duration::ZERO));
    });
    let exchanges = alone.exchanges(1000);
    let mut accounts: BTreeMap<String, bool> = BTreeMap::new();
    for exchange in &exchanges {
        let harvests = exchange["conversation"]["sampling"]["max_tokens"] == 8192;
        accounts.insert(exchange["account"].as_str().expect("an account").to_owned(), harvests);
    }
    assert_eq!(accounts.len(), 24);
    let ids: Vec<String> = accounts.keys().cloned().collect();
    let begun = Instant::now();
    let together = loop {
        let all: Vec<_> = gateways.iter().map(|gateway| tiers(gateway, &ids)).collect();
        if all.windows(2).all(|pair| pair[0] == pair[1]) {
            break all.into_iter().next().expect("a gateway");
        }
        assert!(begun.elapsed() < AGREED_MAX, "the gateways do not agree: {all:#?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    let by_one = tiers(&alone, &ids);
    let mut reached = BTreeMap::<&str, [usize; 2]>::new();
    for (one, spread) in by_one.iter().zip(&together) {
        if accounts[&one.0] {
            reached.entry(&one.1).or_default()[0] += 1;
            reached.entry(&spread.1).or_default()[1] += 1;
        } else {
            assert!(rank(&one.1) < 2 && rank(&spread.1) < 2, "a customer: {one:?} {spread:?}");
        }
    }
    println!("tiers of the campaign, by one gateway and by three: {reached:?}");
    println!("agreed {:?} after the last exchange", begun.elapsed());
    assert_eq!(together, by_one, "three gateways judge as one does");
    let suspected = by_one.iter().filter(|(_, tier, _)| rank(tier) >= 2).count();
    assert!(suspected > 6, "the campaign is not found: {by_one:?}");
    // What was asked and answered, and by whom, is nowhere in Redis.
    for command in [&["CONFIG", "SET", "rdbcompression", "no"][..], &["SAVE"]] {
        assert_eq!(server.cli(command).trim(), "OK");
    }
    let dump = fs::read(server.folder().join("dump.rdb")).expect("a dump");
    let holds = |text: &str| dump.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("sg:a:") && holds(&ids[0]), "the dump can be read");
    for secret in ["lighthouse", "odd part", "sk-harvest", "sk-customer"] {
        assert!(!holds(secret), "{secret} is in Redis");
    }
    // By what it has seen itself, a gateway alone would know a third of it.
    for gateway in &gateways {
        assert!(gateway.metric("stillgate_fleet_contributions_total{direction=\"in\"") > 0.0);
    }
}

/// How long requests go on where it is measured what a fleet costs.
const MEASURED: Duration = Duration::from_secs(30);

/// Prints what gateways send each other, and what an account takes in Redis.
#[test]
#[ignore = "a measurement"]
fn what_a_fleet_costs() {
    const CLIENTS: usize = 4;
    if !redis::is_there() {
        return;
    }
    let accounts: usize =
        std::env::var("FLEET_ACCOUNTS").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    let server = Server::start();
    let provider = Provider::start();
    let way = Way::open(9, server.address());
    let gateways = fleet(&provider, &[way.address()], "", SHADOW);
    let end = Instant::now() + MEASURED;
    std::thread::scope(|scope| {
        for (number, gateway) in gateways.iter().enumerate() {
            for client in 0..CLIENTS {
                let address = gateway.plain_address();
                scope.spawn(move || {
                    let mut step = number + client * GATEWAYS;
                    while Instant::now() < end {
                        step += GATEWAYS * CLIENTS;
                        let account = step.wrapping_mul(7_919) % accounts;
                        let text = format!("Customer {account} asks about matter {step}: why?");
                        let key = format!("sk-measured-{account}");
                        let _ = http1::plain(address, &request(&key, &chat(&text)));
                    }
                });
            }
        }
    });
    let sum = |name: &str| gateways.iter().map(|gateway| gateway.metric(name)).sum::<f64>();
    let requests = sum("stillgate_requests_total");
    let seconds = MEASURED.as_secs_f64();
    let each = GATEWAYS as f64 * seconds;
    println!(
        "{:.0} requests/s at each of {GATEWAYS} gateways, {accounts} accounts",
        requests / each
    );
    for direction in ["out", "in"] {
        let of =
            |name: &str| sum(&format!("stillgate_fleet_{name}_total{{direction=\"{direction}\""));
        let (told, bytes) = (of("contributions"), of("bytes"));
        println!(
            "{direction}: {:.1} contributions/s, {:.1} kB/s a gateway; {:.2} contributions and \
             {:.0} bytes a request; {:.0} bytes a contribution",
            told / each,
            bytes / each / 1e3,
            told / requests,
            bytes / requests,
            bytes / told
        );
    }
    println!("on the wire, both ways: {:.1} kB/s a gateway", way.bytes() as f64 / each / 1e3);
    std::thread::sleep(Duration::from_secs(15));
    let scanned = server.cli(&["--scan", "--pattern", "sg:a:*"]);
    let keys: Vec<&str> = scanned.lines().collect();
    let usage = |key: &&&str| -> f64 {
        server.cli(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).trim().parse().expect("a number")
    };
    let sample: Vec<f64> =
        keys.iter().step_by(keys.len() / 200 + 1).map(|key| usage(&key)).collect();
    let mean = sample.iter().sum::<f64>() / sample.len() as f64;
    let fields: f64 = server.cli(&["HLEN", keys[0]]).trim().parse().expect("a number");
    println!(
        "{} accounts in Redis, {mean:.0} bytes each, {fields} gateways in the first",
        keys.len()
    );
    for line in
        server.cli(&["INFO", "memory"]).lines().filter(|l| l.starts_with("used_memory_dataset:"))
    {
        println!("{line}");
    }
    let late = sum("stillgate_judgements_late_total");
    println!("{late} of {requests} judgements late");
}

fn rank(tier: &str) -> usize {
    let tiers = ["none", "low", "medium", "high", "critical"];
    tiers.iter().position(|name| *name == tier).expect("a tier")
}

#[test]
fn a_limit_holds_for_all_gateways_together() {
    const RATE: f64 = 600.0;
    const BURST_S: f64 = 2.0;
    const SECONDS: u64 = 10;
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let policy = format!(
        "[limit.all]\nper = \"account\"\nrequests_per_minute = {RATE:.1}\nburst_seconds = {BURST_S:.1}\n\
         [action.none]\nthrottle = [\"all\"]\n"
    );
    let gateways = fleet(&provider, &[server.address()], "", &policy);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(SECONDS);
    let through: usize = std::thread::scope(|scope| {
        let run = |gateway: &Gateway| {
            let address = gateway.plain_address();
            scope.spawn(move || {
                let mut through = 0;
                while Instant::now() < end {
                    let answer = http1::plain(address, &request("sk-eager", &chat("Again?")));
                    assert!(matches!(answer.status, 200 | 429), "{}", answer.status);
                    through += usize::from(answer.status == 200);
                }
                through
            })
        };
        let running: Vec<_> = gateways.iter().map(run).collect();
        running.into_iter().map(|one| one.join().expect("it ran")).sum()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let (a_second, through) = (RATE / 60.0, through as f64);
    let burst = BURST_S * a_second;
    // Told every 100 ms and looked for every 100 ms, and what a busy machine adds.
    let delay_s = 0.5;
    let error = (GATEWAYS - 1) as f64 * (burst + a_second * delay_s);
    let allowed = a_second * seconds + burst + 1.0;
    println!("{through} through in {seconds:.1} s; {allowed:.0} allowed to one, error {error:.0}");
    assert!(through <= allowed + error, "{through} > {allowed} + {error}");
    assert!(through > 0.8 * a_second * seconds, "hardly anything goes through: {through}");
    // Three that know nothing of each other let through three times as much.
    assert!(through < 2.0 * allowed, "{through} is not held together");
}

#[test]
fn a_slow_redis_slows_nobody() {
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let way = Way::open(2, server.address());
    let gateways = fleet(&provider, &[way.address()], "", SHADOW);
    let measure = || {
        let traffic = Traffic::start(&gateways, Duration::from_millis(5));
        std::thread::sleep(Duration::from_secs(6));
        let took = traffic.stop();
        (took[took.len() / 2], took[took.len() * 99 / 100], took.len())
    };
    let quick = measure();
    way.slow(Duration::from_millis(400));
    let slow = measure();
    way.silence();
    let silent = measure();
    println!("median, 99th, requests: {quick:?}; Redis 800 ms away: {slow:?}; silent: {silent:?}");
    for (median, p99, _) in [slow, silent] {
        // A wait for Redis would be 800 ms, or seconds.
        assert!(median < quick.0 * 2 + Duration::from_millis(20), "{median:?}");
        assert!(p99 < quick.1 * 2 + Duration::from_millis(150), "{p99:?}");
    }
    way.mend();
    way.slow(Duration::ZERO);
    in_step(&gateways);
}

#[test]
fn a_gateway_that_is_restarted_counts_nothing_twice_and_forgets_nothing() {
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let mut gateways = fleet(&provider, &[server.address()], "", SHADOW);
    let accounts = vec![account(&gateways[0], "sk-one"), account(&gateways[1], "sk-two")];
    let asked = |gateways: &[Gateway], times: usize| {
        for time in 0..times {
            for gateway in &gateways[..2] {
                for key in ["sk-one", "sk-two"] {
                    assert_eq!(ask(gateway, key, &format!("And number {time}?")), 200);
                }
            }
        }
    };
    let requests = |state: &[Value]| {
        state.iter().map(|one| one["requests"].as_u64().expect("a count")).collect::<Vec<_>>()
    };
    asked(&gateways, 3);
    let before = agreed_on(&gateways, &accounts, |state| requests(state) == [7, 7]);
    // It writes what it remembers when it is told to end.
    gateways[0].signal(rustix::process::Signal::TERM);
    assert!(gateways[0].wait(Duration::from_secs(40)).is_some(), "it does not end");
    // Meanwhile others hear of the account, and something is said of it.
    assert_eq!(ask(&gateways[1], "sk-one", "Still there?"), 200);
    gateways[1].set_tier(&accounts[0], "high");
    gateways[0].restart();
    in_step(&gateways);
    let after = agreed_on(&gateways, &accounts, |state| requests(state) == [8, 7]);
    assert_eq!((&after[0]["override"], &before[0]["override"]), (&json!("high"), &Value::Null));
    asked(&gateways, 1);
    agreed_on(&gateways, &accounts, |state| requests(state) == [10, 9]);
}

#[test]
fn gateways_of_one_name_or_of_another_key_are_not_mixed() {
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let first = member(&provider, 1, &[server.address()], "").start();
    let second = member(&provider, 1, &[server.address()], "").start();
    assert_eq!(second.metric("stillgate_fleet_connected"), 0.0);
    assert!(second.stderr().contains("another running gateway has this one's name"));
    assert_eq!(ask(&second, "sk-one", "Hello?"), 200, "it serves by what it knows");
    drop(first);
    in_step(&[second]);
    assert_eq!(server.cli(&["SET", "{sg}:key", "0123456789abcdef"]).trim(), "OK");
    let other = member(&provider, 2, &[server.address()], "").start();
    assert_eq!(other.metric("stillgate_fleet_connected"), 0.0);
    assert!(other.stderr().contains("have another identity key"), "{}", other.stderr());
}

#[test]
fn a_policy_may_refuse_while_a_gateway_is_apart() {
    if !redis::is_there() {
        return;
    }
    let server = Server::start();
    let provider = Provider::start();
    let way = Way::open(3, server.address());
    let strict = "[fleet]\nwhen_apart = \"refuse\"\napart_seconds = 1.0\n";
    let gateways = fleet(&provider, &[way.address()], "", strict);
    assert_eq!(ask(&gateways[0], "sk-one", "Hello?"), 200);
    way.cut();
    assert_eq!(ask(&gateways[0], "sk-one", "Hello?"), 200, "not at once");
    answered_so(&gateways[0], "sk-one", 503);
    assert!(gateways[0].metric("stillgate_refusals_total{reason=\"apart\"") > 0.0);
    way.mend();
    answered_so(&gateways[0], "sk-one", 200);
}

#[test]
fn nothing_is_lost_whatever_becomes_of_redis() {
    if !redis::is_there() {
        return;
    }
    let mut cluster = Cluster::start();
    let provider = Provider::start();
    // Each gateway has a host of its own by which it comes to the servers.
    let ways: Vec<Vec<Way>> = (0..GATEWAYS)
        .map(|number| {
            let host = u8::try_from(10 + number).expect("a small number");
            cluster.addresses().into_iter().map(|server| Way::open(host, server)).collect()
        })
        .collect();
    let start = |number: usize| {
        let addresses: Vec<SocketAddr> = ways[number].iter().map(Way::address).collect();
        member(&provider, number, &addresses, "cluster = true").policy(SHADOW).start()
    };
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(start).collect();
    in_step(&gateways);
    let keys: Vec<String> = (0..9).map(|number| format!("sk-account-{number}")).collect();
    let accounts: Vec<String> =
        keys.iter().enumerate().map(|(n, key)| account(&gateways[n % GATEWAYS], key)).collect();
    let traffic = Traffic::start(&gateways, Duration::from_millis(40));
    let round = || {
        for (number, key) in keys.iter().enumerate().skip(3) {
            let gateway = &gateways[number % GATEWAYS];
            assert_eq!(ask(gateway, key, &format!("And {number}?")), 200);
        }
    };
    let overridden = |account: usize, gateway: usize, tier: &str| {
        gateways[gateway].set_tier(&accounts[account], tier);
    };
    round();
    overridden(0, 0, "critical");
    let before = agreed(&gateways, &accounts);
    assert_eq!(before[0]["override"], "critical");

    // A master dies: first that of the words.
    let feed = cluster.master_of("{sg}:feed");
    cluster.kill(feed);
    let begun = Instant::now();
    overridden(1, 1, "high");
    round();
    let after = agreed(&gateways, &accounts);
    assert_eq!(
        (&after[0]["override"], &after[1]["override"]),
        (&json!("critical"), &json!("high"))
    );
    println!("a master was killed; the gateways agree after {:?}", begun.elapsed());

    // A gateway is cut off, and all go on saying things; of two words on one account the later counts.
    for way in &ways[2] {
        way.silence();
    }
    wait_for("gateway apart", AGREED_MAX, || {
        (gateways[2].metric("stillgate_fleet_connected") == 0.0).then_some(())
    });
    overridden(2, 2, "medium");
    overridden(0, 2, "low");
    overridden(0, 0, "high");
    overridden(1, 2, "none");
    round();
    for way in &ways[2] {
        way.mend();
    }
    let begun = Instant::now();
    let after = agreed(&gateways, &accounts);
    let words: Vec<&Value> = after[..3].iter().map(|state| &state["override"]).collect();
    assert_eq!(words, [&json!("high"), &json!("none"), &json!("medium")]);
    println!("a gateway was cut off; the gateways agree {:?} after it is back", begun.elapsed());

    // Everything is gone.
    cluster.restart_empty();
    overridden(0, 1, "critical");
    round();
    let begun = Instant::now();
    in_step(&gateways);
    let after = agreed(&gateways, &accounts);
    let words: Vec<&Value> = after[..3].iter().map(|state| &state["override"]).collect();
    assert_eq!(words, [&json!("critical"), &json!("none"), &json!("medium")]);
    println!("Redis came back empty; the gateways agree after {:?}", begun.elapsed());
    let took = traffic.stop();
    println!("{} requests meanwhile, none failed, the longest {:?}", took.len(), took.last());

    // Who comes new knows all of it from the moment it is ready.
    let addresses: Vec<SocketAddr> = ways[0].iter().map(Way::address).collect();
    let fresh = member(&provider, 9, &addresses, "cluster = true").policy(SHADOW).start();
    assert_eq!(explained(&fresh, &accounts[0])["override"]["tier"], "critical");
    let all: Vec<Gateway> = gateways.into_iter().chain([fresh]).collect();
    assert_eq!(agreed(&all, &accounts), after);
}
