//! Every statement of the queue is a walk along an index, and reads no more than its batch: on an empty table, on a
//! thousand tasks and on a million, whether it was planned by statistics of now or of an empty table, or when the table
//! was empty; under row-level security, in a session as the store configures it.
//!
//! The statements are those that run: sqlx compiles nothing whose text is not in `.sqlx`, and they are read from there.
//! One that names `queue.tasks` and is not looked at here fails the test.

pub(crate) mod explained;
pub(crate) mod statements;

use sqlx::{AssertSqlSafe, PgPool};
use tollgate_testkit::TestDb;

use explained::{Explained, explain};
use statements::{CASES, Case, NOT_LOOKED_AT, Sessions, Statements};

/// As many accounts share the tasks, half of them ready and half of them scheduled; a thousand more run.
const ACCOUNTS: i64 = 1_000;
const RUNNING: i64 = 1_000;
/// So many of the scheduled have fallen due, and so many of the ready have expired.
const OVER: i64 = 200;
const WORKERS: i64 = 5;

pub(crate) async fn run(owner: &PgPool, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(owner).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Ids are numbers, so that arguments can be written down.
pub(crate) fn id(number: &str) -> String {
    format!("('00000000-0000-7000-8000-' || lpad(to_hex({number}), 12, '0'))::uuid")
}

/// Fills the tables with `tasks` tasks, in two connections, since this is what takes the time.
async fn grow(owner: &PgPool, tasks: i64) {
    let accounts = ACCOUNTS.min(tasks / 10);
    let (half, account, task) = (tasks / 2, id(&format!("n % {accounts}")), id("n"));
    let columns = "account_id, id, queue, type, state, rank, position, run_at, expires_at, priority";
    let fixed = "'webhook.delivery', 'plan'";
    let scheduled = format!(
        "SET synchronous_commit = off;
         INSERT INTO queue.tasks ({columns})
         SELECT {account}, {task}, {fixed}, 'scheduled', 10, n, now() + (n - {OVER}) * interval '1 s',
                now() + interval '30 days', 5
         FROM generate_series(1, {half}) n",
    );
    let ready = format!(
        "SET synchronous_commit = off;
         INSERT INTO queue.tasks ({columns})
         SELECT {account}, {task}, {fixed}, 'ready', 10, n, now() - interval '1 day',
                now() + (n - {half} - {OVER}) * interval '1 day', 5
         FROM generate_series({half} + 1, {tasks}) n;
         INSERT INTO queue.tasks ({columns}, lease, worker_id)
         SELECT {account}, {task}, {fixed}, 'running', 10, n, now() - interval '1 day', now() + interval '1 day', 5,
                n, {worker}
         FROM generate_series({tasks} + 1, {tasks} + {RUNNING}) n;
         INSERT INTO queue.lane_counts (account_id, queue, shard, awake, queued)
         SELECT {lane}, 'webhook.delivery', shard, shard < 2, {tasks}
         FROM generate_series(0, {accounts} - 1) n, generate_series(0, 3) shard;
         INSERT INTO queue.lanes (account_id, queue, max_running)
         SELECT {lane}, 'webhook.delivery', 10 FROM generate_series(0, {accounts} - 1) n",
        worker = id(&format!("n % {WORKERS}")),
        lane = id("n"),
    );
    tokio::join!(run(owner, &scheduled), run(owner, &ready));
}

/// The planner knows what it knew of the empty table, as when a queue fills faster than autovacuum comes by.
const FORGET: &str = "DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'queue'::regnamespace);
    UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE relnamespace = 'queue'::regnamespace AND relkind IN ('r', 'i')";

/// What a plan was made by.
#[derive(Debug, Clone, Copy)]
enum Planned {
    /// The table was empty, and the plan has been kept since.
    WhenEmpty,
    /// The statistics are those of an empty table.
    AsIfEmpty,
    /// The statistics are right.
    Now,
}

const EMPTY: &str = "TRUNCATE queue.tasks, queue.lane_counts, queue.lanes, queue.dead_letters; ANALYZE";

fn check(case: &Case, found: &Explained, tasks: i64, what: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |problem: String| wrong.push(format!("{} at {what}: {problem}", case.name));
    for node in &found.forbidden {
        say(format!("{node}, which no statement of the queue may need"));
    }
    for index in case.indexes {
        if !found.indexes.contains(*index) {
            say(format!("not by {index}, but {:?}", found.indexes));
        }
    }
    let batch = if tasks == 0 { 0 } else { case.batch };
    // Twice, where a row is found by one node and written by another; some are expired or locked, and stepped over.
    if found.rows > batch * 3 + 20 {
        say(format!("{} rows of queue.tasks read for a batch of {batch}", found.rows));
    }
    // A row: the index that finds it, the heap, and each of five indexes it leaves or enters; and its lane's counts.
    if found.buffers > case.batch * 70 + 400 {
        say(format!("{} buffers for a batch of {}", found.buffers, case.batch));
    }
    if tasks > 0 && found.touched == 0 && !case.name.starts_with("enqueue") {
        say("read nothing: the test proves nothing".into());
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_statements_read_no_more_than_their_batch_at_a_million_rows() {
    let statements = Statements::read();
    let mut wrong = statements.not_looked_at(CASES, &["queue.tasks"], &NOT_LOOKED_AT);
    let db = TestDb::new().await;
    let owner = db.owner().await;
    // What the planner knows is what this test says that it knows.
    run(&owner, "ALTER TABLE queue.tasks SET (autovacuum_enabled = off); ALTER TABLE queue.lane_counts SET (autovacuum_enabled = off)").await;
    for worker in 0..WORKERS {
        let sql = format!(
            "INSERT INTO queue.workers (id, name, visibility_timeout) VALUES ({}, 'plan', '1 h')",
            id(&worker.to_string())
        );
        run(&owner, &sql).await;
    }
    for tasks in [0, 1_000, 1_000_000] {
        run(&owner, EMPTY).await;
        let sessions = Sessions::connect(&db).await;
        for planned in [Planned::WhenEmpty, Planned::AsIfEmpty, Planned::Now] {
            match planned {
                // A session's plans are made once, and nothing here makes PostgreSQL throw them away.
                Planned::WhenEmpty => {
                    sessions.prepare(&statements, CASES).await;
                    if tasks > 0 {
                        grow(&owner, tasks).await;
                    }
                }
                Planned::AsIfEmpty => run(&owner, FORGET).await,
                Planned::Now => run(&owner, "ANALYZE").await,
            }
            let what = format!("{tasks} rows, planned {planned:?}");
            for case in CASES {
                let mut tx = sessions.begin(case.role).await;
                let found = explain(&mut tx, case.name, &(case.arguments)(tasks)).await;
                tx.rollback().await.unwrap();
                println!(
                    "{:>20} {what}: {:>4} rows, {:>5} buffers, {:?}",
                    case.name, found.rows, found.buffers, found.indexes
                );
                wrong.extend(check(case, &found, tasks, &what));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
