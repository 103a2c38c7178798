//! How many calls may begin (SPEC G5): a token bucket for the whole fleet, from which workers take slices.
//!
//! A worker takes several tokens at once, spends them without asking anybody, and gives back what it does not need. One
//! that dies takes its slice with it: those calls are then not made, which the refill mends.
//!
//! Integers alone, so nothing is rounded: whole tokens, and what has come of the next one. A clock that steps back brings
//! nothing until it has caught up. Moving the time back with it would mint the same tokens twice, and two transactions that
//! see their times the wrong way round are enough for that.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::settings::GuardSettings;
use super::time::{after, between};

/// The tokens of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    tokens: u32,
    /// What has come of the next token: microseconds, times [`bucket_refill`](GuardSettings::bucket_refill). A full bucket
    /// gathers nothing.
    progress: u64,
    /// The latest time that it has been told; all that came up to then is in it.
    refilled_at: DateTime<Utc>,
}

impl Bucket {
    /// A full one.
    pub fn new(settings: &GuardSettings, now: DateTime<Utc>) -> Self {
        Self { tokens: settings.bucket_capacity, progress: 0, refilled_at: now }
    }

    /// Takes up to `want` tokens. Returns how many; all, where there is no bucket.
    pub fn take(&mut self, settings: &GuardSettings, want: u32, now: DateTime<Utc>) -> u32 {
        if settings.bucket_capacity == 0 {
            return want;
        }
        self.refill(settings, now);
        let granted = want.min(self.tokens);
        self.tokens -= granted;
        granted
    }

    /// Gives back tokens of a slice that were not spent.
    pub fn give_back(&mut self, settings: &GuardSettings, unspent: u32) {
        self.add(settings, unspent, self.progress);
    }

    /// Counts time from now on, whatever it was told before: a clock that was far ahead for a while would keep everybody
    /// waiting until then.
    pub fn restart(&mut self, now: DateTime<Utc>) {
        self.refilled_at = now;
    }

    /// The provider says that it would take no more than so many calls now. It may only lower what we believe.
    pub fn lower(&mut self, settings: &GuardSettings, remaining: u64, now: DateTime<Utc>) {
        if settings.bucket_capacity == 0 {
            return;
        }
        self.refill(settings, now);
        self.tokens = self.tokens.min(u32::try_from(remaining).unwrap_or(u32::MAX));
    }

    /// Tokens that could be taken now; `None`: any number.
    pub fn available(&self, settings: &GuardSettings, now: DateTime<Utc>) -> Option<u32> {
        let mut bucket = *self;
        bucket.refill(settings, now);
        (settings.bucket_capacity > 0).then_some(bucket.tokens)
    }

    /// When there is a token; not later than `now` if there is one.
    pub fn next_token_at(&self, settings: &GuardSettings, now: DateTime<Utc>) -> DateTime<Utc> {
        let mut bucket = *self;
        bucket.refill(settings, now);
        if settings.bucket_capacity == 0 || bucket.tokens > 0 {
            return now;
        }
        let missing = per_token(settings).saturating_sub(bucket.progress);
        after(
            bucket.refilled_at,
            Duration::from_micros(missing.div_ceil(u64::from(settings.bucket_refill.max(1)))),
        )
    }

    fn refill(&mut self, settings: &GuardSettings, now: DateTime<Utc>) {
        let elapsed = u64::try_from(between(self.refilled_at, now).as_micros()).unwrap_or(u64::MAX);
        let gathered =
            elapsed.saturating_mul(u64::from(settings.bucket_refill)).saturating_add(self.progress);
        let come = u32::try_from(gathered / per_token(settings)).unwrap_or(u32::MAX);
        self.add(settings, come, gathered % per_token(settings));
        self.refilled_at = self.refilled_at.max(now);
    }

    /// Not more than fits, also where the capacity was lowered.
    fn add(&mut self, settings: &GuardSettings, tokens: u32, progress: u64) {
        self.tokens = self.tokens.saturating_add(tokens).min(settings.bucket_capacity);
        self.progress = if self.tokens < settings.bucket_capacity { progress } else { 0 };
    }
}

/// In the units of the progress.
fn per_token(settings: &GuardSettings) -> u64 {
    u64::try_from(settings.bucket_refill_per.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// What the provider said of one of its own limits (`x-ratelimit-limit-…`, `-remaining-…`, `-reset-…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderLimit {
    /// What it allows in all.
    pub limit: Option<u64>,
    /// What is left.
    pub remaining: u64,
    /// Until all of it is back: not until there is some.
    pub reset: Duration,
}

impl ProviderLimit {
    /// How long to wait until `need` of it is there: 1 for a limit of requests, what the next call may take for one of
    /// the model's tokens. `None`: it is there.
    ///
    /// What is missing comes back evenly until the reset, so a part of it is back after that part of the time. Waiting
    /// for the reset would sleep a day on a daily limit of 10,000 that lets one call through every nine seconds.
    pub fn wait_for(&self, need: u64) -> Option<Duration> {
        let short = need.checked_sub(self.remaining).filter(|short| *short > 0)?;
        let missing = self.limit.map_or(0, |limit| limit.saturating_sub(self.remaining));
        if short >= missing {
            return Some(self.reset);
        }
        let micros = (self.reset.as_micros() * u128::from(short)).div_ceil(u128::from(missing));
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests;
