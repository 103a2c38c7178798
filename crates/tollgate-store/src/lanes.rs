//! Lanes: which may have work, what an operator has set for them, and how much they hold.

use tollgate_model::account::AccountId;
use tollgate_model::lanes::ListedLane;
use tollgate_model::queue::{QueueCounts, QueueName, QueueState};
use uuid::Uuid;

use crate::tx::Tx;
use crate::{Result, SystemTx};

/// The lanes of a queue that are awake, those of the `limit` accounts after `after`, in the order of accounts; and the
/// settings that are in force for this worker, where there are lanes and the worker is registered.
pub async fn awake_lanes(
    tx: &mut impl Tx,
    queue: QueueName,
    worker: Uuid,
    after: AccountId,
    limit: i64,
) -> Result<(Vec<ListedLane>, Option<i64>)> {
    let rows = sqlx::query!(
        r#"SELECT awake.account_id, coalesce(l.weight, 1::smallint) AS "weight!",
                  l.max_running IS NOT NULL OR (SELECT max_running IS NOT NULL FROM queue.queues WHERE queue = $1)
                      AS "capped!",
                  (SELECT q.settings FROM queue.workers w, queue.queues q WHERE w.id = $4 AND q.queue = $1)
                      AS settings
           FROM (SELECT DISTINCT account_id FROM queue.lane_counts
                 WHERE queue = $1 AND awake AND account_id > $2 ORDER BY account_id LIMIT $3) AS awake
           LEFT JOIN queue.lanes l ON l.account_id = awake.account_id AND l.queue = $1"#,
        queue.as_str(),
        after.0,
        limit,
        worker,
    )
    .fetch_all(tx.connection())
    .await?;
    let settings = rows.first().and_then(|row| row.settings);
    let lanes = rows.into_iter().map(|row| ListedLane {
        account: AccountId(row.account_id),
        weight: u16::try_from(row.weight).unwrap_or(1),
        capped: row.capped,
    });
    Ok((lanes.collect(), settings))
}

/// Locks what says that these lanes are awake, so that nobody can be making one of their tasks ready unseen. Shards that
/// are just being touched are passed over; their lane stays awake. In a statement of its own: [`put_to_sleep`] must see
/// what had been committed when the locks were had.
pub async fn lock_lanes(tx: &mut SystemTx, queue: QueueName, accounts: &[Uuid]) -> Result<Vec<(Uuid, i16)>> {
    sqlx::query!(
        "SELECT c.account_id, c.shard
         FROM unnest($2::uuid[]) AS lane (account_id),
              LATERAL (SELECT account_id, shard FROM queue.lane_counts
                       WHERE account_id = lane.account_id AND queue = $1 AND awake
                       ORDER BY shard FOR UPDATE SKIP LOCKED) AS c",
        queue.as_str(),
        accounts,
    )
    .map(|row| (row.account_id, row.shard))
    .fetch_all(tx.conn())
    .await
}

/// Puts the locked shards of lanes without a ready task to sleep. Neither by `NOT EXISTS` nor by a join: planned on a nearly
/// empty table, either reads all there is once a lane. Rows are named by `ctid`, since nobody else can move them now.
pub async fn put_to_sleep(
    tx: &mut SystemTx,
    queue: QueueName,
    locked: &[(Uuid, i16)],
) -> Result<Vec<AccountId>> {
    let accounts: Vec<Uuid> = locked.iter().map(|(account, _)| *account).collect();
    let shards: Vec<i16> = locked.iter().map(|(_, shard)| *shard).collect();
    sqlx::query!(
        "UPDATE queue.lane_counts SET awake = false
         WHERE ctid = ANY (ARRAY(
             SELECT c.row
             FROM unnest($2::uuid[], $3::smallint[]) AS locked (account_id, shard),
                  LATERAL (SELECT ctid AS row FROM queue.lane_counts
                           WHERE account_id = locked.account_id AND queue = $1 AND shard = locked.shard LIMIT 1) AS c
             WHERE (SELECT t.id FROM queue.tasks t
                    WHERE t.queue = $1 AND t.account_id = locked.account_id AND t.state = 'ready'
                    ORDER BY t.rank, t.position LIMIT 1) IS NULL))
         RETURNING account_id",
        queue.as_str(),
        &accounts,
        &shards,
    )
    .map(|row| AccountId(row.account_id))
    .fetch_all(tx.conn())
    .await
}

/// How many tasks an account has in these queues together: a sum over its shards.
pub async fn lane_counts(tx: &mut impl Tx, queues: &[QueueName], account: AccountId) -> Result<QueueCounts> {
    let queues: Vec<&str> = queues.iter().map(|queue| queue.as_str()).collect();
    sqlx::query_as!(
        QueueCounts,
        r#"SELECT coalesce(sum(queued), 0)::bigint AS "queued!", coalesce(sum(running), 0)::bigint AS "running!",
                  coalesce(sum(done), 0)::bigint AS "done!", coalesce(sum(failed), 0)::bigint AS "failed!"
           FROM queue.lane_counts WHERE account_id = $1 AND queue = ANY ($2)"#,
        account.0,
        &queues as _,
    )
    .fetch_one(tx.connection())
    .await
}

