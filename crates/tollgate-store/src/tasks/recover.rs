//! What no worker would otherwise come back to: tasks of dead workers, expired tasks, and what must never be there.

use sqlx::types::Json;
use tollgate_model::account::AccountId;
use tollgate_model::job::JobError;
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use super::counted;
use crate::{Result, SystemTx, TenantTx};

/// Locks one worker that is to be given up, so that it cannot claim; `None`: there is none, or others have them. A row that
/// is just being touched is passed over: its worker lives.
///
/// A worker is given up when it has been silent for as long as it allowed, *within the time to which the sweeper
/// testifies*: from `heard_since`, since when it has itself been heard without a gap, to its own last heartbeat. After an
/// outage of the database everybody has been silent, and whoever comes back first would take the tasks of all the others,
/// who are alive and at work on them; so the outage counts for nobody, and each has a whole timeout to come back; the
/// longer of the two timeouts, since a sweeper that beats seldom notices no short outage. The same holds for a machine
/// that was suspended as a whole, and for a clock that was put forward. Whom only the network has cut off is given up in
/// time: the others have been heard all the while. `sweeper`: `None` testifies to everything (tests). Who has signed out
/// is waited for by nobody.
pub async fn lock_dead_worker(tx: &mut SystemTx, sweeper: Option<Uuid>) -> Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT w.id FROM queue.workers w
         WHERE w.heartbeat_at = '-infinity'
            OR $1::uuid IS NULL AND w.heartbeat_at + w.visibility_timeout < clock_timestamp()
            OR EXISTS (SELECT FROM queue.workers me
                       WHERE me.id = $1
                         AND greatest(w.heartbeat_at, me.heard_since)
                               + greatest(w.visibility_timeout, me.visibility_timeout) < me.heartbeat_at)
         ORDER BY w.id LIMIT 1 FOR UPDATE OF w SKIP LOCKED",
        sweeper,
    )
    .fetch_optional(tx.conn())
    .await
}

/// Puts up to `limit` tasks of a worker that is gone back into the queue, before their equals, the lost attempt not
/// counted. Returns each with the number of times it has been lost.
pub async fn take_back(tx: &mut SystemTx, worker: Uuid, limit: i64) -> Result<Vec<(AccountId, Uuid, i16)>> {
    counted!(
        "WITH lost AS MATERIALIZED (
             SELECT ctid AS row, account_id, id, lane_capped, queue_capped FROM queue.tasks
             WHERE worker_id = $1 AND state = 'running' ORDER BY lease LIMIT $2 FOR UPDATE SKIP LOCKED
         ), change AS (
             UPDATE queue.tasks t
             SET state = 'ready', rank = t.priority * 2 - 1, position = nextval('queue.position'), lease = NULL,
                 worker_id = NULL, lane_capped = false, queue_capped = false, attempts = t.attempts - 1, lost = t.lost + 1
             FROM lost WHERE t.account_id = lost.account_id AND t.id = lost.id
             RETURNING t.account_id, t.id, t.lost, t.queue, 1 AS queued, -1 AS running, 0 AS done, 0 AS failed,
                       true AS awake, lost.lane_capped, lost.queue_capped)",
        "SELECT account_id, id, lost FROM change",
        worker,
        limit,
    )
    .map(|row| (AccountId(row.account_id), row.id, row.lost))
    .fetch_all(tx.conn())
    .await
}

/// Workers that hold leases but do not exist. There are none in a healthy system: a claim share-locks its worker's
/// row, and the row goes last. One walk along the index from worker to worker.
pub async fn orphan_workers(tx: &mut SystemTx) -> Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"WITH RECURSIVE holder AS (
               (SELECT worker_id FROM queue.tasks WHERE state = 'running' ORDER BY worker_id LIMIT 1)
               UNION ALL
               SELECT (SELECT t.worker_id FROM queue.tasks t
                       WHERE t.state = 'running' AND t.worker_id > holder.worker_id ORDER BY t.worker_id LIMIT 1)
               FROM holder WHERE holder.worker_id IS NOT NULL)
           SELECT worker_id AS "worker!" FROM holder
           WHERE worker_id IS NOT NULL AND NOT EXISTS (SELECT FROM queue.workers w WHERE w.id = worker_id)"#
    )
    .fetch_all(tx.conn())
    .await
}

