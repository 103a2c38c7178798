//! How long a call may take (SPEC G4): what the slowest twentieth of the last calls took, and some more.
//!
//! Latencies are kept in slices of time, so that old ones leave without anybody having to remember each call. A slice is
//! named by the time at which it began, so that a change of their length mixes nothing up.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::class::CallKind;
use super::settings::GuardSettings;
pub use super::sketch::{Quantile, Sketch};

/// Of a hundred calls, those that are to have enough time by what is known of them; the margin is for the others.
const PERCENT: u8 = 95;

/// What latencies have to have in common, to be told apart from others.
///
/// Model and size come from clients: whoever keeps a table of these bounds how many it keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LatencyKey {
    /// The adapter's name, such as `openai`.
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    /// Words or pictures.
    pub kind: CallKind,
    /// A picture's size, such as `1024x1024`.
    pub size: Option<String>,
}

/// The latencies of one key. A worker collects a [`Sketch`] of its own and has it added now and then, so that only the
/// database's clock says which slice it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies {
    /// By the second at which the slice began.
    slices: BTreeMap<i64, Sketch>,
}

impl Latencies {
    /// Adds what a worker has seen since it last did so, and forgets what is too old.
    pub fn add(&mut self, seen: &Sketch, settings: &GuardSettings, now: DateTime<Utc>) {
        self.slices.retain(|began, _| is_current(*began, settings, now));
        let length = seconds(settings);
        let began = now.timestamp().div_euclid(length) * length;
        self.slices.entry(began).or_default().merge(seen);
    }

    /// What is looked back on, in one.
    pub fn recent(&self, settings: &GuardSettings, now: DateTime<Utc>) -> Sketch {
        let mut sum = Sketch::default();
        for (_, sketch) in self.slices.iter().filter(|(began, _)| is_current(**began, settings, now)) {
            sum.merge(sketch);
        }
        sum
    }
}

/// How long a call may take that begins now.
pub fn timeout(latencies: &Latencies, settings: &GuardSettings, now: DateTime<Utc>) -> Duration {
    timeout_of(&latencies.recent(settings, now), settings)
}

/// How long a call may take, by what is [recent](Latencies::recent).
pub fn timeout_of(recent: &Sketch, settings: &GuardSettings) -> Duration {
    if recent.count() < settings.timeout_min_samples {
        return settings.timeout_initial;
    }
    match recent.quantile(PERCENT) {
        Some(Quantile::At(p95)) => p95
            .saturating_add(settings.timeout_margin)
            .clamp(settings.timeout_floor, settings.timeout_ceiling),
        Some(Quantile::Beyond) => settings.timeout_ceiling,
        None => settings.timeout_initial,
    }
}

/// A slice that is yet to begin is of a clock that went back since, and no more to be trusted than an old one.
fn is_current(began: i64, settings: &GuardSettings, now: DateTime<Utc>) -> bool {
    let length = seconds(settings);
    let slices = i64::try_from(settings.latency_slices).unwrap_or(i64::MAX);
    let age = now.timestamp().saturating_sub(began);
    age >= 0 && age < length.saturating_mul(slices)
}

fn seconds(settings: &GuardSettings) -> i64 {
    i64::try_from(settings.latency_slice.as_secs()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests;
