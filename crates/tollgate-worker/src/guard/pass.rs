//! Leave to call, as values: what is dropped unused goes back by itself.

use std::time::Duration;

use tokio::time::Instant;
use tollgate_model::generation::{Decision, Limits, ProviderFailure};
use tollgate_model::guard::outcome::{Outcome, OutcomeKind};
use tollgate_model::guard::timeout::LatencyKey;

use super::Guard;
use super::local::{Ended, Passes, Probe};

/// Leave to claim so many tasks and make a call for each.
#[derive(Debug)]
pub struct Leave {
    guard: Guard,
    count: usize,
    probe: Option<Probe>,
}

impl Leave {
    pub(super) fn new(guard: &Guard, passes: Passes) -> Self {
        let Passes { count, probe } = passes;
        Self { guard: guard.clone(), count, probe }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One of them; `None`: there is none left.
    pub fn take(&mut self) -> Option<Pass> {
        self.count = self.count.checked_sub(1)?;
        Some(Pass { guard: Some(self.guard.clone()), probe: self.probe.take() })
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        while let Some(pass) = self.take() {
            drop(pass);
        }
    }
}

/// Leave to make one call.
#[derive(Debug)]
pub struct Pass {
    /// Until it is used.
    guard: Option<Guard>,
    probe: Option<Probe>,
}

/// Between the claim and the call the guard has learnt that no call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBack;

impl Pass {
    /// Whether the call is a probe.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The call begins, and will not last longer than `timeout`.
    pub fn begin(mut self, key: LatencyKey, timeout: Duration) -> Result<Call, HeldBack> {
        let guard = self.guard.as_ref().ok_or(HeldBack)?;
        {
            let mut local = guard.local();
            if !local.may_begin(self.probe, timeout, Instant::now()) {
                return Err(HeldBack);
            }
            local.begun();
        }
        let guard = self.guard.take().ok_or(HeldBack)?;
        Ok(Call { guard, probe: self.probe, key, began: Instant::now(), outcome: None, impatient: false })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.local().returned(self.probe, Instant::now());
            guard.0.changed.notify_waiters();
            if self.probe.is_some() {
                guard.0.urgent.notify_one();
            }
        }
    }
}

/// A call that is under way. Dropped before it has ended, it was we who gave it up.
#[derive(Debug)]
pub struct Call {
    guard: Guard,
    probe: Option<Probe>,
    key: LatencyKey,
    began: Instant,
    outcome: Option<Outcome>,
    impatient: bool,
}

impl Call {
    /// How it ended.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// It brought no answer. `impatient`: it was given less time than such a call is given.
    pub fn ended_by(mut self, failure: &ProviderFailure, impatient: bool) {
        self.impatient = impatient && failure.sign.is_timeout();
        let pause = match failure.decision {
            Decision::RetryAfter(pause) => Some(pause),
            Decision::Retry | Decision::Fail => None,
        };
        let outcome = match failure.sign {
            // Only an answer is one.
            OutcomeKind::Success | OutcomeKind::Cancelled => Outcome::Cancelled,
            OutcomeKind::ServerError => Outcome::ServerError,
            OutcomeKind::Connect => Outcome::Connect,
            OutcomeKind::SilentSocket => Outcome::SilentSocket,
            OutcomeKind::Deadline => Outcome::Deadline,
            OutcomeKind::SlowDown => Outcome::SlowDown,
            OutcomeKind::RateLimited => Outcome::RateLimited { pause },
            OutcomeKind::Content => Outcome::Content,
            OutcomeKind::CredentialRefused => Outcome::CredentialRefused {
                reason: failure.message.clone(),
                credential: self.guard.0.credential.clone(),
            },
        };
        self.guard
            .local()
            .pause_asked(pause.filter(|_| failure.sign != OutcomeKind::RateLimited), Instant::now());
        self.ended(outcome);
    }

    /// What the reply said of the provider's limits.
    pub fn limits(&self, limits: Limits) {
        let mut local = self.guard.local();
        if let Some(requests) = limits.remaining_requests {
            local.limited_by_provider(requests);
        }
        local.pause_asked(limits.exhausted_for, Instant::now());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Outcome::Cancelled);
        let ended = Ended { outcome, impatient: self.impatient, began: self.began, at: Instant::now() };
        if self.guard.local().ended(self.probe, ended, &self.key) {
            self.guard.0.urgent.notify_one();
        }
        self.guard.0.changed.notify_waiters();
    }
}
