//! What can go wrong, in the words of the domain. An edge maps each to its own answer; what the database said stays
//! in the log.

use std::time::Duration;

use tollgate_model::admission::QueueFull;
use tollgate_model::idempotency::Unwritable;
use tollgate_model::job::JobStatus;
use tollgate_model::key::Scope;
use tollgate_model::submission::InvalidSubmission;

/// What a domain function returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a business transaction did not happen. Nothing of it did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such thing, or it is another account's: the two look the same.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// A submission that cannot be accepted.
    #[error(transparent)]
    Submission(#[from] InvalidSubmission),
    /// Another value that cannot be accepted.
    #[error("`{field}` {problem}")]
    Invalid {
        /// The field, as the client names it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Too many wrong keys came from there: no more are looked at until it has waited.
    #[error("too many wrong API keys came from your address")]
    TooManyAttempts {
        /// For so long.
        wait: Duration,
    },
    /// As much waits as may.
    #[error(transparent)]
    QueueFull(QueueFull),
    /// The balance does not pay for it.
    #[error("this needs {needed} credits, and {balance} can be spent")]
    InsufficientCredits {
        /// What would have been held.
        needed: i64,
        /// What can be spent.
        balance: i64,
    },
    /// The API key may spend so much a day, and no more.
    #[error("this needs {needed} credits, more than is left of what this API key may spend today (UTC)")]
    DailyLimit {
        /// What would have been held.
        needed: i64,
    },
    /// The API key was revoked, or has expired, since it was recognised.
    #[error("the API key is not valid any more")]
    KeyGone,
    /// The same `Idempotency-Key` was used for another request.
    #[error(
        "this `Idempotency-Key` was used for a request with another body or path; take a new one for a new request"
    )]
    IdempotencyConflict,
    /// The request with this `Idempotency-Key` has not ended yet.
    #[error("a request with this `Idempotency-Key` is under way; ask again, and its answer will be there")]
    IdempotencyInFlight,
    /// The answer was given before, and holds a secret of who asked then.
    #[error(
        "this was done before, and its answer holds a secret that is shown only to the API key that asked for it"
    )]
    SealedAnswer,
    /// What has stopped working cannot be replaced by something that works.
    #[error("this key is revoked or has expired, and cannot be rotated; create a new one")]
    KeyEnded,
    /// Nobody hands on what he has not.
    #[error("this API key lacks the scope `{0}`, which the key to rotate has")]
    LacksScope(Scope),
    /// A final status stays.
    #[error("the job has already {0}; only a queued or running job can be cancelled")]
    AlreadyFinished(JobStatus),
    /// PostgreSQL cannot be reached, or has no room at the moment: try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] tollgate_store::Error),
    /// PostgreSQL refused what must not be refused: a defect of ours.
    #[error("the database refused: {0}")]
    Database(#[source] tollgate_store::Error),
    /// The machine has no random numbers, or a computation broke off.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<tollgate_store::Error> for Error {
    fn from(error: tollgate_store::Error) -> Self {
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

impl From<Unwritable> for Error {
    fn from(error: Unwritable) -> Self {
        Self::Internal(error.to_string())
    }
}

impl Error {
    /// The same error for another one whom it meets.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Unavailable(error) => Self::Unavailable(std::io::Error::other(error.to_string()).into()),
            Self::IdempotencyInFlight => Self::IdempotencyInFlight,
            other => Self::Internal(other.to_string()),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether PostgreSQL refused the values themselves (data exception, constraint, limit): the same call with the same
    /// values will never succeed. Anything else says nothing about them.
    pub fn is_about_values(&self) -> bool {
        use tollgate_store::Error as E;
        match self {
            Self::Database(E::Encode(_)) => true,
            Self::Database(E::Database(error)) => error
                .code()
                .is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class))),
            _ => false,
        }
    }
}

/// Whether PostgreSQL refused with this code.
pub(crate) fn has_code(error: &tollgate_store::Error, code: &str) -> bool {
    matches!(error, tollgate_store::Error::Database(error) if error.code().as_deref() == Some(code))
}

/// Connections lost or not to be had (a login refused for the moment included), a server starting, stopping or short of
/// resources, and transactions that the server asks to have repeated.
fn is_unavailable(error: &tollgate_store::Error) -> bool {
    use tollgate_store::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => true,
        E::Database(error) => error.code().is_some_and(|code| {
            ["08", "28", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                // Not now: the row is locked, the server only reads, or it ended a transaction that took too long.
                || ["55P03", "25006", "25P03", "25P04"].contains(&&*code)
        }),
        _ => false,
    }
}
