//! Accounts.

use sqlx::PgPool;
use tollgate_model::account::{Account, AccountId};

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

/// Every account, oldest first. For the operator's role alone; to others the wall shows none.
pub async fn list_accounts(pool: &PgPool) -> Result<Vec<Account>> {
    sqlx::query!(
        r#"SELECT a.account_id, a.name, a.created_at, b.posted - b.held AS "balance!", b.owed
         FROM app.accounts a JOIN app.credit_balances b USING (account_id) ORDER BY a.account_id"#
    )
    .map(|row| Account {
        account_id: AccountId(row.account_id),
        name: row.name,
        credits: row.balance,
        owed: row.owed,
        created_at: row.created_at,
    })
    .fetch_all(pool)
    .await
}

/// Up to `limit` accounts after `after`, in the order of their ids, and nothing else of any.
pub async fn accounts_after(pool: &PgPool, after: AccountId, limit: i32) -> Result<Vec<AccountId>> {
    let ids =
        sqlx::query_scalar!(r#"SELECT account_id AS "id!" FROM app.accounts_after($1, $2)"#, after.0, limit);
    Ok(ids.fetch_all(pool).await?.into_iter().map(AccountId).collect())
}
