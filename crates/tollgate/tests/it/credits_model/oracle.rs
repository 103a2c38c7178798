//! What credits are, in so few lines that they can be seen to be right.

use std::collections::BTreeMap;

use super::{ACCOUNTS, New, ROOM};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) account: usize,
    pub(super) hold: i64,
    pub(super) charged: i64,
    pub(super) state: State,
    /// Whether it has a task in the queue: one that was opened again by a statement alone has none.
    waits: bool,
}

/// What an account may spend, and owes; what it holds is what its open jobs hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Purse {
    pub(super) free: i64,
    pub(super) owed: i64,
}

impl Purse {
    /// There is one figure, what it has less what it owes; of the two, one is always nothing.
    fn gain(&mut self, credits: i64) {
        let net = self.free - self.owed + credits;
        (self.free, self.owed) = (net.max(0), (-net).max(0));
    }
}

/// What a submission is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Accepted,
    /// As this job was.
    Replayed(usize),
    Conflict,
    Unauthorized,
    Full,
    Short(i64),
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) purses: [Purse; ACCOUNTS],
    /// In the order in which they were accepted.
    pub(super) jobs: Vec<Job>,
    /// By account and key: what was asked, and the job.
    pub(super) answers: BTreeMap<(usize, u8), (u8, usize)>,
}

impl Oracle {
    pub(super) fn held(&self, account: usize) -> i64 {
        self.open(account).map(|job| job.hold).sum()
    }

    fn open(&self, account: usize) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.account == account && job.state == State::Open)
    }

    /// In their order: who can be stored is, as long as there is room and credits; who cannot stands in nobody's way, but
    /// that a place is given before credits are asked for.
    pub(super) fn submit(&mut self, account: usize, batch: &[New]) -> Vec<Told> {
        let waiting = self.open(account).filter(|job| job.waits).count();
        let mut room = (ROOM as usize).saturating_sub(waiting);
        let mut told: Vec<Told> = Vec::new();
        for new in batch {
            let before = new.key.and_then(|key| self.answers.get(&(account, key)));
            told.push(match before {
                _ if new.revoked => Told::Unauthorized,
                Some((body, job)) if *body == new.body => Told::Replayed(*job),
                Some(_) => Told::Conflict,
                None if room == 0 => Told::Full,
                None => {
                    room -= 1;
                    Told::Accepted
                }
            });
        }
        for (new, told) in batch.iter().zip(&mut told) {
            if *told != Told::Accepted {
                continue;
            }
            if self.purses[account].free < new.hold {
                *told = Told::Short(self.purses[account].free);
                continue;
            }
            self.purses[account].free -= new.hold;
            if let Some(key) = new.key {
                self.answers.insert((account, key), (new.body, self.jobs.len()));
            }
            self.jobs.push(Job { account, hold: new.hold, charged: 0, state: State::Open, waits: true });
        }
        told
    }

    pub(super) fn succeed(&mut self, nr: usize, cost: i64) -> bool {
        let job = &mut self.jobs[nr];
        if job.state != State::Open {
            return false;
        }
        (job.state, job.charged, job.waits) = (State::Succeeded, cost, false);
        self.purses[job.account].gain(job.hold - cost);
        true
    }

    pub(super) fn end(&mut self, nr: usize, state: State) -> bool {
        let job = &mut self.jobs[nr];
        if job.state != State::Open {
            return false;
        }
        (job.state, job.waits) = (state, false);
        self.purses[job.account].gain(job.hold);
        true
    }

    pub(super) fn redrive(&mut self, nr: usize) -> bool {
        let job = &mut self.jobs[nr];
        let purse = &mut self.purses[job.account];
        if job.state != State::Failed || purse.free < job.hold {
            return false;
        }
        job.state = State::Open;
        purse.free -= job.hold;
        true
    }

    pub(super) fn grant(&mut self, account: usize, credits: i64) {
        self.purses[account].gain(credits);
    }
}
