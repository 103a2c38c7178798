//! What has ended long ago, and goes.

use chrono::{DateTime, Utc};
use tollgate_model::job::JobStatus;
use uuid::Uuid;

use crate::{Result, TenantTx};

/// What one batch came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Ended jobs that were old enough by their ids.
    pub seen: i64,
    /// Those of them that had also ended early enough, and are gone.
    pub removed: i64,
    /// The last one seen; `None`: there was none.
    pub last: Option<Uuid>,
    /// The images that they had.
    pub images: Vec<Uuid>,
}

/// Removes ended jobs of the transaction's account, with their results, events and dead letters, and that they had an
/// image: of the `limit` oldest ones between the ids `after` and `before`, those that ended before `until`.
///
/// An id holds the time at which its job was created, so `before` is where the walks along `jobs_by_status` end, one for each
/// final status. A job may have been created long before it ended; who comes upon such jobs goes on after them.
///
/// What somebody else is at is left for another time. Dead letters are locked before jobs, as by whoever redrives one: a
/// failed job whose letter is being redriven is about to be a job again.
///
/// Each row is looked up by its whole key, in a subselect that no plan can turn into a join, and deleted by `ctid`: planned
/// on tables that were empty, joins read all of the account's rows for each job.
pub async fn remove_ended_jobs(
    tx: &mut TenantTx,
    after: Uuid,
    before: Uuid,
    until: DateTime<Utc>,
    limit: i64,
) -> Result<Batch> {
    let ended: Vec<&str> =
        JobStatus::ALL.iter().filter(|status| status.is_final()).map(|s| s.as_str()).collect();
    sqlx::query_as!(
        Batch,
        r#"WITH seen AS MATERIALIZED (
               SELECT found.id, found.finished_at, ended.status
               FROM unnest($2::text[]) AS ended (status),
                    LATERAL (SELECT j.id, j.finished_at FROM app.jobs j
                             WHERE j.account_id = $1 AND j.status = ended.status AND j.id > $3 AND j.id < $4
                             ORDER BY j.id LIMIT $6) AS found
               ORDER BY found.id LIMIT $6
           ), free AS MATERIALIZED (
               SELECT seen.id, seen.status, locked.row AS letter
               FROM seen
               LEFT JOIN LATERAL (SELECT d.ctid AS row FROM queue.dead_letters d
                                  WHERE d.account_id = $1 AND d.id = seen.id LIMIT 1
                                  FOR UPDATE SKIP LOCKED) AS locked ON true
               LEFT JOIN LATERAL (SELECT d.id FROM queue.dead_letters d
                                  WHERE d.account_id = $1 AND d.id = seen.id LIMIT 1) AS letter ON true
               WHERE seen.finished_at < $5 AND (locked.row IS NOT NULL OR letter.id IS NULL)
           ), job AS MATERIALIZED (
               SELECT locked.row, free.letter
               FROM free, LATERAL (SELECT j.ctid AS row FROM app.jobs j
                                   WHERE j.account_id = $1 AND j.status = free.status AND j.id = free.id
                                     AND j.finished_at < $5 LIMIT 1
                                   FOR UPDATE SKIP LOCKED) AS locked
           ), gone AS (
               DELETE FROM app.jobs WHERE ctid = ANY (ARRAY(SELECT row FROM job)) RETURNING id
           ), results AS (
               DELETE FROM app.job_results WHERE ctid = ANY (ARRAY(
                   SELECT own.row FROM gone, LATERAL (SELECT r.ctid AS row FROM app.job_results r
                                                      WHERE r.account_id = $1 AND r.job_id = gone.id OFFSET 0) AS own))
           ), events AS (
               DELETE FROM app.job_events WHERE ctid = ANY (ARRAY(
                   SELECT own.row FROM gone, LATERAL (SELECT e.ctid AS row FROM app.job_events e
                                                      WHERE e.account_id = $1 AND e.job_id = gone.id OFFSET 0) AS own))
           ), images AS (
               DELETE FROM app.job_images WHERE ctid = ANY (ARRAY(
                   SELECT own.row FROM gone, LATERAL (SELECT l.ctid AS row FROM app.job_images l
                                                      WHERE l.account_id = $1 AND l.job_id = gone.id OFFSET 0) AS own))
               RETURNING image_id
           ), letters AS (
               DELETE FROM queue.dead_letters WHERE ctid = ANY (ARRAY(SELECT letter FROM job WHERE letter IS NOT NULL))
           )
           SELECT (SELECT count(*) FROM seen) AS "seen!", (SELECT count(*) FROM gone) AS "removed!",
                  (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last,
                  ARRAY(SELECT DISTINCT image_id FROM images) AS "images!""#,
        tx.account().0,
        &ended as _,
        after,
        before,
        until,
        limit,
    )
    .fetch_one(tx.conn())
    .await
}