/// How many tasks a queue has, over all accounts. Its cost grows with the number of accounts, not of tasks.
pub async fn queue_counts(tx: &mut impl Tx, queue: QueueName) -> Result<QueueCounts> {
    sqlx::query_as!(
        QueueCounts,
        r#"SELECT queued AS "queued!", running AS "running!", done AS "done!", failed AS "failed!"
           FROM queue.totals($1)"#,
        queue.as_str(),
    )
    .fetch_one(tx.connection())
    .await
}

/// What an operator has set for a lane, or for a queue as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSettings {
    /// Its share beside others'.
    pub weight: u16,
    /// How many of its tasks may run at a time; `None`: no limit.
    pub max_running: Option<i32>,
}

/// Keeps everybody from changing a task until this transaction ends, after waiting for those who are; and makes claims that
/// were planned before take nothing. Whoever changes a weight or a cap begins with this: it is rare, short, and exact. It
/// fails soon where somebody else has the table (a vacuum): everybody else waits behind it meanwhile.
pub async fn change_settings(tx: &mut SystemTx) -> Result<()> {
    sqlx::query!("SET LOCAL lock_timeout = '200ms'").execute(tx.conn()).await?;
    sqlx::query!("LOCK TABLE queue.tasks IN SHARE ROW EXCLUSIVE MODE").execute(tx.conn()).await?;
    sqlx::query!("UPDATE queue.queues SET settings = settings + 1").execute(tx.conn()).await?;
    Ok(())
}

/// What is set for a lane.
pub async fn lane_settings(tx: &mut SystemTx, queue: QueueName, account: AccountId) -> Result<LaneSettings> {
    let row = sqlx::query!(
        "SELECT weight, max_running FROM queue.lanes WHERE account_id = $1 AND queue = $2",
        account.0,
        queue.as_str(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map_or(LaneSettings { weight: 1, max_running: None }, |row| LaneSettings {
        weight: u16::try_from(row.weight).unwrap_or(1),
        max_running: row.max_running,
    }))
}

/// Every queue, with its counts over all accounts and its cap.
pub async fn queue_states(tx: &mut impl Tx) -> Result<Vec<QueueState>> {
    let rows = sqlx::query!(
        r#"SELECT q.queue, q.max_running, t.queued AS "queued!", t.running AS "running!", t.done AS "done!",
                  t.failed AS "failed!"
           FROM queue.queues q, queue.totals(q.queue) t ORDER BY q.queue"#
    )
    .fetch_all(tx.connection())
    .await?;
    let states = rows.into_iter().filter_map(|row| {
        Some(QueueState {
            // One that a newer version has brought is that version's to show.
            queue: QueueName::parse(&row.queue)?,
            queued: row.queued,
            running: row.running,
            done: row.done,
            failed: row.failed,
            max_running: row.max_running,
        })
    });
    Ok(states.collect())
}

/// Sets a lane's share and cap, after [`change_settings`]. What runs already is counted in, as overhang where it is
/// more than the cap.
pub async fn set_lane(
    tx: &mut SystemTx,
    queue: QueueName,
    account: AccountId,
    settings: LaneSettings,
) -> Result<()> {
    sqlx::query!(
        "WITH counted AS (
             UPDATE queue.tasks SET lane_capped = $4::integer IS NOT NULL
             WHERE account_id = $1 AND queue = $2 AND state = 'running' AND lane_capped <> ($4::integer IS NOT NULL)
             RETURNING id
         ), running AS (
             SELECT CASE WHEN $4::integer IS NULL THEN 0
                         ELSE coalesce((SELECT running FROM queue.lanes WHERE account_id = $1 AND queue = $2), 0)
                              + (SELECT count(*) FROM counted)::integer END AS tasks
         )
         INSERT INTO queue.lanes AS l (account_id, queue, weight, max_running, running, overhang)
         SELECT $1, $2, $3, $4, tasks, greatest(tasks - coalesce($4, tasks), 0) FROM running
         ON CONFLICT (account_id, queue) DO UPDATE
         SET weight = excluded.weight, max_running = excluded.max_running, running = excluded.running,
             overhang = excluded.overhang",
        account.0,
        queue.as_str(),
        i16::try_from(settings.weight).unwrap_or(i16::MAX),
        settings.max_running,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Sets how many of a queue's tasks may run at a time, after [`change_settings`]. What runs already is counted in.
pub async fn set_queue(tx: &mut SystemTx, queue: QueueName, max_running: Option<i32>) -> Result<()> {
    sqlx::query!(
        "WITH counted AS (
             UPDATE queue.tasks SET queue_capped = $2::integer IS NOT NULL
             WHERE queue = $1 AND state = 'running' AND queue_capped <> ($2::integer IS NOT NULL)
             RETURNING id
         ), running AS (
             SELECT CASE WHEN $2::integer IS NULL THEN 0
                         ELSE (SELECT running FROM queue.queues WHERE queue = $1)
                              + (SELECT count(*) FROM counted)::integer END AS tasks
         )
         UPDATE queue.queues
         SET max_running = $2, running = tasks, overhang = greatest(tasks - coalesce($2, tasks), 0)
         FROM running WHERE queue = $1",
        queue.as_str(),
        max_running,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
