//! Prices that operators have set, of now and of other times. They are only ever added.

use sqlx::PgPool;
use sqlx::types::Json;
use tollgate_model::pricing::Price;

use crate::{Result, SystemTx};

/// All of them, oldest first. What this version cannot read is left out, with an error in the log.
pub async fn prices(pool: &PgPool) -> Result<Vec<Price>> {
    let rows = sqlx::query_scalar!("SELECT price FROM billing.prices ORDER BY id").fetch_all(pool).await?;
    let read = |row| {
        serde_json::from_value(row).map_err(|error| log::error!("a price cannot be read: {error}")).ok()
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Adds one.
pub async fn insert_price(tx: &mut SystemTx, price: &Price) -> Result<()> {
    sqlx::query!("INSERT INTO billing.prices (price) VALUES ($1)", Json(price) as _)
        .execute(tx.conn())
        .await?;
    Ok(())
}
