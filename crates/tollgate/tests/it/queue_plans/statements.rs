//! The statements that are looked at, and with what arguments.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};
use tollgate_domain::Role;
use tollgate_testkit::TestDb;

use super::explained::explain;
use super::{ACCOUNTS, OVER, WORKERS};

/// One statement as sqlx sends it.
pub(crate) struct Statement {
    file: String,
    pub(crate) text: String,
    pub(crate) types: String,
}

/// How one of them is looked at.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// All of its text, or what of it no other has.
    pub(crate) text: &'static str,
    pub(crate) role: Role,
    /// Those by which it must find what it is about, at any size.
    pub(crate) indexes: &'static [&'static str],
    /// Rows that it is to handle.
    pub(crate) batch: i64,
    /// With so many tasks in the table.
    pub(crate) arguments: fn(i64) -> String,
}

const BATCH: i64 = 100;
const QUEUE: &str = "'webhook.delivery'";

pub(crate) fn id(number: i64) -> String {
    format!("00000000-0000-7000-8000-{number:012x}")
}

pub(crate) fn list<T: std::fmt::Display>(of: impl Iterator<Item = T>) -> String {
    format!("'{{{}}}'", of.map(|item| item.to_string()).collect::<Vec<_>>().join(","))
}

fn accounts(tasks: i64) -> i64 {
    ACCOUNTS.min(tasks / 10).max(1)
}

/// The account, id and lease of a task that runs.
fn running(tasks: i64, nr: i64) -> (String, String, i64) {
    let task = tasks + 1 + nr;
    (id(task % accounts(tasks)), id(task), task)
}

fn one_lease(tasks: i64) -> String {
    let (account, task, lease) = running(tasks, 7);
    format!("'{account}', '{task}', {lease}")
}

/// Ten lanes, each looked at in two parts, as by a worker that has been there before.
fn claim(tasks: i64) -> String {
    let lanes = 10.min(accounts(tasks));
    let numbers = || 0..lanes;
    format!(
        "{QUEUE}, '{}', 0, {}, {}, {}, {}, {}, {}, {}, {BATCH}, '{{}}', false",
        id(1),
        list(numbers().map(|nr| id(accounts(tasks) - 1 - nr))),
        list(numbers().map(|_| BATCH / 10)),
        list(numbers().map(|nr| nr * 2 + 1)),
        list(numbers().map(|nr| nr * 2 + 2)),
        list(numbers().flat_map(|_| [0, 10])),
        list(numbers().flat_map(|_| [0, tasks / 2 + OVER])),
        list(numbers().flat_map(|_| [9, 20])),
    )
}

fn new_tasks(tasks: i64) -> String {
    let numbers = || 0..BATCH;
    format!(
        "{QUEUE}, '1 day', {}, {}, {}, {}, {}, {}, {}",
        list(numbers().map(|nr| id(nr % accounts(tasks)))),
        list(numbers().map(|nr| id(10_000_000 + nr))),
        list(numbers().map(|_| "plan")),
        list(numbers().map(|_| "\"{}\"")),
        list(numbers().map(|_| 5)),
        list(numbers().map(|_| 3)),
        list(numbers().map(|_| "NULL")),
    )
}

fn finish(tasks: i64) -> String {
    let leases: Vec<_> = (0..BATCH).map(|nr| running(tasks, nr)).collect();
    format!(
        "{}, {}, {}",
        list(leases.iter().map(|lease| &lease.0)),
        list(leases.iter().map(|lease| &lease.1)),
        list(leases.iter().map(|lease| lease.2)),
    )
}

