//! What the simulated provider does of its own accord, in the form a command line or a JSON document fills.

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, RetryAfter};

/// The longest wait that can be asked for: ten minutes.
pub const MAX_LATENCY_MS: u32 = 600_000;

/// How the provider behaves. The default answers every request properly and at once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Half the answers take less than this, in milliseconds.
    pub latency_median_ms: u32,
    /// 99 in 100 answers take less than this, in milliseconds; without it, every answer takes the median.
    pub latency_p99_ms: Option<u32>,
    /// Decides all random choices.
    pub seed: u64,
    /// A token bucket of this size, filled evenly over a minute. Requests that find it empty get 429 with
    /// `Retry-After` in seconds.
    pub requests_per_minute: Option<u32>,
    /// The key that `/v1` asks for. Without it any key, or none, will do.
    pub api_key: Option<String>,
    /// The `Retry-After` of a `rate_limit` or `slow_down` fault that does not state its own.
    pub retry_after: RetryAfter,
    /// How probable each fault is.
    pub faults: Faults,
}

/// The probability, from 0 to 1, of each [`Fault`] of the same name. What is left to 1 are proper answers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Of [`Fault::RateLimit`].
    pub rate_limit: f64,
    /// Of [`Fault::ServerError`].
    pub server_error: f64,
    /// Of [`Fault::Hang`].
    pub hang: f64,
    /// Of [`Fault::SilentBody`].
    pub silent_body: f64,
    /// Of [`Fault::Reset`].
    pub reset: f64,
    /// Of [`Fault::Malformed`].
    pub malformed: f64,
    /// Of [`Fault::Truncated`].
    pub truncated: f64,
    /// Of [`Fault::InsufficientQuota`].
    pub insufficient_quota: f64,
    /// Of [`Fault::BadRequest`].
    pub bad_request: f64,
    /// Of [`Fault::SlowDown`].
    pub slow_down: f64,
    /// Of [`Fault::Unauthorized`].
    pub unauthorized: f64,
    /// Of [`Fault::NoImageUrl`].
    pub no_image_url: f64,
    /// Of [`Fault::EmptyImageUrl`].
    pub empty_image_url: f64,
}

/// Why a [`Behaviour`] is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BehaviourError {
    /// A probability that is none.
    #[error("faults.{fault} must be a probability from 0 to 1, not {value}")]
    Probability {
        /// Whose.
        fault: Fault,
        /// What was given.
        value: f64,
    },
    /// Probabilities that exceed certainty together.
    #[error("the probabilities of all faults add up to {0}, more than 1")]
    Sum(f64),
    /// A 99th percentile below the median.
    #[error("latency_p99_ms ({p99}) must not be below latency_median_ms ({median})")]
    P99BelowMedian {
        /// The 99th percentile given.
        p99: u32,
        /// The median given.
        median: u32,
    },
    /// A spread around zero.
    #[error("latency_p99_ms ({0}) needs a latency_median_ms above 0")]
    P99WithoutMedian(u32),
    /// Longer than [`MAX_LATENCY_MS`].
    #[error("{field} must be at most {MAX_LATENCY_MS} (ten minutes), not {value}")]
    LatencyTooLong {
        /// Which field.
        field: &'static str,
        /// What was given.
        value: u32,
    },
    /// A rate limit that lets nothing through.
    #[error("requests_per_minute must be at least 1; leave it out for no limit")]
    NoRequests,
    /// A key that no request can present.
    #[error("api_key must not be blank; leave it out to accept any key")]
    BlankApiKey,
}

impl Behaviour {
    /// Whether this can be simulated; otherwise the first thing that is wrong.
    pub fn validate(&self) -> Result<(), BehaviourError> {
        self.faults.validate()?;
        let (median, p99) = (self.latency_median_ms, self.p99_ms());
        for (field, value) in [("latency_median_ms", median), ("latency_p99_ms", p99)] {
            if value > MAX_LATENCY_MS {
                return Err(BehaviourError::LatencyTooLong { field, value });
            }
        }
        if p99 < median {
            return Err(BehaviourError::P99BelowMedian { p99, median });
        }
        if median == 0 && p99 > 0 {
            return Err(BehaviourError::P99WithoutMedian(p99));
        }
        if self.requests_per_minute == Some(0) {
            return Err(BehaviourError::NoRequests);
        }
        if self.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            return Err(BehaviourError::BlankApiKey);
        }
        Ok(())
    }

    /// The 99th percentile in force.
    pub(crate) fn p99_ms(&self) -> u32 {
        self.latency_p99_ms.unwrap_or(self.latency_median_ms)
    }
}

