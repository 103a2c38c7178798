//! Submit: job, first event and task in one commit. After it the job cannot be lost; before it nothing exists.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tollgate_model::account::AccountId;
use tollgate_model::queue::QueueName;
use tollgate_model::submission::{Submission, SubmissionRules};
use tollgate_store as store;
use tollgate_store::{NewTask, TenantTx};
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Admission, Database, Result, Wakers};

/// What stands between a submission and the queue; made once, at start.
#[derive(Debug)]
pub struct Entrance {
    /// What submissions are measured against.
    pub rules: SubmissionRules,
    /// A job not finished within this time fails.
    pub ttl: Duration,
    /// How much may wait.
    pub admission: Admission,
    /// Wakes a worker afterwards.
    pub wakers: Wakers,
}

/// Accepts a job of the account that holds the key, and wakes a worker for it. Returns its id.
pub async fn submit(
    db: &Database,
    entrance: &Entrance,
    (account, key): (AccountId, Uuid),
    submission: Submission,
    now: DateTime<Utc>,
) -> Result<Uuid> {
    let id = new_id();
    let job = submission.accept(&entrance.rules, id, now)?;
    let place = entrance.admission.place(db).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    entrance.admission.check_account(&mut tx, account).await?;
    store::insert_job(&mut tx, id, Some(key), &job).await?;
    let line = QueueName::of_kind(job.request.endpoint.kind());
    let task = NewTask {
        id,
        queue: line,
        task_type: &job.job_type,
        // The job's row holds what there is to do.
        payload: &serde_json::Value::Object(serde_json::Map::new()),
        priority: job.priority,
        max_attempts: job.max_attempts,
        run_at: job.scheduled_at,
        ttl: entrance.ttl,
    };
    store::enqueue(&mut tx, account, task).await?;
    tx.commit().await?;
    place.taken();
    entrance.wakers.wake(line);
    metrics::counter!("tollgate_jobs_submitted_total", "type" => job.job_type).increment(1);
    Ok(id)
}
