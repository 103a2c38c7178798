//! What must be: tasks, workers and settings, as simple as they can be.

use std::collections::BTreeMap;

use tollgate_model::queue::{ClaimedTask, Lease, MAX_LOST_LEASES};
use uuid::Uuid;

use super::{ACCOUNTS, New, WORKERS};

/// A worker is given up after more than one hour without a heartbeat.
pub(super) const TIMEOUT_MINUTES: u64 = 90;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Scheduled,
    Ready,
    Running { worker: Uuid, token: i64 },
}

#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) account: usize,
    pub(super) priority: i16,
    pub(super) state: State,
    pub(super) rank: i16,
    pub(super) due: i64,
    pub(super) expires: i64,
    pub(super) attempts: i32,
    pub(super) lost: i16,
    /// Which of the steps made it ready; those of one step stand in the order that the database gave them.
    pub(super) since: u64,
    pub(super) position: i64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) done: i64,
    pub(super) failed: i64,
}

#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) hour: i64,
    pub(super) tasks: BTreeMap<Uuid, Task>,
    pub(super) ended: [Ended; ACCOUNTS],
    /// Who is signed in, and the hour of the last heartbeat; `None`: signed out with tasks in hand.
    pub(super) workers: BTreeMap<Uuid, Option<i64>>,
    pub(super) lane_caps: [Option<i32>; ACCOUNTS],
    pub(super) queue_cap: Option<i32>,
    /// Counts up with each change of settings.
    pub(super) settings: u64,
    last_token: i64,
    steps: u64,
}

impl Oracle {
    pub(super) fn new(workers: [Uuid; WORKERS]) -> Self {
        Self {
            hour: 0,
            tasks: BTreeMap::new(),
            ended: [Ended::default(); ACCOUNTS],
            workers: workers.into_iter().map(|worker| (worker, Some(0))).collect(),
            lane_caps: [None; ACCOUNTS],
            queue_cap: None,
            settings: 0,
            last_token: 0,
            steps: 0,
        }
    }

    pub(super) fn enqueue(&mut self, id: Uuid, new: New) {
        self.begin_step();
        let due = self.hour + new.due;
        let state = if new.due > 0 { State::Scheduled } else { State::Ready };
        let task = Task {
            account: new.account,
            priority: new.priority,
            state,
            rank: new.priority * 2,
            due,
            expires: due + new.ttl,
            attempts: 0,
            lost: 0,
            since: 0,
            position: 0,
        };
        self.tasks.insert(id, task);
        if state == State::Ready {
            self.ready(id, false);
        }
    }

    /// What becomes ready from here on stands behind what became so before.
    pub(super) fn begin_step(&mut self) {
        self.steps += 1;
    }

    /// It is claimable from now on, behind its equals; `before` them if it was handed back.
    fn ready(&mut self, id: Uuid, before: bool) {
        let since = self.steps;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.state = State::Ready;
        task.rank = task.priority * 2 - i16::from(before);
        task.since = since;
    }

    fn end(&mut self, id: Uuid, done: bool) {
        if let Some(task) = self.tasks.remove(&id) {
            let ended = &mut self.ended[task.account];
            *(if done { &mut ended.done } else { &mut ended.failed }) += 1;
        }
    }

