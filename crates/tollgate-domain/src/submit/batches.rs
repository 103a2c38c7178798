//! Submissions that come while others are under way go together in the next statement.
//!
//! An account's are in one statement at a time, since they would wait for each other at its balance. Statements are few at
//! once: what a database does for ten connections in turn it does faster for three, each with its caches warm.
//!
//! So a statement that meets somebody else at one of its rows gives up soon: its accounts are tried one by one, and those at
//! which he still is are waited for beside the others. Those who wait are few at once, too, or they would take all
//! connections.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::{NewJob, SubmitTerms, Submitted};

use crate::error::has_code;
use crate::{Database, Error, Result, Wakers};

/// Submissions that go together at most: enough to share a commit's cost, few enough that none waits long for the others.
const LARGEST: usize = 64;
/// Of one account, while others wait: so that one that submits a thousand at once does not go before all of them.
const SHARE: usize = 8;
/// Submissions that may wait at once: many more than there are connections to bring them.
const MOST: usize = 10_000;
/// Times that a batch is tried which met a deadlock.
const TRIES: usize = 3;
/// Statements under way at once, in one process: so many of those that give up soon, and of those that wait.
const STATEMENTS: usize = 3;
/// For somebody else to be done with a row: a commit on a busy disk.
const SOON: Duration = Duration::from_millis(100);
/// For the same, once that was not enough, while other accounts wait for their turn.
const AT_ONCE: Duration = Duration::from_millis(10);
/// For the same, while nobody else waits: as every other statement (`lock_timeout`).
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts batches together, and sends them. One a process; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Batches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Database,
    terms: SubmitTerms,
    wakers: Wakers,
    state: Mutex<State>,
    /// For statements that wait.
    patient: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Accounts that are in a statement.
    busy: HashSet<AccountId>,
    /// Statements under way.
    statements: usize,
}

/// To whom it is told what becomes of his submission.
type Told = oneshot::Sender<Result<Submitted>>;

#[derive(Debug)]
struct Waiting {
    new: NewJob,
    told: Told,
}

impl Batches {
    pub(super) fn new(db: Database, terms: SubmitTerms, wakers: Wakers) -> Self {
        let (state, patient) = (Mutex::default(), Semaphore::new(STATEMENTS));
        Self(Arc::new(Shared { db, terms, wakers, state, patient }))
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

    /// Stores what can be accepted of them, and wakes workers for it, whoever still waits for the answer.
    async fn submit(&self, patience: Duration, jobs: &[NewJob]) -> Result<Vec<Submitted>> {
        let outcomes = self.store(patience, jobs).await?;
        for (new, _) in jobs.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Submitted::Accepted) {
            self.wakers.wake(new.line());
            let job_type = new.job.job_type.clone();
            metrics::counter!("tollgate_jobs_submitted_total", "type" => job_type).increment(1);
        }
        Ok(outcomes)
    }

    async fn store(&self, patience: Duration, jobs: &[NewJob]) -> Result<Vec<Submitted>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = TRIES;
        loop {
            tries -= 1;
            match store::submit(self.db.pool(), &self.terms, patience, jobs).await {
                // Two waited for each other; PostgreSQL has undone the one, and the other goes on.
                Err(error) if tries > 0 && has_code(&error, "40P01") => {}
                Err(error) if store::waits_for_its_key(&error) => break Err(Error::IdempotencyInFlight),
                submitted => break Ok(submitted?),
            }
        }
    }
}

/// Whether it says something of some of a batch's accounts, and nothing of the others: somebody is at a row of theirs.
fn is_of_some(error: &Error) -> bool {
    matches!(error, Error::Unavailable(error) if has_code(error, "55P03") || has_code(error, "40P01"))
        || is_of_one(error)
}

/// Whether it says something of one of an account's submissions, and nothing of the others.
fn is_of_one(error: &Error) -> bool {
    error.is_about_values() || matches!(error, Error::IdempotencyInFlight)
}

