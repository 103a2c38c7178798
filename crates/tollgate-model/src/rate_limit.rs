//! Rate limits (SPEC K2): how many requests of a kind may be made in a window of time.
//!
//! A window begins with its first request and lasts as long as the limit says; then the next request begins another. So
//! a client that sends all it may at once gets exactly that, and is told exactly when to return. (In a span of a window's
//! length that begins in the middle of one, it may get up to twice that, as with GitHub's limits. A token bucket refills
//! while it is being emptied, so nobody could be told beforehand how many requests will pass.)
//!
//! One window is counted over all API processes: [`share`]. What a process counts for itself alone, against those who
//! guess keys, is an [`allowance`].

pub mod allowance;
pub mod share;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::guard::period;

/// A limit, as it is configured: `60,1m`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// `off`: as many as may come.
    Unlimited,
    /// So many, and no more.
    Quota(Quota),
}

/// So many requests in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests; at least 1.
    pub requests: u32,
    /// Whole seconds; at least 1.
    pub window: Duration,
}

/// The longest window.
const LONGEST: Duration = Duration::from_hours(24);

/// What is no rate limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate limit such as `60,1m` (requests, and whole seconds up to a day) or `off`")]
pub struct InvalidRateLimit(String);

impl FromStr for RateLimit {
    type Err = InvalidRateLimit;

    fn from_str(text: &str) -> Result<Self, InvalidRateLimit> {
        if text.trim() == "off" {
            return Ok(Self::Unlimited);
        }
        let quota = text.split_once(',').and_then(|(requests, window)| {
            let requests = requests.trim().parse().ok().filter(|requests| *requests > 0)?;
            let window = period::parse(window)?;
            let whole = window.subsec_nanos() == 0 && !window.is_zero() && window <= LONGEST;
            whole.then_some(Quota { requests, window })
        });
        quota.map(Self::Quota).ok_or_else(|| InvalidRateLimit(text.to_owned()))
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("off"),
            Self::Quota(Quota { requests, window }) => write!(f, "{requests},{}", period::text(*window)),
        }
    }
}

/// How far a limit is used up, as a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The limit.
    pub quota: Quota,
    /// Requests that are left.
    pub remaining: u32,
    /// Until all of it is there again.
    pub reset: Duration,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling() {
        let quota =
            |requests, seconds| RateLimit::Quota(Quota { requests, window: Duration::from_secs(seconds) });
        for (text, limit) in [
            ("60,1m", quota(60, 60)),
            (" 600 , 90s ", quota(600, 90)),
            ("1,1d", quota(1, 86_400)),
            ("4000000000,1h", quota(4_000_000_000, 3_600)),
            ("off", RateLimit::Unlimited),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
        }
        for text in ["", "60", "60,", ",1m", "0,1m", "-1,1m", "60,0s", "60,500ms", "60,25h", "60/1m", "on"] {
            assert_eq!(text.parse::<RateLimit>(), Err(InvalidRateLimit(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(requests in 1_u32.., seconds in 1_u64..=86_400) {
            let limit = RateLimit::Quota(Quota { requests, window: Duration::from_secs(seconds) });
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }
    }
}
