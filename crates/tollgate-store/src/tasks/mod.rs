//! The queue's tasks: enqueue, claim, and the ways a lease can end.
//!
//! Every end of a lease names its fencing token and reports whether it still held. Every change of a task's state counts
//! it in or out of its lane in the same statement ([`counted`]).
//!
//! Plans are pinned: each statement has one shape that an index answers, planned once for all arguments, and the
//! sessions rule out scans and hashes ([`crate::connect`]). Rows are picked by `ctid` from a subselect that locked them.
//! Times are compared with `now()` or `statement_timestamp()`: `clock_timestamp()` is volatile, and no index can be
//! asked for it.

mod claim;
mod end;
mod enqueue;
mod recover;

pub use claim::{LaneRoom, claim, lock_caps, take_cap};
pub use end::{bury, delete_task, finish, finish_all, release, retry_at};
pub use enqueue::{NewTask, due_in, enqueue, enqueue_all, hold_counts, open_lane, promote_due};
pub use recover::{
    bury_expired, bury_unleased, lock_dead_worker, orphan_workers, take_back, wake_lanes_with_work,
};

use std::time::Duration;

use sqlx::postgres::types::PgInterval;

pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// A statement whose CTE `change` has changed tasks, with what that makes of the counts: `queued`, `running`, `done` and
/// `failed` by which each row changes them, `awake` where it became ready, and the caps that counted it (`lane_capped`,
/// `queue_capped`), which it leaves. The rows of several lanes are touched in the order of their accounts; the last
/// of these CTEs runs first, so caps are locked before counts, as in a claim.
macro_rules! counted {
    ($change:literal, $select:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            $change
                + ", sums AS (
                 SELECT account_id, queue, sum(queued)::bigint AS queued, sum(running)::bigint AS running,
                        sum(done)::bigint AS done, sum(failed)::bigint AS failed, bool_or(awake) AS awake,
                        (count(*) FILTER (WHERE lane_capped))::integer AS lane_freed,
                        (count(*) FILTER (WHERE queue_capped))::integer AS queue_freed
                 FROM change GROUP BY account_id, queue ORDER BY account_id, queue
             ), counts AS (
                 INSERT INTO queue.lane_counts AS c (account_id, queue, queued, running, done, failed, awake)
                 SELECT account_id, queue, queued, running, done, failed, awake FROM sums
                 ON CONFLICT (account_id, queue, shard) DO UPDATE
                 SET queued = c.queued + excluded.queued, running = c.running + excluded.running,
                     done = c.done + excluded.done, failed = c.failed + excluded.failed,
                     awake = c.awake OR excluded.awake
             ), queues AS (
                 UPDATE queue.queues q
                 SET running = q.running - freed.tasks, overhang = greatest(q.overhang - freed.tasks, 0)
                 FROM (SELECT queue, sum(queue_freed)::integer AS tasks FROM sums GROUP BY queue
                       HAVING sum(queue_freed) > 0) AS freed
                 WHERE q.queue = freed.queue
             ), lanes AS (
                 UPDATE queue.lanes l
                 SET running = l.running - s.lane_freed, overhang = greatest(l.overhang - s.lane_freed, 0)
                 FROM sums s WHERE s.lane_freed > 0 AND l.account_id = s.account_id AND l.queue = s.queue
             ) "
                + $select,
            $($argument),*
        )
    };
}
pub(crate) use counted;
