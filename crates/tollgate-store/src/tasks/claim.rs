//! The claim: from ready to leased.

use serde_json::value::RawValue;
use sqlx::types::Json;
use tollgate_model::account::AccountId;
use tollgate_model::lanes::{Place, Plan};
use tollgate_model::queue::{ClaimedTask, Lease, QueueName};
use uuid::Uuid;

use crate::tx::Tx;
use crate::{Result, SystemTx};

/// Leases tasks to a worker as planned. Tasks that another claim is looking at are passed over, not waited for. A
/// worker that is no longer registered, or that planned by `settings` which are no longer in force, gets none: its row is
/// share-locked, and whoever changes settings waits for all who are at the tasks ([`crate::change_settings`]).
///
/// Each share is one walk along `tasks_ready`, and those of a lane follow each other: together no further than its
/// quota, so that what stands first in a lane is first. The lanes in `capped` have been locked by [`lock_caps`].
pub async fn claim(
    tx: &mut impl Tx,
    queue: QueueName,
    worker: Uuid,
    settings: i64,
    plan: &Plan,
    capped: &[LaneRoom],
    queue_capped: bool,
) -> Result<Vec<ClaimedTask>> {
    let shares = &plan.shares;
    let mut lanes = Vec::new();
    let mut quotas = Vec::new();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut nr = 0;
    for lane in shares.chunk_by(|a, b| a.account == b.account) {
        lanes.push(lane[0].account.0);
        quotas.push(i64::try_from(lane[0].quota).unwrap_or(i64::MAX));
        first.push(nr + 1);
        nr += i32::try_from(lane.len()).unwrap_or(i32::MAX);
        last.push(nr);
    }
    let ranks: Vec<i16> = shares.iter().map(|share| share.span.after.rank).collect();
    let positions: Vec<i64> = shares.iter().map(|share| share.span.after.position).collect();
    let until: Vec<i16> = shares.iter().map(|share| share.span.until_rank).collect();
    let capped: Vec<Uuid> = capped.iter().map(|lane| lane.account.0).collect();
    sqlx::query!(
        r#"WITH me AS MATERIALIZED (
               SELECT id FROM queue.workers
               WHERE id = $2 AND EXISTS (SELECT FROM queue.queues WHERE queue = $1 AND settings = $3) FOR KEY SHARE
           ), picked AS MATERIALIZED (
               SELECT task.row
               FROM me, unnest($4::uuid[], $5::bigint[], $6::integer[], $7::integer[])
                            AS lane (account_id, quota, first, last),
                    LATERAL (SELECT task.row
                             FROM unnest(($8::smallint[])[lane.first:lane.last], ($9::bigint[])[lane.first:lane.last],
                                         ($10::smallint[])[lane.first:lane.last]) AS span (rank, position, until_rank),
                                  LATERAL (SELECT t.ctid AS row FROM queue.tasks t
                                           WHERE t.queue = $1 AND t.account_id = lane.account_id AND t.state = 'ready'
                                             AND (t.rank, t.position) > (span.rank, span.position)
                                             AND t.rank <= span.until_rank AND t.expires_at > now()
                                           ORDER BY t.rank, t.position LIMIT lane.quota
                                           FOR UPDATE SKIP LOCKED) AS task
                             LIMIT lane.quota) AS task
               LIMIT $11
           ), claimed AS (
               UPDATE queue.tasks
               SET state = 'running', lease = nextval('queue.lease_token'), worker_id = $2, attempts = attempts + 1,
                   started_at = clock_timestamp(), lane_capped = account_id = ANY ($12), queue_capped = $13
               WHERE ctid = ANY (ARRAY(SELECT row FROM picked))
               RETURNING account_id, id, type, payload, rank, position, lease, attempts, max_attempts, expires_at,
                         started_at, run_at
           ), counts AS (
               INSERT INTO queue.lane_counts AS c (account_id, queue, queued, running)
               SELECT account_id, $1, -count(*), count(*) FROM claimed GROUP BY account_id ORDER BY account_id
               ON CONFLICT (account_id, queue, shard) DO UPDATE
               SET queued = c.queued + excluded.queued, running = c.running + excluded.running
           )
           SELECT account_id, id, type, payload AS "payload: Json<Box<RawValue>>", rank, position, lease AS "lease!",
                  attempts, max_attempts, expires_at, started_at AS "started_at!", run_at
           FROM claimed"#,
        queue.as_str(),
        worker,
        settings,
        &lanes,
        &quotas,
        &first,
        &last,
        &ranks,
        &positions,
        &until,
        i64::try_from(plan.limit).unwrap_or(i64::MAX),
        &capped,
        queue_capped,
    )
    .map(|row| ClaimedTask {
        lease: Lease { account: AccountId(row.account_id), task: row.id, token: row.lease },
        task_type: row.r#type,
        payload: row.payload.0,
        place: Place { rank: row.rank, position: row.position },
        attempt: row.attempts,
        max_attempts: row.max_attempts,
        waited: (row.started_at - row.run_at).to_std().unwrap_or_default(),
        expires_at: row.expires_at,
    })
    .fetch_all(tx.connection())
    .await
}

