//! Accounts, and the credits posted to them.

use sqlx::PgPool;
use tollgate_model::account::{Account, AccountId};
use uuid::Uuid;

use crate::{Result, TenantTx};

/// Opens the account that the transaction is in the name of, with an empty balance.
pub async fn insert_account(tx: &mut TenantTx, name: &str) -> Result<()> {
    let account = tx.account().0;
    sqlx::query!(
        "WITH account AS (INSERT INTO app.accounts (account_id, name) VALUES ($1, $2))
         INSERT INTO app.credit_balances (account_id) VALUES ($1)",
        account,
        name,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Adds an entry to the ledger and its delta to the balance. `None`: there is no such account.
/// The balance's row is the account's lock for money, and its CHECK refuses to go below 0.
pub async fn post_credits(
    tx: &mut TenantTx,
    entry: Uuid,
    delta: i64,
    reason: &str,
    note: Option<&str>,
) -> Result<Option<i64>> {
    sqlx::query_scalar!(
        r#"WITH balance AS (
               UPDATE app.credit_balances SET posted = posted + $3 WHERE account_id = $1 RETURNING posted
           ), entry AS (
               INSERT INTO app.credits_ledger (account_id, id, delta, reason, note)
               SELECT $1, $2, $3, $4, $5 FROM balance
           )
           SELECT posted FROM balance"#,
        tx.account().0,
        entry,
        delta,
        reason,
        note,
    )
    .fetch_optional(tx.conn())
    .await
}

/// The account's credits; `None`: there is no such account.
pub async fn balance(tx: &mut TenantTx) -> Result<Option<i64>> {
    sqlx::query_scalar!("SELECT posted FROM app.credit_balances WHERE account_id = $1", tx.account().0)
        .fetch_optional(tx.conn())
        .await
}

/// Every account, oldest first. For the operator's role alone; to others the wall shows none.
pub async fn list_accounts(pool: &PgPool) -> Result<Vec<Account>> {
    sqlx::query!(
        "SELECT a.account_id, a.name, a.created_at, b.posted
         FROM app.accounts a JOIN app.credit_balances b USING (account_id) ORDER BY a.account_id"
    )
    .map(|row| Account {
        account_id: AccountId(row.account_id),
        name: row.name,
        credits: row.posted,
        created_at: row.created_at,
    })
    .fetch_all(pool)
    .await
}
