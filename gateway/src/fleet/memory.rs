//! What is remembered of accounts: in Redis a hash of each account, a field of each gateway.
//!
//! A gateway writes its own field only, whole, so writing it again does no harm; and names the account
//! in a stream. The others then read the hash and put what all but they have written in the place of
//! what they were told before. Whoever comes new reads all hashes, a few at a time.
//!
//! What matters to a judgement is told in the next round: an account's first exchanges, and each
//! time that it has a fifth more of them. The rest waits a little, so that an account that never
//! stops asking costs no more than one that asks now and then.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use detectors::AccountId;
use detectors::engine::Contribution;
use detectors::tier::Held;
use redis::{Pipeline, Value};
use tracing::{info, warn};

use super::connection::{Link, LinkError, bytes, list, pairs, text};
use super::words::{self, Keys};
use super::{Fleet, Trail};
use crate::judge::Follower;
use crate::limits::{
    FLEET_ACCOUNTS_AT_ONCE, FLEET_AGAIN_MAX, FLEET_CHANGED_MAX, FLEET_CHANGED_NAMED_MAX,
    FLEET_CHECK_INTERVAL, FLEET_ENTRIES_MAX, FLEET_FETCH_MAX, FLEET_GATEWAYS_MAX,
    FLEET_KEY_BYTES_MAX, FLEET_RETELL, FLEET_TOLD_MAX, FLEET_UNSURE, FLEET_UNSURE_MAX,
};
use crate::store::{Batch, Table, Write};

/// Exchanges of an account that are judged one by one.
const JUDGED_EACH: u32 = 6;
/// Key of the cursor that says whose data this gateway has last met.
const CURSOR: &str = "fleet";

/// What is to be done, and survives a lost connection.
#[derive(Default)]
pub(super) struct Work {
    /// How far the stream of changes was read; `None` before the first time.
    position: Option<String>,
    trail: Option<Trail>,
    /// Accounts to be written whatever was told of them before.
    unsent: VecDeque<AccountId>,
    pace: Pace,
    /// Redis has lost what it held: everything is to be written again, once all is held.
    lost: bool,
    /// Keys of what is left of that.
    again: Vec<u64>,
    /// Accounts that were written lately: a failover may lose them.
    unsure: VecDeque<(Instant, AccountId)>,
    fetch: Fetch,
    scan: Option<Scan>,
}

/// What was told of accounts lately.
#[derive(Default)]
struct Pace {
    told: HashMap<AccountId, Told>,
    order: VecDeque<(Instant, AccountId)>,
}

/// What was told of an account.
struct Told {
    requests: u32,
    /// Hash of all that this gateway has seen of it.
    part: u64,
    /// Whether there is more to tell.
    more: bool,
}

impl Pace {
    /// Whether there is something to tell of an account now.
    fn is_due(&mut self, own: &Contribution) -> bool {
        let (part, requests) = (part(own), own.memory.requests);
        let Some(told) = self.told.get_mut(&own.account) else { return true };
        if told.part == part {
            // Others' judgements of it go round by themselves.
            return false;
        }
        let first = requests <= JUDGED_EACH && requests > told.requests;
        let due = first || requests >= told.requests.saturating_add((told.requests / 5).max(2));
        told.more |= !due;
        due
    }

    fn told(&mut self, own: &Contribution, now: Instant) {
        let (part, requests) = (part(own), own.memory.requests);
        let told = Told { requests, part, more: false };
        if self.told.len() >= FLEET_TOLD_MAX && !self.told.contains_key(&own.account) {
            return;
        }
        if self.told.insert(own.account.clone(), told).is_none() {
            self.order.push_back((now, own.account.clone()));
        }
    }

    /// Accounts whose time is over and of which there is more to tell.
    fn over(&mut self, now: Instant) -> Vec<AccountId> {
        let mut more = Vec::new();
        while self.order.front().is_some_and(|(at, _)| now - *at >= FLEET_RETELL) {
            let Some((_, account)) = self.order.pop_front() else { break };
            if self.told.remove(&account).is_some_and(|told| told.more) {
                more.push(account);
            }
        }
        more
    }
}

/// What a gateway has seen itself, without what it holds by judgements.
fn part(own: &Contribution) -> u64 {
    let mut seen = own.clone();
    seen.held = Held::default();
    seen.peak = Default::default();
    seen.first = Default::default();
    let mut hasher = DefaultHasher::new();
    seen.encode().hash(&mut hasher);
    hasher.finish()
}