impl Faults {
    /// The fault that `draw`, uniform in `0..1`, falls on.
    pub(crate) fn pick(&self, draw: f64) -> Fault {
        let mut below = 0.0;
        for (fault, probability) in self.entries() {
            below += probability;
            if draw < below {
                return fault;
            }
        }
        Fault::Ok
    }

    fn entries(&self) -> [(Fault, f64); 13] {
        [
            (Fault::RateLimit, self.rate_limit),
            (Fault::ServerError, self.server_error),
            (Fault::Hang, self.hang),
            (Fault::SilentBody, self.silent_body),
            (Fault::Reset, self.reset),
            (Fault::Malformed, self.malformed),
            (Fault::Truncated, self.truncated),
            (Fault::InsufficientQuota, self.insufficient_quota),
            (Fault::BadRequest, self.bad_request),
            (Fault::SlowDown, self.slow_down),
            (Fault::Unauthorized, self.unauthorized),
            (Fault::NoImageUrl, self.no_image_url),
            (Fault::EmptyImageUrl, self.empty_image_url),
        ]
    }

    fn validate(&self) -> Result<(), BehaviourError> {
        for (fault, value) in self.entries() {
            // Written so that NaN fails too.
            if !(0.0..=1.0).contains(&value) {
                return Err(BehaviourError::Probability { fault, value });
            }
        }
        let sum: f64 = self.entries().iter().map(|(_, probability)| probability).sum();
        // Room for what adding up tenths does to binary fractions.
        if sum > 1.0 + 1e-9 { Err(BehaviourError::Sum(sum)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> Behaviour {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn each_mistake_is_named() {
        for (json, message) in [
            (json!({"faults": {"hang": 1.5}}), "faults.hang must be a probability from 0 to 1, not 1.5"),
            (json!({"faults": {"reset": -0.1}}), "faults.reset must be a probability from 0 to 1, not -0.1"),
            (
                json!({"faults": {"hang": 0.5, "reset": 0.75}}),
                "the probabilities of all faults add up to 1.25, more than 1",
            ),
            (
                json!({"latency_median_ms": 9, "latency_p99_ms": 8}),
                "latency_p99_ms (8) must not be below latency_median_ms (9)",
            ),
            (json!({"latency_p99_ms": 8}), "latency_p99_ms (8) needs a latency_median_ms above 0"),
            (
                json!({"latency_median_ms": 600_001}),
                "latency_median_ms must be at most 600000 (ten minutes), not 600001",
            ),
            (
                json!({"requests_per_minute": 0}),
                "requests_per_minute must be at least 1; leave it out for no limit",
            ),
            (json!({"api_key": " "}), "api_key must not be blank; leave it out to accept any key"),
        ] {
            assert_eq!(read(json).validate().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn not_a_number_is_no_probability() {
        let faults = Faults { hang: f64::NAN, ..Faults::default() };
        assert!(matches!(faults.validate(), Err(BehaviourError::Probability { fault: Fault::Hang, .. })));
    }

    #[test]
    fn certainty_may_be_made_of_tenths() {
        let faults = read(json!({"faults": {"hang": 0.1, "reset": 0.2, "malformed": 0.7}}));
        assert_eq!(faults.validate(), Ok(()));
        assert_eq!(Behaviour::default().validate(), Ok(()));
    }

    #[test]
    fn a_draw_falls_on_the_fault_it_belongs_to() {
        let faults = Faults { rate_limit: 0.25, hang: 0.25, ..Faults::default() };
        for (draw, fault) in
            [(0.0, Fault::RateLimit), (0.2499, Fault::RateLimit), (0.25, Fault::Hang), (0.5, Fault::Ok)]
        {
            assert_eq!(faults.pick(draw), fault, "{draw}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let error = serde_json::from_value::<Behaviour>(json!({"faults": {"hangs": 1}})).unwrap_err();
        assert!(
            error.to_string().starts_with("unknown field `hangs`, expected one of `rate_limit`"),
            "{error}"
        );
    }
}
