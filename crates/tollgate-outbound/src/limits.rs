//! What a reply says of the provider's own limits: `x-ratelimit-remaining-requests`, `-tokens`, and when they are reset
//! (`1s`, `6m0s`, `20ms`). It is a hint: anything unreadable counts as absent.

use std::time::Duration;

use http::HeaderMap;
use tollgate_model::generation::Limits;
use tollgate_model::guard::bucket::ProviderLimit;

use crate::retry_after::LONGEST;

/// The reset is when *all* of a limit is back. Where it is not said how much that is, nobody stays away for longer.
const LONGEST_GUESS: Duration = Duration::from_mins(1);

/// The limits that `headers` speak of.
pub(crate) fn limits(headers: &HeaderMap) -> Limits {
    let exhausted = |what: &str| {
        let limit = number(headers, &format!("x-ratelimit-limit-{what}"));
        let remaining = number(headers, &format!("x-ratelimit-remaining-{what}"))?;
        let reset = text(headers, &format!("x-ratelimit-reset-{what}")).and_then(span)?;
        let wait = ProviderLimit { limit, remaining, reset }.wait_for(1)?;
        // Without the limit itself it is not known how soon the first of it is back.
        let wait = if limit.is_some() { wait } else { wait.min(LONGEST_GUESS) };
        Some(wait).filter(|wait| !wait.is_zero())
    };
    Limits {
        remaining_requests: number(headers, "x-ratelimit-remaining-requests"),
        exhausted_for: exhausted("requests").max(exhausted("tokens")),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

fn span(text: &str) -> Option<Duration> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| humantime::parse_duration(text).ok()).map(|span| span.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Limits {
        limits(&headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn of_a_daily_limit_the_next_call_is_soon_back() {
        let of = |limit: &'static str| {
            read(&[
                ("x-ratelimit-limit-requests", limit),
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "23h59m"),
            ])
        };
        assert_eq!(of("10000").exhausted_for.map(|wait| wait.as_secs()), Some(8));
        assert_eq!(of("nonsense").exhausted_for, Some(LONGEST_GUESS));
    }

    #[test]
    fn nothing_left_means_to_stay_away_until_the_later_reset() {
        let limits = read(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "20ms"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        assert_eq!(limits.remaining_requests, Some(0));
        assert_eq!(limits.exhausted_for, Some(LONGEST_GUESS));
    }

    #[test]
    fn something_left_and_nonsense_stop_nobody() {
        let some = read(&[("x-ratelimit-remaining-requests", "59"), ("x-ratelimit-reset-requests", "1s")]);
        assert_eq!(some, Limits { remaining_requests: Some(59), exhausted_for: None });
        for nonsense in [
            &[("x-ratelimit-remaining-requests", "-1"), ("x-ratelimit-reset-requests", "1s")][..],
            &[("x-ratelimit-reset-tokens", "soon"), ("x-ratelimit-remaining-tokens", "many")],
            &[],
        ] {
            assert_eq!(read(nonsense), Limits::default());
        }
        let unclear = read(&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "soon")]);
        assert_eq!(unclear, Limits::default());
    }
}
