//! Dead letters: tasks that nothing tries again by itself.
//!
//! They are read and worked through in the order of their deaths. Each combination of account and code has an index and
//! a statement of its own that walks along it, queue by queue: a term such as `$2 IS NULL OR code = $2` would read past
//! every letter that is not asked for.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use tollgate_model::account::AccountId;
use tollgate_model::credits::EntryReason;
use tollgate_model::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterPlace};
use tollgate_model::job::{JobError, JobEventKind};
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use crate::tasks::{counted, interval};
use crate::{Alone, Result, SystemTx, TenantTx, Tx as _};

/// A statement about the letters that a filter lets through, in the shape that fits the filter. `$head` ends where the
/// filter's terms begin, `$tail` begins after them; `$one` and `$two` are the parameters that are free for them.
macro_rules! filtered {
    (
        $row:ty, $tx:expr, $filter:expr, $head:literal, [$one:literal, $two:literal], $tail:literal,
        $($argument:expr),+ $(,)?
    ) => {
        match ($filter.account.map(|account| account.0), $filter.code.as_deref()) {
            (None, None) => {
                sqlx::query_as!($row, $head + $tail, $($argument),+).fetch_all($tx.connection()).await
            }
            (None, Some(code)) => {
                sqlx::query_as!($row, $head + "d.code = " + $one + " AND " + $tail, $($argument),+, code)
                    .fetch_all($tx.connection())
                    .await
            }
            (Some(account), None) => {
                sqlx::query_as!($row, $head + "d.account_id = " + $one + " AND " + $tail, $($argument),+, account)
                    .fetch_all($tx.connection())
                    .await
            }
            (Some(account), Some(code)) => {
                sqlx::query_as!(
                    $row,
                    $head + "d.account_id = " + $one + " AND d.code = " + $two + " AND " + $tail,
                    $($argument),+, account, code
                )
                .fetch_all($tx.connection())
                .await
            }
        }
    };
}

struct LetterRow {
    account_id: Uuid,
    id: Uuid,
    queue: String,
    task_type: String,
    payload: Value,
    priority: i16,
    attempts: i32,
    max_attempts: i32,
    reason: Json<JobError>,
    created_at: DateTime<Utc>,
    died_at: DateTime<Utc>,
}

impl From<LetterRow> for DeadLetter {
    fn from(row: LetterRow) -> Self {
        Self {
            id: row.id,
            account_id: AccountId(row.account_id),
            queue: queue_name(&row.queue),
            task_type: row.task_type,
            payload: row.payload,
            priority: row.priority,
            attempts: row.attempts,
            max_attempts: row.max_attempts,
            reason: row.reason.0,
            created_at: row.created_at,
            died_at: row.died_at,
        }
    }
}

/// Letters are only read by the queue they are in, so there is no other name to meet here.
fn queue_name(name: &str) -> QueueName {
    QueueName::parse(name).unwrap_or(QueueName::GenerationCreate)
}

/// Letters that the filter lets through, newest first: up to `limit` of those older than the one at `before`.
pub async fn dead_letters_page(
    alone: &mut Alone,
    filter: &DeadLetterFilter,
    before: Option<DeadLetterPlace>,
    limit: i64,
) -> Result<Vec<DeadLetter>> {
    let queues: Vec<&str> = filter.queues().into_iter().map(QueueName::as_str).collect();
    let end = filter.until.map(|died_at| DeadLetterPlace { died_at, id: Uuid::nil() });
    // The earlier of the two, where there are two.
    let before = before.into_iter().chain(end).min();
    let rows = filtered!(
        LetterRow,
        alone,
        filter,
        r#"SELECT l.account_id AS "account_id!", l.id AS "id!", l.queue AS "queue!", l.type AS "task_type!",
                  l.payload AS "payload!", l.priority AS "priority!", l.attempts AS "attempts!",
                  l.max_attempts AS "max_attempts!", l.reason AS "reason!: Json<JobError>",
                  l.created_at AS "created_at!", l.died_at AS "died_at!"
           FROM unnest($1::text[]) AS asked (queue),
                LATERAL (SELECT d.* FROM queue.dead_letters d WHERE d.queue = asked.queue AND "#,
        ["$6", "$7"],
        "(d.died_at, d.id) < (coalesce($2::timestamptz, 'infinity'), $3::uuid)
                           AND d.died_at >= coalesce($4::timestamptz, '-infinity')
                         ORDER BY d.died_at DESC, d.id DESC LIMIT $5) AS l
           ORDER BY l.died_at DESC, l.id DESC LIMIT $5",
        &queues as _,
        before.map(|place| place.died_at),
        before.map_or(Uuid::max(), |place| place.id),
        filter.since,
        limit,
    )?;
    Ok(rows.into_iter().map(DeadLetter::from).collect())
}

