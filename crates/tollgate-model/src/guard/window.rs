//! What the last calls came to: a window that slides by count and by age.
//!
//! Samples stay in the order in which the calls ended, whoever reported them first. A sample that is too old counts no more
//! as a failure or a success, but stays as long as there is room: three calls that each hung for a minute are a row, though
//! the first of them ended long ago.

use std::collections::VecDeque;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::outcome::OutcomeKind;
use super::settings::GuardSettings;
use super::time::{Time, between, shifted};

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When it ended. In microseconds, as the database's clock has them.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub at: Time,
    /// How.
    pub kind: OutcomeKind,
}

/// The last calls, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Window(VecDeque<Sample>);

/// What a window says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Calls that count.
    pub attempts: usize,
    /// Of these, those that were no success.
    pub failures: usize,
    /// The failures' weights, divided by the calls; 0 if there are none.
    pub failure_rate: f64,
    /// Timeouts at its end, without an answer between them.
    pub timeouts_in_a_row: usize,
}

/// Sums of weights such as 0.7 are not exact; a rate so close to its limit is at it.
const ROUNDING: f64 = 1e-9;

impl Tally {
    /// Whether there are enough failures among enough calls.
    pub(super) fn rate_reached(&self, settings: &GuardSettings) -> bool {
        self.attempts >= settings.min_attempts && self.failure_rate + ROUNDING >= settings.failure_rate
    }
}

impl Window {
    /// Every sample, the oldest first.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }

    /// What it says now.
    pub(super) fn tally(&self, settings: &GuardSettings, now: Time) -> Tally {
        let counted = self.0.iter().filter(|sample| between(sample.at, now) <= settings.sample_max_age);
        let (mut attempts, mut failures, mut weight) = (0, 0, 0.0);
        for sample in counted {
            let own = settings.weights.of(sample.kind);
            attempts += 1;
            failures += usize::from(!sample.kind.is_good());
            weight += own;
        }
        let failure_rate = if attempts == 0 { 0.0 } else { weight / attempts as f64 };
        Tally { attempts, failures, failure_rate, timeouts_in_a_row: self.row(settings, now) }
    }

    /// A gap that is longer than a sample is good for breaks the row: last night's timeout is no neighbour of this
    /// morning's.
    fn row(&self, settings: &GuardSettings, now: Time) -> usize {
        let (mut row, mut later) = (0, now);
        for sample in self.0.iter().rev() {
            if sample.kind.is_answer() || between(sample.at, later) > settings.sample_max_age {
                break;
            }
            if sample.kind.is_timeout() {
                (row, later) = (row + 1, sample.at);
            }
        }
        row
    }

    pub(super) fn insert(&mut self, sample: Sample, settings: &GuardSettings) {
        let place = self.0.partition_point(|other| other.at <= sample.at);
        self.0.insert(place, sample);
        while self.0.len() > settings.window {
            self.0.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The clock is behind by so much.
    pub(super) fn shift(&mut self, behind: TimeDelta) {
        for sample in &mut self.0 {
            sample.at = shifted(sample.at, behind);
        }
    }
}
