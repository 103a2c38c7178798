//! The figures by which a guard judges, for one class of models.
//!
//! All of them are settings, since no two providers fail alike; the defaults are those of the specification. They are
//! written as a whole or, in a configuration, as what differs from the defaults of the kind
//! ([`GuardConfig`](super::class::GuardConfig)).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::class::CallKind;
use super::outcome::OutcomeKind;
use super::period;

/// The most samples that a window may have: it lies in a row that is written whole.
const WIDEST_WINDOW: usize = 1_000;
/// The same for slices of latencies.
const MOST_SLICES: usize = 100;
/// The longest that anything here may last. Far beyond sense; it keeps sums of times within the calendar.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// What a guard of one class goes by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardSettings {
    /// Calls that are looked back on, at most.
    pub window: usize,
    /// A call that ended longer ago says nothing any more.
    #[serde(with = "period")]
    pub sample_max_age: Duration,
    /// Fewer calls in the window say nothing either.
    pub min_attempts: usize,
    /// The circuit opens when the weights of the failures, divided by the calls, come to this.
    pub failure_rate: f64,
    /// It opens after so many timeouts without an answer between them.
    pub timeouts_in_a_row: usize,
    /// How much a failure weighs.
    pub weights: Weights,

    /// How long it stays open the first time.
    #[serde(with = "period")]
    pub open_period: Duration,
    /// How many times longer after each further trip; 1 or more.
    pub open_growth: f64,
    /// How long at most.
    #[serde(with = "period")]
    pub open_period_cap: Duration,
    /// A circuit that was closed for so long begins again with the first period.
    #[serde(with = "period")]
    pub trips_forgotten_after: Duration,

    /// Probes that have to succeed, one after the other, before it closes.
    pub successes_to_close: u32,
    /// The least time from one probe's beginning to the next one's.
    #[serde(with = "period")]
    pub probe_interval: Duration,
    /// A probe whose holder is silent for the longest call and so much more is taken for lost.
    #[serde(with = "period")]
    pub probe_slack: Duration,
    /// After it has closed: from one call at once to all that a worker may make.
    #[serde(with = "period")]
    pub ramp: Duration,

    /// A credential that the provider refused is tried again after 30 s, then more and more seldom, and after this at the
    /// latest.
    #[serde(with = "period")]
    pub credential_recheck: Duration,

    /// Calls that may begin at once; 0: any number, there is no bucket.
    pub bucket_capacity: u32,
    /// Calls that come back to the bucket in [`bucket_refill_per`](Self::bucket_refill_per).
    pub bucket_refill: u32,
    /// See there.
    #[serde(with = "period")]
    pub bucket_refill_per: Duration,
    /// After a pause, workers return within so long, not all at its end.
    #[serde(with = "period")]
    pub pause_spread: Duration,

    /// The least time that a call is given.
    #[serde(with = "period")]
    pub timeout_floor: Duration,
    /// The most.
    #[serde(with = "period")]
    pub timeout_ceiling: Duration,
    /// What is added to how long 95 of 100 calls took.
    #[serde(with = "period")]
    pub timeout_margin: Duration,
    /// What holds until there is something to go by.
    #[serde(with = "period")]
    pub timeout_initial: Duration,
    /// Something to go by: so many calls.
    pub timeout_min_samples: u64,
    /// Latencies are kept in slices of time, and leave slice by slice.
    #[serde(with = "period")]
    pub latency_slice: Duration,
    /// How many slices are looked back on.
    pub latency_slices: usize,
}

/// What a failure of each kind weighs, from 0, nothing, to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// 5xx, and replies that are not what the protocol says.
    pub server_error: f64,
    /// No connection.
    pub connect: f64,
    /// A connection on which nothing comes.
    pub silent_socket: f64,
    /// The call's total deadline: it may have been a long piece of work.
    pub deadline: f64,
    /// The provider asks for fewer calls than it promised.
    pub slow_down: f64,
    /// 429: it does what it promised.
    pub rate_limited: f64,
}

impl Weights {
    /// That of one outcome; nothing for what says that the provider is alive.
    pub fn of(&self, kind: OutcomeKind) -> f64 {
        match kind {
            OutcomeKind::ServerError => self.server_error,
            OutcomeKind::Connect => self.connect,
            OutcomeKind::SilentSocket => self.silent_socket,
            OutcomeKind::Deadline => self.deadline,
            OutcomeKind::SlowDown => self.slow_down,
            OutcomeKind::RateLimited => self.rate_limited,
            OutcomeKind::Success
            | OutcomeKind::Content
            | OutcomeKind::CredentialRefused
            | OutcomeKind::Cancelled => 0.0,
        }
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            server_error: 1.0,
            connect: 1.0,
            silent_socket: 1.0,
            deadline: 0.7,
            slow_down: 0.5,
            rate_limited: 0.25,
        }
    }
}