/// The letter of this id.
pub async fn dead_letter(alone: &mut Alone, id: Uuid) -> Result<Option<DeadLetter>> {
    let row = sqlx::query_as!(
        LetterRow,
        r#"SELECT account_id, id, queue, type AS task_type, payload, priority, attempts, max_attempts,
                  reason AS "reason: Json<JobError>", created_at, died_at
           FROM queue.dead_letters WHERE id = $1 LIMIT 1"#,
        id,
    )
    .fetch_optional(alone.connection())
    .await?;
    Ok(row.map(DeadLetter::from))
}

struct Count {
    count: i64,
}

/// How many letters the filter lets through. The order is what makes it the walk that fits the filter.
pub async fn count_dead_letters(alone: &mut Alone, filter: &DeadLetterFilter) -> Result<u64> {
    let queues: Vec<&str> = filter.queues().into_iter().map(QueueName::as_str).collect();
    let counts = filtered!(
        Count,
        alone,
        filter,
        r#"SELECT coalesce(sum(l.letters), 0)::bigint AS "count!"
           FROM unnest($1::text[]) AS asked (queue),
                LATERAL (SELECT count(*) AS letters
                         FROM (SELECT d.id FROM queue.dead_letters d WHERE d.queue = asked.queue AND "#,
        ["$4", "$5"],
        "d.died_at >= coalesce($2::timestamptz, '-infinity') AND d.died_at < coalesce($3::timestamptz, 'infinity')
                               ORDER BY d.died_at, d.id) AS letter) AS l",
        &queues as _,
        filter.since,
        filter.until,
    )?;
    Ok(counts.first().map_or(0, |row| row.count.unsigned_abs()))
}

/// How many of these letters there are.
pub async fn count_dead_letters_by_id(alone: &mut Alone, ids: &[Uuid]) -> Result<u64> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM unnest($1::uuid[]) AS asked (id),
                  LATERAL (SELECT d.id FROM queue.dead_letters d WHERE d.id = asked.id LIMIT 1) AS found"#,
        ids
    )
    .fetch_one(alone.connection())
    .await?;
    Ok(count.unsigned_abs())
}

/// A letter that this transaction has locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedLetter {
    /// Whose it is.
    pub account: AccountId,
    /// The queue it died in.
    pub queue: QueueName,
    /// Where it stands among the others.
    pub place: DeadLetterPlace,
    /// Its row, which stays where it is while it is locked: looked for by its key once more, it was found by whatever index
    /// was cheapest when the table was empty, and that one reads all letters of the account.
    row: String,
}

struct LockedRow {
    account_id: Uuid,
    queue: String,
    died_at: DateTime<Utc>,
    id: Uuid,
    row: String,
}

impl From<LockedRow> for LockedLetter {
    fn from(row: LockedRow) -> Self {
        Self {
            account: AccountId(row.account_id),
            queue: queue_name(&row.queue),
            place: DeadLetterPlace { died_at: row.died_at, id: row.id },
            row: row.row,
        }
    }
}

/// Locks letters of one queue that the filter lets through, oldest first: up to `limit` of those younger than the one at
/// `after`. Those that somebody else is at are passed over.
pub async fn lock_dead_letters(
    tx: &mut SystemTx,
    queue: QueueName,
    filter: &DeadLetterFilter,
    after: Option<DeadLetterPlace>,
    limit: i64,
) -> Result<Vec<LockedLetter>> {
    let begin = filter.since.map(|died_at| DeadLetterPlace { died_at, id: Uuid::nil() });
    let after = after.into_iter().chain(begin).max();
    let rows = filtered!(
        LockedRow,
        tx,
        filter,
        r#"SELECT d.account_id, d.queue, d.died_at, d.id, d.ctid::text AS "row!"
           FROM queue.dead_letters d WHERE d.queue = $1 AND "#,
        ["$6", "$7"],
        "(d.died_at, d.id) > (coalesce($2::timestamptz, '-infinity'), $3::uuid)
           AND d.died_at < coalesce($4::timestamptz, 'infinity')
         ORDER BY d.died_at, d.id LIMIT $5 FOR UPDATE SKIP LOCKED",
        queue.as_str(),
        after.map(|place| place.died_at),
        after.map_or(Uuid::nil(), |place| place.id),
        filter.until,
        limit,
    )?;
    Ok(rows.into_iter().map(LockedLetter::from).collect())
}

/// Locks those of these letters that there are, and that nobody else is at.
pub async fn lock_dead_letters_by_id(tx: &mut SystemTx, ids: &[Uuid]) -> Result<Vec<LockedLetter>> {
    sqlx::query_as!(
        LockedRow,
        r#"SELECT found.account_id, found.queue, found.died_at, found.id, found.row AS "row!"
           FROM unnest($1::uuid[]) AS asked (id),
                LATERAL (SELECT d.account_id, d.queue, d.died_at, d.id, d.ctid::text AS row FROM queue.dead_letters d
                         WHERE d.id = asked.id LIMIT 1 FOR UPDATE SKIP LOCKED) AS found"#,
        ids,
    )
    .map(LockedLetter::from)
    .fetch_all(tx.connection())
    .await
}

