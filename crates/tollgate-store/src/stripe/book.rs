//! An account's books: purchases, their payments, and what was taken back of those. Whoever changes them has the account's
//! balance locked ([`lock_balance`]), so what he reads is what he changes.

use tollgate_model::stripe::book::{Bought, Reversal};
use tollgate_model::stripe::reading::Purchase;

use crate::{Result, TenantTx};

/// Locks the account's money until the end of the transaction. `false`: there is no such account.
pub async fn lock_balance(tx: &mut TenantTx) -> Result<bool> {
    let account = tx.account().0;
    let locked = sqlx::query_scalar!(
        "SELECT posted FROM app.credit_balances WHERE account_id = $1 FOR NO KEY UPDATE",
        account
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(locked.is_some())
}

/// Enters an event. `false`: it has been entered before, and nothing more must come of it.
pub async fn add_event(tx: &mut TenantTx, event_id: &str, event_type: &str, credits: i64) -> Result<bool> {
    let account = tx.account().0;
    let done = sqlx::query!(
        "INSERT INTO app.stripe_events (account_id, event_id, type, credits) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        account,
        event_id,
        event_type,
        credits,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The customer is the account's.
pub async fn add_customer(tx: &mut TenantTx, customer: &str) -> Result<()> {
    let account = tx.account().0;
    sqlx::query!(
        "INSERT INTO app.stripe_customers (account_id, customer_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        account,
        customer,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Enters a purchase. `false`: it has been granted before.
pub async fn add_grant(tx: &mut TenantTx, purchase: &Purchase, bought: Bought) -> Result<bool> {
    let account = tx.account().0;
    let done = sqlx::query!(
        "INSERT INTO app.stripe_grants (account_id, object_id, amount, currency, credits) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
        account,
        purchase.object,
        bought.amount,
        purchase.currency,
        bought.credits,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// These payments were for that purchase. Returns those of which it was not known.
pub async fn add_payments(tx: &mut TenantTx, purchase: &str, payments: &[String]) -> Result<Vec<String>> {
    let account = tx.account().0;
    sqlx::query_scalar!(
        "INSERT INTO app.stripe_payments (account_id, payment_id, object_id)
         SELECT $1, payment_id, $3 FROM unnest($2::text[]) AS paid (payment_id) ON CONFLICT DO NOTHING
         RETURNING payment_id",
        account,
        payments,
        purchase,
    )
    .fetch_all(tx.conn())
    .await
}

/// Joins what an event says of a reversal with what is known of it.
pub async fn join_reversal(
    tx: &mut TenantTx,
    payment: &str,
    reversal: &str,
    currency: Option<&str>,
    what: Reversal,
) -> Result<()> {
    let account = tx.account().0;
    sqlx::query!(
        "INSERT INTO app.stripe_reversals AS r (account_id, payment_id, reversal_id, amount, withdrawn, returned, currency)
         VALUES ($1, $2, $3, greatest($4::bigint, 0), $5, $6, $7)
         ON CONFLICT (account_id, payment_id, reversal_id) DO UPDATE
         SET amount = greatest(r.amount, excluded.amount), withdrawn = r.withdrawn OR excluded.withdrawn,
             returned = r.returned OR excluded.returned, currency = coalesce(r.currency, excluded.currency)",
        account,
        payment,
        reversal,
        what.amount,
        what.withdrawn,
        what.returned,
        currency,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The purchases that a payment was for: one, as far as Stripe goes.
pub async fn purchases_of(tx: &mut TenantTx, payment: &str) -> Result<Vec<String>> {
    let account = tx.account().0;
    sqlx::query_scalar!(
        "SELECT object_id FROM app.stripe_payments WHERE account_id = $1 AND payment_id = $2 ORDER BY object_id",
        account,
        payment,
    )
    .fetch_all(tx.conn())
    .await
}

/// A purchase as it was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGrant {
    /// What was bought.
    pub bought: Bought,
    /// What it was paid in.
    pub currency: String,
    /// How much of it has been taken back so far.
    pub taken_back: i64,
}

/// The grant of a purchase; `None`: it has not been granted yet.
pub async fn grant_of(tx: &mut TenantTx, purchase: &str) -> Result<Option<StoredGrant>> {
    let account = tx.account().0;
    sqlx::query!(
        "SELECT amount, currency, credits, taken_back FROM app.stripe_grants WHERE account_id = $1 AND object_id = $2",
        account,
        purchase,
    )
    .map(|row| StoredGrant {
        bought: Bought { amount: row.amount, credits: row.credits },
        currency: row.currency,
        taken_back: row.taken_back,
    })
    .fetch_optional(tx.conn())
    .await
}

/// A reversal of a purchase's payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReversal {
    /// The charge, for its refunds; or the dispute.
    pub id: String,
    /// What it is a reversal of.
    pub payment: String,
    /// The currency of the amount; `None`: Stripe did not say.
    pub currency: Option<String>,
    /// How much, and whether it is gone.
    pub what: Reversal,
}

/// All that was taken back of a purchase's payments.
pub async fn reversals_of(tx: &mut TenantTx, purchase: &str) -> Result<Vec<StoredReversal>> {
    let account = tx.account().0;
    sqlx::query!(
        "SELECT r.reversal_id, r.payment_id, r.currency, r.amount, r.withdrawn, r.returned
         FROM app.stripe_payments p, LATERAL (SELECT * FROM app.stripe_reversals
                                              WHERE account_id = $1 AND payment_id = p.payment_id OFFSET 0) AS r
         WHERE p.account_id = $1 AND p.object_id = $2",
        account,
        purchase,
    )
    .map(|row| StoredReversal {
        id: row.reversal_id,
        payment: row.payment_id,
        currency: row.currency,
        what: Reversal { amount: row.amount, withdrawn: row.withdrawn, returned: row.returned },
    })
    .fetch_all(tx.conn())
    .await
}

/// So many of a purchase's credits have been taken back.
pub async fn set_taken_back(tx: &mut TenantTx, purchase: &str, credits: i64) -> Result<()> {
    let account = tx.account().0;
    sqlx::query!(
        "UPDATE app.stripe_grants SET taken_back = $3 WHERE account_id = $1 AND object_id = $2",
        account,
        purchase,
        credits,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
