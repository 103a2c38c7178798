//! Behind the API: what the database holds, and what every history must have kept.

use sqlx::AssertSqlSafe;
use tollgate_model::submission::Submission;
use uuid::Uuid;

use crate::TestApp;

/// Each finds rows that must not exist, whatever happened before. `text` names one of them.
const FORBIDDEN: [(&str, &str); 12] = [
    (
        "a job that has not ended has no task",
        "SELECT j.id::text FROM app.jobs j WHERE j.finished_at IS NULL
         AND NOT EXISTS (SELECT FROM queue.tasks t WHERE t.account_id = j.account_id AND t.id = j.id)",
    ),
    (
        "a task without a job that waits for it",
        "SELECT t.id::text FROM queue.tasks t
         WHERE t.queue LIKE 'generation.create%' AND NOT EXISTS (SELECT FROM app.jobs j WHERE j.account_id = t.account_id AND j.id = t.id
                           AND j.status = CASE t.state WHEN 'running' THEN 'running' ELSE 'queued' END)",
    ),
    (
        "a result of a job that did not succeed",
        "SELECT r.job_id::text FROM app.job_results r JOIN app.jobs j ON j.account_id = r.account_id AND j.id = r.job_id
         WHERE j.status <> 'succeeded'",
    ),
    (
        "a job that succeeded without a result",
        "SELECT j.id::text FROM app.jobs j WHERE j.status = 'succeeded'
         AND NOT EXISTS (SELECT FROM app.job_results r WHERE r.account_id = j.account_id AND r.job_id = j.id)",
    ),
    (
        "events with a gap, or a job that counted them wrongly",
        "SELECT j.id::text FROM app.jobs j JOIN app.job_events e ON e.account_id = j.account_id AND e.job_id = j.id
         GROUP BY j.account_id, j.id
         HAVING min(e.seq) <> 1 OR max(e.seq) <> count(*) OR max(e.seq) <> j.last_event",
    ),
    (
        "a job whose last event is not what became of it, or that ended more than once",
        "SELECT j.id::text FROM app.jobs j JOIN app.job_events e ON e.account_id = j.account_id AND e.job_id = j.id
         GROUP BY j.account_id, j.id
         HAVING count(*) FILTER (WHERE e.type IN ('job.completed', 'job.failed', 'job.cancelled'))
                - count(*) FILTER (WHERE e.type = 'job.redriven') <> (j.finished_at IS NOT NULL)::integer
             OR max(e.type) FILTER (WHERE e.seq = j.last_event) <> ALL (CASE j.status
                    WHEN 'queued' THEN ARRAY['job.queued', 'job.retrying', 'job.requeued', 'job.redriven']
                    WHEN 'running' THEN ARRAY['job.started']
                    WHEN 'succeeded' THEN ARRAY['job.completed']
                    ELSE ARRAY['job.' || j.status] END)",
    ),
    (
        "an event that cannot follow the one before it",
        "SELECT e.job_id::text FROM (SELECT job_id, type,
                    lag(type) OVER (PARTITION BY account_id, job_id ORDER BY seq) AS before FROM app.job_events) e
         WHERE CASE WHEN before IS NULL THEN type <> 'job.queued'
                    WHEN before = 'job.started' THEN type IN ('job.queued', 'job.started', 'job.redriven')
                    WHEN before IN ('job.queued', 'job.retrying', 'job.requeued', 'job.redriven')
                        THEN type NOT IN ('job.started', 'job.failed', 'job.cancelled')
                    -- Only a failed job is opened again, and only by an operator.
                    WHEN before = 'job.failed' THEN type <> 'job.redriven'
                    ELSE true END",
    ),
    (
        "a dead letter of a job that did not fail",
        "SELECT d.id::text FROM queue.dead_letters d JOIN app.jobs j ON j.account_id = d.account_id AND j.id = d.id
         WHERE j.status <> 'failed'",
    ),
    (
        UNLESS_PURGED,
        "SELECT j.id::text FROM app.jobs j WHERE j.status = 'failed'
         AND NOT EXISTS (SELECT FROM queue.dead_letters d WHERE d.account_id = j.account_id AND d.id = j.id)",
    ),
    (
        "a lane whose counts are not what its tasks say",
        "SELECT concat_ws(' ', account_id, queue, t.queued, t.running, 'counted', c.queued, c.running)
         FROM (SELECT account_id, queue, count(*) FILTER (WHERE state <> 'running') AS queued,
                      count(*) FILTER (WHERE state = 'running') AS running
               FROM queue.tasks GROUP BY account_id, queue) t
         FULL JOIN (SELECT account_id, queue, sum(queued) AS queued, sum(running) AS running
                    FROM queue.lane_counts GROUP BY account_id, queue) c USING (account_id, queue)
         WHERE (coalesce(t.queued, 0), coalesce(t.running, 0)) <> (coalesce(c.queued, 0), coalesce(c.running, 0))",
    ),
    (
        "a lane's limit that does not count just the tasks that run under it",
        "SELECT concat_ws(' ', account_id, queue, t.running, 'counted', l.running)
         FROM (SELECT account_id, queue, count(*) AS running, count(*) FILTER (WHERE lane_capped) AS counted
               FROM queue.tasks WHERE state = 'running' GROUP BY account_id, queue) t
         FULL JOIN queue.lanes l USING (account_id, queue)
         WHERE coalesce(t.counted, 0) <> coalesce(l.running, 0)
            OR coalesce(t.counted, 0) <> CASE WHEN l.max_running IS NULL THEN 0 ELSE coalesce(t.running, 0) END",
    ),
    (
        "a queue's limit that does not count just the tasks that run under it",
        "SELECT concat_ws(' ', queue, t.running, 'counted', q.running)
         FROM (SELECT queue, count(*) AS running, count(*) FILTER (WHERE queue_capped) AS counted
               FROM queue.tasks WHERE state = 'running' GROUP BY queue) t
         FULL JOIN queue.queues q USING (queue)
         WHERE coalesce(t.counted, 0) <> coalesce(q.running, 0)
            OR coalesce(t.counted, 0) <> CASE WHEN q.max_running IS NULL THEN 0 ELSE coalesce(t.running, 0) END",
    ),
];

