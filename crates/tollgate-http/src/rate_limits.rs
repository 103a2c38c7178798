//! Whether a caller may ask so often, and what every answer says of that (SPEC K2).
//!
//! Whoever checks a limit leaves what came of it in a slot of the request, and the outermost layer writes it into the
//! answer, whatever that has become: three headers that clients have long known, and the two of
//! draft-ietf-httpapi-ratelimit-headers (from its version 8 on), which name the policy as well.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate_domain::auth::Caller;
use tollgate_domain::rate_limits::Allowed;
use tollgate_model::rate_limit::{Quota, RateLimit, Standing};

use crate::api::App;
use crate::client::ClientAddress;
use crate::problem::{Code, Problem};

/// Requests that are counted together: those of one row of the URL table, by its words. An extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group(pub(crate) &'static str);

/// The policy by which wrong keys are counted, as answers without a valid one name it.
const WRONG_KEYS: &str = "wrong-keys";

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The headers that say it.
pub(crate) const HEADERS: [HeaderName; 5] = [LIMIT, REMAINING, RESET, POLICY, RATE_LIMIT];

/// What the answer is to say. An extension of the request; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown(Arc<OnceLock<(&'static str, Standing)>>);

impl Shown {
    /// Writes the headers, if a limit was looked at.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let Some((policy, standing)) = self.0.get() else { return };
        let Standing { quota: Quota { requests, window }, remaining, reset } = *standing;
        let (window, reset) = (whole_seconds(window), whole_seconds(reset));
        headers.insert(LIMIT, requests.into());
        headers.insert(REMAINING, remaining.into());
        headers.insert(RESET, reset.into());
        // Its words are ASCII, and have neither quotes nor backslashes, which would have to be escaped.
        for (name, value) in [
            (POLICY, format!("\"{policy}\";q={requests};w={window}")),
            (RATE_LIMIT, format!("\"{policy}\";r={remaining};t={reset}")),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

/// Counts the request, or refuses it.
pub(crate) async fn check(parts: &Parts, app: &App, caller: &Caller) -> Result<(), Problem> {
    let Some(Group(group)) = parts.extensions.get().copied() else { return Ok(()) };
    match app.rate_limits.check(&app.db, caller, group).await? {
        Allowed::Unlimited => Ok(()),
        Allowed::Yes(standing) => {
            show(parts, group, standing);
            Ok(())
        }
        Allowed::No(standing) => {
            show(parts, group, standing);
            let limit = RateLimit::Quota(standing.quota);
            Err(too_many(
                &format!(
                    "this API key may make no more requests of `{group}` for now (its limit is {limit})"
                ),
                standing.reset,
            ))
        }
    }
}

/// To who shows no valid key: how many wrong ones may still come from there.
pub(crate) fn show_attempts(parts: &Parts, app: &App) {
    show(parts, WRONG_KEYS, app.auth.attempts_left(address(parts)));
}

/// Who sent the request.
pub(crate) fn address(parts: &Parts) -> Option<std::net::IpAddr> {
    parts.extensions.get().map(|ClientAddress(address)| *address)
}

/// A refusal for now.
pub(crate) fn too_many(detail: &str, wait: Duration) -> Problem {
    let detail = format!("{detail}; try again in {} s", whole_seconds(wait));
    Problem::new(Code::RateLimited, detail).retry_after_about(wait)
}

fn show(parts: &Parts, policy: &'static str, standing: Standing) {
    if let Some(Shown(slot)) = parts.extensions.get() {
        // One request is counted once.
        let _ = slot.set((policy, standing));
    }
}

/// Rounded up: after so many seconds it is over.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_of_an_answer() {
        let shown = Shown::default();
        let mut headers = HeaderMap::new();
        shown.write(&mut headers);
        assert!(headers.is_empty());

        let quota = Quota { requests: 60, window: Duration::from_mins(1) };
        let standing = Standing { quota, remaining: 59, reset: Duration::from_millis(41_001) };
        shown.0.set(("GET /v1/jobs/{id}", standing)).unwrap();
        shown.write(&mut headers);
        for (name, value) in [
            ("RateLimit-Limit", "60"),
            ("RateLimit-Remaining", "59"),
            ("RateLimit-Reset", "42"),
            ("RateLimit-Policy", "\"GET /v1/jobs/{id}\";q=60;w=60"),
            ("RateLimit", "\"GET /v1/jobs/{id}\";r=59;t=42"),
        ] {
            assert_eq!(headers[name], value);
        }
    }
}
