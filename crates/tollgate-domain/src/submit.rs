//! Submit: job, first event and task in one commit. After it the job cannot be lost; before it nothing exists.

use chrono::{DateTime, Utc};
use std::time::Duration;
use tollgate_model::account::AccountId;
use tollgate_model::queue::QueueName;
use tollgate_model::submission::{Submission, SubmissionRules};
use tollgate_store as store;
use tollgate_store::{NewTask, TenantTx};
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Result, Waker};

/// Accepts a job, and wakes a worker for it. Returns its id.
pub async fn submit(
    db: &Database,
    waker: &Waker,
    rules: &SubmissionRules,
    ttl: Duration,
    (account, key): (AccountId, Uuid),
    submission: Submission,
    now: DateTime<Utc>,
) -> Result<Uuid> {
    let id = new_id();
    let job = submission.accept(rules, id, now)?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    store::insert_job(&mut tx, id, Some(key), &job).await?;
    let task = NewTask {
        id,
        queue: QueueName::GenerationCreate,
        task_type: &job.job_type,
        // The job's row holds what there is to do.
        payload: &serde_json::Value::Object(serde_json::Map::new()),
        priority: job.priority,
        max_attempts: job.max_attempts,
        run_at: job.scheduled_at,
        ttl,
    };
    store::enqueue(&mut tx, account, task).await?;
    tx.commit().await?;
    waker.wake();
    metrics::counter!("tollgate_jobs_submitted_total", "type" => job.job_type).increment(1);
    Ok(id)
}
