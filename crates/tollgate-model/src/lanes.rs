//! Lanes: one account's share of one queue, and how a worker divides its free slots among them (SPEC Q10).
//!
//! Start-time fair queueing, in the memory of each worker: a lane's virtual time grows by `1 / weight` with every task
//! that is taken from it, and the lane that is furthest behind is next. Every worker is fair by itself, so all of them
//! together are, and no row in the database has to be fought over to make it so. A lane that was away begins where the
//! others are: it gains nothing by idling, and owes nothing.
//!
//! What a worker believes of a lane may be out of date: another worker may have emptied it. A plan is therefore a
//! wish; [`Lanes::observe`] charges what was really taken.

mod marks;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use crate::account::AccountId;

use marks::Marks;
pub use marks::{Place, Span};

/// What one task costs a lane of weight 1, in virtual time.
const TASK: u64 = 1 << 20;

/// Lanes that were found empty and are still looked at by every claim, so that a task that comes soon needs no other
/// sign. More of them are put to sleep.
const EMPTY_AT_MOST: usize = 64;

/// A lane that has been empty this long is put to sleep.
const EMPTY_FOR: Duration = Duration::from_secs(1);

/// A lane as the database lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedLane {
    /// Whose.
    pub account: AccountId,
    /// Its share beside others'; 1 or more.
    pub weight: u16,
    /// Whether there is a limit to its running tasks.
    pub capped: bool,
}

/// Where a claim shall look, and how much it may take there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whose lane.
    pub account: AccountId,
    /// Which part of it.
    pub span: Span,
    /// At most so many tasks.
    pub quota: usize,
    /// Whether the lane's limit has to be minded.
    pub capped: bool,
}

/// A claim as it is wished for: shares in the order in which they are to be served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where to look.
    pub shares: Vec<Share>,
    /// Tasks at most, over all shares.
    pub limit: usize,
}

/// What was taken: whose task, and where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whose.
    pub account: AccountId,
    /// Where in its lane.
    pub place: Place,
}

#[derive(Debug)]
struct Lane {
    weight: u16,
    capped: bool,
    /// Virtual time at which its next task is due.
    due: u64,
    /// Since when it has been found empty.
    empty: Option<Duration>,
    marks: Marks,
}

/// The lanes of one queue, as one worker knows them. Times are the worker's own, from any beginning.
#[derive(Debug, Default)]
pub struct Lanes {
    known: HashMap<AccountId, Lane>,
    /// The same lanes, the furthest behind first.
    order: BTreeSet<(u64, AccountId)>,
    /// Where a newcomer begins: no lane that has tasks is behind it.
    floor: u64,
}

impl Lanes {
    /// Takes note of lanes that may have tasks. `all`: there are no others; those that are not listed are forgotten. Returns
    /// how many were not known.
    pub fn list(&mut self, listed: &[ListedLane], all: bool) -> usize {
        let mut news = 0;
        for listed in listed {
            if let Some(lane) = self.known.get_mut(&listed.account) {
                (lane.weight, lane.capped) = (listed.weight.max(1), listed.capped);
            } else {
                news += 1;
                let lane = Lane {
                    weight: listed.weight.max(1),
                    capped: listed.capped,
                    due: self.floor,
                    empty: None,
                    marks: Marks::default(),
                };
                self.order.insert((lane.due, listed.account));
                self.known.insert(listed.account, lane);
            }
        }
        // The new ones are in by now, so that there are more than were listed only where some are gone.
        if all && self.known.len() > listed.len() {
            let keep: HashSet<_> = listed.iter().map(|lane| lane.account).collect();
            let gone: Vec<_> = self.known.keys().filter(|account| !keep.contains(account)).copied().collect();
            for account in gone {
                self.forget(account);
            }
        }
        news
    }

    /// Whether a lane is known that was not found empty when last looked at.
    pub fn any_waiting(&self) -> bool {
        self.order.iter().any(|(_, account)| self.known[account].empty.is_none())
    }

    /// Whether a lane that is known has a limit to its running tasks.
    pub fn any_capped(&self) -> bool {
        self.known.values().any(|lane| lane.capped)
    }

    /// It is not looked at until it is listed again, and then from its start: tasks may stand before its marks, if
    /// whoever was at work on them held them for long and then gave them up.
    pub fn forget(&mut self, account: AccountId) {
        if let Some(lane) = self.known.remove(&account) {
            self.order.remove(&(lane.due, account));
        }
    }