/// Holds until an operator purges.
const UNLESS_PURGED: &str = "a failed job without a dead letter";

impl TestApp {
    /// Submits a prompt, with further wishes.
    pub async fn submit_with(&self, prompt: &str, wishes: Submission) -> Uuid {
        let submission = Submission { prompt: Some(prompt.to_owned()), ..wishes };
        self.client().submit(&submission).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A number from the database, as its owner sees it.
    pub async fn number(&self, sql: &str) -> i64 {
        let asked = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.owner).await;
        asked.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Changes the database behind Tollgate's back. Returns the rows that were touched.
    pub async fn change(&self, sql: &str) -> u64 {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.owner).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    /// What happened to the job, oldest first, without the `job.` that all events begin with.
    pub async fn history(&self, id: Uuid) -> Vec<String> {
        let sql = "SELECT substr(type, 5) FROM app.job_events WHERE job_id = $1 ORDER BY seq";
        let asked = sqlx::query_scalar(sql).bind(id).fetch_all(&self.owner).await;
        asked.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The reason's code, and the attempts counted, of the job's dead letter.
    pub async fn dead_letter(&self, id: Uuid) -> Option<(String, i32)> {
        let sql = "SELECT reason ->> 'code', attempts FROM queue.dead_letters WHERE id = $1";
        let asked = sqlx::query_as(sql).bind(id).fetch_optional(&self.owner).await;
        asked.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Holds the whole database against what must be true at every moment, of every job.
    pub async fn assert_consistent(&self) {
        self.assert_none(FORBIDDEN.iter()).await;
    }

    /// The same, where dead letters were purged.
    pub async fn assert_consistent_but_for_purged(&self) {
        self.assert_none(FORBIDDEN.iter().filter(|(what, _)| *what != UNLESS_PURGED)).await;
    }

    async fn assert_none(&self, forbidden: impl Iterator<Item = &(&'static str, &'static str)>) {
        for &(what, sql) in forbidden {
            let found: Vec<String> = sqlx::query_scalar(sql)
                .fetch_all(&self.owner)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(found.is_empty(), "{what}: {} of them, such as {}", found.len(), found[0]);
        }
    }
}
