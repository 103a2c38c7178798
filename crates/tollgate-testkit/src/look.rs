//! Behind the API: what the database holds, and what every history must have kept.

use sqlx::AssertSqlSafe;
use tollgate_model::submission::Submission;
use uuid::Uuid;

use crate::TestApp;

/// Each finds rows that must not exist, whatever happened before. `text` names one of them.
const FORBIDDEN: [(&str, &str); 9] = [
    (
        "a job that has not ended has no task",
        "SELECT j.id::text FROM app.jobs j WHERE j.finished_at IS NULL
         AND NOT EXISTS (SELECT FROM queue.tasks t WHERE t.account_id = j.account_id AND t.id = j.id)",
    ),
    (
        "a task without a job that waits for it",
        "SELECT t.id::text FROM queue.tasks t
         WHERE NOT EXISTS (SELECT FROM app.jobs j WHERE j.account_id = t.account_id AND j.id = t.id
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
                <> (j.finished_at IS NOT NULL)::integer
             OR max(e.type) FILTER (WHERE e.seq = j.last_event) <> ALL (CASE j.status
                    WHEN 'queued' THEN ARRAY['job.queued', 'job.retrying', 'job.requeued']
                    WHEN 'running' THEN ARRAY['job.started']
                    WHEN 'succeeded' THEN ARRAY['job.completed']
                    ELSE ARRAY['job.' || j.status] END)",
    ),
    (
        "an event that cannot follow the one before it",
        "SELECT e.job_id::text FROM (SELECT job_id, type,
                    lag(type) OVER (PARTITION BY account_id, job_id ORDER BY seq) AS before FROM app.job_events) e
         WHERE CASE WHEN before IS NULL THEN type <> 'job.queued'
                    WHEN before = 'job.started' THEN type IN ('job.queued', 'job.started')
                    WHEN before IN ('job.queued', 'job.retrying', 'job.requeued')
                        THEN type NOT IN ('job.started', 'job.failed', 'job.cancelled')
                    ELSE true END",
    ),
    (
        "a dead letter of a job that did not fail",
        "SELECT d.id::text FROM queue.dead_letters d JOIN app.jobs j ON j.account_id = d.account_id AND j.id = d.id
         WHERE j.status <> 'failed'",
    ),
    (
        "a failed job without a dead letter",
        "SELECT j.id::text FROM app.jobs j WHERE j.status = 'failed'
         AND NOT EXISTS (SELECT FROM queue.dead_letters d WHERE d.account_id = j.account_id AND d.id = j.id)",
    ),
];

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
        for (what, sql) in FORBIDDEN {
            let found: Vec<String> = sqlx::query_scalar(sql)
                .fetch_all(&self.owner)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(found.is_empty(), "{what}: {} of them, such as job {}", found.len(), found[0]);
        }
    }
}
