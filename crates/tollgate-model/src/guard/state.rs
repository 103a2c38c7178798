//! All that is stored of a class, and what a report from a worker does to it.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::bucket::Bucket;
use super::circuit::{Circuit, Effect, Event, step};
use super::outcome::{Observation, Outcome};
use super::pause::Pause;
use super::settings::GuardSettings;
use super::time::{after, before, between};

/// A 429 that does not say for how long to stay away means this long.
const PAUSE_WITHOUT_A_WORD: Duration = Duration::from_secs(1);

/// The share of timeouts is that of so many minutes.
pub const RATE_MINUTES: i64 = 15;

/// A provider that answered so short a time ago is there.
const LIVELY: Duration = Duration::from_secs(2);

/// What a worker said of its calls in flight is believed for so long.
const CALLERS_BELIEVED: Duration = Duration::from_secs(30);

/// The state of a class: one row, changed under its lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassState {
    /// Whether calls are made at all.
    pub circuit: Circuit,
    /// How many may begin.
    pub bucket: Bucket,
    /// Until when none may begin.
    pub pause: Pause,
    /// Calls that ended, minute by minute.
    minutes: BTreeMap<i64, Minute>,
    /// Who has calls in flight.
    callers: BTreeMap<Uuid, Caller>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Minute {
    calls: u32,
    timeouts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Caller {
    in_flight: u32,
    #[serde(with = "chrono::serde::ts_milliseconds")]
    at: DateTime<Utc>,
}

impl ClassState {
    /// That of a class nobody has called yet.
    pub fn new(settings: &GuardSettings, now: DateTime<Utc>) -> Self {
        Self {
            circuit: Circuit::new(now),
            bucket: Bucket::new(settings, now),
            pause: Pause::default(),
            minutes: BTreeMap::new(),
            callers: BTreeMap::new(),
        }
    }

    /// One step of the circuit.
    pub fn step(&mut self, settings: &GuardSettings, event: Event, now: DateTime<Utc>) -> Vec<Effect> {
        // The circuit is consumed by a step; one that has just been made stands in for it meanwhile.
        let circuit = std::mem::replace(&mut self.circuit, Circuit::new(now));
        let (circuit, effects) = step(circuit, settings, event, now);
        self.circuit = circuit;
        effects
    }

    /// Whether the provider answered another call while this one waited, or shortly before.
    pub fn answered_since(&self, call: &Observation, now: DateTime<Utc>) -> bool {
        let since = before(now, call.began_ago.max(LIVELY));
        self.circuit.samples().any(|sample| sample.kind.is_good() && sample.at >= since)
    }

    /// Calls are over. `true`: they made the pause longer.
    pub fn observe(&mut self, calls: &[Observation], now: DateTime<Utc>) -> bool {
        let minute = now.timestamp().div_euclid(60);
        self.minutes.retain(|at, _| (minute - RATE_MINUTES..=minute).contains(at));
        let mut paused = false;
        for call in calls {
            let kind = call.outcome.kind();
            if !matches!(call.outcome, Outcome::Cancelled) {
                let minute = self.minutes.entry(minute).or_default();
                minute.calls = minute.calls.saturating_add(1);
                minute.timeouts = minute.timeouts.saturating_add(u32::from(kind.is_timeout()));
            }
            if let Outcome::RateLimited { pause } = call.outcome {
                let until = after(before(now, call.ended_ago), pause.unwrap_or(PAUSE_WITHOUT_A_WORD));
                paused |= self.pause.extend(until);
            }
        }
        paused
    }

    /// The share of timeouts among the calls of the last [`RATE_MINUTES`]; `None`: there were none.
    pub fn timeout_rate(&self, now: DateTime<Utc>) -> Option<f64> {
        let minute = now.timestamp().div_euclid(60);
        let recent = self.minutes.range(minute - RATE_MINUTES + 1..=minute).map(|(_, minute)| minute);
        let (calls, timeouts) = recent.fold((0_u64, 0_u64), |(calls, timeouts), minute| {
            (calls + u64::from(minute.calls), timeouts + u64::from(minute.timeouts))
        });
        (calls > 0).then(|| timeouts as f64 / calls as f64)
    }

    /// A worker says how many of its calls are in flight.
    pub fn calling(&mut self, worker: Uuid, in_flight: u32, now: DateTime<Utc>) {
        self.callers.retain(|_, caller| between(caller.at, now) < CALLERS_BELIEVED);
        if in_flight == 0 {
            self.callers.remove(&worker);
        } else {
            self.callers.insert(worker, Caller { in_flight, at: now });
        }
    }

    /// Calls in flight, as far as workers have said so lately.
    pub fn in_flight(&self, now: DateTime<Utc>) -> u64 {
        let believed = self.callers.values().filter(|caller| between(caller.at, now) < CALLERS_BELIEVED);
        believed.map(|caller| u64::from(caller.in_flight)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::class::CallKind;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_040 + seconds, 0).unwrap()
    }

    fn ended(outcome: Outcome, ago: u64) -> Observation {
        let ago = Duration::from_secs(ago);
        Observation { outcome, began_ago: ago, ended_ago: ago }
    }

    fn new() -> ClassState {
        ClassState::new(&GuardSettings::defaults(CallKind::Text), at(0))
    }

    #[test]
    fn the_pause_counts_from_the_reply_on_and_never_shrinks() {
        let mut state = new();
        let thirty = Outcome::RateLimited { pause: Some(Duration::from_secs(30)) };
        assert!(state.observe(&[ended(thirty, 2)], at(0)));
        assert_eq!(state.pause.until(at(0)), Some(at(28)));
        assert!(!state.observe(&[ended(Outcome::RateLimited { pause: None }, 0)], at(0)));
        assert_eq!(state.pause.until(at(0)), Some(at(28)));
    }

    #[test]
    fn the_rate_of_timeouts_is_that_of_the_last_quarter_of_an_hour() {
        let mut state = new();
        assert_eq!(state.timeout_rate(at(0)), None);
        let success = || ended(Outcome::Success { latency: Duration::from_secs(1) }, 0);
        state.observe(&[ended(Outcome::Deadline, 0), success(), success(), success()], at(0));
        state.observe(&[ended(Outcome::Cancelled, 0)], at(60));
        assert_eq!(state.timeout_rate(at(60)), Some(0.25));
        state.observe(&[success()], at(14 * 60));
        assert_eq!(state.timeout_rate(at(14 * 60)), Some(0.2));
        assert_eq!(state.timeout_rate(at(15 * 60)), Some(0.0), "the timeout is too long ago");
        assert_eq!(state.timeout_rate(at(60 * 60)), None);
    }

    #[test]
    fn a_caller_that_says_nothing_any_more_is_not_counted() {
        let mut state = new();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        state.calling(a, 3, at(0));
        state.calling(b, 4, at(10));
        assert_eq!(state.in_flight(at(20)), 7);
        assert_eq!(state.in_flight(at(35)), 4);
        state.calling(b, 0, at(36));
        assert_eq!(state.in_flight(at(36)), 0);
    }
}
