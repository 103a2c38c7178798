//! Whether an account's past is in the way: its balance read, and its submits, with ten entries in the ledger and with
//! millions.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::arena::{Arena, TEMPLATE};
use super::http::{submit, warm};
use super::load::{Load, Request};
use crate::Result;

const DATABASE: &str = "submit_ledger";
/// The fewer entries.
pub(crate) const FEW: u64 = 10;

/// Rates at one number of entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Depth {
    /// `None`: this API does not know the endpoint.
    pub(crate) balances_per_sec: Option<f64>,
    pub(crate) submits_per_sec: f64,
}

fn template(entries: u64) -> String {
    format!("{TEMPLATE}_{entries}")
}

/// Makes the template whose first account has so many entries, all of them grants.
pub(crate) async fn fill(arena: &Arena, entries: u64) -> Result<()> {
    let database = template(entries);
    arena.fresh(&database, TEMPLATE).await?;
    let mut conn = PgConnection::connect(&arena.url(&database)).await?;
    let more = i64::try_from(entries)? - 1;
    let first = "(SELECT account_id FROM app.accounts WHERE name = 'bench 1')";
    let sql = format!(
        "-- The foreign key's trigger would look for the account five million times.
         SET session_replication_role = replica;
         -- Ids that sort by age, as Tollgate's do.
         INSERT INTO app.credits_ledger (account_id, id, delta, granted, reason)
         SELECT {first}, lpad(to_hex(n), 32, '0')::uuid, 1, 1, 'adjustment' FROM generate_series(1, {more}) n;
         UPDATE app.credit_balances SET posted = posted + {more} WHERE account_id = {first}"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(&mut conn).await?;
    Ok(conn.close().await?)
}

/// The rates of an account with so many entries.
pub(crate) async fn measure(
    arena: &Arena,
    entries: u64,
    connections: usize,
    window: Duration,
    faults: &mut Vec<String>,
) -> Result<Depth> {
    arena.fresh(DATABASE, &template(entries)).await?;
    let (api, address) = arena.api(DATABASE).await?;
    let key = &arena.keys[..1];
    let head = format!("GET /v1/credits HTTP/1.1\r\nAuthorization: Bearer {}", key[0]);
    let balance = Load::new(address, vec![Request::new(&head, "")], 200);
    let unknown = balance.send(1, 1).await?.has_answer(404);
    let balances_per_sec = if unknown {
        None
    } else {
        warm(&balance, key, connections, faults).await?;
        let tally = balance.closed(connections, window).await?;
        faults.extend(tally.fault());
        Some(tally.per_sec())
    };
    let submits = Load::new(address, vec![submit(&key[0])], 202);
    warm(&submits, key, connections, faults).await?;
    let tally = submits.closed(connections, window).await?;
    faults.extend(tally.fault());
    api.terminate().await;
    arena.drop(DATABASE).await?;
    Ok(Depth { balances_per_sec, submits_per_sec: tally.per_sec() })
}
