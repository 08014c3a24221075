//! The live show: customers and a campaign at the gateway's own listener, and who watches them.
//!
//! Nothing is made up. Tiers are the engine's, paces and marks are what the clients measure in what
//! they receive, and the collection is read as `stillgate verify` reads one. What the show takes
//! from inside the gateway is only what its admin endpoint shows as well.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use detectors::policy::Action;
use detectors::tier::Tier;
use detectors::watermark::{Evidence, Verdict, Wordings};
use detectors::{AccountId, Format};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::cast::{self, Asked, Part, Sender};
use super::client::{Door, Piece, Reader, Request, invisible};
use super::report::{self, Collected, Gone, Ink, Moment, Row, Summary};
use crate::account;
use crate::enforce::marks;
use crate::enforce::standing::TierChange;
use crate::enforce::takedown::{Status, Takedown};
use crate::gateway::Gateway;
use crate::policy::unix_ms;

/// Keys of the campaign.
const KEYS: usize = 14;
/// Keys that it tries after the takedown.
const FRESH_KEYS: usize = 2;
/// Time from one of its keys to the next.
const JOIN_EVERY: Duration = Duration::from_secs(2);
/// Requests that it sends with one key at the same time.
const WORKERS: usize = 2;
/// Its dispatcher hands out work so often, to every key that is free.
const DISPATCH_EVERY: Duration = Duration::from_secs(3);
/// The show ends after so long, whatever has happened.
const SHOW_MAX: Duration = Duration::from_secs(75);
/// Time from the takedown until the operator tries new keys.
const FRESH_AFTER: Duration = Duration::from_secs(2);
/// Time from the takedown until the show ends.
const ENDS_AFTER: Duration = Duration::from_secs(9);
/// How often somebody looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How often the campaign's accounts are counted aloud.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Time at a tier from which on a pace is worth telling.
const PACE_AFTER: Duration = Duration::from_secs(2);
/// Turns of a conversation that are sent again.
const TURNS_MAX: usize = 5;
/// Answers that the campaign keeps of each key.
const COLLECTED_MAX: usize = 64;
/// Requests of one sender.
const REQUESTS_MAX: usize = 500;

/// Where the show takes place.
pub struct Stage {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Its listener that takes PROXY headers.
    pub listener: SocketAddr,
    /// The demo's identity key.
    pub identity: Vec<u8>,
    /// Token of the admin endpoint.
    pub admin_token: String,
    /// Makes a credential.
    pub new_key: fn() -> String,
}

/// One sender, and what it has met with.
struct Player {
    sender: Sender,
    account: AccountId,
    begins: Duration,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    requests: usize,
    refused: usize,
    limited: usize,
    failed: usize,
    /// Answers ended in their middle.
    ended: usize,
    /// Answers with marks.
    marked: usize,
    /// Invisible characters of all of them.
    invisible: usize,
    /// Answers that came without the reasoning that was asked for.
    withheld: usize,
    /// Tokens and time of streamed answers, by the tier at which they came.
    paces: [(usize, Duration); 5],
    /// Prompts and answers.
    collected: Vec<(String, String)>,
}

