//! Every statement about money is a walk along an index, and so is what a foreign key is checked by: on empty tables and on
//! full ones, whether it was planned by statistics of now or of an empty table (as `queue_plans` looks at the queue's).
//! What was planned when the table was empty lives until autovacuum has first looked at it, after fifty rows and a minute;
//! that is looked at for the foreign keys alone.

mod cases;

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgConnection};
use tollgate_domain::Role;
use tollgate_testkit::TestDb;

use crate::queue_plans::explained::explain;
use crate::queue_plans::statements::{Sessions, Statements};
use crate::queue_plans::{id, run};
use cases::{CASES, NOT_LOOKED_AT, TABLES, keys};

/// Rows of each table, all of one account; there are a hundred others.
const ROWS: i64 = 20_000;

/// Rows of each table, by their numbers.
fn fill(from: i64, to: i64) -> String {
    let n = id("n");
    let me = "'00000000-0000-7000-8000-000000000000'";
    format!(
        "SET session_replication_role = replica;
         INSERT INTO app.accounts (account_id, name) SELECT {n}, 'a' FROM generate_series(0, 100) n ON CONFLICT DO NOTHING;
         INSERT INTO app.credit_balances (account_id, posted, held)
         SELECT {n}, 1000000, 500000 FROM generate_series(0, 100) n ON CONFLICT DO NOTHING;
         INSERT INTO app.ledger_sums (account_id) VALUES ({me}) ON CONFLICT DO NOTHING;
         UPDATE app.ledger_sums SET until = {until};
         CREATE TEMPORARY TABLE n AS SELECT n, {n} AS id FROM generate_series({from}, {to}) n;
         INSERT INTO app.credits_ledger (account_id, id, delta, granted, reason) SELECT {me}, id, 1, 1, 'adjustment' FROM n;
         INSERT INTO app.jobs (account_id, id, type, status, priority, attempts, max_attempts, request, metadata, key_id,
                               scheduled_at, finished_at, credits_held, quote)
         SELECT {me}, id, 'text', CASE WHEN n % 2 = 0 THEN 'failed' ELSE 'running' END, 5, 1, 5, '{{}}', '{{}}', id, now(),
                CASE WHEN n % 2 = 0 THEN now() END, n % 2, '{{\"estimate\": 1}}' FROM n;
         INSERT INTO app.api_keys (account_id, id, name, prefix, secret_hash, scopes, counted_as)
         SELECT {me}, id, 'a', 'p' || n, '', '{{}}', id FROM n;
         INSERT INTO app.key_spending (account_id, key_id, day, credits)
         SELECT {me}, id, (now() AT TIME ZONE 'UTC')::date - (n % 2)::integer, 1 FROM n;
         INSERT INTO app.images (account_id, id, job_id, content_key, prompt_hash, model, size, url, media_type, byte_length,
                                 sha256, storage)
         SELECT {me}, id, id, id::text::bytea, '', 'm', 's', 'u', 'image/png', 1, '', 'database' FROM n;
         INSERT INTO app.image_data (account_id, image_id, data) SELECT {me}, id, '' FROM n;
         INSERT INTO app.job_images (account_id, job_id, image_id) SELECT {me}, id, id FROM n WHERE n % 4 < 2;
         INSERT INTO billing.stripe_events (event_id, id, type, created, livemode, account_id, state, payload)
         SELECT 'evt_' || n, id, 'x', now(), true, {me},
                (ARRAY['processed', 'ignored', 'unknown_customer', 'needs_attention'])[n % 4 + 1], '{{}}' FROM n;
         INSERT INTO billing.stripe_objects (object_id) SELECT 'obj_' || n FROM n;
         INSERT INTO billing.stripe_waiting (object_id, event_id) SELECT 'obj_' || n, 'evt_' || n FROM n;
         INSERT INTO app.stripe_events (account_id, event_id, type, credits) SELECT {me}, 'evt_' || n, 'x', 1 FROM n;
         INSERT INTO app.stripe_customers (account_id, customer_id) SELECT {me}, 'cus_' || n FROM n;
         INSERT INTO app.stripe_grants (account_id, object_id, amount, currency, credits)
         SELECT {me}, 'cs_' || n, 1, 'usd', 1 FROM n;
         INSERT INTO app.stripe_payments (account_id, payment_id, object_id) SELECT {me}, 'pi_' || n, 'cs_' || n FROM n;
         INSERT INTO app.stripe_reversals (account_id, payment_id, reversal_id, amount, withdrawn, returned)
         SELECT {me}, 'pi_' || n, 'ch_' || n, 1, true, false FROM n;
         DROP TABLE n",
        until = id(&(to - 10).max(0).to_string()),
    )
}