/// Accounts to be fetched, each once.
#[derive(Default)]
struct Fetch {
    order: VecDeque<AccountId>,
    held: HashSet<AccountId>,
}

impl Fetch {
    /// Whether there was room.
    fn add(&mut self, account: AccountId) -> bool {
        if self.held.contains(&account) {
            return true;
        }
        if self.order.len() >= FLEET_FETCH_MAX {
            return false;
        }
        self.held.insert(account.clone());
        self.order.push_back(account);
        true
    }

    fn take(&mut self, max: usize) -> Vec<AccountId> {
        let taken: Vec<AccountId> = self.order.drain(..max.min(self.order.len())).collect();
        for account in &taken {
            self.held.remove(account);
        }
        taken
    }

    /// Puts back what was not fetched after all.
    fn put_back(&mut self, accounts: Vec<AccountId>) {
        for account in accounts.into_iter().rev() {
            if self.held.insert(account.clone()) {
                self.order.push_front(account);
            }
        }
    }
}

/// Reading everything, one master after the other.
struct Scan {
    /// A slot of each master yet to be read; `None` stands for the only server.
    masters: Vec<Option<u16>>,
    cursor: String,
    seen: usize,
}

impl Fleet {
    /// One session: until something fails.
    pub(super) async fn share_memory(
        &self,
        link: &mut Link<'_>,
        work: &mut Work,
    ) -> Result<Infallible, LinkError> {
        self.meet(link, work).await?;
        let mut tick = tokio::time::interval(self.settings.memory_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut checked_at = Instant::now();
        loop {
            tick.tick().await;
            if checked_at.elapsed() >= FLEET_CHECK_INTERVAL {
                checked_at = Instant::now();
                self.check(link, work).await?;
            }
            self.tell(link, work).await?;
            self.hear(link, work).await?;
            self.fetch(link, work, usize::MAX).await?;
            self.go_on_scanning(link, work).await?;
        }
    }

    /// Finds out what was missed.
    async fn meet(&self, link: &mut Link<'_>, work: &mut Work) -> Result<(), LinkError> {
        self.check(link, work).await?;
        let stream = changed(&self.keys);
        let mut command = redis::cmd("XRANGE");
        command.arg(&stream).arg("-").arg("+").arg("COUNT").arg(1);
        let answer = link.ask(&command).await?;
        let oldest = words::entries(&answer).first().and_then(|entry| order(entry.id));
        let position = work.position.as_deref().and_then(order);
        let newest = self.newest(link, &stream).await?;
        // What lies between was let go, or all of it is gone.
        let missed = match (oldest, position) {
            (Some(oldest), Some(position)) => {
                oldest > position || order(&newest).is_some_and(|newest| newest < position)
            }
            _ => true,
        };
        if missed {
            work.position = Some(newest);
            work.scan =
                Some(Scan { masters: link.masters().await?, cursor: "0".to_owned(), seen: 0 });
        }
        Ok(())
    }

    /// Looks whether Redis has lost something, and has it written again.
    async fn check(&self, link: &mut Link<'_>, work: &mut Work) -> Result<(), LinkError> {
        let now = self.trail(link).await?;
        let before = match work.trail.take() {
            Some(before) => Some(before),
            None => self.met_before().await,
        };
        if before.as_ref().is_none_or(|before| before.run != now.run) {
            self.remember_meeting(&now.run);
        }
        match before {
            None => {}
            Some(before) if before.run != now.run || lost(&before.histories, &now.histories) => {
                info!(target: "stillgate::fleet", "Redis has lost memories: they are written again");
                work.lost = true;
            }
            // A replica has taken a master's place, and may lack the last moments.
            Some(before) if before.histories != now.histories => {
                work.unsent.extend(work.unsure.drain(..).map(|(_, account)| account));
            }
            Some(_) => {}
        }
        work.trail = Some(now);
        Ok(())
    }

    /// Which Redis this gateway met before it was last restarted.
    async fn met_before(&self) -> Option<Trail> {
        let store = self.store.clone();
        let read = move || store.get(Table::Cursor, CURSOR).ok().flatten()?.value;
        let value = tokio::task::spawn_blocking(read).await.ok().flatten()?;
        let run = serde_json::from_str(&value).ok()?;
        Some(Trail { run, histories: BTreeMap::new() })
    }

    fn remember_meeting(&self, run: &str) {
        let write = Write::put(Table::Cursor, CURSOR, &run);
        // It is only for the next start, which does no harm without it.
        drop(self.store.commit(Batch { writes: vec![write], audit: Vec::new() }));
    }

    /// Writes what has changed here, and some of what is to be written again.
    async fn tell(&self, link: &mut Link<'_>, work: &mut Work) -> Result<(), LinkError> {
        let until = Instant::now() + self.settings.memory_interval;
        let mut again = FLEET_AGAIN_MAX;
        work.unsent.extend(work.pace.over(Instant::now()));
        if work.lost && !self.judge.is_restoring() {
            work.again = self.judge.account_keys();
            work.lost = false;
        }
        loop {
            if work.unsent.is_empty() && again > 0 {
                let from = work.again.len().saturating_sub(FLEET_CHANGED_NAMED_MAX.min(again));
                let keys = work.again.split_off(from);
                again -= keys.len();
                work.unsent.extend(self.judge.ids_of(&keys));
            }
            let some = FLEET_CHANGED_NAMED_MAX.min(work.unsent.len());
            let mut accounts: Vec<AccountId> = work.unsent.drain(..some).collect();
            let room = FLEET_CHANGED_NAMED_MAX - some;
            let changed = self.judge.take_changed(Follower::Fleet, room);
            if accounts.is_empty() && changed.is_empty() {
                return Ok(());
            }
            let mut told: Vec<Contribution> =
                accounts.iter().filter_map(|account| self.judge.contribution(account)).collect();
            for account in &changed {
                let own = self.judge.contribution(account);
                told.extend(own.filter(|own| work.pace.is_due(own)));
            }
            // Until all is read: what the others know of whoever asks now comes first.
            if work.scan.is_some() {
                changed.iter().for_each(|account| self.want(work, account.clone()));
            }
            if let Err(error) = self.publish(link, &told).await {
                accounts.extend(changed);
                accounts.into_iter().rev().for_each(|account| work.unsent.push_front(account));
                return Err(error);
            }
            let now = Instant::now();
            for own in told {
                work.pace.told(&own, now);
                if work.unsure.len() < FLEET_UNSURE_MAX {
                    work.unsure.push_back((now, own.account));
                }
            }
            while work.unsure.front().is_some_and(|(at, _)| now - *at > FLEET_UNSURE) {
                work.unsure.pop_front();
            }
            if now >= until {
                return Ok(());
            }
        }
    }

    async fn publish(&self, link: &mut Link<'_>, told: &[Contribution]) -> Result<(), LinkError> {
        let (node, keep) = (self.store.node(), self.settings.keep.as_secs());
        let mut named = String::new();
        for some in told.chunks(FLEET_ACCOUNTS_AT_ONCE) {
            let group = |own: &Contribution| {
                let key = self.keys.account(own.account.as_str());
                let mut group = Pipeline::new();
                group.cmd("HSET").arg(&key).arg(&**node).arg(own.encode());
                group.cmd("EXPIRE").arg(&key).arg(keep);
                group
            };
            let groups: Vec<Pipeline> = some.iter().map(group).collect();
            link.ask_all(&groups).await?;
            let count = self.metrics.fleet_contributions.with_label_values(&["out"]);
            count.inc_by(some.len() as u64);
            for own in some {
                named.push_str(own.account.as_str());
                named.push('\n');
            }
        }
        if !named.is_empty() {
            let mut command = redis::cmd("XADD");
            command.arg(changed(&self.keys)).arg("MAXLEN").arg("~").arg(FLEET_CHANGED_MAX).arg("*");
            command.arg("g").arg(&**node).arg("a").arg(named);
            link.ask(&command).await?;
        }
        Ok(())
    }

    /// Reads which accounts the others have written.
    async fn hear(&self, link: &mut Link<'_>, work: &mut Work) -> Result<(), LinkError> {
        let (stream, node) = (changed(&self.keys), self.store.node().clone());
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(FLEET_ENTRIES_MAX / 10).arg("STREAMS").arg(&stream);
            command.arg(work.position.as_deref().unwrap_or("0-0"));
            let answer = link.ask(&command).await?;
            let mut count = 0;
            for (_, entries) in words::streams(&answer) {
                count += entries.len();
                if let Some(last) = entries.last() {
                    work.position = Some(last.id.to_owned());
                }
                for entry in entries.iter().filter(|entry| entry.text("g") != Some(&node)) {
                    let named = entry.text("a").unwrap_or_default().lines();
                    for account in named.take(FLEET_CHANGED_NAMED_MAX).filter(|id| is_account(id)) {
                        self.want(work, AccountId::new(account));
                    }
                }
            }
            if count < FLEET_ENTRIES_MAX / 10 {
                return Ok(());
            }
        }
    }

