//! Jobs as their tenant handles them: read, follow, cancel.

use tollgate_model::account::AccountId;
use tollgate_model::job::{Job, JobEvent, JobStatus};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::{Answer, Database, Error, Once, Result, once, runs};

/// One job.
pub async fn get(db: &Database, account: AccountId, id: Uuid) -> Result<Job> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let job = store::job_by_id(&mut tx, id).await?;
    tx.commit().await?;
    job.ok_or(Error::NotFound("job"))
}

/// The account's jobs, newest first: those in `status`, older than `before`.
pub async fn list(
    db: &Database,
    account: AccountId,
    status: Option<JobStatus>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Job>> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let jobs = store::jobs_page(&mut tx, status, before, limit).await?;
    tx.commit().await?;
    Ok(jobs)
}

/// The job's events after number `seq`, oldest first, and whether the job has ended. The status is read first: an
/// ended job's events are all there, so a follower who is told "ended" has missed none once the page is short.
pub async fn events(
    db: &Database,
    account: AccountId,
    id: Uuid,
    seq: i32,
    limit: i64,
) -> Result<(Vec<JobEvent>, JobStatus)> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let job = store::job_by_id(&mut tx, id).await?.ok_or(Error::NotFound("job"))?;
    let events = store::events_after(&mut tx, id, seq, limit).await?;
    tx.commit().await?;
    Ok((events, job.status))
}

/// Calls a job off. A running one loses its lease in the same commit, so whatever its worker still does changes
/// nothing; the hint that follows makes the worker drop its call at once, and its next heartbeat would.
/// Cancelling a cancelled job is no error. `answer` says what is answered, and kept for its idempotency key.
pub async fn cancel(
    db: &Database,
    account: AccountId,
    id: Uuid,
    once: Option<&Once>,
    answer: impl FnOnce(&Job) -> Result<Answer> + Send,
) -> Result<Answer> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    if let Some(answer) = once::claim(&mut tx, once).await? {
        return Ok(answer);
    }
    // The task before the job, as everywhere: the order in which rows are locked.
    store::delete_task(&mut tx, id).await?;
    let cancelled = store::mark_cancelled(&mut tx, id).await?;
    if cancelled {
        runs::refund(&mut tx, &[id]).await?;
    }
    let job = store::job_by_id(&mut tx, id).await?.ok_or(Error::NotFound("job"))?;
    if !cancelled && job.status != JobStatus::Cancelled {
        return Err(Error::AlreadyFinished(job.status));
    }
    let answer = answer(&job)?;
    once::keep(&mut tx, once, &answer).await?;
    tx.commit().await?;
    if cancelled {
        metrics::counter!("tollgate_jobs_finished_total", "status" => "cancelled").increment(1);
        if let Err(error) = store::notify_cancelled(db.pool(), id).await {
            tracing::debug!(%error, job_id = %id, "could not tell the worker; its heartbeat will notice");
        }
    }
    Ok(answer)
}
