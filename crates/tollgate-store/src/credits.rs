//! Credits: balances, and the ledger's entries. Entries are only ever added.
//!
//! The balance's row is the account's lock for money, and its CHECK refuses to go below 0. Every statement that changes it
//! adds the entry that says why, so that the two cannot part.
//!
//! Who owes has nothing to spend: another CHECK of that row. So whatever comes free, or is granted, pays what is owed
//! first, and what is owed moves by `greatest(-(what there is now), -owed)`: up where there is less than nothing, down
//! where there is more.

use tollgate_model::credits::{Balance, EntryReason, LedgerEntry};
use uuid::Uuid;

use crate::{Result, TenantTx};

/// Credits from outside, or back there. They pay what is owed first; what is taken back beyond what may be spent is owed.
/// `None`: there is no such account.
pub async fn grant(
    tx: &mut TenantTx,
    entry: Uuid,
    credits: i64,
    reason: EntryReason,
    note: Option<&str>,
) -> Result<Option<Balance>> {
    sqlx::query!(
        r#"WITH before AS MATERIALIZED (
               SELECT posted, held, owed FROM app.credit_balances WHERE account_id = $1 FOR UPDATE
           ), moved AS MATERIALIZED (
               SELECT greatest(-$3::bigint - (posted - held), -owed) AS owed FROM before
           ), after AS (
               UPDATE app.credit_balances b SET posted = b.posted + $3 + moved.owed, owed = b.owed + moved.owed
               FROM moved WHERE b.account_id = $1 RETURNING b.posted, b.held, b.owed
           ), entry AS (
               INSERT INTO app.credits_ledger (account_id, id, delta, owed, granted, reason, note)
               SELECT $1, $2, $3 + owed, owed, $3, $4, $5 FROM moved
           )
           SELECT posted, held, owed FROM after"#,
        tx.account().0,
        entry,
        credits,
        reason.as_str(),
        note,
    )
    .map(|row| Balance::new(row.posted, row.held, row.owed))
    .fetch_optional(tx.conn())
    .await
}

/// Frees what is held for jobs that have failed or were called off, and pays with it what is owed; once, however often it
/// is asked. `entries` are the ledger's new ids, one for each job. Of the rows that others wait for, what the keys have
/// spent comes before the balance.
pub async fn refund(tx: &mut TenantTx, jobs: &[Uuid], entries: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "WITH job AS MATERIALIZED (
             SELECT asked.id, asked.entry, own.held, own.counted_as, own.day
             FROM unnest($2::uuid[], $3::uuid[]) AS asked (id, entry),
                  LATERAL (SELECT j.credits_held AS held, (j.created_at AT TIME ZONE 'UTC')::date AS day,
                                  (SELECT k.counted_as FROM app.api_keys k
                                   WHERE k.account_id = $1 AND k.id = j.key_id) AS counted_as
                           FROM app.jobs j WHERE j.account_id = $1 AND j.id = asked.id AND j.credits_held > 0 LIMIT 1
                           FOR NO KEY UPDATE) AS own
         ), spent AS MATERIALIZED (
             SELECT own.day FROM job, LATERAL (SELECT s.day FROM app.key_spending s
                                               WHERE s.account_id = $1 AND s.key_id = job.counted_as AND s.day = job.day
                                               LIMIT 1 FOR NO KEY UPDATE) AS own
         ), debt AS MATERIALIZED (
             SELECT owed FROM app.credit_balances
             WHERE account_id = $1 AND (SELECT count(*) FROM job) > 0 AND (SELECT count(*) FROM spent) >= 0
             FOR NO KEY UPDATE
         ), moved AS MATERIALIZED (
             -- Each pays what those before it have left.
             SELECT id, entry, held,
                    least(held, greatest(owed + held - sum(held) OVER (ROWS UNBOUNDED PRECEDING), 0))::bigint AS paid
             FROM job, debt
         ), freed AS (
             UPDATE app.jobs j SET credits_held = 0 FROM job WHERE j.account_id = $1 AND j.id = job.id
         ), balance AS (
             UPDATE app.credit_balances b
             SET posted = b.posted - sums.paid, held = b.held - sums.held, owed = b.owed - sums.paid
             FROM (SELECT sum(held)::bigint AS held, sum(paid)::bigint AS paid FROM moved HAVING count(*) > 0) AS sums
             WHERE b.account_id = $1
         ), spending AS (
             UPDATE app.key_spending s SET credits = greatest(s.credits - sums.held, 0)
             FROM (SELECT counted_as, day, sum(held)::bigint AS held FROM job GROUP BY counted_as, day) AS sums
             WHERE s.account_id = $1 AND s.key_id = sums.counted_as AND s.day = sums.day
         )
         INSERT INTO app.credits_ledger (account_id, id, delta, held, owed, reason, job_id)
         SELECT $1, entry, held - paid, -held, -paid, $4, id FROM moved",
        tx.account().0,
        jobs,
        entries,
        EntryReason::Refund.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The account's credits; `None`: there is no such account.
pub async fn balance(tx: &mut TenantTx) -> Result<Option<Balance>> {
    sqlx::query!("SELECT posted, held, owed FROM app.credit_balances WHERE account_id = $1", tx.account().0)
        .map(|row| Balance::new(row.posted, row.held, row.owed))
        .fetch_optional(tx.conn())
        .await
}

/// Entries by age, newest first, older than `before`.
pub async fn ledger_page(tx: &mut TenantTx, before: Option<Uuid>, limit: i64) -> Result<Vec<LedgerEntry>> {
    sqlx::query_as!(
        LedgerEntry,
        "SELECT id, reason, delta, held, charged, owed, granted, job_id, note, created_at FROM app.credits_ledger
         WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        tx.account().0,
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .fetch_all(tx.conn())
    .await
}