/// Buries a task that no worker holds, and whose row this transaction has locked. Returns its queue; `None`: there was
/// no such task.
pub async fn bury_unleased(tx: &mut TenantTx, task: Uuid, reason: &JobError) -> Result<Option<QueueName>> {
    let account = tx.account().0;
    let queue = counted!(
        "WITH gone AS (
             DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2 AND state <> 'running' RETURNING *
         ), letter AS (
             INSERT INTO queue.dead_letters
                 (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
             SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $3, created_at FROM gone
         ), change AS (
             SELECT account_id, queue, -1 AS queued, 0 AS running, 0 AS done, 1 AS failed, false AS awake,
                    false AS lane_capped, false AS queue_capped FROM gone)",
        "SELECT queue FROM change",
        account,
        task,
        Json(reason) as _,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(queue.map(|row| QueueName::parse(&row.queue).unwrap_or(QueueName::GenerationCreate)))
}

/// Buries up to `limit` tasks that expired before a worker took them. A running one may still finish.
pub async fn bury_expired(
    tx: &mut SystemTx,
    reason: &JobError,
    limit: i64,
) -> Result<Vec<(QueueName, AccountId, Uuid)>> {
    counted!(
        "WITH gone AS (
             DELETE FROM queue.tasks WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM queue.tasks WHERE state = 'ready' AND expires_at <= statement_timestamp()
                 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))
             RETURNING *
         ), letter AS (
             INSERT INTO queue.dead_letters
                 (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
             SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $1, created_at FROM gone
         ), change AS (
             SELECT account_id, id, queue, -1 AS queued, 0 AS running, 0 AS done, 1 AS failed, false AS awake,
                    false AS lane_capped, false AS queue_capped FROM gone)",
        "SELECT queue, account_id, id FROM change",
        Json(reason) as _,
        limit,
    )
    .map(|row| {
        (
            QueueName::parse(&row.queue).unwrap_or(QueueName::GenerationCreate),
            AccountId(row.account_id),
            row.id,
        )
    })
    .fetch_all(tx.conn())
    .await
}

/// Wakes lanes that sleep although they have ready tasks, among the `limit` accounts of the queue after `after`. There
/// are none in a healthy system: whoever makes a task ready wakes its lane, and a lane is put to sleep under the locks
/// of all its shards. Returns how many there were, and the account to go on after; `None`: that was the last.
pub async fn wake_lanes_with_work(
    tx: &mut SystemTx,
    queue: QueueName,
    after: AccountId,
    limit: i64,
) -> Result<(i64, Option<AccountId>)> {
    let row = sqlx::query!(
        r#"WITH RECURSIVE lane AS (
               SELECT $2::uuid AS account_id, 0::bigint AS nr
               UNION ALL
               SELECT (SELECT t.account_id FROM queue.tasks t
                       WHERE t.queue = $1 AND t.state = 'ready' AND t.account_id > lane.account_id
                       ORDER BY t.account_id, t.rank, t.position LIMIT 1), lane.nr + 1
               FROM lane WHERE lane.account_id IS NOT NULL AND lane.nr < $3
           ), asleep AS (
               SELECT account_id FROM lane
               WHERE nr > 0 AND account_id IS NOT NULL
                 AND NOT EXISTS (SELECT FROM queue.lane_counts c
                                 WHERE c.account_id = lane.account_id AND c.queue = $1 AND c.awake)
           ), woken AS (
               INSERT INTO queue.lane_counts AS c (account_id, queue, awake)
               SELECT account_id, $1, true FROM asleep ORDER BY account_id
               ON CONFLICT (account_id, queue, shard) DO UPDATE SET awake = true
           )
           SELECT (SELECT count(*) FROM asleep) AS "asleep!",
                  (SELECT account_id FROM lane WHERE nr = $3) AS last"#,
        queue.as_str(),
        after.0,
        limit,
    )
    .fetch_one(tx.conn())
    .await?;
    Ok((row.asleep, row.last.map(AccountId)))
}