const PKEY: &[&str] = &["tasks_pkey"];

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case { name: "claim", text: "FOR KEY SHARE", role: Role::Worker, indexes: &["tasks_ready"], batch: BATCH, arguments: claim },
    Case { name: "finish_all", text: "DELETE FROM queue.tasks t USING unnest", role: Role::Worker, indexes: PKEY,
        batch: BATCH, arguments: finish },
    Case { name: "retry_at", text: "SET state = CASE WHEN $4 > clock_timestamp()", role: Role::Worker, indexes: PKEY, batch: 1,
        arguments: |tasks| format!("{}, now(), '{{}}'", one_lease(tasks)) },
    Case { name: "release", text: "SET state = 'ready', rank = t.priority * 2 - 1, position = nextval('queue.position'),\n                 lease = NULL, worker_id = NULL, lane_capped = false, queue_capped = false, attempts = t.attempts - 1\n",
        role: Role::Worker, indexes: PKEY, batch: 1, arguments: one_lease },
    Case { name: "bury", text: "WHERE account_id = $1 AND id = $2 AND lease = $3 RETURNING *", role: Role::Worker, indexes: PKEY,
        batch: 1, arguments: |tasks| format!("{}, '{{\"code\": \"x\"}}'", one_lease(tasks)) },
    Case { name: "bury_unleased", text: "AND state <> 'running' RETURNING *", role: Role::Worker, indexes: PKEY, batch: 1,
        arguments: |tasks| format!("'{}', '{}', '{{\"code\": \"x\"}}'", id(1), id(tasks / 2 + 1 + accounts(tasks))) },
    Case { name: "delete_task", text: "CASE state WHEN 'running' THEN 0", role: Role::Api, indexes: PKEY, batch: 1,
        arguments: |tasks| format!("'{}', '{}'", id(0), id(accounts(tasks))) },
    Case { name: "enqueue", text: "UPDATE queue.lane_counts SET queued = queued + 1", role: Role::Api,
        indexes: &["lane_counts_pkey"], batch: 1,
        arguments: |_| format!("'{}', '{}', {QUEUE}, 'plan', '{{}}', 5::int2, 3, NULL, '1 day'", id(0), id(10_000_000)) },
    Case { name: "enqueue_all", text: "AS new (account_id, id, type, payload, priority", role: Role::Worker, indexes: &[],
        batch: BATCH, arguments: new_tasks },
    Case { name: "promote_due", text: "state = 'scheduled' AND run_at <= statement_timestamp()", role: Role::Worker,
        indexes: &["tasks_scheduled"], batch: BATCH, arguments: |_| format!("{QUEUE}, {BATCH}") },
    Case { name: "due_in", text: "extract(epoch FROM run_at - clock_timestamp())", role: Role::Worker,
        indexes: &["tasks_scheduled"], batch: 1, arguments: |_| QUEUE.into() },
    Case { name: "bury_expired", text: "state = 'ready' AND expires_at <= statement_timestamp()", role: Role::Worker,
        indexes: &["tasks_expiry"], batch: BATCH, arguments: |_| format!("'{{\"code\": \"x\"}}', {BATCH}") },
    Case { name: "take_back", text: "WITH lost AS MATERIALIZED", role: Role::Worker, indexes: &["tasks_running"], batch: BATCH,
        arguments: |_| format!("'{}', {BATCH}", id(2)) },
    Case { name: "orphan_workers", text: "WITH RECURSIVE holder", role: Role::Worker, indexes: &["tasks_running"],
        batch: WORKERS, arguments: |_| String::new() },
    Case { name: "held_leases", text: "AND lease >= $2", role: Role::Worker, indexes: &["tasks_running"], batch: BATCH,
        arguments: |tasks| format!("'{}', {}", id(3), tasks + 1_000 - BATCH) },
    Case { name: "deregister", text: "WITH left_behind", role: Role::Worker, indexes: &["tasks_running"], batch: 1,
        arguments: |_| format!("'{}'", id(4)) },
    Case { name: "remove_dead", text: "DELETE FROM queue.workers\n         WHERE id = $1 AND NOT EXISTS (SELECT FROM queue.tasks",
        role: Role::Worker, indexes: &["tasks_running"], batch: 1, arguments: |_| format!("'{}'", id(4)) },
    Case { name: "wake_lanes_with_work", text: "WITH RECURSIVE lane", role: Role::Worker,
        indexes: &["tasks_ready"], batch: BATCH, arguments: |_| format!("{QUEUE}, '{}', {BATCH}", id(0)) },
    Case { name: "awake_lanes", text: "SELECT DISTINCT account_id FROM queue.lane_counts", role: Role::Worker,
        indexes: &["lane_counts_awake"], batch: BATCH * 2,
        arguments: |_| format!("{QUEUE}, '{}', {BATCH}, '{}'", id(0), id(1)) },
    Case { name: "lock_lanes", text: "ORDER BY shard FOR UPDATE SKIP LOCKED", role: Role::Worker, indexes: &[], batch: BATCH,
        arguments: |_| format!("{QUEUE}, {}", list((0..BATCH).map(id))) },
    Case { name: "lock_caps", text: "AS capped (account_id)", role: Role::Worker, indexes: &["lanes_pkey"], batch: BATCH,
        arguments: |_| format!("{QUEUE}, {}", list((0..BATCH).map(id))) },
    Case { name: "put_to_sleep", text: "SET awake = false", role: Role::Worker, indexes: &["lane_counts_pkey", "tasks_ready"],
        batch: BATCH, arguments: |_| format!("{QUEUE}, {}, {}", list((0..BATCH).map(id)), list((0..BATCH).map(|_| 1))) },
    Case { name: "lane_counts", text: "FROM queue.lane_counts WHERE account_id = $1 AND queue = ANY ($2)", role: Role::Api,
        indexes: &["lane_counts_pkey"], batch: 4, arguments: |_| format!("'{}', ARRAY[{QUEUE}]", id(0)) },
    Case { name: "set_lane", text: "UPDATE queue.tasks SET lane_capped", role: Role::Operator, indexes: &[], batch: 1_000,
        arguments: |_| format!("'{}', {QUEUE}, 1::int2, 3", id(5)) },
    Case { name: "set_queue", text: "UPDATE queue.tasks SET queue_capped", role: Role::Operator, indexes: &["tasks_running"],
        batch: 1_000, arguments: |_| format!("{QUEUE}, 3000") },
];

