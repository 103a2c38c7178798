//! Submissions that come while others are under way go together in the next statement.
//!
//! An account's are in one statement at a time, since they would wait for each other at its balance. Statements are few at
//! once: what a database does for ten connections in turn it does faster for three, each with its caches warm.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::{NewJob, SubmitTerms, Submitted};

use crate::once::in_flight;
use crate::{Database, Error, Result};

/// Submissions that go together at most: enough to share a commit's cost, few enough that none waits long for the others.
const LARGEST: usize = 64;
/// Of one account, while others wait: so that one that submits a thousand at once does not go before all of them.
const SHARE: usize = 8;
/// Submissions that may wait at once: many more than there are connections to bring them.
const MOST: usize = 10_000;
/// Times that a batch is tried which met a deadlock.
const TRIES: usize = 3;
/// Statements under way at once, in one process.
const STATEMENTS: usize = 3;

/// Puts batches together, and sends them. One a process; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Batches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Database,
    terms: SubmitTerms,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Accounts that are in a statement.
    busy: HashSet<AccountId>,
    /// Statements under way.
    statements: usize,
}

#[derive(Debug)]
struct Waiting {
    new: NewJob,
    told: oneshot::Sender<Result<Submitted>>,
}

impl Batches {
    pub(super) fn new(db: Database, terms: SubmitTerms) -> Self {
        Self(Arc::new(Shared { db, terms, state: Mutex::default() }))
    }

    /// What becomes of a submission. Once it is under way it goes on if the one who waits for it leaves.
    pub(super) async fn submit(&self, new: NewJob) -> Result<Submitted> {
        let (told, answer) = oneshot::channel();
        let turn = {
            let mut state = self.0.state();
            if state.waiting.len() >= MOST {
                state.waiting.retain(|one| !one.told.is_closed());
            }
            if state.waiting.len() >= MOST {
                return Err(Error::timed_out());
            }
            state.waiting.push_back(Waiting { new, told });
            (state.statements < STATEMENTS).then(|| {
                state.statements += 1;
                Turn { of: self.0.clone(), accounts: HashSet::new(), counts: true }
            })
        };
        if let Some(turn) = turn {
            spawn(turn.run());
        }
        answer.await.map_err(|_| Error::Internal("a batch of submissions broke off".into()))?
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn submit(&self, jobs: &[NewJob]) -> Result<Vec<Submitted>> {
        let mut tries = TRIES;
        let submitted = loop {
            tries -= 1;
            match store::submit(self.db.pool(), &self.terms, jobs).await {
                // Two waited for each other; PostgreSQL has undone the one, and the other goes on.
                Err(error) if tries > 0 && is_deadlock(&error) => {}
                submitted => break submitted,
            }
        };
        let outcomes = match jobs {
            [NewJob { once: Some(_), .. }] => submitted.map_err(in_flight)?,
            _ => submitted?,
        };
        if outcomes.len() == jobs.len() { Ok(outcomes) } else { Err(no_answer()) }
    }
}

fn is_deadlock(error: &store::Error) -> bool {
    matches!(error, store::Error::Database(error) if error.code().as_deref() == Some("40P01"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "others wait for the batch, so it must not end with the request that began it; each of its statements has a \
              timeout, and who waits for it is waited for at shutdown"
)]
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

fn no_answer() -> Error {
    Error::Internal("a submission was not answered".into())
}

/// The right to have a statement under way, until there is nobody left to send.
struct Turn {
    of: Arc<Shared>,
    /// In the statement.
    accounts: HashSet<AccountId>,
    /// It is one of the few at once.
    counts: bool,
}

impl Turn {
    async fn run(mut self) {
        while let Some(batch) = self.next() {
            self.send(batch).await;
        }
    }

    /// Those who wait now, and may go together.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut state = self.of.state();
        for account in self.accounts.drain() {
            state.busy.remove(&account);
        }
        if !self.counts {
            if state.statements >= STATEMENTS {
                return None;
            }
            (self.counts, state.statements) = (true, state.statements + 1);
        }
        let batch = state.take();
        self.accounts = batch.iter().map(|one| one.new.account).collect();
        state.busy.extend(&self.accounts);
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch, and tells each what became of it.
    async fn send(&mut self, mut batch: Vec<Waiting>) {
        metrics::histogram!("tollgate_submit_batch_jobs").record(batch.len() as f64);
        batch.sort_by(|a, b| a.new.place().cmp(&b.new.place()));
        let (jobs, told): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.new, one.told)).unzip();
        match self.of.submit(&jobs).await {
            Ok(outcomes) => tell(told, outcomes.into_iter().map(Ok)),
            Err(error) if self.accounts.len() == 1 || error.is_lost_connection() => {
                if error.is_about_values() && jobs.len() > 1 {
                    self.one_by_one(&jobs, told).await;
                } else {
                    let again: Vec<_> = jobs.iter().map(|_| Err(error.again())).collect();
                    tell(told, again);
                }
            }
            Err(_) => self.part(jobs, told),
        }
    }

