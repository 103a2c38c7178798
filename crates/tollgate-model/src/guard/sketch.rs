//! How long calls took, as counts in bins of growing width.
//!
//! Bins whose bounds grow by a constant factor (as DDSketch has them) tell any quantile to within a constant part of it,
//! whatever the latencies are like, have a fixed number, and merge by adding. A mean and a deviation would merge as well,
//! and say nothing about the slowest twentieth.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Each bin's upper bound, as a multiple of the one before. Its middle is off by 4.8% at most.
const GROWTH: f64 = 1.1;
/// The upper bound of the first bin, in seconds.
const FIRST: f64 = 0.010;
/// The last bin, whose upper bound is 33 minutes. What took longer is counted in it.
const LAST: u8 = 128;

/// What a quantile comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantile {
    /// About so long.
    At(Duration),
    /// Longer than we waited for those calls; nobody knows how long.
    Beyond,
}

/// Latencies of calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch {
    /// Calls that were answered, by bin. Empty bins are left out.
    bins: BTreeMap<u8, u64>,
    /// Calls that we gave up on.
    censored: u64,
}

impl Sketch {
    /// A call was answered after so long.
    pub fn answered(&mut self, latency: Duration) {
        let count = self.bins.entry(bin(latency)).or_default();
        *count = count.saturating_add(1);
    }

    /// A call was given up on: it would have taken longer, by nobody knows how much. Left out, it would make the
    /// quantiles fall just when they should rise; counted at our deadline, it would keep them from rising above that.
    pub fn censored(&mut self) {
        self.censored = self.censored.saturating_add(1);
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: &Self) {
        for (bin, count) in &other.bins {
            let sum = self.bins.entry(*bin).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.censored = self.censored.saturating_add(other.censored);
    }

    /// Calls in all.
    pub fn count(&self) -> u64 {
        self.bins.values().fold(self.censored, |sum, count| sum.saturating_add(*count))
    }

    /// What `percent` of the calls, from 1 to 100, did not exceed; `None` if there are no calls.
    pub fn quantile(&self, percent: u8) -> Option<Quantile> {
        let total = u128::from(self.count());
        if total == 0 {
            return None;
        }
        let rank = (total * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        for (bin, count) in &self.bins {
            seen += u128::from(*count);
            if seen >= rank {
                return Some(Quantile::At(middle(*bin)));
            }
        }
        Some(Quantile::Beyond)
    }
}

fn bin(latency: Duration) -> u8 {
    let nr = (latency.as_secs_f64() / FIRST).log(GROWTH).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and LAST")]
    let nr = nr.max(0.0).min(f64::from(LAST)) as u8;
    nr
}

/// What is off by as much, in parts of it, from either bound of the bin.
fn middle(bin: u8) -> Duration {
    Duration::from_secs_f64(FIRST * GROWTH.powi(i32::from(bin)) * 2.0 / (1.0 + GROWTH))
}

#[cfg(test)]
mod tests;
