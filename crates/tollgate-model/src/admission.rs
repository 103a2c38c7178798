//! Admission: how much may wait in the queue before a submission is refused (SPEC A8).
//!
//! The account's own limit is a sum over a few rows, read where the submission is stored. How much waits over all
//! accounts costs more the more accounts there are, so a process asks for it now and then and counts what it lets in
//! between: [`Backlog`]. It counts before the commit, so what it believes is never less than what there is of its own; what
//! other processes let in since the last look is what it cannot know, and bounds the overshoot. What was under way during
//! a look may be in what was seen or not, so it is counted once more until the next: for those 50 ms somebody may be
//! refused so many places below the limit.

use std::time::Duration;

/// How many tasks may wait: for a worker, for their time, for their next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one account.
    pub per_account: u32,
    /// Of all accounts together.
    pub overall: u32,
}

/// Which limit a submission met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// The account's own.
    #[error(
        "this account's queue is full: {0} jobs may wait at a time, and as many do; let some finish, or cancel some"
    )]
    Account(u32),
    /// That of all accounts together, of which one account learns no figures.
    #[error("the queue is full: too many jobs of all accounts are waiting; try again later")]
    Overall,
}

impl QueueFull {
    /// For metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Account(_) => "account_queue_full",
            Self::Overall => "queue_full",
        }
    }

    /// Every reason there can be.
    pub const REASONS: [&'static str; 2] = ["account_queue_full", "queue_full"];
}

/// The longest that a look is good for, far from the limit.
const FAR: Duration = Duration::from_secs(1);
/// The same near it; also, how often somebody who would be refused makes us look again.
const NEAR: Duration = Duration::from_millis(50);
/// Looking may take up this part of the time, and no more.
const LOOKING_SHARE: u32 = 10;
/// A look that is this many times older than it should be is not believed any more.
const TOO_OLD: u32 = 3;

/// What a process does about a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is let in, and counted: [`Backlog::settle`] must follow. `look`: it is time to look again, but not worth
    /// waiting for.
    Admitted {
        /// Whether somebody should look.
        look: bool,
    },
    /// Look first, then ask again.
    LookFirst,
    /// There is no room.
    Full,
}

/// What one process knows of the tasks that wait, over all accounts. Times are the process's own, from any beginning.
#[derive(Debug)]
pub struct Backlog {
    limit: i64,
    last: Option<Look>,
    /// Let in by this process since the last look began, or not settled when it did.
    let_in: i64,
    /// Let in and not settled: committed or not, nobody knows yet.
    unsettled: i64,
    /// What had been let in and settled when the look that is under way began: it will see those.
    settled_before: i64,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    began: Duration,
    took: Duration,
    queued: i64,
}

impl Backlog {
    /// Nothing is known yet.
    pub fn new(limit: u32) -> Self {
        Self { limit: i64::from(limit), last: None, let_in: 0, unsettled: 0, settled_before: 0 }
    }

    /// What becomes of one more submission.
    pub fn admit(&mut self, now: Duration) -> Verdict {
        let Some(last) = self.last else { return Verdict::LookFirst };
        let queued = last.queued.saturating_add(self.let_in);
        let shortest = NEAR.max(last.took * LOOKING_SHARE);
        let near = queued >= self.limit - self.limit / 10;
        let due = if near { shortest } else { shortest.max(FAR) };
        let age = now.saturating_sub(last.began);
        if queued >= self.limit {
            return if age < shortest { Verdict::Full } else { Verdict::LookFirst };
        }
        if age >= due * TOO_OLD {
            return Verdict::LookFirst;
        }
        self.let_in += 1;
        self.unsettled += 1;
        Verdict::Admitted { look: age >= due }
    }

    /// What was let in has been committed, or (`false`) has not and will not be.
    pub fn settle(&mut self, committed: bool) {
        self.unsettled -= 1;
        if !committed {
            self.let_in -= 1;
        }
    }

    /// A look begins. One at a time.
    pub fn look_begins(&mut self) {
        self.settled_before = self.let_in - self.unsettled;
    }

    /// It saw `queued` tasks waiting, and lasted from `began` to `now`.
    pub fn look_ended(&mut self, queued: i64, began: Duration, now: Duration) {
        self.let_in -= self.settled_before;
        self.settled_before = 0;
        self.last = Some(Look { began, took: now.saturating_sub(began), queued });
    }

    /// When the last look began; `None`: there was none.
    pub fn looked_at(&self) -> Option<Duration> {
        self.last.map(|last| last.began)
    }
}

#[cfg(test)]
mod tests;