fn rows<'a>(letters: impl IntoIterator<Item = &'a LockedLetter>) -> Vec<&'a str> {
    letters.into_iter().map(|letter| letter.row.as_str()).collect()
}

/// Deletes letters that this transaction has locked.
pub async fn delete_dead_letters(tx: &mut SystemTx, letters: &[LockedLetter]) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM queue.dead_letters WHERE ctid = ANY ($1::text[]::tid[])",
        &rows(letters) as _
    )
    .execute(tx.connection())
    .await?;
    Ok(done.rows_affected())
}

/// Deletes the letter of this id, if there is one. One that is just being redriven is waited for: then it is gone, and the
/// transaction sees the task that it has become.
pub async fn delete_dead_letter(tx: &mut SystemTx, id: Uuid) -> Result<bool> {
    let done =
        sqlx::query!("DELETE FROM queue.dead_letters WHERE id = $1", id).execute(tx.connection()).await?;
    Ok(done.rows_affected() > 0)
}

/// Puts a failed job of the transaction's account back to where it began, and holds its estimate again. `false`: it is gone,
/// or not failed, or the balance does not pay for it.
///
/// This is the one exception to "nothing leaves a final status": an operator's explicit act, recorded as an event. The
/// events before it stay, the attempts begin anew.
///
/// One job at a time: of many, in one statement, whatever its form, an index is asked for the account alone if it was
/// planned on an empty table, and every job of the account is read for each batch. Behind the wall, `ctid` is no way out.
pub async fn reopen_failed(tx: &mut TenantTx, id: Uuid, entry: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "WITH job AS MATERIALIZED (
             SELECT coalesce((j.quote ->> 'estimate')::bigint, 0) AS hold, (j.created_at AT TIME ZONE 'UTC')::date AS day,
                    (SELECT k.counted_as FROM app.api_keys k WHERE k.account_id = $1 AND k.id = j.key_id) AS counted_as
             FROM app.jobs j WHERE j.account_id = $1 AND j.id = $2 AND j.status = 'failed' FOR NO KEY UPDATE
         ), spent AS MATERIALIZED (
             SELECT own.day FROM job, LATERAL (SELECT s.day FROM app.key_spending s
                                               WHERE s.account_id = $1 AND s.key_id = job.counted_as AND s.day = job.day
                                               LIMIT 1 FOR NO KEY UPDATE) AS own
         ), paid AS (
             UPDATE app.credit_balances b SET held = b.held + job.hold
             FROM job
             WHERE b.account_id = $1 AND b.posted - b.held >= job.hold AND (SELECT count(*) FROM spent) >= 0
             RETURNING job.hold, job.counted_as, job.day
         ), spending AS (
             UPDATE app.key_spending s SET credits = s.credits + paid.hold
             FROM paid WHERE s.account_id = $1 AND s.key_id = paid.counted_as AND s.day = paid.day
         ), changed AS (
             UPDATE app.jobs
             SET status = 'queued', attempts = 0, scheduled_at = now(), finished_at = NULL, error_code = NULL,
                 error_message = NULL, last_event = last_event + 1, credits_held = paid.hold
             FROM paid WHERE account_id = $1 AND id = $2 AND status = 'failed'
             RETURNING last_event
         ), entry AS (
             INSERT INTO app.credits_ledger (account_id, id, delta, held, reason, job_id)
             SELECT $1, $4, -hold, hold, $5, $2 FROM paid WHERE hold > 0
         )
         INSERT INTO app.job_events (account_id, job_id, seq, type)
         SELECT $1, $2, last_event, $3 FROM changed",
        tx.account().0,
        id,
        JobEventKind::Redriven.as_str(),
        entry,
        EntryReason::Reservation.as_str(),
    )
    .execute(tx.connection())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Turns letters of the transaction's account, which it has locked, back into tasks of their queues: ready now, as if they
/// had never been tried. Returns how many.
pub async fn redrive<'a>(
    tx: &mut TenantTx,
    letters: impl IntoIterator<Item = &'a LockedLetter>,
    ttl: Duration,
) -> Result<u64> {
    let done = counted!(
        "WITH letter AS (
             DELETE FROM queue.dead_letters WHERE ctid = ANY ($1::text[]::tid[]) RETURNING *
         ), change AS (
             INSERT INTO queue.tasks
                 (account_id, id, queue, type, payload, state, priority, rank, max_attempts, run_at, expires_at)
             SELECT account_id, id, queue, type, payload, 'ready', priority, priority * 2, max_attempts, now(), now() + $2
             FROM letter ORDER BY died_at, id
             RETURNING account_id, queue, 1 AS queued, 0 AS running, 0 AS done, -1 AS failed, true AS awake,
                       false AS lane_capped, false AS queue_capped)",
        r#"SELECT count(*) AS "count!" FROM change"#,
        &rows(letters) as _,
        interval(ttl),
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(done.count.unsigned_abs())
}
