//! Scripted answers: what the next request, or every request with a certain prompt, is to meet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::behaviour::MAX_LATENCY_MS;
use crate::fault::{Fault, RetryAfter};

/// The longest scripted text: 1 MiB.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// One entry of a script.
///
/// Without `match` it stands in a queue and answers the next request, or the next `times` requests, in the order in
/// which they arrive. With `match` it answers requests whose prompt contains that text, `times` of them or, without
/// `times`, all; such rules go before the queue, the older before the newer, so that a test or a job can steer its
/// own requests while others run.
///
/// ```json
/// [{"fault": "rate_limit", "retry_after": "2"}, {"latency_ms": 50, "text": "four"},
///  {"match": "poem", "fault": "server_error", "status": 503, "times": 2}]
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// What happens.
    pub fault: Fault,
    /// Text that the prompt must contain; case matters.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<String>,
    /// How many requests this answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Instead of a drawn latency, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u32>,
    /// Instead of the made-up answer; `max_tokens` still cuts it. Of an image: what it depends on instead of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// For `rate_limit` and `slow_down`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<RetryAfter>,
    /// For `server_error`, 500 to 599; for `slow_down`, 429 or 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What the reply says of limits beside that: `retry-after`, `retry-after-ms`, `x-ratelimit-…`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// Why a [`Step`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// It would never apply.
    #[error("times must be at least 1")]
    NoTimes,
    /// It would match every prompt.
    #[error("match must not be empty; leave it out for a step of the queue")]
    EmptyMatch,
    /// A field that the fault does not use.
    #[error("{field} has no meaning for {fault}")]
    Meaningless {
        /// Which field.
        field: &'static str,
        /// For which fault.
        fault: Fault,
    },
    /// Not a server's error.
    #[error("status must be from 500 to 599, not {0}")]
    Status(u16),
    /// Neither the status of today nor that of before.
    #[error("status of slow_down must be 429 or 503, not {0}")]
    SlowDownStatus(u16),
    /// A header that is not about limits, or a value that no header can carry.
    #[error("headers.{0}: only retry-after, retry-after-ms and x-ratelimit-… can be set, to visible ASCII")]
    Header(String),
    /// Longer than [`MAX_LATENCY_MS`].
    #[error("latency_ms must be at most {MAX_LATENCY_MS} (ten minutes), not {0}")]
    LatencyTooLong(u32),
    /// Longer than 1 MiB.
    #[error("text must be at most {MAX_TEXT_BYTES} bytes long")]
    TextTooLong,
}

impl Step {
    /// A proper answer to one request.
    pub fn ok() -> Self {
        Self::default()
    }

    /// This fault for one request.
    pub fn fault(fault: Fault) -> Self {
        Self { fault, ..Self::default() }
    }

    /// Only for prompts that contain `text`, and then for all of them unless [`Step::times`] says how many.
    #[must_use]
    pub fn matching(self, text: impl Into<String>) -> Self {
        Self { matching: Some(text.into()), ..self }
    }

    /// For so many requests.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// After so many milliseconds.
    #[must_use]
    pub fn latency_ms(self, latency_ms: u32) -> Self {
        Self { latency_ms: Some(latency_ms), ..self }
    }

    /// With this answer.
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..self }
    }

    /// With this `Retry-After`.
    #[must_use]
    pub fn retry_after(self, retry_after: RetryAfter) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    /// With this status.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// With this header, of those that speak of limits.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Whether this can be done; otherwise the first thing that is wrong.
    pub fn validate(&self) -> Result<(), StepError> {
        let fault = self.fault;
        let meaningless = |field| Err(StepError::Meaningless { field, fault });
        if self.times == Some(0) {
            return Err(StepError::NoTimes);
        }
        if self.matching.as_ref().is_some_and(String::is_empty) {
            return Err(StepError::EmptyMatch);
        }
        if let Some(text) = &self.text {
            if !fault.carries_text() {
                return meaningless("text");
            }
            if text.len() > MAX_TEXT_BYTES {
                return Err(StepError::TextTooLong);
            }
        }
        match self.latency_ms {
            Some(_) if fault == Fault::Hang => return meaningless("latency_ms"),
            Some(ms) if ms > MAX_LATENCY_MS => return Err(StepError::LatencyTooLong(ms)),
            _ => {}
        }
        if self.retry_after.is_some() && !fault.says_when() {
            return meaningless("retry_after");
        }
        if let Some((name, _)) = self.headers.iter().find(|(name, value)| !is_limit(name, value)) {
            return Err(StepError::Header(name.clone()));
        }
        let Some(status) = self.status else { return Ok(()) };
        match fault.statuses() {
            None => meaningless("status"),
            Some(statuses) if statuses.iter().any(|range| range.contains(&status)) => Ok(()),
            Some(_) if fault == Fault::SlowDown => Err(StepError::SlowDownStatus(status)),
            Some(_) => Err(StepError::Status(status)),
        }
    }
}

/// Whether a header is one of those that speak of limits, and whole.
fn is_limit(name: &str, value: &str) -> bool {
    let known = name.starts_with("x-ratelimit-") || ["retry-after", "retry-after-ms"].contains(&name);
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    known && plain && value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_mistake_is_named() {
        for (json, message) in [
            (json!({"times": 0}), "times must be at least 1"),
            (json!({"match": ""}), "match must not be empty; leave it out for a step of the queue"),
            (json!({"fault": "hang", "text": "x"}), "text has no meaning for hang"),
            (json!({"fault": "hang", "latency_ms": 1}), "latency_ms has no meaning for hang"),
            (json!({"retry_after": "2"}), "retry_after has no meaning for ok"),
            (json!({"fault": "reset", "status": 500}), "status has no meaning for reset"),
            (json!({"fault": "server_error", "status": 404}), "status must be from 500 to 599, not 404"),
            (json!({"status": 503}), "status has no meaning for ok"),
            (json!({"fault": "slow_down", "status": 500}), "status of slow_down must be 429 or 503, not 500"),
            (
                json!({"headers": {"content-length": "1"}}),
                "headers.content-length: only retry-after, retry-after-ms and x-ratelimit-… can be set, to visible ASCII",
            ),
            (
                json!({"headers": {"retry-after": "1\r\nx: y"}}),
                "headers.retry-after: only retry-after, retry-after-ms and x-ratelimit-… can be set, to visible ASCII",
            ),
            (json!({"latency_ms": 600_001}), "latency_ms must be at most 600000 (ten minutes), not 600001"),
            (json!({"text": "x".repeat(MAX_TEXT_BYTES + 1)}), "text must be at most 1048576 bytes long"),
        ] {
            let step: Step = serde_json::from_value(json).unwrap();
            assert_eq!(step.validate().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn built_and_read_steps_are_the_same() {
        let built = Step::fault(Fault::RateLimit).matching("poem").retry_after(RetryAfter::Date(3)).times(2);
        let read = json!({"fault": "rate_limit", "match": "poem", "retry_after": "date:3", "times": 2});
        assert_eq!(serde_json::to_value(&built).unwrap(), read);
        assert_eq!(serde_json::from_value::<Step>(read).unwrap(), built);
        assert_eq!(built.validate(), Ok(()));
    }
}