/// Lets everybody play, tells what happens and what became of it.
///
/// # Errors
/// What is wrong with the machine, in words.
pub fn run(stage: &Stage, ca: &Path, ink: Ink, out: &mut impl Write) -> Result<(), String> {
    let door = Arc::new(Door::new(stage.listener, ca)?);
    let customers: Vec<Arc<Player>> = cast::customers(stage.new_key)
        .into_iter()
        .map(|sender| player(stage, sender, Duration::ZERO))
        .collect::<Result<_, _>>()?;
    let mut senders = cast::campaign(KEYS + FRESH_KEYS, stage.new_key);
    let mut fresh = senders.split_off(KEYS);
    let mut campaign: Vec<Arc<Player>> = Vec::new();
    for sender in senders {
        let begins = JOIN_EVERY * u32::try_from(campaign.len()).unwrap_or(0);
        campaign.push(player(stage, sender, begins)?);
    }
    let say = |out: &mut dyn Write, text: &str| {
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| e.to_string())
    };
    say(out, &introduction(customers.len(), ink))?;

    let mut troupe = Troupe {
        gateway: stage.gateway.clone(),
        door,
        begun: Instant::now(),
        end: Arc::default(),
        threads: Vec::new(),
    };
    for player in customers.iter().chain(&campaign) {
        troupe.start(player)?;
    }
    let mut watch = Watch::default();
    let begun = troupe.begun;
    let mut newcomers: Vec<Arc<Player>> = Vec::new();
    let mut gone_at: Option<Instant> = None;
    while begun.elapsed() < SHOW_MAX {
        std::thread::sleep(LOOK_EVERY);
        let moments = watch.look(stage, &customers, &campaign, &newcomers, begun.elapsed());
        for moment in moments {
            say(out, &report::line(begun.elapsed(), &moment, ink))?;
        }
        if watch.gone.is_some() {
            gone_at.get_or_insert_with(Instant::now);
        }
        let gone_for = gone_at.map_or(Duration::ZERO, |at| at.elapsed());
        if gone_for > FRESH_AFTER && newcomers.is_empty() {
            // What operators of campaigns do: they open new accounts.
            for sender in fresh.drain(..) {
                let newcomer = player(stage, sender, begun.elapsed())?;
                troupe.start(&newcomer)?;
                newcomers.push(newcomer);
            }
        }
        if gone_for > ENDS_AFTER {
            break;
        }
    }
    let took = begun.elapsed();
    drop(troupe);
    let mut told = tell(stage, watch.gone, &customers, &campaign, &newcomers)?;
    told.took = took;
    say(out, &report::summary(&told, ink))
}

fn introduction(customers: usize, ink: Ink) -> String {
    format!(
        "\n{}\n\n  \
         {customers} customers ask away. So does a campaign: one program, one template, a new key every\n  \
         {} seconds, from three networks next to one another. All of it is real traffic over TLS to\n  \
         this gateway; the policy is the shipped default, with nothing changed.\n\n",
        ink.bold("A campaign among customers"),
        JOIN_EVERY.as_secs(),
    )
}

fn player(stage: &Stage, sender: Sender, begins: Duration) -> Result<Arc<Player>, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in sender.ask(0, &[]).headers {
        let value = HeaderValue::from_str(&value).map_err(|error| error.to_string())?;
        headers.insert(HeaderName::from_static(name), value);
    }
    let named = stage.gateway.namer.name(&account::Sender {
        headers: &headers,
        path_and_query: "/",
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        certificate_sha256: None,
        format: Format::OpenaiChat,
    });
    let account = named.ok().and_then(|named| named.account);
    let account = account.ok_or_else(|| format!("{} has no account", sender.name))?;
    Ok(Arc::new(Player { sender, account, begins, tally: Mutex::default() }))
}