    fn want(&self, work: &mut Work, account: AccountId) {
        if !work.fetch.add(account) {
            self.metrics.fleet_shed.with_label_values(&["fetch"]).inc();
        }
    }

    /// Fetches what others know of accounts, for as long as a round may last.
    async fn fetch(
        &self,
        link: &mut Link<'_>,
        work: &mut Work,
        most: usize,
    ) -> Result<(), LinkError> {
        let until = Instant::now() + self.settings.memory_interval;
        let mut left = most;
        while left > 0 && Instant::now() < until {
            let accounts = work.fetch.take(FLEET_ACCOUNTS_AT_ONCE.min(left));
            if accounts.is_empty() {
                return Ok(());
            }
            left -= accounts.len();
            let group = |account: &AccountId| {
                let mut group = Pipeline::new();
                group.cmd("HGETALL").arg(self.keys.account(account.as_str()));
                group
            };
            let groups: Vec<Pipeline> = accounts.iter().map(group).collect();
            let answers = match link.ask_all(&groups).await {
                Ok(answers) => answers,
                Err(error) => {
                    work.fetch.put_back(accounts);
                    return Err(error);
                }
            };
            let told = accounts.iter().zip(answers.iter().flatten());
            let told: Vec<_> =
                told.filter_map(|(account, hash)| self.others(account, hash)).collect();
            // On a thread that may wait for the engine: words go on meanwhile.
            let judge = self.judge.clone();
            let taken = tokio::task::spawn_blocking(move || {
                told.iter().filter(|others| judge.take_in(others)).count()
            });
            let taken = taken.await.unwrap_or_default() as u64;
            self.metrics.fleet_contributions.with_label_values(&["in"]).inc_by(taken);
        }
        Ok(())
    }

