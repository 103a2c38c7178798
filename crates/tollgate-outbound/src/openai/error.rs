//! Everything that is not an answer, and what to do about it. The table (SPEC G2):
//!
//! | what came | kind | decision |
//! | --- | --- | --- |
//! | 429 | `RATE_LIMIT` | retry, when the reply says so if it does |
//! | 429, and there is no money left (`insufficient_quota`, `billing_not_active`) | `RATE_LIMIT` | fail |
//! | 408 | `TIMEOUT` | retry |
//! | any other 4xx; 401, and a 403 that is not about the request, stop the guard too | `BAD_REQUEST` | fail |
//! | 5xx | `SERVER_ERROR` | retry, when the reply says so if it does |
//! | any other status: 1xx, 3xx, unheard of | `SERVER_ERROR` | retry |
//! | our deadline, wherever it struck | `TIMEOUT` | retry |
//! | no connection (its own timeout included), broken off, not HTTP | `SERVER_ERROR` | retry |
//! | a success whose body is not JSON, or of the wrong shape | `SERVER_ERROR` | retry |
//! | a success whose body is longer than the cap | `SERVER_ERROR` | fail |
//! | a success that reports a failure | by its code, see [`reported`] | |
//! | an image's reply without an image and without a URL of one | `no-image-url` | fail |
//! | an image whose URL must not be fetched, or that is longer than the cap | `SERVER_ERROR` | fail |
//! | an image that cannot be fetched, or is none | `SERVER_ERROR` | retry |
//! | no API key set | `SERVER_ERROR` | fail |
//!
//! A body beyond the cap is not asked for again: the provider has done its work and billed it, and the next
//! answer to the same request would be about as long.
//!
//! A status that has come decides even if the body of the error does not come, or breaks off: what it says
//! would only be quoted. The messages here are raw; `message::presentable` goes over them before they leave.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tollgate_model::generation::{Decision, FailureKind, Limits, ProviderFailure};
use tollgate_model::guard::outcome::OutcomeKind;

use crate::client::causes;
use crate::download::DownloadError;
use crate::limits::limits;
use crate::retry_after::retry_after;

/// What the call was waiting for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Headers,
    Body,
    /// The image that the reply points at.
    Image,
}

pub(super) fn missing_key() -> ProviderFailure {
    ProviderFailure::ours(Decision::Fail, "no API key for the provider: set OPENAI_API_KEY and restart")
}

pub(super) fn deadline(phase: Phase, timeout: Duration) -> ProviderFailure {
    let message = match phase {
        Phase::Headers => format!("the provider gave no reply within {timeout:?}"),
        Phase::Body => format!("the provider began a reply but did not end it within {timeout:?}"),
        Phase::Image => format!("the provider's image was not there within {timeout:?}"),
    };
    let sign = match phase {
        Phase::Headers | Phase::Image => OutcomeKind::Deadline,
        Phase::Body => OutcomeKind::SilentSocket,
    };
    ProviderFailure { sign, ..failure(FailureKind::Timeout, Decision::Retry, message) }
}

pub(super) fn not_sent(error: &reqwest::Error) -> ProviderFailure {
    let what = if error.is_connect() {
        "cannot connect to the provider"
    } else {
        "the connection to the provider broke before a reply, or the reply was not HTTP"
    };
    let sign = if error.is_connect() { OutcomeKind::Connect } else { OutcomeKind::ServerError };
    ProviderFailure { sign, ..broken(format!("{what}: {}", causes(error))) }
}

pub(super) fn cut_short(error: &reqwest::Error) -> ProviderFailure {
    broken(format!("the provider's reply broke off: {}", causes(error)))
}

pub(super) fn not_json(error: &serde_json::Error) -> ProviderFailure {
    broken(format!("the provider's reply is not JSON: {error}"))
}

pub(super) fn wrong_shape(what: &dyn Display) -> ProviderFailure {
    broken(format!("the provider's reply is JSON of the wrong shape: {what}"))
}

pub(super) fn wordless(reason: Option<&str>) -> ProviderFailure {
    let reason = reason.unwrap_or("it does not say why");
    let message = format!("the provider stopped before the first word of an answer ({reason})");
    failure(FailureKind::BadRequest, Decision::Fail, message)
}

pub(super) fn no_base64(error: &dyn Display) -> ProviderFailure {
    broken(format!("the provider's image is not base64: {error}"))
}

pub(super) fn no_image() -> ProviderFailure {
    let message = "the provider's reply holds neither an image nor the URL of one";
    failure(FailureKind::NoImageUrl, Decision::Fail, message)
}

pub(super) fn not_recognised() -> ProviderFailure {
    broken("what the provider sent is no PNG, JPEG or WebP image".to_owned())
}

pub(super) fn image_too_long(cap: usize) -> ProviderFailure {
    let message = format!("the provider's image is longer than the {cap} bytes that are allowed");
    failure(FailureKind::ServerError, Decision::Fail, message)
}

/// The URL itself is not told: it may be a key to what it points at.
pub(super) fn not_fetched(error: DownloadError, cap: usize) -> ProviderFailure {
    match error {
        DownloadError::TooLong => image_too_long(cap),
        DownloadError::Refused(why) => {
            let message = format!("the URL of the provider's image {why}");
            failure(FailureKind::ServerError, Decision::Fail, message)
        }
        DownloadError::Failed(why) => broken(format!("the provider's image could not be fetched: {why}")),
    }
}

