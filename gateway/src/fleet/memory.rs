//! What is remembered of accounts: in Redis a hash of each account, a field of each gateway.
//!
//! A gateway writes its own field only, whole, so writing it again does no harm; and names the account
//! in a stream. The others then read the hash and put what all but they have written in the place of
//! what they were told before. Whoever comes new reads all hashes, a few at a time.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::time::Instant;

use detectors::AccountId;
use detectors::engine::Contribution;
use redis::{Pipeline, Value};
use tracing::{info, warn};

use super::connection::{Link, LinkError, bytes, list, pairs, text};
use super::words::{self, Keys};
use super::{Fleet, Trail};
use crate::judge::Follower;
use crate::limits::{
    FLEET_ACCOUNTS_AT_ONCE, FLEET_AGAIN_MAX, FLEET_CHANGED_MAX, FLEET_CHANGED_NAMED_MAX,
    FLEET_CHECK_INTERVAL, FLEET_ENTRIES_MAX, FLEET_FETCH_MAX, FLEET_GATEWAYS_MAX,
    FLEET_KEY_BYTES_MAX, FLEET_UNSURE, FLEET_UNSURE_MAX,
};
use crate::store::{Batch, Table, Write};

/// Key of the cursor that says whose data this gateway has last met.
const CURSOR: &str = "fleet";

/// What is to be done, and survives a lost connection.
#[derive(Default)]
pub(super) struct Work {
    /// How far the stream of changes was read; `None` before the first time.
    position: Option<String>,
    trail: Option<Trail>,
    /// Accounts to be written, beside those that change from now on.
    unsent: VecDeque<AccountId>,
    /// Keys of all accounts that were held when Redis was found empty.
    again: Vec<u64>,
    /// Accounts that were written lately: a failover may lose them.
    unsure: VecDeque<(Instant, AccountId)>,
    fetch: Fetch,
    scan: Option<Scan>,
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
                work.again = self.judge.account_keys();
                info!(
                    target: "stillgate::fleet",
                    accounts = work.again.len(),
                    "Redis has lost what it held: memories are written again"
                );
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
        loop {
            if work.unsent.is_empty() {
                let room = FLEET_CHANGED_NAMED_MAX;
                work.unsent.extend(self.judge.take_changed(Follower::Fleet, room));
            }
            if work.unsent.is_empty() && again > 0 {
                let from = work.again.len().saturating_sub(FLEET_CHANGED_NAMED_MAX.min(again));
                let keys = work.again.split_off(from);
                again -= keys.len();
                work.unsent.extend(self.judge.ids_of(&keys));
            }
            if work.unsent.is_empty() {
                return Ok(());
            }
            let some = FLEET_CHANGED_NAMED_MAX.min(work.unsent.len());
            let accounts: Vec<AccountId> = work.unsent.iter().take(some).cloned().collect();
            self.publish(link, &accounts).await?;
            work.unsent.drain(..some);
            let now = Instant::now();
            for account in accounts {
                // Until all is read: what the others know of whoever asks now comes first.
                if work.scan.is_some() {
                    self.want(work, account.clone());
                }
                if work.unsure.len() < FLEET_UNSURE_MAX {
                    work.unsure.push_back((now, account));
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

    async fn publish(&self, link: &mut Link<'_>, accounts: &[AccountId]) -> Result<(), LinkError> {
        let (node, keep) = (self.store.node(), self.settings.keep.as_secs());
        let mut named = String::new();
        for some in accounts.chunks(FLEET_ACCOUNTS_AT_ONCE) {
            let mut groups = Vec::with_capacity(some.len());
            for account in some {
                let Some(own) = self.judge.contribution(account) else { continue };
                let key = self.keys.account(account.as_str());
                let mut group = Pipeline::new();
                group.cmd("HSET").arg(&key).arg(&**node).arg(own.encode());
                group.cmd("EXPIRE").arg(&key).arg(keep);
                groups.push(group);
                named.push_str(account.as_str());
                named.push('\n');
            }
            link.ask_all(&groups).await?;
            let told = self.metrics.fleet_contributions.with_label_values(&["out"]);
            told.inc_by(groups.len() as u64);
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
            for (account, answer) in accounts.iter().zip(answers.iter().flatten()) {
                let Some(others) = self.others(account, answer) else { continue };
                if self.judge.take_in(&others) {
                    self.metrics.fleet_contributions.with_label_values(&["in"]).inc();
                }
            }
            tokio::task::yield_now().await;
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
