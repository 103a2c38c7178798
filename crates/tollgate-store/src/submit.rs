//! Submissions into the database: `app.submit` (migration 12), one statement and one commit for all that come at the same
//! time.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgDatabaseError;
use tollgate_model::account::AccountId;
use tollgate_model::idempotency::Once;
use tollgate_model::pricing::Quote;
use tollgate_model::queue::QueueName;
use tollgate_model::submission::AcceptedJob;
use uuid::Uuid;

use crate::tasks::interval;
use crate::{Error, Result};

/// A submission that is complete, and what is to be answered if it is accepted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose.
    pub account: AccountId,
    /// The job's id, and its task's.
    pub id: Uuid,
    /// The API key of who submits.
    pub key: Uuid,
    /// That of the ledger's entry.
    pub entry: Uuid,
    /// The job.
    pub job: AcceptedJob,
    /// Its price, and the estimate to hold.
    pub quote: Quote,
    /// To be done once, if its client says so.
    pub once: Option<Once>,
    /// The body of the answer.
    pub response: Vec<u8>,
    /// Where the job will be found.
    pub location: String,
}

impl NewJob {
    /// Where it stands in a batch: the order in which accounts and idempotency keys are locked.
    pub fn place(&self) -> (AccountId, Option<&str>) {
        (self.account, self.once.as_ref().map(|once| once.key.as_str()))
    }

    /// The line it waits in.
    pub fn line(&self) -> QueueName {
        QueueName::of_kind(self.job.request.endpoint.kind())
    }
}

/// What holds for all submissions.
#[derive(Debug, Clone, Copy)]
pub struct SubmitTerms {
    /// A job not finished within this time fails.
    pub ttl: Duration,
    /// Jobs of one account that may wait.
    pub max_queued: u32,
    /// How long an answer is kept for its idempotency key.
    pub keep: Duration,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// It is stored, and will be run.
    Accepted,
    /// It was accepted before, and answered with this.
    Replayed {
        /// The body.
        response: Vec<u8>,
        /// Where the job is.
        location: Option<String>,
    },
    /// Its idempotency key was used for something else.
    Conflict,
    /// Its idempotency key was let go of just now.
    InFlight,
    /// Its API key is revoked, has expired, or lacks the scope.
    Unauthorized,
    /// As many of the account's jobs wait as may.
    Full,
    /// Its API key has spent what it may today.
    Capped,
    /// The balance does not pay for it.
    Short {
        /// What could still be spent.
        balance: i64,
    },
}

/// Stores what can be accepted of some submissions. The answers come in their order, which must be that of their accounts,
/// and in each of their idempotency keys ([`NewJob::place`]).
///
/// No two of an account may have the same idempotency key: who asks twice asks one after the other. Where somebody else is at
/// one of their rows for longer than `patience`, none is stored: [`Error::Database`] with PostgreSQL's
/// code `55P03`.
pub async fn submit(
    pool: &PgPool,
    terms: &SubmitTerms,
    patience: Duration,
    jobs: &[NewJob],
) -> Result<Vec<Submitted>> {
    let lines = QueueName::GENERATION.map(QueueName::as_str);
    let route = jobs.iter().find_map(|new| new.once.as_ref()).map_or("", |once| once.route.as_str());
    let rows = sqlx::query!(
        r#"SELECT outcome AS "outcome!", answer, place, available
           FROM app.submit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                           $22, $23)"#,
        &lines as _,
        i64::from(terms.max_queued),
        interval(terms.ttl),
        route,
        interval(terms.keep),
        interval(patience),
        &column(jobs, |new| new.account.0),
        &column(jobs, |new| new.id),
        &column(jobs, |new| new.key),
        &column(jobs, |new| new.once.as_ref().map(|once| once.key.as_str())) as _,
        &column(jobs, |new| new.once.as_ref().map_or(&[][..], |once| &once.fingerprint)) as _,
        &column(jobs, |new| new.response.as_slice()) as _,
        &column(jobs, |new| new.location.as_str()) as _,
        &column(jobs, |new| new.job.job_type.as_str()) as _,
        &column(jobs, |new| new.line().as_str()) as _,
        &column(jobs, |new| new.job.priority),
        &column(jobs, |new| new.job.max_attempts),
        &texts(jobs, |new| serde_json::to_string(&new.job.request))?,
        &texts(jobs, |new| serde_json::to_string(&new.job.metadata))?,
        &column(jobs, |new| new.job.scheduled_at) as _,
        &texts(jobs, |new| serde_json::to_string(&new.quote))?,
        &column(jobs, |new| new.quote.estimate),
        &column(jobs, |new| new.entry),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(match row.outcome.as_str() {
                "accepted" => Submitted::Accepted,
                "replayed" => {
                    Submitted::Replayed { response: row.answer.unwrap_or_default(), location: row.place }
                }
                "conflict" => Submitted::Conflict,
                "in_flight" => Submitted::InFlight,
                "unauthorized" => Submitted::Unauthorized,
                "full" => Submitted::Full,
                "capped" => Submitted::Capped,
                "short" => Submitted::Short { balance: row.available.unwrap_or(0) },
                other => return Err(sqlx::Error::Protocol(format!("app.submit says `{other}`"))),
            })
        })
        .collect()
}

/// Whether a submission waited in vain for another one with its idempotency key: the place where it waited names the table.
pub fn waits_for_its_key(error: &Error) -> bool {
    let Error::Database(error) = error else { return false };
    error.code().as_deref() == Some("55P03")
        && error
            .try_downcast_ref::<PgDatabaseError>()
            .and_then(PgDatabaseError::r#where)
            .is_some_and(|place| place.contains("app.idempotency_keys"))
}

/// One column of the batch.
fn column<'a, T>(jobs: &'a [NewJob], of: impl Fn(&'a NewJob) -> T) -> Vec<T> {
    jobs.iter().map(of).collect()
}

/// One column of JSON.
fn texts(jobs: &[NewJob], of: impl Fn(&NewJob) -> serde_json::Result<String>) -> Result<Vec<String>> {
    jobs.iter().map(of).collect::<serde_json::Result<_>>().map_err(|error| sqlx::Error::Encode(error.into()))
}
