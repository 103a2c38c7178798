//! Which statements PostgreSQL spends its time on, by `pg_stat_statements`. Looking costs some of the rate: figures of such a run
//! are not to be compared with others.

use sqlx::{PgConnection, Row as _};

use crate::Result;

/// As many as are worth reading.
const SHOWN: i64 = 20;

/// Forgets what was seen so far.
pub(crate) async fn forget(conn: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("SELECT pg_stat_statements_reset()").execute(conn).await?;
    Ok(())
}

/// Prints what one submit of so many took, of those in that database. Statements inside functions are listed, and in their
/// function's time too. Planning and parsing, and the commit's wait for the disk but for its own statement, are not in it.
pub(crate) async fn print(conn: &mut PgConnection, database: &str, submits: u64) -> Result<()> {
    let rows = sqlx::query(
        "SELECT s.calls::float8 / $2 AS calls, s.total_exec_time * 1000 / $2 AS micros, s.total_exec_time * 1000 / s.calls AS each,
                s.wal_bytes::float8 / $2 AS wal, regexp_replace(left(s.query, 300), '\\s+', ' ', 'g') AS text
         FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
         WHERE d.datname = $1 ORDER BY s.total_exec_time DESC LIMIT $3",
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