/// The planner knows what it knew of empty tables.
const FORGET: &str = "DELETE FROM pg_statistic WHERE starelid IN
        (SELECT oid FROM pg_class WHERE relnamespace IN ('app'::regnamespace, 'billing'::regnamespace));
    UPDATE pg_class SET reltuples = 0, relpages = 0
    WHERE relnamespace IN ('app'::regnamespace, 'billing'::regnamespace) AND relkind IN ('r', 'i')";

async fn statements_are_walks(sessions: &Sessions, rows: i64, what: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in CASES {
        let mut tx = sessions.begin(case.role).await;
        let found = explain(&mut tx, case.name, &(case.arguments)(rows)).await;
        tx.rollback().await.unwrap();
        let mut say = |problem: String| wrong.push(format!("{} at {what}: {problem}", case.name));
        found.forbidden.iter().for_each(|node| say(format!("{node}, which nothing about money may need")));
        for index in case.indexes.iter().filter(|index| !found.indexes.contains(**index)) {
            say(format!("not by {index}, but {:?}", found.indexes));
        }
        if found.touched > case.batch * 10 + 20 {
            say(format!("{} rows read for a batch of {}", found.touched, case.batch));
        }
        if rows > 0 && found.touched == 0 && !case.name.starts_with("add") {
            say("read nothing: the test proves nothing".into());
        }
    }
    wrong
}

/// Rows that this session came upon so far, by table.
async fn read(conn: &mut PgConnection) -> BTreeMap<String, i64> {
    let sql = "SELECT relname::text, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables
               WHERE schemaname = 'app'";
    let read: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(conn).await.unwrap();
    read.into_iter().collect()
}

/// What is checked by a foreign key reads a row or two of each table.
async fn keys_are_walks(sessions: &Sessions, what: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (nr, sql) in keys().into_iter().enumerate() {
        let mut tx = sessions.begin(Role::Worker).await;
        let before = read(&mut tx).await;
        let said = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *tx).await;
        said.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let after = read(&mut tx).await;
        tx.rollback().await.unwrap();
        for (table, rows) in after.iter().map(|(table, rows)| (table, rows - before.get(table).unwrap_or(&0)))
        {
            if rows > 10 {
                wrong.push(format!("key {nr} at {what}: {rows} rows of {table} read"));
            }
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_about_money_is_a_walk_along_an_index() {
    let statements = Statements::read();
    let mut wrong = statements.not_looked_at(CASES, &TABLES, &NOT_LOOKED_AT);
    let db = TestDb::new().await;
    let owner = db.owner().await;
    run(&owner, "DO $$ DECLARE t regclass; BEGIN
            FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace IN ('app'::regnamespace, 'billing'::regnamespace)
            LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t); END LOOP; END $$; ANALYZE").await;
    // No rows but the accounts themselves.
    run(&owner, &fill(1, 0)).await;
    let sessions = Sessions::connect(&db).await;
    sessions.prepare(&statements, CASES).await;
    wrong.extend(statements_are_walks(&sessions, 0, "no rows").await);
    // Of a key that finds nothing, only one side is looked at.
    run(&owner, &fill(1, 8)).await;
    wrong.extend(keys_are_walks(&sessions, "8 rows").await);
    run(&owner, &fill(9, ROWS)).await;
    wrong.extend(keys_are_walks(&sessions, "planned when empty").await);
    for (planned, sql) in [("as if empty", FORGET), ("now", "ANALYZE")] {
        run(&owner, sql).await;
        let what = format!("{ROWS} rows, planned {planned}");
        wrong.extend(statements_are_walks(&sessions, ROWS, &what).await);
        wrong.extend(keys_are_walks(&sessions, &what).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
