//! What can go wrong, in the words of the domain. An edge maps each to its own answer; what the database said stays
//! in the log.

use tollgate_model::job::JobStatus;
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
    /// A final status stays.
    #[error("the job has already {0}; only a queued or running job can be cancelled")]
    AlreadyFinished(JobStatus),
    /// PostgreSQL cannot be reached, or has no room at the moment: try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] tollgate_store::Error),
    /// PostgreSQL refused what must not be refused: a defect of ours.
    #[error("the database refused: {0}")]
    Database(#[source] tollgate_store::Error),
}

impl From<tollgate_store::Error> for Error {
    fn from(error: tollgate_store::Error) -> Self {
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Connections lost or not to be had, a server starting, stopping or short of resources, and transactions that the
/// server asks to have repeated.
fn is_unavailable(error: &tollgate_store::Error) -> bool {
    use tollgate_store::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => true,
        E::Database(error) => error.code().is_some_and(|code| {
            ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                || code == "55P03"
                || code == "25006"
        }),
        _ => false,
    }
}