    /// What all other gateways together know of an account.
    fn others(&self, account: &AccountId, hash: &Value) -> Option<Contribution> {
        let node = &**self.store.node();
        let mut all: Option<Contribution> = None;
        for (_, value) in pairs(hash)
            .into_iter()
            .filter(|(gateway, _)| text(gateway) != Some(node))
            .take(FLEET_GATEWAYS_MAX)
        {
            let told = bytes(value).and_then(|bytes| Contribution::decode(bytes).ok());
            // Of another version while gateways are replaced one by one, or not theirs at all.
            let Some(told) = told.filter(|told| told.account == *account) else {
                self.metrics.fleet_errors.with_label_values(&["unexpected"]).inc();
                continue;
            };
            match &mut all {
                Some(all) => all.merge(&told),
                None => all = Some(told),
            }
        }
        all
    }

    /// Reads some more of everything there is.
    async fn go_on_scanning(&self, link: &mut Link<'_>, work: &mut Work) -> Result<(), LinkError> {
        let Some(mut scan) = work.scan.take() else { return Ok(()) };
        let prefix = self.keys.account("");
        let mut left = FLEET_AGAIN_MAX;
        while left > 0 {
            let Some(master) = scan.masters.last().copied() else {
                info!(target: "stillgate::fleet", accounts = scan.seen, "memories of the fleet read");
                return Ok(());
            };
            if scan.seen >= self.accounts_max {
                warn!(target: "stillgate::fleet", "the fleet remembers more accounts than are held here");
                return Ok(());
            }
            let mut command = redis::cmd("SCAN");
            command.arg(&scan.cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(500);
            let answer = match link.ask_at(master, command).await {
                Ok(answer) => answer,
                Err(error) => {
                    // From the start in the next session: masters may have changed.
                    work.position = None;
                    return Err(error);
                }
            };
            let [cursor, keys] = list(&answer) else { return Err(LinkError::Unexpected) };
            text(cursor).ok_or(LinkError::Unexpected)?.clone_into(&mut scan.cursor);
            let ids = list(keys).iter().filter_map(|key| text(key)?.strip_prefix(&prefix));
            for account in ids.filter(|id| is_account(id)) {
                self.want(work, AccountId::new(account));
                scan.seen += 1;
                left = left.saturating_sub(1);
            }
            if scan.cursor == "0" {
                scan.masters.pop();
            }
            if let Err(error) = self.fetch(link, work, usize::MAX).await {
                work.position = None;
                return Err(error);
            }
        }
        work.scan = Some(scan);
        Ok(())
    }
}

/// The stream of accounts that were written.
fn changed(keys: &Keys) -> String {
    keys.shared("changed")
}

fn is_account(id: &str) -> bool {
    !id.is_empty() && id.len() <= FLEET_KEY_BYTES_MAX && !id.contains(char::is_control)
}

/// Whether there is a master now that neither was one before nor was one's replica.
fn lost(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> bool {
    // Where nobody could be asked there is nothing to compare.
    !before.is_empty()
        && now.iter().any(|(id, earlier)| !before.contains_key(id) && !before.contains_key(earlier))
}

/// An entry's place in its stream.
fn order(id: &str) -> Option<(u64, u64)> {
    let (at_ms, number) = id.split_once('-')?;
    Some((at_ms.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_is_told_from_a_loss() {
        let of = |ids: &[(&str, &str)]| -> BTreeMap<String, String> {
            ids.iter().map(|(id, earlier)| ((*id).to_owned(), (*earlier).to_owned())).collect()
        };
        let before = of(&[("a", "0"), ("b", "0")]);
        assert!(!lost(&before, &before));
        assert!(!lost(&before, &of(&[("a", "0"), ("c", "b")])), "b's replica");
        assert!(lost(&before, &of(&[("a", "0"), ("c", "0")])), "another one");
        assert!(!lost(&before, &of(&[("a", "0")])), "one could not be asked");
        assert!(!lost(&of(&[]), &before), "nobody could be asked before");
    }

    #[test]
    fn entries_are_in_the_order_of_their_numbers() {
        assert!(order("9-1") < order("10-0") && order("10-2") < order("10-10"));
        assert_eq!((order("10"), order("a-1"), order("")), (None, None, None));
    }

    #[test]
    fn the_first_exchanges_are_told_at_once_and_the_rest_within_its_time() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let own = |requests: u32, suspicion: f64| {
            let memory = detectors::account::Memory { requests, ..Default::default() };
            let mut held = Held::default();
            held.suspicion = suspicion;
            Contribution {
                account: AccountId::new("a"),
                memory,
                memories: Default::default(),
                held,
                peak: Default::default(),
                first: Default::default(),
                cluster: None,
            }
        };
        let told: Vec<u32> = (1..=40)
            .filter(|requests| {
                let own = own(*requests, 0.0);
                let due = pace.is_due(&own);
                if due {
                    pace.told(&own, begun);
                }
                due
            })
            .collect();
        assert_eq!(told, [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 19, 22, 26, 31, 37]);
        assert!(!pace.is_due(&own(37, 0.4)), "what others judged is no news");
        assert!(pace.over(begun + FLEET_RETELL / 2).is_empty());
        assert!(!pace.is_due(&own(40, 0.0)));
        assert_eq!(pace.over(begun + FLEET_RETELL), [AccountId::new("a")]);
        assert!(pace.is_due(&own(40, 0.0)) && pace.told.is_empty() && pace.order.is_empty());
        pace.told(&own(41, 0.0), begun);
        assert!(pace.over(begun + FLEET_RETELL).is_empty(), "there is no more to tell");
    }

    #[test]
    fn what_waits_to_be_fetched_is_bounded_and_waits_once() {
        let mut fetch = Fetch::default();
        let id = |number: usize| AccountId::new(number.to_string());
        assert!((0..FLEET_FETCH_MAX).all(|number| fetch.add(id(number))));
        assert!(fetch.add(id(7)) && !fetch.add(id(FLEET_FETCH_MAX)));
        let taken = fetch.take(2);
        assert_eq!(taken, [id(0), id(1)]);
        assert!(fetch.add(id(1)));
        fetch.put_back(taken);
        assert_eq!(fetch.take(2), [id(0), id(2)]);
    }
}
