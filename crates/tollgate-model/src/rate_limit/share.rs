//! One process's share of a window that all processes count together.
//!
//! The window is one row of the database: when it began, and how many requests have been leased. A process leases a
//! slice of them, spends it in memory, and asks again when it is spent; to lease is to add to the row, and whatever is
//! added beyond the limit was not granted. So never more than the limit are accepted, whoever does what at the same
//! time, and a process that dies or is started anew gets nothing twice.
//!
//! A slice begins with 1 and doubles, up to an eighth of what is left: a busy process asks some dozens of times in a
//! window, however high the limit, and one that falls silent sits on less than it has spent, and on less than an
//! eighth. Near the limit slices are of 1, so whoever alternates between processes gets exactly the limit. What is left of
//! a slice is not given back: it would take a timer and a write for each, and a refusal could no longer be told apart from
//! one that another process might lift. As it is, "none left" holds to the window's end, so those who hammer on cost
//! no database at all. (Leases that come back are the way of Doorman and Envoy's quota service, whose slices are
//! for minutes and large.)
//!
//! Times are a process's own monotonic clock, from any beginning; the database is asked only how old the window is.

use std::time::Duration;

use super::{Quota, Standing};

/// Of what is left, the part that one process may lease at once.
const LARGEST_PART: u32 = 8;

/// What a process holds of one window, and knows about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Share {
    /// The limit by which it was leased; `None`: nothing was, ever.
    quota: Option<Quota>,
    /// Leased, and not spent.
    held: u32,
    /// Leased to nobody, when the database was asked.
    free: u32,
    /// The window's end; not later than it is.
    ends: Duration,
    /// The last slice.
    slice: u32,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is within the limit, and counted.
    Accepted(Standing),
    /// It is not; nor will any be before the window ends.
    Refused(Standing),
    /// Ask the database for a slice.
    Lease,
}

/// What the database said of a window, once a slice was added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Requests leased in this window, the slice included; over the limit, where more was asked for than there was.
    pub used: u64,
    /// How long ago the window began.
    pub age: Duration,
}

impl Share {
    /// Decides on a request by what this process knows.
    pub fn spend(&mut self, quota: Quota, now: Duration) -> Verdict {
        if !self.knows(quota, now) {
            return Verdict::Lease;
        }
        if self.held > 0 {
            self.held -= 1;
            return Verdict::Accepted(self.standing(quota, now));
        }
        if self.free == 0 { Verdict::Refused(self.standing(quota, now)) } else { Verdict::Lease }
    }

    /// How large a slice to ask for, with so many requests waiting for it.
    pub fn wanted(&self, quota: Quota, waiting: u32, now: Duration) -> u32 {
        if !self.knows(quota, now) {
            return 1;
        }
        self.slice.saturating_mul(2).max(waiting).min(self.free / LARGEST_PART).max(1)
    }

    /// Takes in what the database answered to a wish of `wanted` that was sent at `asked`, and decides on the request that
    /// asked. That one was decided in the database, so it holds however late the answer is.
    pub fn leased(
        &mut self,
        quota: Quota,
        wanted: u32,
        counted: Counted,
        asked: Duration,
        now: Duration,
    ) -> Verdict {
        let left = |used| quota.requests.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX));
        let granted = left(counted.used.saturating_sub(wanted.into())).min(wanted);
        let free = left(counted.used);
        // The database looked at its clock after we had sent, so the window has ended by then at the earliest.
        let ends = asked + quota.window.saturating_sub(counted.age);
        *self = Self { quota: Some(quota), held: granted, free, ends, slice: granted };
        match granted.checked_sub(1) {
            Some(held) => {
                self.held = held;
                Verdict::Accepted(self.standing(quota, now))
            }
            None => Verdict::Refused(self.standing(quota, now)),
        }
    }

    fn knows(&self, quota: Quota, now: Duration) -> bool {
        self.quota == Some(quota) && now < self.ends
    }

    fn standing(&self, quota: Quota, now: Duration) -> Standing {
        Standing {
            quota,
            remaining: self.held.saturating_add(self.free),
            reset: self.ends.saturating_sub(now),
        }
    }
}

#[cfg(test)]
mod tests;
