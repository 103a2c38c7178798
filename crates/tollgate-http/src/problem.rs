//! Every refusal and failure, as one document: RFC 9457 with a stable `code` (SPEC X4).
//!
//! A [`Problem`] travels as an extension of an empty response, and the outermost layer writes the document, since
//! only there the request's id is known for certain: a handler cannot forget it, and no global carries it.

mod code;
mod docs;
mod domain;

use std::ops::RangeInclusive;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

pub use code::Code;
pub(crate) use docs::{
    ForBody, ForCaller, ForId, ForOnce, ForOperator, ForQuery, Responses, Unfinished, document,
};

use crate::request_id::RequestId;

const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request was not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: String,
    retry_after: Option<u32>,
    cause: Option<String>,
}

/// A problem as the client reads it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem, title = "Problem")]
pub(crate) struct ProblemDocument<'a> {
    /// Names the kind of problem: `urn:tollgate:problem:` and the code.
    #[serde(rename = "type")]
    uri: String,
    /// The kind of problem, for people.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What is wrong with this request, for people.
    detail: &'a str,
    /// The kind of problem, for programs: it does not change.
    code: Code,
    /// The request's id, as in `X-Request-Id`: what to tell the operator.
    request_id: &'a str,
}

impl<'a> ProblemDocument<'a> {
    fn new(code: Code, detail: &'a str, request_id: &'a str) -> Self {
        let uri = format!("urn:tollgate:problem:{}", code.as_str());
        Self { uri, title: code.title(), status: code.status().as_u16(), detail, code, request_id }
    }
}

impl Problem {
    /// A problem of that code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after: None, cause: None }
    }

    /// The request itself is at fault.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What is wrong, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Asks the client to wait that many seconds.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// What brought it about, for the log alone.
    #[must_use]
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What brought it about, where that is known and nobody has logged it yet.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Writes the document into `response`, which carried this problem.
    pub(crate) fn write(self, response: &mut Response, request_id: &RequestId) {
        let code = self.code;
        let document = ProblemDocument::new(code, &self.detail, request_id.as_str());
        let body = serde_json::to_vec(&document).unwrap_or_default();
        *response.status_mut() = code.status();
        *response.body_mut() = body.into();
        let headers = response.headers_mut();
        // Of the empty body that carried the problem here.
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tollgate\""));
        }
        if is_final(code) {
            // The official SDKs of the providers try a 409 again by themselves.
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        let wait = self.retry_after.or_else(|| usual_wait(code).map(|range| spread(request_id, range)));
        if let Some(seconds) = wait {
            headers.insert(RETRY_AFTER, seconds.into());
        }
    }
}

/// How many seconds to wait for what passes by itself: a database comes back soon, a long queue takes its time.
fn usual_wait(code: Code) -> Option<RangeInclusive<u32>> {
    match code {
        Code::Unavailable => Some(1..=5),
        Code::QueueFull => Some(10..=30),
        Code::IdempotencyInFlight => Some(1..=2),
        _ => None,
    }
}

/// Whether asking again is of no use, though the status may say otherwise to a program.
fn is_final(code: Code) -> bool {
    matches!(code, Code::InsufficientCredits | Code::IdempotencyKeyConflict | Code::JobFinished)
}

/// One of the range, by the request's id: clients that failed together do not return together.
fn spread(request_id: &RequestId, range: RangeInclusive<u32>) -> u32 {
    let sum = request_id.as_str().bytes().map(u32::from).sum::<u32>();
    range.start() + sum % (range.end() - range.start() + 1)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use serde_json::Value;

    use super::*;

    async fn written(problem: Problem) -> (Response<()>, Value) {
        let mut response = problem.clone().into_response();
        problem.write(&mut response, &RequestId::of(&HeaderMap::new()));
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn each_code_has_its_document() {
        for code in Code::ALL {
            let (response, document) = written(Problem::new(code, "why")).await;
            assert_eq!(response.status(), code.status());
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(document["status"], code.status().as_u16());
            assert_eq!(document["code"], code.as_str());
            assert_eq!(document["type"], format!("urn:tollgate:problem:{}", code.as_str()));
            assert_eq!(document["detail"], "why");
            assert!(!document["title"].as_str().unwrap().is_empty());
            assert!(!document["request_id"].as_str().unwrap().is_empty());
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), code == Code::Unauthorized);
            let waits = matches!(code, Code::Unavailable | Code::QueueFull | Code::IdempotencyInFlight);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), waits);
            assert_eq!(response.headers().contains_key(X_SHOULD_RETRY), is_final(code));
        }
    }

    #[tokio::test]
    async fn clients_are_asked_to_return_at_different_times() {
        for (code, range) in [(Code::Unavailable, 1..=5), (Code::QueueFull, 10..=30)] {
            let mut waits = std::collections::BTreeSet::new();
            for _ in 0..500 {
                let (response, _) = written(Problem::new(code, "busy")).await;
                waits.insert(response.headers()[RETRY_AFTER].to_str().unwrap().parse::<u32>().unwrap());
            }
            assert_eq!(waits.into_iter().collect::<Vec<_>>(), range.collect::<Vec<_>>());
        }
        let (response, _) = written(Problem::new(Code::RateLimited, "slow").retry_after(7)).await;
        assert_eq!(response.headers()[RETRY_AFTER], "7");
    }
}
