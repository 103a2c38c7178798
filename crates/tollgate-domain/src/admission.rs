//! Admission control: a queue that is full says so, instead of growing until it hurts everybody (SPEC A8).
//!
//! What is decided, and when to look, is [`Backlog`]'s; here is who looks: mostly the loop beside ([`admission`]), so
//! that no submission waits for it, and a submission itself where what is known would refuse it, or is too old.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tollgate_model::admission::{Backlog, Limits, QueueFull, Verdict};
use tollgate_model::queue::QueueName;

use crate::{Database, Error, Result, queue};

/// Lets submissions in, or refuses them. One a process; clones are the same.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    backlog: Mutex<Backlog>,
    began: Instant,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    /// A look is due.
    due: Notify,
}

/// Counts among what waits until it is dropped, and for good once it is [taken](Self::taken).
#[derive(Debug)]
pub(crate) struct Place<'a> {
    of: &'a Shared,
    taken: bool,
}

/// Admission, and the loop that looks when it is time to; whoever holds the loop ends it by dropping it.
pub fn admission(db: Database, limits: Limits) -> (Admission, impl Future<Output = ()> + Send) {
    let admission = Admission(Arc::new(Shared {
        limits,
        backlog: Mutex::new(Backlog::new(limits.overall)),
        began: Instant::now(),
        looking: tokio::sync::Mutex::default(),
        due: Notify::new(),
    }));
    for reason in QueueFull::REASONS {
        refused(reason, 0);
    }
    let shared = admission.0.clone();
    let look = async move {
        loop {
            shared.due.notified().await;
            if let Err(error) = shared.look(&db).await {
                // The next submission will say so, and ask again.
                tracing::debug!(%error, "could not look how much waits");
            }
        }
    };
    (admission, look)
}

impl Admission {
    /// A place among what waits over all accounts; taken up with the commit.
    pub(crate) async fn place(&self, db: &Database) -> Result<Place<'_>> {
        loop {
            let verdict = self.0.backlog().admit(self.0.began.elapsed());
            match verdict {
                Verdict::Admitted { look } => {
                    if look {
                        self.0.due.notify_one();
                    }
                    return Ok(Place { of: &self.0, taken: false });
                }
                Verdict::LookFirst => self.0.look(db).await?,
                Verdict::Full => return Err(full(QueueFull::Overall)),
            }
        }
    }

    /// How many of an account's jobs may wait.
    pub(crate) fn per_account(&self) -> u32 {
        self.0.limits.per_account
    }

    /// As many of the account's jobs wait as may.
    pub(crate) fn account_is_full(&self) -> Error {
        full(QueueFull::Account(self.0.limits.per_account))
    }
}

impl Shared {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        // Nothing panics while it is half changed.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, unless somebody else has while we waited for our turn.
    async fn look(&self, db: &Database) -> Result<()> {
        let known = self.backlog().looked_at();
        let _turn = self.looking.lock().await;
        if self.backlog().looked_at() != known {
            return Ok(());
        }
        let began = self.began.elapsed();
        self.backlog().look_begins();
        let queued = queue::counts(db, &QueueName::GENERATION).await?.queued;
        self.backlog().look_ended(queued, began, self.began.elapsed());
        Ok(())
    }
}

impl Place<'_> {
    /// The submission is committed.
    pub(crate) fn taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.backlog().settle(self.taken);
    }
}

fn full(full: QueueFull) -> Error {
    refused(full.reason(), 1);
    Error::QueueFull(full)
}

fn refused(reason: &'static str, submissions: u64) {
    metrics::counter!("tollgate_submissions_refused_total", "reason" => reason).increment(submissions);
}