    /// One that cannot be stored must not be the end of the others.
    async fn one_by_one(&self, jobs: &[NewJob], told: Vec<oneshot::Sender<Result<Submitted>>>) {
        for (job, told) in jobs.iter().zip(told) {
            let alone = self.of.submit(std::slice::from_ref(job)).await;
            tell(vec![told], [alone.and_then(|mut one| one.pop().ok_or_else(no_answer))]);
        }
    }

    /// Each account by itself, beside the others: one for which somebody must wait holds up nobody else.
    fn part(&mut self, jobs: Vec<NewJob>, told: Vec<oneshot::Sender<Result<Submitted>>>) {
        let mut parts: HashMap<AccountId, Vec<Waiting>> = HashMap::new();
        for (new, told) in jobs.into_iter().zip(told) {
            parts.entry(new.account).or_default().push(Waiting { new, told });
        }
        for (account, batch) in parts {
            self.accounts.remove(&account);
            let mut turn = Self { of: self.of.clone(), accounts: HashSet::from([account]), counts: false };
            spawn(async move {
                turn.send(batch).await;
                turn.run().await;
            });
        }
    }
}

fn tell(
    told: Vec<oneshot::Sender<Result<Submitted>>>,
    outcomes: impl IntoIterator<Item = Result<Submitted>>,
) {
    for (told, outcome) in told.into_iter().zip(outcomes) {
        // Who has left will ask again, or never know.
        let _ = told.send(outcome);
    }
}

impl Drop for Turn {
    /// At its end, or broken off: then who waits in it is told so by the channel.
    fn drop(&mut self) {
        let mut state = self.of.state();
        for account in &self.accounts {
            state.busy.remove(account);
        }
        state.statements -= usize::from(self.counts);
    }
}

impl State {
    /// The first who wait, as many as may go together: none of an account that is in a statement, of each account no more
    /// than its share, and of those with the same idempotency key one. The others are answered what it was.
    fn take(&mut self) -> Vec<Waiting> {
        // Who has left was told that it was not done, or may ask again: it must not be done behind his back.
        self.waiting.retain(|one| !one.told.is_closed());
        let mut batch: Vec<Waiting> = Vec::new();
        let mut rest = VecDeque::new();
        let mut shares: HashMap<AccountId, usize> = HashMap::new();
        let lone = self
            .waiting
            .front()
            .is_some_and(|first| self.waiting.iter().all(|one| one.new.account == first.new.account));
        let share = if lone { LARGEST } else { SHARE };
        for one in self.waiting.drain(..) {
            let same =
                one.new.once.is_some() && batch.iter().any(|other| other.new.place() == one.new.place());
            let taken = shares.entry(one.new.account).or_default();
            if batch.len() < LARGEST && *taken < share && !same && !self.busy.contains(&one.new.account) {
                *taken += 1;
                batch.push(one);
            } else {
                rest.push_back(one);
            }
        }
        self.waiting = rest;
        batch
    }
}
