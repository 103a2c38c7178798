//! Whether the ledger adds up to the balance.

use uuid::Uuid;

use crate::{Result, TenantTx};

/// An account's balance beside what its ledger adds up to, in one snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// `posted - held` of the balance, and the sum of the entries' `delta`.
    pub balance: (i64, i64),
    /// `held` of both.
    pub held: (i64, i64),
    /// `owed` of both.
    pub owed: (i64, i64),
}

/// Adds up to `limit` further entries below the id `until` to the account's sums: entries of that age are complete. Returns
/// how many it were. Who comes at the same time waits, and adds the next.
pub async fn advance_sums(tx: &mut TenantTx, until: Uuid, limit: i64) -> Result<i64> {
    let account = tx.account().0;
    sqlx::query!("INSERT INTO app.ledger_sums (account_id) VALUES ($1) ON CONFLICT DO NOTHING", account)
        .execute(tx.conn())
        .await?;
    let last =
        sqlx::query_scalar!("SELECT until FROM app.ledger_sums WHERE account_id = $1 FOR UPDATE", account)
            .fetch_one(tx.conn())
            .await?;
    sqlx::query_scalar!(
        r#"WITH next AS MATERIALIZED (
               SELECT id, delta, held, owed FROM app.credits_ledger
               WHERE account_id = $1 AND id > $2 AND id < $3 ORDER BY id LIMIT $4
           ), sums AS (
               SELECT count(*) AS entries, sum(delta)::bigint AS delta, sum(held)::bigint AS held,
                      sum(owed)::bigint AS owed, (SELECT id FROM next ORDER BY id DESC LIMIT 1) AS until
               FROM next
           ), added AS (
               UPDATE app.ledger_sums s
               SET until = sums.until, delta = s.delta + sums.delta, held = s.held + sums.held, owed = s.owed + sums.owed
               FROM sums WHERE s.account_id = $1 AND sums.entries > 0
           )
           SELECT entries AS "entries!" FROM sums"#,
        account,
        last,
        until,
        limit,
    )
    .fetch_one(tx.conn())
    .await
}

/// The account's books. `None`: there is no such account. One statement, so that both sides are of one moment.
///
/// From where on to add up comes as a column: behind the wall, an expression (`coalesce`) is no bound of a walk, and each
/// look read the whole ledger.
pub async fn books(tx: &mut TenantTx) -> Result<Option<Books>> {
    sqlx::query!(
        r#"WITH known AS MATERIALIZED (
               SELECT b.posted - b.held AS balance, b.held, b.owed,
                      coalesce(s.until, '00000000-0000-0000-0000-000000000000') AS until, coalesce(s.delta, 0) AS sum_delta,
                      coalesce(s.held, 0) AS sum_held, coalesce(s.owed, 0) AS sum_owed
               FROM app.credit_balances b LEFT JOIN app.ledger_sums s ON s.account_id = b.account_id
               WHERE b.account_id = $1
           )
           SELECT balance AS "balance!", known.held AS "held!", known.owed AS "owed!",
                  sum_delta + l.delta AS "sum_delta!", sum_held + l.held AS "sum_held!", sum_owed + l.owed AS "sum_owed!"
           FROM known,
                LATERAL (SELECT coalesce(sum(delta), 0)::bigint AS delta, coalesce(sum(held), 0)::bigint AS held,
                                coalesce(sum(owed), 0)::bigint AS owed
                         FROM app.credits_ledger WHERE account_id = $1 AND id > known.until) AS l"#,
        tx.account().0,
    )
    .map(|row| Books {
        balance: (row.balance, row.sum_delta),
        held: (row.held, row.sum_held),
        owed: (row.owed, row.sum_owed),
    })
    .fetch_optional(tx.conn())
    .await
}

/// The same over every entry there is, and what the account's jobs that have not ended hold: for the operator's command.
/// It takes the longer the longer the ledger is.
pub async fn all_books(tx: &mut TenantTx) -> Result<Option<(Books, i64)>> {
    sqlx::query!(
        r#"SELECT b.posted - b.held AS "balance!", b.held, b.owed, l.delta AS "sum_delta!", l.held AS "sum_held!",
                  l.owed AS "sum_owed!", j.held AS "jobs_hold!"
           FROM app.credit_balances b,
                LATERAL (SELECT coalesce(sum(delta), 0)::bigint AS delta, coalesce(sum(held), 0)::bigint AS held,
                                coalesce(sum(owed), 0)::bigint AS owed
                         FROM app.credits_ledger WHERE account_id = $1) AS l,
                LATERAL (SELECT coalesce(sum(credits_held), 0)::bigint AS held
                         FROM app.jobs WHERE account_id = $1 AND finished_at IS NULL) AS j
           WHERE b.account_id = $1"#,
        tx.account().0,
    )
    .map(|row| {
        let books = Books {
            balance: (row.balance, row.sum_delta),
            held: (row.held, row.sum_held),
            owed: (row.owed, row.sum_owed),
        };
        (books, row.jobs_hold)
    })
    .fetch_optional(tx.conn())
    .await
}
