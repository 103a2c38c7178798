//! The books: what must be true of credits at every moment, in every snapshot, of every account (SPEC C1, C2).

use sqlx::{AssertSqlSafe, PgPool};

use crate::TestApp;

/// Each finds what must not be, whatever happened before, and says of whom.
const FORBIDDEN: [(&str, &str); 9] = [
    (
        "a balance below zero, or one that holds more than there is, or of who could pay what he owes",
        "SELECT to_jsonb(b)::text FROM app.credit_balances b
         WHERE NOT (posted >= held AND held >= 0 AND owed >= 0) OR owed > 0 AND posted > held",
    ),
    (
        "a balance that is not the sum of its ledger",
        "SELECT concat_ws(' ', account_id, 'has', posted - held, held, owed, 'by its ledger', l.delta, l.held_, l.owed_)
         FROM app.credit_balances b FULL JOIN
             (SELECT account_id, sum(delta) AS delta, sum(held) AS held_, sum(owed) AS owed_
              FROM app.credits_ledger GROUP BY account_id) l USING (account_id)
         WHERE (coalesce(posted - held, 0), coalesce(held, 0), coalesce(owed, 0))
            <> (coalesce(l.delta, 0), coalesce(l.held_, 0), coalesce(l.owed_, 0))",
    ),
    (
        "an account that had more or less than it was granted and was charged",
        "SELECT account_id::text FROM app.credits_ledger GROUP BY account_id
         HAVING sum(delta + held + charged - owed) <> sum(granted)",
    ),
    (
        "credits held that no open job holds",
        "SELECT concat_ws(' ', account_id, 'holds', b.held, 'its jobs', j.held)
         FROM app.credit_balances b LEFT JOIN
             (SELECT account_id, sum(credits_held) AS held FROM app.jobs GROUP BY account_id) j USING (account_id)
         WHERE b.held <> coalesce(j.held, 0)",
    ),
    (
        "an open job without its estimate held, or an ended one that holds something",
        "SELECT id || ' ' || status || ' holds ' || credits_held FROM app.jobs
         WHERE credits_held <> CASE WHEN finished_at IS NULL THEN coalesce((quote ->> 'estimate')::bigint, 0) ELSE 0 END",
    ),
    (
        "a hold that was not resolved exactly once",
        "SELECT concat_ws(' ', j.id, j.status, 'reserved', l.reserved, 'resolved', l.resolved, 'times, left', l.held)
         FROM app.jobs j LEFT JOIN
             (SELECT account_id, job_id, sum(held) AS held, count(*) FILTER (WHERE held > 0) AS reserved,
                     count(*) FILTER (WHERE held < 0) AS resolved
              FROM app.credits_ledger WHERE job_id IS NOT NULL GROUP BY account_id, job_id) l
             ON l.account_id = j.account_id AND l.job_id = j.id
         WHERE coalesce(l.held, 0) <> j.credits_held
            OR coalesce(l.reserved - l.resolved, 0) <> (j.credits_held > 0)::integer",
    ),
    (
        "a job charged twice, or without having succeeded, or otherwise than its ledger says",
        "SELECT concat_ws(' ', j.id, j.status, 'charged', j.credits_charged, 'by its ledger', l.charged, 'times', l.times)
         FROM app.jobs j LEFT JOIN
             (SELECT account_id, job_id, sum(charged) AS charged, count(*) AS times FROM app.credits_ledger
              WHERE reason = 'confirm' GROUP BY account_id, job_id) l ON l.account_id = j.account_id AND l.job_id = j.id
         WHERE coalesce(l.charged, 0) <> j.credits_charged OR l.times > 1 OR l.times > 0 AND j.status <> 'succeeded'",
    ),
    (
        "a text job that costs something else than its usage, by the price it was accepted under",
        "SELECT concat_ws(' ', j.id, 'charged', j.credits_charged, 'for', r.prompt_tokens, r.completion_tokens)
         FROM app.jobs j JOIN app.job_results r ON r.account_id = j.account_id AND r.job_id = j.id
         WHERE j.request ->> 'endpoint' <> 'images' AND r.prompt_tokens + r.completion_tokens > 0
           AND j.credits_charged <> coalesce(ceil((r.prompt_tokens * (j.quote #>> '{rates,prompt}')::numeric
                + r.completion_tokens * (j.quote #>> '{rates,completion}')::numeric) / 1000000), 0)",
    ),
    (
        "an answer kept for a job that is not there",
        "SELECT i.key FROM app.idempotency_keys i WHERE i.method = 'POST' AND i.status = 202 AND NOT EXISTS (
             SELECT FROM app.jobs j WHERE j.account_id = i.account_id AND i.location = '/v1/jobs/' || j.id
                                      AND convert_from(i.response, 'UTF8')::jsonb ->> 'job_id' = j.id::text)",
    ),
];

/// What is wrong with the books, from one snapshot; nothing, if all is well.
pub async fn wrong_in_the_books(owner: &PgPool) -> Vec<(String, String)> {
    let all: Vec<String> = FORBIDDEN
        .iter()
        .map(|(what, sql)| format!("SELECT '{what}' AS what, * FROM ({sql}) AS found (whose)"))
        .collect();
    let sql = all.join(" UNION ALL ");
    sqlx::query_as(AssertSqlSafe(sql)).fetch_all(owner).await.unwrap_or_else(|error| panic!("{error}"))
}

impl TestApp {
    /// Holds the books of all accounts against what must be true at every moment.
    pub async fn assert_books(&self) {
        let wrong = wrong_in_the_books(&self.owner).await;
        assert!(wrong.is_empty(), "the books are wrong: {wrong:#?}");
    }
}
