//! A run: from the claim of a task to the end of its lease. Nothing here waits for a provider; the worker does,
//! between [`claim`] and one of the others, with no transaction open.

use chrono::{DateTime, Utc};
use tollgate_model::generation::{GenerationOutput, GenerationRequest, ProviderFailure};
use tollgate_model::job::JobError;
use tollgate_model::lanes::Plan;
use tollgate_model::pricing::Quote;
use tollgate_model::queue::{ClaimedTask, Lease, QueueName, QueuePolicy};
use tollgate_model::retry::{AfterFailure, after_failure};
use tollgate_store as store;
use tollgate_store::{StartedJob, SystemTx, TenantTx, Tx as _};
use uuid::Uuid;

use crate::ids::new_id;
use crate::images::NewImage;
use crate::waker::wake_workers;
use crate::{Database, Result, dead_letters, queue};

/// A job in a worker's hands.
#[derive(Debug, Clone)]
pub struct Run {
    /// The task, and the right to finish it.
    pub task: ClaimedTask,
    /// The job type's name.
    pub job_type: String,
    /// The call to make; or why this version cannot read what another one stored. That is a failed attempt like any
    /// other: it must not keep the jobs claimed with it from running.
    pub request: Result<GenerationRequest, String>,
    /// What it was accepted under; `None`: before there were prices, and it costs nothing.
    pub quote: Option<Quote>,
}

impl Run {
    /// What an answer costs, in credits.
    pub fn cost(&self, output: &GenerationOutput) -> i64 {
        let priced = self.quote.as_ref().zip(self.request.as_ref().ok());
        priced.map_or(0, |(quote, request)| quote.cost(request, output))
    }
}

/// Leases jobs of a line to the worker as planned and marks them running, in one commit.
pub async fn claim(
    db: &Database,
    line: QueueName,
    worker: Uuid,
    settings: i64,
    plan: &mut Plan,
) -> Result<Vec<Run>> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    let mut tasks = queue::take(&mut tx, line, worker, settings, plan).await?;
    tasks.sort_by_key(|task| (task.lease.account, task.place));
    let Some(first) = tasks.first().map(|task| task.lease.account) else {
        tx.commit().await?;
        return Ok(Vec::new());
    };
    let mut runs = Vec::with_capacity(tasks.len());
    let mut tx = tx.enter(first).await?;
    for tasks in tasks.chunk_by(|a, b| a.lease.account == b.lease.account) {
        if tx.account() != tasks[0].lease.account {
            tx = tx.enter(tasks[0].lease.account).await?;
        }
        let mut started = store::mark_running(&mut tx, tasks).await?;
        for task in tasks {
            if let Some(at) = started.iter().position(|job| job.id == task.lease.task) {
                let StartedJob { job_type, request, quote, .. } = started.swap_remove(at);
                let unreadable = |error: serde_json::Error| error.to_string();
                let quote = quote.map(serde_json::from_value).transpose().map_err(unreadable);
                let request = serde_json::from_value(request).map_err(unreadable);
                let (request, quote) = match quote {
                    Ok(quote) => (request, quote),
                    Err(error) => (Err(error), None),
                };
                runs.push(Run { task: task.clone(), job_type, request, quote });
            } else {
                tracing::error!(job_id = %task.lease.task, account_id = %task.lease.account,
                    "a task without a queued job; dropped");
                store::finish(&mut tx, task.lease).await?;
            }
        }
    }
    tx.commit().await?;
    Ok(runs)
}

/// How a settlement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The job succeeded.
    Succeeded,
    /// The job failed for good.
    Failed,
    /// The job will be tried again, not before this.
    Retrying(DateTime<Utc>),
    /// The lease was lost: the job was cancelled, or is another worker's. Nothing was changed.
    LeaseLost,
}

impl Settled {
    /// For metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Retrying(_) => "retrying",
            Self::LeaseLost => "lease_lost",
        }
    }
}

/// Stores the result, and the image of an image job, ends the job and its task, and charges `cost` credits: one commit,
/// fenced.
pub async fn settle_success(
    db: &Database,
    lease: Lease,
    output: &GenerationOutput,
    image: Option<&NewImage>,
    cost: i64,
) -> Result<Settled> {
    let mut tx = TenantTx::begin(db.pool(), lease.account).await?;
    if !store::finish(&mut tx, lease).await? {
        return Ok(Settled::LeaseLost);
    }
    store::insert_result(&mut tx, lease.task, output).await?;
    if let Some(image) = image {
        image.insert(&mut tx, lease.task).await?;
    }
    store::mark_succeeded(&mut tx, lease.task, new_id(), cost).await?;
    tx.commit().await?;
    metrics::counter!("tollgate_jobs_finished_total", "status" => "succeeded").increment(1);
    Ok(Settled::Succeeded)
}

/// Schedules the next attempt, or ends the job and puts its task into the dead letters: one commit, fenced.
/// `jitter` is a random number in 0..1.
pub async fn settle_failure(
    db: &Database,
    policy: &QueuePolicy,
    task: &ClaimedTask,
    failure: &ProviderFailure,
    jitter: f64,
) -> Result<Settled> {
    let lease = task.lease;
    let error = JobError { code: failure.kind.code().to_owned(), message: failure.message.clone() };
    let mut tx = TenantTx::begin(db.pool(), lease.account).await?;
    let now = tx.now().await?;
    let next = after_failure(
        &policy.retry,
        failure.decision,
        task.attempt,
        task.max_attempts,
        now,
        task.expires_at,
        jitter,
    );
    let held = match next {
        AfterFailure::RetryAt(at) => {
            let held = store::retry_at(&mut tx, lease, at, &error).await?;
            if held {
                store::mark_retrying(&mut tx, lease.task, at, &error).await?;
            }
            held
        }
        AfterFailure::GiveUp => {
            let held = store::bury(&mut tx, lease, &error).await?;
            if held {
                fail(&mut tx, &[lease.task], &error).await?;
            }
            held
        }
    };
    if !held {
        return Ok(Settled::LeaseLost);
    }
    tx.commit().await?;
    Ok(match next {
        AfterFailure::RetryAt(at) => Settled::Retrying(at),
        AfterFailure::GiveUp => {
            metrics::counter!("tollgate_jobs_finished_total", "status" => "failed").increment(1);
            dead_letters::died(policy.name, lease.account, lease.task, &error.code);
            Settled::Failed
        }
    })
}

/// Hands a job back unharmed: the attempt does not count, and an idle worker is told of it. `false`: the lease was
/// lost already.
pub async fn release(db: &Database, queue: QueueName, lease: Lease, reason: &str) -> Result<bool> {
    let mut tx = TenantTx::begin(db.pool(), lease.account).await?;
    if !store::release(&mut tx, lease).await? {
        return Ok(false);
    }
    store::mark_requeued(&mut tx, &[lease.task], reason).await?;
    tx.commit().await?;
    wake_workers(db, queue).await;
    Ok(true)
}

/// The jobs failed for good, and what was held for them is free again. The order of locks: task, job, balance.
pub(crate) async fn fail(tx: &mut TenantTx, jobs: &[Uuid], error: &JobError) -> Result<()> {
    store::mark_failed(tx, jobs, error).await?;
    refund(tx, jobs).await
}

/// What is held for jobs that have failed or were called off is free again.
pub(crate) async fn refund(tx: &mut TenantTx, jobs: &[Uuid]) -> Result<()> {
    let entries: Vec<Uuid> = jobs.iter().map(|_| new_id()).collect();
    Ok(store::refund(tx, jobs, &entries).await?)
}
