//! Who may try whether the provider is back: one caller in the whole fleet.
//!
//! Not a counter of permits: one that is never given back leaves a circuit half-open for ever, and one that is given back
//! too often lets calls through (both have happened to others). A permit here is a lease with an end and an epoch. What a
//! holder reports counts only if its epoch is that of the lease in force, and no epoch is ever used again.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::settings::GuardSettings;
use super::time::{Time, after, shifted};

/// A probe under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeLease {
    /// The worker that makes it.
    pub holder: Uuid,
    /// Which probe it is; only grows.
    pub epoch: u64,
    /// After this, its holder is taken for dead.
    pub until: DateTime<Utc>,
}

/// Probes, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probing {
    /// None begins before this.
    pub next_at: DateTime<Utc>,
    /// The one under way.
    pub lease: Option<ProbeLease>,
}

impl Probing {
    pub(super) fn from(next_at: Time) -> Self {
        Self { next_at, lease: None }
    }

    /// From when on a probe may be taken, if nobody reports before. Not later than `now`: it may be taken.
    pub(super) fn free_at(&self) -> Time {
        self.lease.map_or(self.next_at, |lease| lease.until.max(self.next_at))
    }

    /// Takes what must be free; the next one waits for the interval.
    pub(super) fn take(
        &mut self,
        holder: Uuid,
        epoch: u64,
        settings: &GuardSettings,
        now: Time,
    ) -> ProbeLease {
        let lease = ProbeLease { holder, epoch, until: after(now, settings.probe_lease()) };
        *self = Self { next_at: after(now, settings.probe_interval), lease: Some(lease) };
        lease
    }

    /// Whether this is the epoch of the lease in force.
    pub(super) fn holds(&self, epoch: u64) -> bool {
        self.lease.is_some_and(|lease| lease.epoch == epoch)
    }

    /// As if it had not been taken.
    pub(super) fn give_back(&mut self, now: Time) {
        *self = Self::from(now);
    }

    /// Takes the lease from a holder that was silent for too long.
    pub(super) fn expire(&mut self, now: Time) -> Option<ProbeLease> {
        self.lease.take_if(|lease| lease.until <= now)
    }

    pub(super) fn shift(&mut self, behind: TimeDelta) {
        self.next_at = shifted(self.next_at, behind);
        if let Some(lease) = &mut self.lease {
            lease.until = shifted(lease.until, behind);
        }
    }
}
