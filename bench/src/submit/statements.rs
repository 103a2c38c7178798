//! Which statements PostgreSQL spends its time on, by `pg_stat_statements`. Looking costs some of the rate: figures of
//! such a run are not to be compared with others.

use sqlx::{PgConnection, Row as _};

use crate::Result;

/// As many as are worth reading.
const SHOWN: i64 = 20;

/// Forgets what was seen so far.
pub(crate) async fn forget(conn: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(conn).await?;
    Ok(())
}

/// Prints what one submit of so many took, of those in that database. Statements inside functions and foreign keys'
/// checks are listed, and are in their caller's time too. Parsing, the commit itself and what goes over the socket are in
/// none.
pub(crate) async fn print(conn: &mut PgConnection, database: &str, submits: u64) -> Result<()> {
    let rows = sqlx::query(
        "SELECT sum(calls)::float8 / $2 AS calls, sum(micros) / $2 AS micros, sum(micros) / sum(calls)::float8 AS each,
                sum(wal_bytes)::float8 / $2 AS wal, text
         FROM (SELECT calls, (total_plan_time + total_exec_time) * 1000 AS micros, wal_bytes,
                      -- An account's id in SET LOCAL makes no other statement of it.
                      regexp_replace(regexp_replace(left(query, 300), '\\s+', ' ', 'g'), '[0-9a-f-]{36}', '…', 'g') AS text
               FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1)) s
         GROUP BY text ORDER BY sum(micros) DESC LIMIT $3",
    )
    .bind(database)
    .bind(submits as f64)
    .bind(SHOWN)
    .fetch_all(conn)
    .await?;
    println!("\n| µs a submit | calls | µs a call | WAL bytes | statement |\n|---|---|---|---|---|");
    for row in rows {
        let figure = |name: &str| row.try_get::<f64, _>(name);
        println!(
            "| {:.1} | {:.2} | {:.1} | {:.0} | `{}` |",
            figure("micros")?,
            figure("calls")?,
            figure("each")?,
            figure("wal")?,
            row.try_get::<String, _>("text")?,
        );
    }
    println!();
    Ok(())
}
