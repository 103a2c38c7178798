//! From the domain's errors to problems. What the database said goes to the log, never to the client.

use tollgate_domain::Error;

use super::{Code, Problem};
use crate::extract::unknown;
use crate::rate_limits::too_many;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) => Self::new(Code::NotFound, error.to_string()),
            Error::Submission(_) | Error::Invalid { .. } | Error::KeyEnded => {
                Self::invalid(error.to_string())
            }
            Error::LacksScope(_) => Self::new(Code::ForbiddenScope, error.to_string()),
            Error::TooManyAttempts { wait } => too_many(&error.to_string(), wait),
            Error::QueueFull(_) => Self::new(Code::QueueFull, error.to_string()),
            Error::InsufficientCredits { .. } | Error::DailyLimit { .. } => {
                Self::new(Code::InsufficientCredits, error.to_string())
            }
            Error::KeyGone => unknown(),
            Error::IdempotencyConflict | Error::SealedAnswer => {
                Self::new(Code::IdempotencyKeyConflict, error.to_string())
            }
            Error::IdempotencyInFlight => Self::new(Code::IdempotencyInFlight, error.to_string()),
            Error::AlreadyFinished(_) => Self::new(Code::JobFinished, error.to_string()),
            // In the log by `available.rs`: a line each would be hundreds.
            Error::Unavailable(cause) => {
                Self::new(Code::Unavailable, "the database is not available at the moment; try again")
                    .because(cause.to_string())
            }
            Error::Database(_) | Error::Internal(_) => {
                tracing::error!(%error, "a request failed");
                Self::internal()
            }
        }
    }
}

impl Problem {
    /// A defect of ours, of which the client learns no more than the request's id.
    pub(crate) fn internal() -> Self {
        Self::new(Code::Internal, "something went wrong on our side; the request id identifies it in our log")
    }

    /// A handler panicked; the panic hook has logged where.
    pub(crate) fn panicked() -> Self {
        tracing::error!("a handler panicked");
        Self::internal()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tollgate_model::admission::QueueFull;
    use tollgate_model::job::JobStatus;
    use tollgate_model::key::Scope;
    use tollgate_model::submission::InvalidSubmission;

    use super::*;

    #[test]
    fn each_error_has_its_code() {
        let invalid = InvalidSubmission { field: "model", problem: "must be short".into() };
        for (error, code, said) in [
            (Error::NotFound("job"), Code::NotFound, "no such job"),
            (Error::Submission(invalid), Code::InvalidRequest, "`model` must be short"),
            (
                Error::Invalid { field: "name", problem: "is bad".into() },
                Code::InvalidRequest,
                "`name` is bad",
            ),
            (Error::KeyEnded, Code::InvalidRequest, "create a new one"),
            (Error::LacksScope(Scope::JobsRead), Code::ForbiddenScope, "`jobs:read`"),
            (Error::QueueFull(QueueFull::Account(7)), Code::QueueFull, "7 jobs may wait"),
            (
                Error::InsufficientCredits { needed: 7, balance: 3 },
                Code::InsufficientCredits,
                "needs 7 credits, and 3",
            ),
            (Error::KeyGone, Code::Unauthorized, "was revoked"),
            (Error::IdempotencyConflict, Code::IdempotencyKeyConflict, "another body"),
            (Error::IdempotencyInFlight, Code::IdempotencyInFlight, "under way"),
            (Error::AlreadyFinished(JobStatus::Failed), Code::JobFinished, "already failed"),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.code(), code);
            assert!(problem.detail().contains(said), "{}", problem.detail());
        }
    }

    #[test]
    fn what_the_database_said_stays_inside() {
        let unavailable = Error::Unavailable(io::Error::other("10.0.0.1 refused").into());
        let database = Error::Database(io::Error::other("10.0.0.1 refused").into());
        for (error, code) in [(unavailable, Code::Unavailable), (database, Code::Internal)] {
            let problem = Problem::from(error);
            assert_eq!(problem.code(), code);
            assert!(!problem.detail().contains("10.0.0.1"), "{}", problem.detail());
        }
    }
}
