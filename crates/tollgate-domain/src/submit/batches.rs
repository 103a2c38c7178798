//! Submissions of an account that come while one of its batches is under way go together in the next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::{NewJob, SubmitTerms, Submitted};

use crate::once::in_flight;
use crate::{Database, Error, Result};

/// Submissions that go together at most: enough to share a commit's cost, few enough that none waits long for the others.
const LARGEST: usize = 64;

/// Puts batches together, and sends them. One a process; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Batches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Database,
    terms: SubmitTerms,
    /// By account, who waits for the batch that is under way. An account that is not here has none.
    waiting: Mutex<HashMap<AccountId, Vec<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    new: NewJob,
    told: oneshot::Sender<Result<Submitted>>,
}

impl Batches {
    pub(super) fn new(db: Database, terms: SubmitTerms) -> Self {
        Self(Arc::new(Shared { db, terms, waiting: Mutex::default() }))
    }

    /// What becomes of a submission. It goes on if the one who waits for it leaves.
    pub(super) async fn submit(&self, account: AccountId, new: NewJob) -> Result<Submitted> {
        let (told, answer) = oneshot::channel();
        let waiting = Waiting { new, told };
        let begin = {
            let mut accounts = self.0.waiting();
            if let Some(others) = accounts.get_mut(&account) {
                others.push(waiting);
                None
            } else {
                accounts.insert(account, Vec::new());
                Some(waiting)
            }
        };
        if let Some(first) = begin {
            let turn = Turn { of: self.0.clone(), account, over: false };
            #[expect(
                clippy::disallowed_methods,
                reason = "others wait for the batch, so it must not end with the request that began it; each of its statements \
                          has a timeout, and who waits for it is waited for at shutdown"
            )]
            tokio::spawn(turn.run(first));
        }
        answer.await.map_err(|_| Error::Internal("a batch of submissions broke off".into()))?
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<AccountId, Vec<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch, and tells each what became of it.
    async fn send(&self, account: AccountId, batch: Vec<Waiting>) {
        metrics::histogram!("tollgate_submit_batch_jobs").record(batch.len() as f64);
        let (jobs, told): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.new, one.told)).unzip();
        let outcomes = match self.submit(account, &jobs).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            // One that cannot be stored must not be the end of the others.
            Err(error) if error.is_about_values() && jobs.len() > 1 => {
                let mut outcomes = Vec::with_capacity(jobs.len());
                for job in &jobs {
                    let alone = self.submit(account, std::slice::from_ref(job)).await;
                    outcomes.push(alone.and_then(|mut one| one.pop().ok_or_else(no_answer)));
                }
                outcomes
            }
            Err(error) => jobs.iter().map(|_| Err(error.again())).collect::<Vec<_>>(),
        };
        for (told, outcome) in told.into_iter().zip(outcomes) {
            // Who has left will ask again, or never know.
            let _ = told.send(outcome);
        }
    }

    async fn submit(&self, account: AccountId, jobs: &[NewJob]) -> Result<Vec<Submitted>> {
        let submitted = store::submit(self.db.pool(), account, &self.terms, jobs).await;
        let outcomes = if jobs.iter().any(|new| new.once.is_some()) {
            submitted.map_err(in_flight)?
        } else {
            submitted?
        };
        if outcomes.len() == jobs.len() { Ok(outcomes) } else { Err(no_answer()) }
    }
}

fn no_answer() -> Error {
    Error::Internal("a submission was not answered".into())
}

/// An account's turn: while it lasts, others of the account wait.
struct Turn {
    of: Arc<Shared>,
    account: AccountId,
    over: bool,
}

impl Turn {
    async fn run(mut self, first: Waiting) {
        let mut batch = vec![first];
        while !batch.is_empty() {
            self.of.send(self.account, batch).await;
            batch = self.next();
        }
    }

    /// Those who wait now; nobody: the turn is over.
    fn next(&mut self) -> Vec<Waiting> {
        let mut accounts = self.of.waiting();
        let Some(waiting) = accounts.get_mut(&self.account) else { return Vec::new() };
        let batch = take(waiting);
        if batch.is_empty() {
            accounts.remove(&self.account);
            self.over = true;
        }
        batch
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Broken off, it must not leave the account's turn taken for ever; who waits is told so by the channel.
        if !self.over {
            self.of.waiting().remove(&self.account);
        }
    }
}

/// The first who wait, as many as may go together. Of those with the same idempotency key one goes at a time: the others are
/// answered what it was.
fn take(waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
    let mut batch: Vec<Waiting> = Vec::new();
    let mut rest = Vec::new();
    for one in waiting.drain(..) {
        let key = |of: &Waiting| of.new.once.as_ref().map(|once| once.key.clone());
        let same = key(&one).is_some_and(|own| batch.iter().any(|other| key(other) == Some(own.clone())));
        if batch.len() < LARGEST && !same {
            batch.push(one);
        } else {
            rest.push(one);
        }
    }
    *waiting = rest;
    batch
}
