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

use std::cmp::Ordering;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Requests; at least 1.
    pub requests: u32,
    /// Whole seconds; at least 1.
    pub window: Duration,
}

/// From the strictest to none: by requests a second in the long run; of two that are alike, by how many may come at once.
impl Ord for RateLimit {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Unlimited, Self::Unlimited) => Ordering::Equal,
            (Self::Unlimited, Self::Quota(_)) => Ordering::Greater,
            (Self::Quota(_), Self::Unlimited) => Ordering::Less,
            (Self::Quota(one), Self::Quota(two)) => {
                let requests_in_both =
                    |quota: &Quota, window: Duration| u128::from(quota.requests) * window.as_nanos();
                requests_in_both(one, two.window)
                    .cmp(&requests_in_both(two, one.window))
                    .then(one.requests.cmp(&two.requests))
            }
        }
    }
}

impl PartialOrd for RateLimit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
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

    #[test]
    fn the_stricter_comes_first() {
        let mut limits =
            ["off", "600,1m", "10,1s", "60,2h", "60,1h", "1,1m", "600,1h", "600,59s", "4000000000,1s"]
                .map(|text| text.parse::<RateLimit>().unwrap());
        limits.sort();
        let sorted = limits.map(|limit| limit.to_string());
        assert_eq!(
            sorted,
            ["60,2h", "1,1m", "60,1h", "600,1h", "10,1s", "600,1m", "600,59s", "4000000000,1s", "off"]
        );
    }

    fn any_limit() -> impl Strategy<Value = RateLimit> {
        // Few values, so that many rates are alike.
        let quota = (1_u32..20, 1_u64..20)
            .prop_map(|(requests, seconds)| Quota { requests, window: Duration::from_secs(seconds) });
        prop_oneof![Just(RateLimit::Unlimited), quota.prop_map(RateLimit::Quota)]
    }

    proptest! {
        #[test]
        fn strictness_is_an_order(a in any_limit(), b in any_limit(), c in any_limit()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&b).is_eq(), a == b);
            prop_assert!(!(a <= b && b <= c) || a <= c);
        }

        #[test]
        fn what_is_written_is_read(requests in 1_u32.., seconds in 1_u64..=86_400) {
            let limit = RateLimit::Quota(Quota { requests, window: Duration::from_secs(seconds) });
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }
    }
}
