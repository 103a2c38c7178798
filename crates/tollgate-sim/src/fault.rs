//! What can go wrong with an answer, and what a 429 says about when to come back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;

/// How one request is answered. In JSON the snake-case name, e.g. `"silent_body"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A proper answer, after the latency.
    #[default]
    Ok,
    /// 429 `rate_limit_exceeded` at once, with the `Retry-After` that is asked for.
    RateLimit,
    /// 500, 502 or 503, after the latency.
    ServerError,
    /// The request is read and never answered.
    Hang,
    /// After the latency 200, the headers and half the body; then nothing, on an open connection.
    SilentBody,
    /// After the latency 200, the headers and half the body; then a TCP reset.
    Reset,
    /// After the latency 200 with a whole body that is broken JSON.
    Malformed,
    /// After the latency 200 and half of the promised body; then an orderly close.
    Truncated,
    /// 429 `insufficient_quota` at once: not a rate limit, waiting does not help.
    InsufficientQuota,
    /// 400 `content_policy_violation` at once.
    BadRequest,
    /// 429 `slow_down` at once, or 503 as it was before: too much more than a moment ago. With the `Retry-After` that is
    /// asked for.
    SlowDown,
    /// 401 `invalid_api_key` at once.
    Unauthorized,
    /// Of an image: after the latency 200, without the image and without a URL. A proper answer to anything else.
    NoImageUrl,
    /// Of an image: after the latency 200, with an empty URL. A proper answer to anything else.
    EmptyImageUrl,
}

impl Fault {
    /// The name used in JSON and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RateLimit => "rate_limit",
            Self::ServerError => "server_error",
            Self::Hang => "hang",
            Self::SilentBody => "silent_body",
            Self::Reset => "reset",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::InsufficientQuota => "insufficient_quota",
            Self::BadRequest => "bad_request",
            Self::SlowDown => "slow_down",
            Self::Unauthorized => "unauthorized",
            Self::NoImageUrl => "no_image_url",
            Self::EmptyImageUrl => "empty_image_url",
        }
    }

    /// Whether any part of an answer's text goes out.
    pub(crate) const fn carries_text(self) -> bool {
        matches!(self, Self::Ok | Self::SilentBody | Self::Reset | Self::Malformed | Self::Truncated)
    }

    /// Whether it says when to come back.
    pub(crate) const fn says_when(self) -> bool {
        matches!(self, Self::RateLimit | Self::SlowDown)
    }

    /// The statuses that it may have, if there is a choice.
    pub(crate) const fn statuses(self) -> Option<&'static [std::ops::RangeInclusive<u16>]> {
        match self {
            Self::ServerError => Some(&[500..=599]),
            Self::SlowDown => Some(&[429..=429, 503..=503]),
            _ => None,
        }
    }

    /// Whether the latency is waited for. Real providers refuse at once, and fail after working a while.
    pub(crate) const fn takes_time(self) -> bool {
        self.carries_text() || matches!(self, Self::ServerError | Self::NoImageUrl | Self::EmptyImageUrl)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `Retry-After` of a simulated 429. As text (in JSON, on a command line): `"none"`, `"2"` or `"date:2"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RetryAfter {
    /// No such header.
    Missing,
    /// A number of seconds.
    Seconds(u32),
    /// An HTTP date, this many seconds from now.
    Date(u32),
}

/// Text that is not a [`RetryAfter`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "retry_after must be \"none\", seconds such as \"2\", or an HTTP date so many seconds ahead such as \"date:2\", not {0:?}"
)]
pub struct RetryAfterError(String);

impl RetryAfter {
    /// The header's value, if there is to be one.
    pub(crate) fn header(self) -> Option<String> {
        match self {
            Self::Missing => None,
            Self::Seconds(seconds) => Some(seconds.to_string()),
            Self::Date(seconds) => {
                Some(httpdate::fmt_http_date(clock::now() + Duration::from_secs(seconds.into())))
            }
        }
    }
}

impl Default for RetryAfter {
    fn default() -> Self {
        Self::Seconds(1)
    }
}

impl FromStr for RetryAfter {
    type Err = RetryAfterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = |digits: &str| digits.parse::<u32>().map_err(|_| RetryAfterError(text.to_owned()));
        match text.strip_prefix("date:") {
            Some(digits) => seconds(digits).map(Self::Date),
            None if text == "none" => Ok(Self::Missing),
            None => seconds(text).map(Self::Seconds),
        }
    }
}

impl TryFrom<String> for RetryAfter {
    type Error = RetryAfterError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("none"),
            Self::Seconds(seconds) => write!(f, "{seconds}"),
            Self::Date(seconds) => write!(f, "date:{seconds}"),
        }
    }
}

impl From<RetryAfter> for String {
    fn from(value: RetryAfter) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_and_written_alike() {
        for (text, value) in [
            ("none", RetryAfter::Missing),
            ("2", RetryAfter::Seconds(2)),
            ("0", RetryAfter::Seconds(0)),
            ("date:30", RetryAfter::Date(30)),
        ] {
            assert_eq!(text.parse::<RetryAfter>(), Ok(value));
            assert_eq!(value.to_string(), text);
        }
        for text in ["", "soon", "-1", "1.5", "date:", "date:x", "None"] {
            assert_eq!(text.parse::<RetryAfter>(), Err(RetryAfterError(text.to_owned())));
        }
    }

    #[test]
    fn the_name_of_a_fault_is_its_json() {
        for fault in [Fault::Ok, Fault::SilentBody, Fault::InsufficientQuota, Fault::ServerError] {
            assert_eq!(serde_json::to_value(fault).unwrap(), fault.as_str());
        }
    }
}