/// A setting that cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct BadSetting {
    /// Its name.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl GuardSettings {
    /// The defaults for calls of a kind.
    pub fn defaults(kind: CallKind) -> Self {
        let text = Self {
            window: 30,
            sample_max_age: Duration::from_mins(2),
            min_attempts: 5,
            failure_rate: 0.5,
            timeouts_in_a_row: 3,
            weights: Weights::default(),
            open_period: Duration::from_secs(20),
            open_growth: 2.0,
            open_period_cap: Duration::from_mins(5),
            trips_forgotten_after: Duration::from_mins(5),
            successes_to_close: 3,
            probe_interval: Duration::from_secs(2),
            probe_slack: Duration::from_secs(15),
            ramp: Duration::from_secs(30),
            credential_recheck: Duration::from_mins(10),
            bucket_capacity: 0,
            bucket_refill: 1,
            bucket_refill_per: Duration::from_mins(1),
            pause_spread: Duration::from_secs(5),
            timeout_floor: Duration::from_secs(45),
            timeout_ceiling: Duration::from_secs(90),
            timeout_margin: Duration::from_secs(10),
            timeout_initial: Duration::from_mins(1),
            timeout_min_samples: 20,
            latency_slice: Duration::from_mins(10),
            latency_slices: 6,
        };
        match kind {
            CallKind::Text => text,
            CallKind::Image => Self {
                open_period: Duration::from_mins(1),
                probe_interval: Duration::from_secs(10),
                bucket_capacity: 5,
                ..text
            },
        }
    }

    /// How long the circuit stays open after a trip that `trips` others went before.
    pub fn open_period_after(&self, trips: u32) -> Duration {
        let factor = self.open_growth.powi(i32::try_from(trips).unwrap_or(i32::MAX));
        Duration::try_from_secs_f64(self.open_period.as_secs_f64() * factor)
            .map_or(self.open_period_cap, |period| period.min(self.open_period_cap))
    }

    /// How long a probe may be silent.
    pub fn probe_lease(&self) -> Duration {
        self.timeout_ceiling.saturating_add(self.probe_slack)
    }

    /// Whether all of this can hold together; the first that cannot.
    pub fn validate(&self) -> Result<(), BadSetting> {
        let rules = [
            ("window", (1..=WIDEST_WINDOW).contains(&self.window), "must be from 1 to 1000"),
            (
                "min_attempts",
                (1..=self.window).contains(&self.min_attempts),
                "must be from 1 to `window`, which never holds more calls",
            ),
            (
                "failure_rate",
                self.failure_rate > 0.0 && self.failure_rate <= 1.0,
                "must be above 0, and 1 at most",
            ),
            (
                "timeouts_in_a_row",
                (1..=self.window).contains(&self.timeouts_in_a_row),
                "must be from 1 to `window`, which never holds more calls",
            ),
            (
                "sample_max_age",
                self.sample_max_age > self.timeout_ceiling,
                "must be longer than `timeout_ceiling`, or the timeouts of one caller would never be a row",
            ),
            ("open_period", !self.open_period.is_zero(), "must be longer than nothing"),
            ("open_growth", (1.0..=100.0).contains(&self.open_growth), "must be from 1 to 100"),
            (
                "open_period_cap",
                self.open_period_cap >= self.open_period,
                "must not be shorter than `open_period`",
            ),
            ("successes_to_close", self.successes_to_close > 0, "must be 1 or more"),
            ("credential_recheck", !self.credential_recheck.is_zero(), "must be longer than nothing"),
            ("bucket_refill", self.bucket_refill > 0, "must be 1 or more"),
            (
                "bucket_refill_per",
                self.bucket_refill_per.as_micros() >= u128::from(self.bucket_refill),
                "must give each token of `bucket_refill` a microsecond or more",
            ),
            (
                "timeout_floor",
                !self.timeout_floor.is_zero() && self.timeout_floor <= self.timeout_ceiling,
                "must be longer than nothing, and no longer than `timeout_ceiling`",
            ),
            (
                "timeout_initial",
                (self.timeout_floor..=self.timeout_ceiling).contains(&self.timeout_initial),
                "must be between `timeout_floor` and `timeout_ceiling`",
            ),
            ("timeout_min_samples", self.timeout_min_samples > 0, "must be 1 or more"),
            ("latency_slice", self.latency_slice >= Duration::from_secs(1), "must be a second or more"),
            ("latency_slices", (1..=MOST_SLICES).contains(&self.latency_slices), "must be from 1 to 100"),
        ];
        let broken = rules.into_iter().find(|(_, holds, _)| !holds);
        if let Some((field, _, problem)) = broken {
            return Err(BadSetting { field, problem: problem.to_owned() });
        }
        if let Some((field, weight)) =
            self.weights_by_name().into_iter().find(|(_, w)| !(0.0..=1.0).contains(w))
        {
            return Err(BadSetting { field, problem: format!("must be from 0 to 1, and is {weight}") });
        }
        if let Some((field, _)) = self.periods().into_iter().find(|(_, period)| *period > LONGEST) {
            return Err(BadSetting { field, problem: format!("must not exceed {}", period::text(LONGEST)) });
        }
        Ok(())
    }

    fn weights_by_name(&self) -> [(&'static str, f64); 6] {
        let weights = &self.weights;
        [
            ("weights.server_error", weights.server_error),
            ("weights.connect", weights.connect),
            ("weights.silent_socket", weights.silent_socket),
            ("weights.deadline", weights.deadline),
            ("weights.slow_down", weights.slow_down),
            ("weights.rate_limited", weights.rate_limited),
        ]
    }

    fn periods(&self) -> [(&'static str, Duration); 14] {
        [
            ("sample_max_age", self.sample_max_age),
            ("open_period", self.open_period),
            ("open_period_cap", self.open_period_cap),
            ("trips_forgotten_after", self.trips_forgotten_after),
            ("probe_interval", self.probe_interval),
            ("probe_slack", self.probe_slack),
            ("ramp", self.ramp),
            ("credential_recheck", self.credential_recheck),
            ("bucket_refill_per", self.bucket_refill_per),
            ("pause_spread", self.pause_spread),
            ("timeout_ceiling", self.timeout_ceiling),
            ("timeout_margin", self.timeout_margin),
            ("timeout_initial", self.timeout_initial),
            ("latency_slice", self.latency_slice),
        ]
    }
}