pub(super) fn too_long(cap: usize) -> ProviderFailure {
    let message = format!("the provider's reply is longer than the {cap} bytes that are allowed");
    failure(FailureKind::ServerError, Decision::Fail, message)
}

/// A reply whose status is no success.
pub(super) fn refused(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> ProviderFailure {
    let json = serde_json::from_slice::<Value>(body).ok();
    let said = match &json {
        Some(json) => Said::read(json.get("error").filter(|error| !error.is_null()).unwrap_or(json)),
        None => Said::plain(body),
    };
    let wait = || retry_after(headers, now).map_or(Decision::Retry, Decision::RetryAfter);
    let (kind, decision) = verdict(status.as_u16(), &said, wait);
    let hint = if status.is_redirection() { ", which is not followed; is the base URL right?" } else { "" };
    let mut failure = failure(kind, decision, format!("the provider answered {status}{hint}{said}"));
    failure.limits = limits(headers);
    if said.out_of_money()
        || status == StatusCode::UNAUTHORIZED
        || (status == StatusCode::FORBIDDEN && !said.of_the_request())
    {
        failure.sign = OutcomeKind::CredentialRefused;
    } else if said.word() == "slow_down" {
        failure.sign = OutcomeKind::SlowDown;
    }
    failure
}

/// A failure that came inside a success, as an `error` object.
///
/// Its code is a word, or in gateways the status of their upstream. A word that we do not know is taken for
/// the request's fault (`invalid_prompt` and its many siblings); no word at all for the provider's.
pub(super) fn reported(error: &Value) -> ProviderFailure {
    let said = Said::read(error);
    let (kind, decision) = if said.out_of_money() {
        (FailureKind::RateLimit, Decision::Fail)
    } else if let Some(status) = said.code.parse().ok().filter(|status| (400..600).contains(status)) {
        verdict(status, &said, || Decision::Retry)
    } else {
        match said.word() {
            "rate_limit_exceeded" => (FailureKind::RateLimit, Decision::Retry),
            "vector_store_timeout" => (FailureKind::Timeout, Decision::Retry),
            "server_error" | "" => (FailureKind::ServerError, Decision::Retry),
            _ => (FailureKind::BadRequest, Decision::Fail),
        }
    };
    let sign = said.out_of_money().then_some(OutcomeKind::CredentialRefused);
    let failure = failure(kind, decision, format!("the provider reports a failure{said}"));
    ProviderFailure { sign: sign.unwrap_or(failure.sign), ..failure }
}

fn verdict(status: u16, said: &Said, wait: impl FnOnce() -> Decision) -> (FailureKind, Decision) {
    match status {
        429 if said.out_of_money() => (FailureKind::RateLimit, Decision::Fail),
        429 => (FailureKind::RateLimit, wait()),
        408 => (FailureKind::Timeout, Decision::Retry),
        400..=499 => (FailureKind::BadRequest, Decision::Fail),
        500..=599 => (FailureKind::ServerError, wait()),
        _ => (FailureKind::ServerError, Decision::Retry),
    }
}

fn broken(message: String) -> ProviderFailure {
    failure(FailureKind::ServerError, Decision::Retry, message)
}

fn failure(kind: FailureKind, decision: Decision, message: impl Into<String>) -> ProviderFailure {
    let sign = match kind {
        FailureKind::RateLimit => OutcomeKind::RateLimited,
        FailureKind::ServerError => OutcomeKind::ServerError,
        FailureKind::Timeout => OutcomeKind::Deadline,
        FailureKind::BadRequest | FailureKind::NoImageUrl => OutcomeKind::Content,
    };
    ProviderFailure { kind, decision, sign, limits: Limits::default(), message: message.into() }
}

/// What an error says about itself. Every field may be empty.
#[derive(Debug, Default)]
struct Said {
    message: String,
    code: String,
    kind: String,
}

impl Said {
    /// Reads `{"message", "code", "type"}`, its many relatives, and a bare string.
    fn read(error: &Value) -> Self {
        let words = |field: &str| match &error[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let message = match error {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            _ => ["message", "detail", "msg"]
                .into_iter()
                .map(words)
                .find(|text| !text.is_empty())
                .unwrap_or_else(|| error.to_string()),
        };
        Self { message, code: words("code"), kind: words("type") }
    }

    /// Text that is not JSON. Markup is some gateway's error page, of which nothing is worth quoting.
    fn plain(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let message = if text.trim_start().starts_with('<') { String::new() } else { text.into_owned() };
        Self { message, ..Self::default() }
    }

    fn word(&self) -> &str {
        if self.code.is_empty() { &self.kind } else { &self.code }
    }

    /// A 403 may be about the model that a client named, not about the credential: that must stop nobody else.
    fn of_the_request(&self) -> bool {
        self.kind == "invalid_request_error" || self.code == "model_not_found"
    }

    /// The vendor says so with a 429, and it is no matter of waiting.
    fn out_of_money(&self) -> bool {
        [&self.code, &self.kind]
            .into_iter()
            .any(|word| word == "insufficient_quota" || word == "billing_not_active")
    }
}

/// As the end of a sentence: ` (code): message`.
impl Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.word().is_empty() {
            write!(f, " ({})", self.word())?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}