    /// How many lanes are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Divides `limit` free slots among the lanes. A lane that was empty when last looked at is looked at again where
    /// it stands in the order, but nothing is set aside for it: the last in the plan go short if it has tasks after all.
    pub fn plan(&mut self, limit: usize, now: Duration) -> Plan {
        // Several tasks of a lane at once where there is room for many: a claim then touches fewer lanes.
        let chunk = (limit / 64).clamp(1, 16);
        let mut left = limit;
        let mut waiting = self.order.iter().copied().peekable();
        let mut again = BinaryHeap::new();
        let mut order = Vec::new();
        let mut quotas: HashMap<AccountId, usize> = HashMap::new();
        while left > 0 {
            let first_time = match (waiting.peek(), again.peek()) {
                (Some(new), Some(Reverse(old))) => new <= old,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let next = if first_time { waiting.next() } else { again.pop().map(|Reverse(next)| next) };
            let Some((due, account)) = next else { break };
            let lane = &self.known[&account];
            let take = chunk.min(left);
            if first_time {
                order.push(account);
            }
            *quotas.entry(account).or_default() += take;
            if lane.empty.is_none() {
                left -= take;
                again.push(Reverse((due + cost(take, lane.weight), account)));
            }
        }
        let mut shares = Vec::with_capacity(order.len() * 2);
        for account in order {
            let Some(lane) = self.known.get_mut(&account) else { continue };
            let (quota, capped) = (quotas[&account], lane.capped);
            // A capped lane is searched as one, so that its quota holds for all of it.
            let spans = if capped { vec![Span::ALL] } else { lane.marks.spans(now) };
            shares.extend(spans.into_iter().map(|span| Share { account, span, quota, capped }));
        }
        Plan { shares, limit }
    }

    /// Charges each lane for what was really taken, and takes note of those that had less than was asked of them.
    pub fn observe(&mut self, plan: &Plan, taken: &[Taken], now: Duration) {
        let mut got: HashMap<AccountId, usize> = HashMap::new();
        for taken in taken {
            *got.entry(taken.account).or_default() += 1;
            if let Some(lane) = self.known.get_mut(&taken.account) {
                lane.marks.reached(taken.place, now);
            }
        }
        // Once the limit is reached, the rest of the plan was not looked at.
        let looked_at = if taken.len() < plan.limit {
            plan.shares.len()
        } else {
            plan.shares.iter().rposition(|share| got.contains_key(&share.account)).unwrap_or(0)
        };
        let mut quotas: HashMap<AccountId, (usize, bool)> = HashMap::new();
        for (at, share) in plan.shares.iter().enumerate() {
            quotas.insert(share.account, (share.quota, at < looked_at));
        }
        for (account, (quota, looked_at)) in quotas {
            let Some(lane) = self.known.get_mut(&account) else { continue };
            let got = got.get(&account).copied().unwrap_or(0);
            let before = lane.due;
            if got > 0 {
                lane.due =
                    lane.due.max(if lane.empty.is_some() { self.floor } else { 0 }) + cost(got, lane.weight);
            }
            // What a cap keeps back is not empty, but there is nothing to be had either.
            if looked_at && got < quota {
                lane.empty.get_or_insert(now);
            } else if got > 0 {
                lane.empty = None;
            }
            if lane.due != before {
                self.order.remove(&(before, account));
                self.order.insert((lane.due, account));
            }
        }
        // Of what is yet to be shared out: a newcomer must not begin where this claim did, a whole claim ahead.
        let behind = self.order.iter().find(|(_, account)| self.known[account].empty.is_none());
        self.floor = self.floor.max(behind.map_or(0, |(due, _)| *due));
    }

    /// Lanes to be put to sleep: empty for long, or more than a claim should look at in vain.
    pub fn drowsy(&self, now: Duration) -> Vec<AccountId> {
        let mut empty: Vec<_> =
            self.known.iter().filter_map(|(account, lane)| Some((lane.empty?, *account))).collect();
        let crowd = empty.len().saturating_sub(EMPTY_AT_MOST);
        if crowd > 0 {
            empty.sort_unstable();
        }
        let long = |since: Duration| now.saturating_sub(since) >= EMPTY_FOR;
        empty
            .into_iter()
            .enumerate()
            .filter(|(nr, (since, _))| *nr < crowd || long(*since))
            .map(|(_, (_, account))| account)
            .collect()
    }
}

fn cost(tasks: usize, weight: u16) -> u64 {
    tasks as u64 * TASK / u64::from(weight)
}

#[cfg(test)]
mod tests;
