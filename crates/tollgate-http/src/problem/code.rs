//! The codes of problems: what a client's program may rely on.

use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

/// The kind of a problem. Once published, a code keeps its name and its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProblemCode)]
pub enum Code {
    /// Something in the request is wrong; `detail` names it.
    InvalidRequest,
    /// No API key, or none that is valid.
    Unauthorized,
    /// The balance does not pay for it.
    InsufficientCredits,
    /// The key lacks the scope.
    ForbiddenScope,
    /// No such thing, or it is another account's.
    NotFound,
    /// The path exists, but not with this method; `Allow` names those it has.
    MethodNotAllowed,
    /// The `Idempotency-Key` was used for another request.
    IdempotencyKeyConflict,
    /// The request with this `Idempotency-Key` has not ended; `Retry-After` says when to ask again.
    IdempotencyInFlight,
    /// A final status stays.
    JobFinished,
    /// The body is longer than the server takes.
    PayloadTooLarge,
    /// Too much of this at once; `Retry-After` says when to try again.
    RateLimited,
    /// As much waits as may, of the account or of all; `Retry-After` says when to try again.
    QueueFull,
    /// A defect of the server; its operator finds it by the request's id.
    Internal,
    /// Not at the moment; `Retry-After` says when to try again.
    Unavailable,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 14] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::InsufficientCredits,
        Self::ForbiddenScope,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::IdempotencyKeyConflict,
        Self::IdempotencyInFlight,
        Self::JobFinished,
        Self::PayloadTooLarge,
        Self::RateLimited,
        Self::QueueFull,
        Self::Internal,
        Self::Unavailable,
    ];

    /// The whole table: the code's word, its status and its title.
    fn row(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => ("invalid_request", StatusCode::BAD_REQUEST, "Invalid request"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::InsufficientCredits => {
                ("insufficient_credits", StatusCode::PAYMENT_REQUIRED, "Insufficient credits")
            }
            Self::ForbiddenScope => ("forbidden_scope", StatusCode::FORBIDDEN, "Missing scope"),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => {
                ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
            }
            Self::IdempotencyKeyConflict => {
                ("idempotency_key_conflict", StatusCode::CONFLICT, "Idempotency key already used")
            }
            Self::IdempotencyInFlight => {
                ("idempotency_in_flight", StatusCode::CONFLICT, "Request still under way")
            }
            Self::JobFinished => ("job_finished", StatusCode::CONFLICT, "Job already finished"),
            Self::PayloadTooLarge => {
                ("payload_too_large", StatusCode::PAYLOAD_TOO_LARGE, "Payload too large")
            }
            Self::RateLimited => ("rate_limited", StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::QueueFull => ("queue_full", StatusCode::TOO_MANY_REQUESTS, "Queue full"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Temporarily unavailable"),
        }
    }

    /// The word in the document.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// For people.
    pub fn title(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_contract() {
        let table: Vec<_> = Code::ALL.map(|code| (code.as_str(), code.status().as_u16())).to_vec();
        assert_eq!(
            table,
            [
                ("invalid_request", 400),
                ("unauthorized", 401),
                ("insufficient_credits", 402),
                ("forbidden_scope", 403),
                ("not_found", 404),
                ("method_not_allowed", 405),
                ("idempotency_key_conflict", 409),
                ("idempotency_in_flight", 409),
                ("job_finished", 409),
                ("payload_too_large", 413),
                ("rate_limited", 429),
                ("queue_full", 429),
                ("internal", 500),
                ("unavailable", 503),
            ]
        );
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