/// A capped lane, locked by this transaction, and how many more of its tasks may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneRoom {
    /// Whose lane.
    pub account: AccountId,
    /// How many more may run now.
    pub room: i32,
}

/// Locks the caps of these lanes, and of the queue if it has one, and returns what room each leaves. Whoever counts
/// tasks in or out of a cap takes turns here; lanes in the order of their accounts, then the queue. The tasks come before
/// them, as in every statement that ends a lease: whoever changes a cap has the tasks, and wants the cap.
pub async fn lock_caps(
    tx: &mut SystemTx,
    queue: QueueName,
    accounts: &[Uuid],
) -> Result<(Vec<LaneRoom>, Option<i32>)> {
    sqlx::query!("LOCK TABLE queue.tasks IN ROW EXCLUSIVE MODE").execute(tx.conn()).await?;
    let mut accounts = accounts.to_vec();
    accounts.sort_unstable();
    let lanes = sqlx::query!(
        r#"SELECT l.account_id, l.room AS "room!"
           FROM unnest($2::uuid[]) AS capped (account_id),
                LATERAL (SELECT account_id, max_running - running AS room FROM queue.lanes
                         WHERE account_id = capped.account_id AND queue = $1 AND max_running IS NOT NULL
                         FOR NO KEY UPDATE) AS l"#,
        queue.as_str(),
        &accounts,
    )
    .map(|row| LaneRoom { account: AccountId(row.account_id), room: row.room })
    .fetch_all(tx.conn())
    .await?;
    let queue = sqlx::query_scalar!(
        r#"SELECT max_running - running AS "room!" FROM queue.queues
           WHERE queue = $1 AND max_running IS NOT NULL FOR NO KEY UPDATE"#,
        queue.as_str(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok((lanes, queue))
}

/// Counts `tasks` that were just claimed into the lane's cap; a `CHECK` refuses one too many.
pub async fn take_cap(
    tx: &mut SystemTx,
    queue: QueueName,
    lanes: &[(AccountId, i32)],
    of_queue: i32,
) -> Result<()> {
    let accounts: Vec<Uuid> = lanes.iter().map(|(account, _)| account.0).collect();
    let tasks: Vec<i32> = lanes.iter().map(|(_, tasks)| *tasks).collect();
    sqlx::query!(
        "WITH lanes AS (
             UPDATE queue.lanes l SET running = l.running + taken.tasks
             FROM unnest($2::uuid[], $3::integer[]) AS taken (account_id, tasks)
             WHERE l.account_id = taken.account_id AND l.queue = $1)
         UPDATE queue.queues SET running = running + $4 WHERE queue = $1 AND $4 > 0",
        queue.as_str(),
        &accounts,
        &tasks,
        of_queue,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