/// Those that name the tasks and are not looked at, and why.
pub(super) const NOT_LOOKED_AT: [(&str, &str); 3] = [
    ("LOCK TABLE queue.tasks", "has no plan"),
    ("DELETE FROM queue.dead_letters", "a redrive, which inserts into the tasks as enqueue_all does"),
    ("SET state = 'resolved'", "an event of Stripe's, looked at with what is said about money"),
];

/// All that `.sqlx` holds.
pub(crate) struct Statements(Vec<Statement>);

impl Statements {
    pub(crate) fn read() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tollgate-store/.sqlx");
        let files =
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let statements = files.map(|file| {
            let path = file.unwrap().path();
            let described: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let types =
                described["describe"]["parameters"]["Left"].as_array().into_iter().flatten().map(|kind| {
                    let kind = kind.as_str().unwrap_or_else(|| panic!("{}: {kind}", path.display()));
                    kind.strip_suffix("Array").map_or_else(|| kind.to_owned(), |kind| format!("{kind}[]"))
                });
            let types = types.collect::<Vec<_>>().join(", ");
            Statement {
                file: path.file_name().unwrap().to_string_lossy().into_owned(),
                text: described["query"].as_str().unwrap().to_owned(),
                types,
            }
        });
        Self(statements.collect())
    }

    fn of(&self, case: &Case) -> Vec<&Statement> {
        let whole: Vec<_> = self.0.iter().filter(|statement| statement.text == case.text).collect();
        if whole.is_empty() {
            return self.0.iter().filter(|statement| statement.text.contains(case.text)).collect();
        }
        whole
    }

    pub(crate) fn get(&self, case: &Case) -> &Statement {
        let found = self.of(case);
        assert_eq!(found.len(), 1, "statements with {:?}, which is to name {} alone", case.text, case.name);
        found[0]
    }

    /// Those that name one of these tables, and are neither a case nor excused.
    pub(crate) fn not_looked_at(
        &self,
        cases: &[Case],
        tables: &[&str],
        excused: &[(&str, &str)],
    ) -> Vec<String> {
        let looked_at: BTreeSet<&str> =
            cases.iter().flat_map(|case| self.of(case)).map(|statement| statement.file.as_str()).collect();
        self.0
            .iter()
            .filter(|statement| {
                tables.iter().any(|table| statement.text.contains(table))
                    && !looked_at.contains(statement.file.as_str())
            })
            .filter(|statement| !excused.iter().any(|(text, _)| statement.text.contains(text)))
            .map(|statement| format!("not looked at: {}", statement.text))
            .collect()
    }
}

/// Connections as each role has them.
pub(crate) struct Sessions(Vec<(Role, PgPool)>);

impl Sessions {
    pub(crate) async fn connect(db: &TestDb) -> Self {
        let mut sessions = Vec::new();
        for role in [Role::Api, Role::Worker, Role::Operator] {
            sessions.push((role, tollgate_store::connect(&db.role_url(role), role, 1, true).await.unwrap()));
        }
        Self(sessions)
    }

    /// Plans every statement, and keeps the plans.
    pub(crate) async fn prepare(&self, statements: &Statements, cases: &[Case]) {
        for (role, pool) in &self.0 {
            let mut sql = String::new();
            for case in cases.iter().filter(|case| case.role == *role) {
                let Statement { text, types, .. } = statements.get(case);
                // An empty list is no list.
                let types = if types.is_empty() { String::new() } else { format!("({types})") };
                sql.push_str(&format!("PREPARE {} {types} AS {text};", case.name));
            }
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
            for case in cases.iter().filter(|case| case.role == *role) {
                let mut tx = self.begin(*role).await;
                explain(&mut tx, case.name, &(case.arguments)(0)).await;
                tx.rollback().await.unwrap();
            }
        }
    }

    /// A transaction in the name of account 0.
    pub(crate) async fn begin(&self, role: Role) -> Transaction<'static, Postgres> {
        let (_, pool) = self.0.iter().find(|(of, _)| *of == role).unwrap();
        let begin = format!("BEGIN; SET LOCAL app.account_id = '{}'", id(0));
        pool.begin_with(AssertSqlSafe(begin)).await.unwrap()
    }
}