    /// Whether the lease holds.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        let task = self.tasks.get(&lease.task);
        task.is_some_and(|task| matches!(task.state, State::Running { token, .. } if token == lease.token))
    }

    pub(super) fn running(&self, account: Option<usize>) -> i32 {
        let running = self.tasks.values().filter(|task| {
            matches!(task.state, State::Running { .. })
                && account.is_none_or(|account| task.account == account)
        });
        i32::try_from(running.count()).unwrap()
    }

    /// Claimable tasks of a lane, in the order in which they are to be claimed.
    pub(super) fn claimable(&self, account: usize) -> Vec<Uuid> {
        let mut ready: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| {
                task.account == account && task.state == State::Ready && task.expires > self.hour
            })
            .collect();
        ready.sort_by_key(|(_, task)| (task.rank, task.since, task.position));
        ready.into_iter().map(|(id, _)| *id).collect()
    }

    fn room(&self, account: usize) -> usize {
        let room = |cap: Option<i32>, running| {
            cap.map_or(usize::MAX, |cap| usize::try_from(cap - running).unwrap_or(0))
        };
        room(self.lane_caps[account], self.running(Some(account)))
            .min(room(self.queue_cap, self.running(None)))
    }

    /// Whether a claim must bring something.
    pub(super) fn has_work(&self) -> bool {
        (0..ACCOUNTS).any(|account| self.room(account) > 0 && !self.claimable(account).is_empty())
    }

    /// A claim by `worker` brought these; were they its to take?
    pub(super) fn claimed(
        &mut self,
        worker: Uuid,
        limit: usize,
        in_force: bool,
        tasks: &[(usize, ClaimedTask)],
    ) -> Result<(), String> {
        if tasks.is_empty() {
            return Ok(());
        }
        if !self.workers.contains_key(&worker) || !in_force {
            return Err("claimed without standing, or under settings of before".into());
        }
        let queue_room = self.queue_cap.map_or(i32::MAX, |cap| (cap - self.running(None)).max(0));
        if tasks.len() > limit || i32::try_from(tasks.len()).unwrap() > queue_room {
            return Err(format!("{} claimed of {limit}, with room for {queue_room}", tasks.len()));
        }
        for account in 0..ACCOUNTS {
            let of_lane: Vec<_> =
                tasks.iter().filter(|(of, _)| *of == account).map(|(_, task)| task).collect();
            if of_lane.len() > self.room(account) {
                return Err(format!("{} of account {account}, over its cap", of_lane.len()));
            }
            let mut taken: Vec<_> = of_lane.iter().map(|task| (task.place, task.lease.task)).collect();
            taken.sort_unstable();
            let taken: Vec<_> = taken.into_iter().map(|(_, id)| id).collect();
            let first = self.claimable(account);
            if !first.starts_with(&taken) {
                return Err(format!("account {account}: took {taken:?}, first were {first:?}"));
            }
        }
        for (_, claimed) in tasks {
            if claimed.lease.token <= self.last_token {
                return Err(format!("token {} after {}", claimed.lease.token, self.last_token));
            }
            let task = self.tasks.get_mut(&claimed.lease.task).ok_or("no such task")?;
            task.state = State::Running { worker, token: claimed.lease.token };
            task.attempts += 1;
            if claimed.attempt != task.attempts {
                return Err(format!("attempt {} is said to be {}", task.attempts, claimed.attempt));
            }
        }
        self.last_token = tasks.iter().map(|(_, task)| task.lease.token).max().unwrap_or(self.last_token);
        Ok(())
    }

    pub(super) fn finish(&mut self, lease: Lease) -> bool {
        let holds = self.holds(lease);
        if holds {
            self.end(lease.task, true);
        }
        holds
    }

    pub(super) fn retry(&mut self, lease: Lease, hours: i64) -> bool {
        let holds = self.holds(lease);
        if holds {
            let due = self.hour + hours;
            self.ready(lease.task, false);
            let task = self.tasks.get_mut(&lease.task).unwrap();
            task.due = due;
            if hours > 0 {
                task.state = State::Scheduled;
            }
        }
        holds
    }

    pub(super) fn bury(&mut self, lease: Lease) -> bool {
        let holds = self.holds(lease);
        if holds {
            self.end(lease.task, false);
        }
        holds
    }

    pub(super) fn release(&mut self, lease: Lease) -> bool {
        let holds = self.holds(lease);
        if holds {
            self.ready(lease.task, true);
            self.tasks.get_mut(&lease.task).unwrap().attempts -= 1;
        }
        holds
    }

    pub(super) fn cancel(&mut self, id: Uuid) -> bool {
        self.tasks.remove(&id).is_some()
    }

    /// The leases of a worker that is signed in; `None`: it is not.
    pub(super) fn heartbeat(&mut self, worker: Uuid) -> Option<Vec<i64>> {
        *self.workers.get_mut(&worker)? = Some(self.hour);
        Some(self.held_by(worker).into_iter().map(|(_, token)| token).collect())
    }

    fn held_by(&self, worker: Uuid) -> Vec<(Uuid, i64)> {
        let mut held: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|(id, task)| match task.state {
                State::Running { worker: of, token } if of == worker => Some((*id, token)),
                _ => None,
            })
            .collect();
        held.sort_unstable_by_key(|(_, token)| *token);
        held
    }

    pub(super) fn sign_out(&mut self, worker: Uuid) {
        if self.held_by(worker).is_empty() {
            self.workers.remove(&worker);
        } else {
            self.workers.insert(worker, None);
        }
    }

    /// Dead workers' tasks are ready again, in any order among equals; then what is ready and has expired is buried.
    pub(super) fn sweep(&mut self) {
        let dead: Vec<_> = self
            .workers
            .iter()
            .filter(|(_, heard)| heard.is_none_or(|heard| self.hour > heard + 1))
            .map(|(worker, _)| *worker)
            .collect();
        for worker in dead {
            for (id, _) in self.held_by(worker) {
                self.ready(id, true);
                let task = self.tasks.get_mut(&id).unwrap();
                task.attempts -= 1;
                task.lost += 1;
                if task.lost >= MAX_LOST_LEASES {
                    self.end(id, false);
                }
            }
            self.workers.remove(&worker);
        }
        let hour = self.hour;
        let expired =
            self.tasks.iter().filter(|(_, task)| task.state == State::Ready && task.expires <= hour);
        for id in expired.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, false);
        }
    }

    pub(super) fn promote(&mut self) {
        let hour = self.hour;
        let due = self.tasks.iter().filter(|(_, task)| task.state == State::Scheduled && task.due <= hour);
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ready(id, false);
        }
    }
}
