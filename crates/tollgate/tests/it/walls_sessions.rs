//! The walls as a session meets them: it cannot take them down, a key opens its own row alone, a pooled connection
//! forgets its last user, and what stands behind them is still read by index.

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tollgate_domain::Role;
use tollgate_testkit::TestDb;

const A: &str = "0a000000-0000-7000-8000-0000000000aa";
const ROLES: [Role; 2] = [Role::Api, Role::Worker];
const EVERYTHING: &str = "
GRANT USAGE ON SCHEMA app, queue TO app_api, app_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA app, queue TO app_api, app_worker;";

/// Two accounts with a key each, and a number of jobs each.
fn seed(jobs: u32) -> String {
    format!(
        "INSERT INTO app.accounts (account_id, name) VALUES ('{A}', 'a'), ('0b000000-0000-7000-8000-0000000000bb', 'b');
         INSERT INTO app.api_keys (account_id, id, name, prefix, secret_hash, scopes, counted_as)
             SELECT account_id, account_id, name, 'prefix_' || name, 'hash', '{{}}', account_id FROM app.accounts;
         INSERT INTO app.jobs (account_id, id, type, status, finished_at, priority, max_attempts, request, metadata,
                               scheduled_at)
             SELECT account_id, gen_random_uuid(), 'text', status, CASE status WHEN 'failed' THEN now() END, 5, 5,
                    '{{}}', '{{}}', now()
             FROM app.accounts, generate_series(1, {jobs}) n,
                  LATERAL (SELECT CASE n % 100 WHEN 0 THEN 'queued' ELSE 'failed' END) s (status);
         ANALYZE app.jobs"
    )
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn prepare(db: &TestDb, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connect(&db.owner_url()).await).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Runs statements in one transaction. Returns the first column of all rows, or the error's code.
async fn attempt(conn: &mut PgConnection, sql: &str) -> Result<Vec<String>, String> {
    let result = sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {sql}"))).fetch_all(&mut *conn).await;
    sqlx::raw_sql("ROLLBACK").execute(conn).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    match result {
        Ok(rows) => Ok(rows.iter().map(|row| sqlx::Row::get(row, 0)).collect()),
        Err(sqlx::Error::Database(error)) => Err(error.code().unwrap_or_default().into_owned()),
        Err(error) => panic!("{sql}: {error}"),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with outcomes, which can be errors")]
fn rows(rows: &[&str]) -> Result<Vec<String>, String> {
    Ok(rows.iter().map(|&row| row.to_owned()).collect())
}

fn refused() -> Result<Vec<String>, String> {
    Err("42501".to_owned())
}

#[tokio::test]
async fn walls_cannot_be_taken_down_at_run_time() {
    let db = TestDb::new().await;
    prepare(&db, EVERYTHING).await;
    for role in ROLES {
        let mut conn = connect(&db.role_url(role)).await;
        for sql in [
            "SET ROLE app_migrator",
            "SET ROLE app_operator",
            "SET SESSION AUTHORIZATION app_migrator",
            "SET session_replication_role = replica",
            "SET LOCAL row_security = off; SELECT id::text FROM app.jobs",
            "ALTER ROLE CURRENT_USER BYPASSRLS",
            "GRANT app_migrator TO CURRENT_USER",
            "ALTER TABLE app.jobs DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE app.jobs NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE app.jobs OWNER TO CURRENT_USER",
            "ALTER TABLE app.jobs DISABLE TRIGGER ALL",
            "CREATE POLICY mine ON app.jobs USING (true)",
            "ALTER POLICY tenant ON app.jobs USING (true)",
            "DROP POLICY tenant ON app.jobs",
            "CREATE INDEX ON app.jobs (id)",
            "CREATE TABLE app.mine (id uuid)",
            "CREATE TABLE public.mine (id uuid)",
            "CREATE FUNCTION app.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "COPY app.jobs TO PROGRAM 'cat'",
            "COPY app.jobs TO '/tmp/jobs'",
            "SELECT rolpassword FROM pg_authid",
        ] {
            assert_eq!(attempt(&mut conn, sql).await, refused(), "{role:?}: {sql}");
        }
    }
}

#[tokio::test]
async fn walls_open_to_a_key_prefix_its_own_row() {
    let db = TestDb::new().await;
    prepare(&db, &format!("{} ; {EVERYTHING}", seed(1))).await;
    let mut api = connect(&db.role_url(Role::Api)).await;
    let mut worker = connect(&db.role_url(Role::Worker)).await;
    let set = "SET LOCAL app.key_prefix = 'prefix_b'";
    let select = "SELECT prefix FROM app.api_keys";
    let act = format!("SET LOCAL app.account_id = '{A}'");
    for (what, sql, at_api, at_worker) in [
        ("no prefix", select.to_owned(), rows(&[]), rows(&[])),
        ("an empty prefix", format!("SET LOCAL app.key_prefix = ''; {select}"), rows(&[]), rows(&[])),
        ("no pattern", format!("SET LOCAL app.key_prefix = 'prefix%'; {select}"), rows(&[]), rows(&[])),
        ("its own row", format!("{set}; {select}"), rows(&["prefix_b"]), rows(&[])),
        ("nothing else", format!("{set}; SELECT id::text FROM app.jobs"), rows(&[]), rows(&[])),
        (
            "for reading only",
            format!("{set}; UPDATE app.api_keys SET name = name RETURNING name"),
            rows(&[]),
            rows(&[]),
        ),
        (
            "and not to delete",
            format!("{set}; DELETE FROM app.api_keys RETURNING name"),
            rows(&[]),
            rows(&[]),
        ),
        (
            "beside one's own",
            format!("{act}; {set}; {select} ORDER BY 1"),
            rows(&["prefix_a", "prefix_b"]),
            rows(&["prefix_a"]),
        ),
        (
            "the function",
            "SELECT count(*)::text FROM app.find_key('prefix_b')".to_owned(),
            rows(&["1"]),
            refused(),
        ),
        (
            "shut behind it",
            format!("DO $$ BEGIN PERFORM FROM app.find_key('prefix_b'); END $$; {select}"),
            rows(&[]),
            refused(),
        ),
    ] {
        assert_eq!(attempt(&mut api, &sql).await, at_api, "{what}: {sql}");
        assert_eq!(attempt(&mut worker, &sql).await, at_worker, "{what}: {sql}");
    }
}

#[tokio::test]
async fn walls_forget_the_last_user_of_a_pooled_connection() {
    let db = TestDb::new().await;
    prepare(&db, &seed(1)).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&db.role_url(Role::Api)).await.expect("pool");
    let seen = "SELECT count(*) FROM app.jobs";
    for end in ["commit", "rollback", "drop", "fail"] {
        let begin = AssertSqlSafe(format!("BEGIN; SET LOCAL app.account_id = '{A}'"));
        let mut tx = pool.begin_with(begin).await.expect("transaction");
        let within: i64 = sqlx::query_scalar(seen).fetch_one(&mut *tx).await.expect("count");
        assert_eq!(within, 1, "{end}");
        match end {
            "commit" => tx.commit().await.expect("commit"),
            "rollback" => tx.rollback().await.expect("rollback"),
            "drop" => drop(tx),
            _ => {
                sqlx::query("SELECT 1 / 0").execute(&mut *tx).await.expect_err("division by zero");
                drop(tx);
            }
        }
        let after: i64 = sqlx::query_scalar(seen).fetch_one(&pool).await.expect("count");
        assert_eq!(after, 0, "{end}");
    }
}

#[tokio::test]
async fn walls_leave_the_indexes_in_use() {
    let db = TestDb::new().await;
    prepare(&db, &seed(25_000)).await;
    let mut conn = connect(&db.role_url(Role::Api)).await;
    for (query, index) in [
        ("SELECT * FROM app.jobs WHERE id = '0a000000-0000-7000-8000-0000000000aa'", "jobs_pkey"),
        ("SELECT * FROM app.jobs WHERE status = 'queued' ORDER BY id DESC LIMIT 20", "jobs_by_status"),
        ("SELECT * FROM app.jobs ORDER BY id DESC LIMIT 20", "jobs_pkey"),
    ] {
        let sql = format!("SET LOCAL app.account_id = '{A}'; EXPLAIN {query}");
        let plan = attempt(&mut conn, &sql).await.expect(query).join("\n");
        assert!(plan.contains("InitPlan"), "the account is looked up for every row:\n{plan}");
        assert!(plan.contains(index) && plan.contains("Index Cond"), "{query} does not use {index}:\n{plan}");
        assert!(!plan.contains("Seq Scan"), "{query} reads everything:\n{plan}");
    }
}
