//! Forward-only migrations, run by `app_migrator`.

use std::time::Duration;

use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};

use crate::legacy::{self, LegacyError, Mended};

/// Why the schema could not be brought up to date. Nothing is half done: each migration is one transaction.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The URL is not one of PostgreSQL's, or the server cannot be reached.
    #[error("cannot connect to PostgreSQL to migrate: {0}. Check DATABASE_URL and that the server runs")]
    Connect(#[source] sqlx::Error),
    /// The server is too old.
    #[error("PostgreSQL {0} is not supported; Tollgate needs 15 or newer")]
    TooOld(i32),
    /// The roles could not be created.
    #[error(
        "cannot create Tollgate's roles: {0}. Run `tollgate migrate` as a superuser once, or create the roles \
         app_migrator, app_api, app_worker and app_operator and grant app_migrator CREATE on the database"
    )]
    Roles(#[source] sqlx::Error),
    /// A migration failed.
    #[error("the migration failed and was rolled back: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is up to date, but the source system's images are not.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// Something else the database said.
    #[error("the migration could not run: {0}")]
    Database(#[from] sqlx::Error),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// How many migrations were applied.
    pub applied: usize,
    /// The source system's tables that were mended; see `legacy.rs`.
    pub mended: Vec<Mended>,
}

/// Creates the roles if they are missing, then applies what is missing of the schema, and mends the source system's images
/// if there are any. Safe to run from two processes at once: one waits for the other.
pub async fn migrate(url: &str) -> Result<Migrated, MigrateError> {
    let options: PgConnectOptions = url.parse().map_err(MigrateError::Connect)?;
    let options = options.application_name("tollgate migrate").log_statements(log::LevelFilter::Trace);
    let mut conn = options.connect().await.map_err(MigrateError::Connect)?;
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut conn)
        .await?;
    if version < 15 {
        return Err(MigrateError::TooOld(version));
    }
    become_migrator(&mut conn).await.map_err(MigrateError::Roles)?;
    conn.lock().await?;
    // Not before the lock above, which may rightly take long. A migration that waits for a table makes every query
    // behind it wait too; better to fail, and be run again.
    sqlx::raw_sql("SET lock_timeout = '10s'").execute(&mut conn).await?;
    let migrator = migrator();
    let before = applied(&mut conn).await?;
    migrator.run(&mut conn).await?;
    let after = applied(&mut conn).await?;
    let mended = legacy::mend(&mut conn).await?;
    conn.unlock().await?;
    conn.close().await?;
    Ok(Migrated { applied: after - before, mended })
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.set_locking(false);
    migrator
}

async fn applied(conn: &mut PgConnection) -> crate::Result<usize> {
    let table: Option<String> = sqlx::query_scalar("SELECT to_regclass('migrations._sqlx_migrations')::text")
        .fetch_one(&mut *conn)
        .await?;
    if table.is_none() {
        return Ok(0);
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM migrations._sqlx_migrations WHERE success")
        .fetch_one(conn)
        .await?;
    Ok(usize::try_from(count).unwrap_or(0))
}

async fn become_migrator(conn: &mut PgConnection) -> crate::Result<()> {
    sqlx::raw_sql("SET client_min_messages = warning").execute(&mut *conn).await?;
    let login: String = sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut *conn).await?;
    if login != "app_migrator" {
        repeat_collided(conn, include_str!("bootstrap.sql")).await?;
        legacy::take_over(conn).await?;
        sqlx::raw_sql("SET ROLE app_migrator").execute(&mut *conn).await?;
    }
    // sqlx keeps its own table in the first schema of the search path; schema app is for tenants' tables alone.
    repeat_collided(conn, "CREATE SCHEMA IF NOT EXISTS migrations; SET search_path = migrations").await
}

/// Roles are the whole cluster's, so a migration of another database can collide with this one, and no lock of this
/// database would keep the two apart.
async fn repeat_collided(conn: &mut PgConnection, sql: &'static str) -> crate::Result<()> {
    let mut left = 20;
    loop {
        match sqlx::raw_sql(sql).execute(&mut *conn).await {
            Err(sqlx::Error::Database(error)) if left > 0 && collided(error.code().as_deref()) => {
                left -= 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other.map(drop),
        }
    }
}

/// `tuple concurrently updated`, a unique violation in a shared catalogue, or the role was there after all.
fn collided(code: Option<&str>) -> bool {
    matches!(code, Some("XX000" | "23505" | "42710" | "42P06"))
}

/// Whether this binary's migrations have all been applied.
pub async fn schema_is_current(pool: &PgPool) -> crate::Result<bool> {
    let newest = migrator().iter().map(|migration| migration.version).max();
    let applied: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM migrations._sqlx_migrations WHERE success")
            .fetch_one(pool)
            .await?;
    Ok(applied >= newest)
}
