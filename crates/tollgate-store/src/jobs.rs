//! Jobs, their events and results.
//!
//! Each change of a job counts its event's `seq` up under the row's lock and records the event in the same statement,
//! so events have no gaps and no two share a number. Statements name the statuses they may leave; none leaves a final one.
//!
//! Where many jobs are named by id, the status they may leave is asked for in words that no index answers: planned on an
//! empty table, all indexes cost the same, and by `jobs_by_status` the statement would read every job of that status.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tollgate_model::credits::EntryReason;
use tollgate_model::generation::{GenerationOutput, Usage};
use tollgate_model::job::{
    Job, JobCredits, JobError, JobEvent, JobEventKind, JobImage, JobOutput, JobStatus,
};
use tollgate_model::queue::ClaimedTask;
use uuid::Uuid;

use crate::images::media_type;
use crate::{Result, TenantTx};

/// A job whose attempt has begun.
#[derive(Debug, Clone)]
pub struct StartedJob {
    /// Which job.
    pub id: Uuid,
    /// The job type's name.
    pub job_type: String,
    /// The call to make, as it was stored; a newer version may have stored what this one cannot read.
    pub request: Value,
    /// What it was accepted under; `None`: before there were prices.
    pub quote: Option<Value>,
}

/// The transaction's account's jobs among `tasks` are running now.
pub async fn mark_running(tx: &mut TenantTx, tasks: &[ClaimedTask]) -> Result<Vec<StartedJob>> {
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.lease.task).collect();
    let attempts: Vec<i32> = tasks.iter().map(|task| task.attempt).collect();
    sqlx::query!(
        r#"WITH claimed AS (
               SELECT * FROM unnest($2::uuid[], $3::integer[]) AS claimed (id, attempt)
           ), started AS (
               UPDATE app.jobs j
               SET status = 'running', attempts = c.attempt, started_at = clock_timestamp(), last_event = last_event + 1
               FROM claimed c WHERE j.account_id = $1 AND j.id = c.id AND j.status IS NOT DISTINCT FROM 'queued'
               RETURNING j.id, j.type, j.request, j.quote, j.attempts, j.last_event
           ), event AS (
               INSERT INTO app.job_events (account_id, job_id, seq, type, data)
               SELECT $1, id, last_event, $4, jsonb_build_object('attempt', attempts) FROM started
           )
           SELECT id, type, request, quote FROM started"#,
        tx.account().0,
        &ids,
        &attempts,
        JobEventKind::Started.as_str(),
    )
    .map(|row| StartedJob { id: row.id, job_type: row.r#type, request: row.request, quote: row.quote })
    .fetch_all(tx.conn())
    .await
}

/// The jobs are back in the queue through no fault of theirs; the attempt does not count.
pub async fn mark_requeued(tx: &mut TenantTx, ids: &[Uuid], reason: &str) -> Result<()> {
    sqlx::query!(
        "WITH changed AS (
             UPDATE app.jobs SET status = 'queued', attempts = greatest(attempts - 1, 0), last_event = last_event + 1
             WHERE account_id = $1 AND id = ANY ($2) AND status IS NOT DISTINCT FROM 'running'
             RETURNING id, last_event)
         INSERT INTO app.job_events (account_id, job_id, seq, type, data)
         SELECT $1, id, last_event, $3, $4 FROM changed",
        tx.account().0,
        ids,
        JobEventKind::Requeued.as_str(),
        json!({ "reason": reason }),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// An attempt failed; the next one begins at `at`.
pub async fn mark_retrying(tx: &mut TenantTx, id: Uuid, at: DateTime<Utc>, error: &JobError) -> Result<()> {
    sqlx::query!(
        "WITH changed AS (
             UPDATE app.jobs
             SET status = 'queued', scheduled_at = $3, error_code = $4, error_message = $5, last_event = last_event + 1
             WHERE account_id = $1 AND id = $2 AND status = 'running'
             RETURNING last_event)
         INSERT INTO app.job_events (account_id, job_id, seq, type, data)
         SELECT $1, $2, last_event, $6, $7 FROM changed",
        tx.account().0,
        id,
        at,
        error.code,
        error.message,
        JobEventKind::Retrying.as_str(),
        json!({ "error": error, "next_attempt_at": at }),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The job has its result, and costs so many credits: what was held for it is free again, the cost is charged, and what
/// of it the balance does not pay is owed; what is left of the hold pays what was owed before. One statement; of the rows
/// that others wait for, what the key has spent comes before the balance. `false`: it had ended before.
pub async fn mark_succeeded(tx: &mut TenantTx, id: Uuid, entry: Uuid, cost: i64) -> Result<bool> {
    let done = sqlx::query!(
        "WITH job AS MATERIALIZED (
             SELECT j.credits_held AS held, (j.created_at AT TIME ZONE 'UTC')::date AS day,
                    (SELECT k.counted_as FROM app.api_keys k WHERE k.account_id = $1 AND k.id = j.key_id) AS counted_as
             FROM app.jobs j WHERE j.account_id = $1 AND j.id = $2 AND j.finished_at IS NULL FOR NO KEY UPDATE
         ), spent AS MATERIALIZED (
             SELECT own.day FROM job, LATERAL (SELECT s.day FROM app.key_spending s
                                               WHERE s.account_id = $1 AND s.key_id = job.counted_as AND s.day = job.day
                                               LIMIT 1 FOR NO KEY UPDATE) AS own
         ), moved AS MATERIALIZED (
             SELECT job.held, job.counted_as, job.day, greatest($4 - job.held - (b.posted - b.held), -b.owed) AS owed
             FROM job, LATERAL (SELECT posted, held, owed FROM app.credit_balances
                                WHERE account_id = $1 AND (job.held > 0 OR $4::bigint > 0)
                                  AND (SELECT count(*) FROM spent) >= 0 LIMIT 1
                                FOR NO KEY UPDATE) AS b
         ), changed AS (
             UPDATE app.jobs
             SET status = $5, finished_at = clock_timestamp(), error_code = NULL, error_message = NULL,
                 last_event = last_event + 1, credits_held = 0, credits_charged = $4
             FROM job WHERE account_id = $1 AND id = $2 AND finished_at IS NULL
             RETURNING last_event
         ), balance AS (
             UPDATE app.credit_balances b
             SET posted = b.posted - $4 + moved.owed, held = b.held - moved.held, owed = b.owed + moved.owed
             FROM moved WHERE b.account_id = $1
         ), spending AS (
             UPDATE app.key_spending s SET credits = greatest(s.credits - moved.held + $4, 0)
             FROM moved WHERE s.account_id = $1 AND s.key_id = moved.counted_as AND s.day = moved.day
         ), entry AS (
             INSERT INTO app.credits_ledger (account_id, id, delta, held, charged, owed, reason, job_id)
             SELECT $1, $3, held - $4 + owed, -held, $4, owed, $7, $2 FROM moved
         )
         INSERT INTO app.job_events (account_id, job_id, seq, type) SELECT $1, $2, last_event, $6 FROM changed",
        tx.account().0,
        id,
        entry,
        cost,
        JobStatus::Succeeded.as_str(),
        JobEventKind::Completed.as_str(),
        EntryReason::Confirm.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The jobs failed for good. Returns how many had not ended before.
pub async fn mark_failed(tx: &mut TenantTx, ids: &[Uuid], error: &JobError) -> Result<u64> {
    let done = sqlx::query!(
        "WITH changed AS (
             UPDATE app.jobs
             SET status = $3, finished_at = clock_timestamp(), error_code = $4, error_message = $5,
                 last_event = last_event + 1
             WHERE account_id = $1 AND id = ANY ($2) AND finished_at IS NULL
             RETURNING id, last_event)
         INSERT INTO app.job_events (account_id, job_id, seq, type, data)
         SELECT $1, id, last_event, $6, $7 FROM changed",
        tx.account().0,
        ids,
        JobStatus::Failed.as_str(),
        error.code,
        error.message,
        JobEventKind::Failed.as_str(),
        json!({ "error": error }),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}

/// The job is called off. `false`: it had ended before. A statement of its own, since the API may touch less of a
/// job than a worker.
pub async fn mark_cancelled(tx: &mut TenantTx, id: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "WITH changed AS (
             UPDATE app.jobs SET status = 'cancelled', finished_at = clock_timestamp(), last_event = last_event + 1
             WHERE account_id = $1 AND id = $2 AND status IN ('queued', 'running')
             RETURNING last_event)
         INSERT INTO app.job_events (account_id, job_id, seq, type)
         SELECT $1, $2, last_event, $3 FROM changed",
        tx.account().0,
        id,
        JobEventKind::Cancelled.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Stores the job's one result; the primary key refuses a second.
pub async fn insert_result(tx: &mut TenantTx, id: Uuid, output: &GenerationOutput) -> Result<()> {
    sqlx::query!(
        "INSERT INTO app.job_results (account_id, job_id, text, provider, provider_id, model, latency_ms,
                                      prompt_tokens, completion_tokens, total_tokens, raw)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tx.account().0,
        id,
        output.text,
        output.provider,
        output.provider_id,
        output.model,
        output.latency_ms,
        output.usage.prompt_tokens,
        output.usage.completion_tokens,
        output.usage.total_tokens,
        output.raw,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A job's row with its result, if it has one.
struct JobRow {
    id: Uuid,
    job_type: String,
    status: String,
    priority: i16,
    attempts: i32,
    max_attempts: i32,
    created_at: DateTime<Utc>,
    scheduled_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    error_code: Option<String>,
    error_message: Option<String>,
    credits_held: i64,
    credits_charged: i64,
    metadata: Value,
    text: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    latency_ms: Option<i64>,
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    total_tokens: Option<i64>,
    image: Option<Uuid>,
    image_url: Option<String>,
    media_type: Option<String>,
    byte_length: Option<i64>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        let image = row.image.map(|id| JobImage {
            id,
            url: row.image_url.unwrap_or_default(),
            media_type: media_type(&row.media_type.unwrap_or_default()),
            bytes: row.byte_length.unwrap_or_default(),
        });
        let output = row.text.map(|text| JobOutput {
            text,
            images: image.into_iter().collect(),
            provider: row.provider.unwrap_or_default(),
            model: row.model.unwrap_or_default(),
            latency_ms: row.latency_ms.unwrap_or_default(),
            usage: Usage {
                prompt_tokens: row.prompt_tokens.unwrap_or_default(),
                completion_tokens: row.completion_tokens.unwrap_or_default(),
                total_tokens: row.total_tokens.unwrap_or_default(),
            },
        });
        Self {
            id: row.id,
            job_type: row.job_type,
            // The column's CHECK allows no other word.
            status: JobStatus::parse(&row.status).unwrap_or(JobStatus::Queued),
            priority: row.priority,
            attempts: row.attempts,
            max_attempts: row.max_attempts,
            created_at: row.created_at,
            scheduled_at: row.scheduled_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            error: row.error_code.zip(row.error_message).map(|(code, message)| JobError { code, message }),
            output,
            credits: JobCredits { held: row.credits_held, charged: row.credits_charged },
            metadata: match row.metadata {
                Value::Object(metadata) => metadata,
                _ => serde_json::Map::new(),
            },
        }
    }
}

/// A job with its result, by some condition. Each condition is a statement of its own, all of whose terms the index
/// can use: `$2 IS NULL OR id = $2` would cost a scan of the account's jobs as soon as PostgreSQL chose one plan for
/// every argument.
macro_rules! select_jobs {
    ($condition:literal, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            JobRow,
            r#"SELECT j.id, j.type AS job_type, j.status, j.priority, j.attempts, j.max_attempts, j.created_at,
                      j.scheduled_at, j.started_at, j.finished_at, j.error_code, j.error_message, j.credits_held,
                      j.credits_charged, j.metadata, r.text AS "text?", r.provider AS "provider?", r.model AS "model?",
                      r.latency_ms AS "latency_ms?", r.prompt_tokens AS "prompt_tokens?",
                      r.completion_tokens AS "completion_tokens?", r.total_tokens AS "total_tokens?", i.id AS "image?",
                      i.url AS "image_url?", i.media_type AS "media_type?", i.byte_length AS "byte_length?"
               FROM app.jobs j LEFT JOIN app.job_results r ON r.account_id = j.account_id AND r.job_id = j.id
               LEFT JOIN app.job_images b ON b.account_id = j.account_id AND b.job_id = j.id
               LEFT JOIN app.images i ON i.account_id = b.account_id AND i.id = b.image_id
               WHERE j.account_id = $1 AND "# + $condition,
            $($argument),+
        )
    };
}

/// The account's jobs, newest first: those in `status`, older than `before`.
pub async fn jobs_page(
    tx: &mut TenantTx,
    status: Option<JobStatus>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Job>> {
    let account = tx.account().0;
    let before = before.unwrap_or(Uuid::max());
    let rows = match status {
        None => {
            select_jobs!("j.id < $2 ORDER BY j.id DESC LIMIT $3", account, before, limit)
                .fetch_all(tx.conn())
                .await?
        }
        Some(status) => {
            select_jobs!(
                "j.status = $2 AND j.id < $3 ORDER BY j.id DESC LIMIT $4",
                account,
                status.as_str(),
                before,
                limit
            )
            .fetch_all(tx.conn())
            .await?
        }
    };
    Ok(rows.into_iter().map(Job::from).collect())
}

/// One job; `None`: the account has no such job.
pub async fn job_by_id(tx: &mut TenantTx, id: Uuid) -> Result<Option<Job>> {
    let account = tx.account().0;
    Ok(select_jobs!("j.id = $2", account, id).fetch_optional(tx.conn()).await?.map(Job::from))
}

/// The job's events after number `seq`, oldest first.
pub async fn events_after(tx: &mut TenantTx, job: Uuid, seq: i32, limit: i64) -> Result<Vec<JobEvent>> {
    sqlx::query_as!(
        JobEvent,
        "SELECT seq, type AS kind, data, created_at FROM app.job_events
         WHERE account_id = $1 AND job_id = $2 AND seq > $3 ORDER BY seq LIMIT $4",
        tx.account().0,
        job,
        seq,
        limit,
    )
    .fetch_all(tx.conn())
    .await
}