#[expect(
    clippy::disallowed_methods,
    reason = "others wait for the batch, so it must not end with the request that began it; each of its statements has a \
              timeout, and who waits for it is waited for at shutdown"
)]
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
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

    /// Those who wait now, and may go together. At the end, who comes next finds a statement less under way: not to be seen
    /// by him is to leave him waiting.
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
        if batch.is_empty() {
            (self.counts, state.statements) = (false, state.statements - 1);
            return None;
        }
        self.accounts = batch.iter().map(|one| one.new.account).collect();
        state.busy.extend(&self.accounts);
        Some(batch)
    }

    /// Sends a batch, and tells each what became of it.
    async fn send(&mut self, mut batch: Vec<Waiting>) {
        metrics::histogram!("tollgate_submit_batch_jobs").record(batch.len() as f64);
        batch.sort_by(|a, b| a.new.place().cmp(&b.new.place()));
        let (jobs, told) = apart(batch);
        match self.of.submit(SOON, &jobs).await {
            Ok(outcomes) => tell(told, outcomes.into_iter().map(Ok)),
            Err(error) if is_of_some(&error) => self.part(together(jobs, told)).await,
            // Whether it was done may not be known, and a part of it would fare no better.
            Err(error) => refuse(told, &error),
        }
    }

    /// Each account by itself, and who has to be waited for beside the others: so he holds up nobody else.
    async fn part(&mut self, batch: Vec<Waiting>) {
        let mut parts: HashMap<AccountId, Vec<Waiting>> = HashMap::new();
        for one in batch {
            parts.entry(one.new.account).or_default().push(one);
        }
        for (account, part) in parts {
            let (jobs, told) = apart(present(part));
            match self.of.submit(AT_ONCE, &jobs).await {
                Ok(outcomes) => tell(told, outcomes.into_iter().map(Ok)),
                Err(error) if is_of_some(&error) => self.wait_for(account, together(jobs, told)),
                Err(error) => refuse(told, &error),
            }
        }
    }

    fn wait_for(&mut self, account: AccountId, batch: Vec<Waiting>) {
        self.accounts.remove(&account);
        let turn = Self { of: self.of.clone(), accounts: HashSet::from([account]), counts: false };
        spawn(async move {
            turn.send_patiently(batch).await;
            turn.run().await;
        });
    }

    /// One account's. One of them that cannot be stored, or is under way elsewhere, must not be the end of the others.
    async fn send_patiently(&self, batch: Vec<Waiting>) {
        let Ok(Ok(_permit)) = timeout(PATIENCE, self.of.patient.acquire()).await else {
            return refuse(apart(batch).1, &Error::timed_out());
        };
        let (jobs, told) = apart(present(batch));
        match self.of.submit(PATIENCE, &jobs).await {
            Ok(outcomes) => tell(told, outcomes.into_iter().map(Ok)),
            Err(error) if jobs.len() > 1 && is_of_one(&error) => {
                for one in together(jobs, told) {
                    let (job, told) = apart(present(vec![one]));
                    match self.of.submit(SOON, &job).await {
                        Ok(outcomes) => tell(told, outcomes.into_iter().map(Ok)),
                        Err(error) => refuse(told, &error),
                    }
                }
            }
            Err(error) => refuse(told, &error),
        }
    }
}

/// Those who are still there. Who has left was told that it was not done, or may ask again: it must not be done behind his
/// back.
fn present(mut batch: Vec<Waiting>) -> Vec<Waiting> {
    batch.retain(|one| !one.told.is_closed());
    batch
}

fn apart(batch: Vec<Waiting>) -> (Vec<NewJob>, Vec<Told>) {
    batch.into_iter().map(|one| (one.new, one.told)).unzip()
}

fn together(jobs: Vec<NewJob>, told: Vec<Told>) -> Vec<Waiting> {
    jobs.into_iter().zip(told).map(|(new, told)| Waiting { new, told }).collect()
}

/// Tells each what became of his. Who is told nothing finds his channel closed.
fn tell(told: Vec<Told>, outcomes: impl IntoIterator<Item = Result<Submitted>>) {
    for (told, outcome) in told.into_iter().zip(outcomes) {
        // Who has left will ask again, or never know.
        let _ = told.send(outcome);
    }
}

fn refuse(told: Vec<Told>, error: &Error) {
    let again: Vec<_> = told.iter().map(|_| Err(error.again())).collect();
    tell(told, again);
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
        // As `present` has it.
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