/// Everybody's threads. Ends them when it goes, and waits for the last answers.
struct Troupe {
    gateway: Arc<Gateway>,
    door: Arc<Door>,
    begun: Instant,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Troupe {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Troupe {
    fn start(&mut self, player: &Arc<Player>) -> Result<(), String> {
        for worker in 0..player.workers() {
            let (player, gateway, door) = (player.clone(), self.gateway.clone(), self.door.clone());
            let (begun, end) = (self.begun, self.end.clone());
            let thread = std::thread::Builder::new().name("demo-client".to_owned());
            let thread = thread.spawn(move || player.play(worker, &gateway, &door, begun, &end));
            self.threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
        }
        Ok(())
    }
}

impl Player {
    fn is_campaign(&self) -> bool {
        matches!(self.sender.part, Part::Campaign(_))
    }

    fn workers(&self) -> usize {
        if self.is_campaign() { WORKERS } else { 1 }
    }

    fn play(
        &self,
        worker: usize,
        gateway: &Gateway,
        door: &Door,
        begun: Instant,
        end: &AtomicBool,
    ) {
        let mut said: Vec<(String, String)> = Vec::new();
        let mut next = begun + self.begins;
        for step in (worker..REQUESTS_MAX).step_by(self.workers()) {
            if self.is_campaign() {
                // The dispatcher's next round.
                let round = next.saturating_duration_since(begun).as_millis()
                    / DISPATCH_EVERY.as_millis().max(1);
                next = begun + DISPATCH_EVERY * (u32::try_from(round).unwrap_or(0) + 1);
            }
            while Instant::now() < next {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if end.load(Ordering::Relaxed) {
                return;
            }
            let asked = self.sender.ask(step, &said);
            let answer = self.exchange(gateway, door, &asked);
            if said.len() == TURNS_MAX {
                said.clear();
            }
            said.push((asked.prompt, answer));
            next = Instant::now() + self.sender.pause;
        }
    }

    /// One request and its answer.
    fn exchange(&self, gateway: &Gateway, door: &Door, asked: &Asked) -> String {
        let standing = gateway.enforcer.standing(&self.account);
        let tier = || standing.read(|state| state.tier(unix_ms()));
        let begun_at = tier();
        let mut reader = Reader::default();
        let (mut text, mut reasoning, mut marks, mut error) = (String::new(), 0, 0, false);
        let mut last: Option<(Instant, Tier)> = None;
        let mut heard = |piece: Piece| {
            let (now, at, tokens) = (Instant::now(), tier(), piece.tokens());
            error |= piece.error;
            reasoning += piece.reasoning_chars;
            if tokens == 0 {
                return;
            }
            let mut tally = self.tally.lock();
            let more = invisible(&piece.text);
            tally.marked += usize::from(marks == 0 && more > 0);
            tally.invisible += more;
            marks += more;
            let first = text.is_empty() && !piece.text.is_empty();
            // It always asks for reasoning, which comes before the text.
            let silent = first && reasoning == 0 && self.is_campaign();
            tally.withheld += usize::from(silent && begun_at == Tier::High);
            text.push_str(&piece.text);
            if let Some((before, same)) = last
                && same == at
            {
                let pace = &mut tally.paces[at as usize];
                pace.0 += tokens;
                pace.1 += now.saturating_duration_since(before);
            }
            last = Some((now, at));
        };
        let request = Request {
            from: self.sender.address,
            make: self.sender.make,
            path: asked.path,
            headers: &asked.headers,
            body: &asked.body,
        };
        let status = door.send(&request, |bytes| reader.take(bytes, &mut heard));
        reader.end(&mut heard);
        let mut tally = self.tally.lock();
        tally.requests += 1;
        match status {
            Ok(200) => {
                tally.ended += usize::from(error);
                if self.is_campaign() && tally.collected.len() < COLLECTED_MAX {
                    tally.collected.push((asked.prompt.clone(), text.clone()));
                }
            }
            Ok(429) => tally.limited += 1,
            Ok(401 | 403) => {
                tally.refused += 1;
            }
            Ok(_) | Err(_) => tally.failed += 1,
        }
        text
    }
}

/// What has been told.
#[derive(Default)]
struct Watch {
    reached: Tier,
    paced: [bool; 5],
    marked: bool,
    withheld: bool,
    limited: bool,
    ended: bool,
    gone: Option<Takedown>,
    refused: Vec<AccountId>,
    counted: Duration,
}

impl Watch {
    fn look(
        &mut self,
        stage: &Stage,
        customers: &[Arc<Player>],
        campaign: &[Arc<Player>],
        newcomers: &[Arc<Player>],
        elapsed: Duration,
    ) -> Vec<Moment> {
        let mut moments = Vec::new();
        let told = self.reached;
        for tier in Tier::ALL.into_iter().filter(|tier| *tier > told) {
            let came = campaign
                .iter()
                .filter_map(|one| Some((short(&one.account), reached(stage, one, tier)?)));
            // They came between two looks; what a first one brings with it weighs on the next.
            let first = came.min_by(|(_, a), (_, b)| a.suspicion.total_cmp(&b.suspicion));
            if let Some((account, change)) = first {
                self.reached = tier;
                moments.push(Moment::Reached {
                    tier,
                    account,
                    request: change.request,
                    suspicion: change.suspicion,
                    because: change.because.iter().take(3).map(|(name, _)| name.clone()).collect(),
                });
            }
        }
        let before = pace(campaign, &[Tier::None, Tier::Low]);
        for tier in [Tier::Medium, Tier::High] {
            let now = pace(campaign, &[tier]).filter(|(_, time)| *time > PACE_AFTER);
            if let (false, Some((now, _)), Some((before, _))) =
                (self.paced[tier as usize], now, before)
            {
                self.paced[tier as usize] = true;
                moments.push(Moment::Pace { tier, now, before });
            }
        }
        for one in campaign {
            let tally = one.tally.lock();
            if tally.limited > 0 && !std::mem::replace(&mut self.limited, true) {
                moments.push(Moment::Limited);
            }
            if tally.marked > 0 && !std::mem::replace(&mut self.marked, true) {
                moments.push(Moment::Marked(short(&one.account)));
            }
            if tally.withheld > 0 && !std::mem::replace(&mut self.withheld, true) {
                moments.push(Moment::Withheld);
            }
            if tally.ended > 0 && !std::mem::replace(&mut self.ended, true) {
                moments.push(Moment::Ended);
            }
        }
        if self.gone.is_none() {
            let takedowns = stage.gateway.enforcer.takedowns().into_iter();
            self.gone = takedowns.filter(|held| held.status == Status::Active).last();
            moments.extend(self.gone.as_ref().map(|takedown| Moment::TakenDown {
                cluster: takedown.cluster.clone(),
                suspended: takedown.suspended.len(),
                left_out: takedown.left_out.len(),
            }));
        }
        for one in newcomers {
            if one.tally.lock().refused > 0 && !self.refused.contains(&one.account) {
                self.refused.push(one.account.clone());
                let tier = tier_of(stage, &one.account);
                let request = reached(stage, one, tier).map_or(1, |change| change.request);
                moments.push(Moment::Fresh { account: short(&one.account), tier, request });
            }
        }
        if elapsed >= self.counted + COUNT_EVERY {
            self.counted = elapsed;
            let (mut tiers, mut suspended) = ([0; 5], 0);
            for one in campaign.iter().chain(newcomers).filter(|one| one.begins <= elapsed) {
                tiers[tier_of(stage, &one.account) as usize] += 1;
                suspended += usize::from(is_suspended(stage, &one.account));
            }
            let customers = customers.iter().map(|one| tier_of(stage, &one.account)).max();
            let customers = customers.unwrap_or_default();
            moments.push(Moment::Count { tiers, suspended, customers });
        }
        moments
    }
}

/// How an account came to a tier, where it did not go past it at once.
fn reached(stage: &Stage, player: &Player, tier: Tier) -> Option<TierChange> {
    let standing = stage.gateway.enforcer.standing(&player.account);
    let first =
        standing.read(|state| state.changes.iter().find(|change| change.tier >= tier).cloned());
    first.filter(|change| change.tier == tier)
}

fn tier_of(stage: &Stage, account: &AccountId) -> Tier {
    stage.gateway.enforcer.standing(account).read(|state| state.tier(unix_ms()))
}

fn is_suspended(stage: &Stage, account: &AccountId) -> bool {
    let now_ms = unix_ms();
    stage.gateway.enforcer.standing(account).read(|state| state.suspension(now_ms).is_some())
}

/// Tokens a second at these tiers, and the time that it was measured over.
fn pace(players: &[Arc<Player>], tiers: &[Tier]) -> Option<(f64, Duration)> {
    let (mut tokens, mut time) = (0, Duration::ZERO);
    for player in players {
        let tally = player.tally.lock();
        for tier in tiers {
            let (more, longer) = tally.paces[*tier as usize];
            tokens += more;
            time += longer;
        }
    }
    (time > Duration::from_millis(200)).then(|| (tokens as f64 / time.as_secs_f64(), time))
}

/// Enough of a pseudonym to tell it by.
fn short(account: &AccountId) -> String {
    account.as_str().chars().take(17).collect()
}

fn tell(
    stage: &Stage,
    gone: Option<Takedown>,
    customers: &[Arc<Player>],
    campaign: &[Arc<Player>],
    newcomers: &[Arc<Player>],
) -> Result<Summary, String> {
    let mut rows = vec![row(stage, "the campaign", campaign)];
    if !newcomers.is_empty() {
        rows.push(row(stage, "its fresh keys", newcomers));
    }
    let suspended = rows.iter().map(|row| row.suspended).sum();
    let hours = |held: &Takedown| held.until_ms.saturating_sub(held.at_ms) as f64 / 3_600_000.0;
    Ok(Summary {
        customers: customers
            .iter()
            .map(|one| row(stage, one.sender.name, std::slice::from_ref(one)))
            .collect(),
        campaign: rows,
        paces: Tier::ALL.map(|tier| pace(campaign, &[tier]).map(|(pace, _)| pace)),
        customers_pace: pace(customers, &Tier::ALL).map(|(pace, _)| pace),
        gone: gone.map(|held| Gone {
            hours: hours(&held),
            trigger: held.trigger.as_str().to_owned(),
            cluster: held.cluster,
            suspended,
        }),
        collected: collected(stage, campaign)?,
        took: Duration::ZERO,
        admin: stage.gateway.config.admin.address.to_string(),
        token: stage.admin_token.clone(),
    })
}

fn row(stage: &Stage, who: &str, players: &[Arc<Player>]) -> Row {
    let mut row = Row { who: who.to_owned(), keys: players.len(), ..Row::default() };
    for player in players {
        let tally = player.tally.lock();
        row.requests += tally.requests;
        row.marked += tally.marked;
        row.invisible += tally.invisible;
        row.withheld += tally.withheld;
        row.ended += tally.ended;
        row.limited += tally.limited;
        row.refused += tally.refused;
        row.failed += tally.failed;
        let standing = stage.gateway.enforcer.standing(&player.account);
        standing.read(|state| {
            let highest = state.changes.iter().map(|change| change.tier).max();
            row.tier = row.tier.max(highest.unwrap_or_default());
            let paced = state.actions.iter().filter(|taken| taken.action == Action::Pace);
            row.slowed += paced.filter(|taken| !taken.shadow).map(|taken| taken.count).sum::<u64>();
        });
        row.suspended += usize::from(is_suspended(stage, &player.account));
    }
    row
}

/// Reads the marked answers that the campaign has collected as a data set of unknown origin. The
/// others say nothing to either layer: which are marked does not depend on the key of the wordings.
fn collected(stage: &Stage, campaign: &[Arc<Player>]) -> Result<Option<Collected>, String> {
    let wordings = Wordings::builtin().map_err(|error| error.to_string())?;
    let key = marks::master_key(&stage.identity)?;
    let mut evidence = Evidence::new(&wordings, &key);
    let (mut answers, mut marked) = (0, 0);
    for one in campaign {
        for (prompt, answer) in &one.tally.lock().collected {
            answers += 1;
            if invisible(answer) > 0 {
                marked += 1;
                evidence.read_prompt(prompt);
                evidence.read(answer);
            }
        }
    }
    if answers == 0 {
        return Ok(None);
    }
    let report = evidence.report(&key, &stage.gateway.enforcer.marked());
    let found = report.zero_width.iter().filter(|one| one.verdict == Verdict::Evidence);
    let named = found.filter_map(|one| {
        let account = one.accounts.first()?;
        Some((account.chars().take(17).collect(), one.frames))
    });
    let words = report.lexical.first().filter(|votes| votes.verdict > Verdict::NoEvidence);
    let words = words.map(|votes| (votes.votes.agreeing, votes.votes.of, votes.p_log10));
    Ok(Some(Collected { answers, marked, named: named.collect(), words }))
}
