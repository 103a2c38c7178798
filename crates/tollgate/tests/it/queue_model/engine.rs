//! The engine, as three workers, an API and an operator use it; and what its tables hold.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tollgate_domain::queue::{self, Cap, LaneChange, NewTask};
use tollgate_domain::sweep::{self, Rounds};
use tollgate_domain::{Database, Role, ids, workers};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::job::JobError;
use tollgate_model::lanes::{Lanes, Taken};
use tollgate_model::queue::{ClaimedTask, Lease, QueueName};
use tollgate_store as store;
use tollgate_store::{TenantTx, Tx as _};
use tollgate_testkit::TestDb;
use uuid::Uuid;

use super::oracle::{Ended, Oracle, State, TIMEOUT_MINUTES};
use super::{ACCOUNTS, New, Op, WORKERS};

pub(super) const QUEUE: QueueName = QueueName::WebhookDelivery;
const HOUR: Duration = Duration::from_hours(1);

pub(super) fn account(nr: usize) -> AccountId {
    AccountId(Uuid::from_u128(nr as u128 + 1))
}

fn number(account: AccountId) -> usize {
    usize::try_from(account.0.as_u128()).unwrap() - 1
}

/// Finds rows that must not exist, whatever happened before.
pub(super) const FORBIDDEN: [(&str, &str); 7] = [
    (
        "counts that are not those of the tasks",
        "SELECT concat_ws(' ', account_id, c.queued, t.queued, c.running, t.running) FROM
             (SELECT account_id, queue, sum(queued) AS queued, sum(running) AS running FROM queue.lane_counts GROUP BY 1, 2) c
         FULL JOIN
             (SELECT account_id, queue, count(*) FILTER (WHERE state <> 'running') AS queued,
                     count(*) FILTER (WHERE state = 'running') AS running FROM queue.tasks GROUP BY 1, 2) t
         USING (account_id, queue)
         WHERE coalesce(c.queued, 0) <> coalesce(t.queued, 0) OR coalesce(c.running, 0) <> coalesce(t.running, 0)",
    ),
    (
        "a lane cap that counts other tasks than run, or lets too many",
        "SELECT to_jsonb(l)::text FROM queue.lanes l,
             LATERAL (SELECT count(*) AS running, count(*) FILTER (WHERE lane_capped) AS counted FROM queue.tasks t
                      WHERE t.account_id = l.account_id AND t.queue = l.queue AND t.state = 'running') t
         WHERE l.running <> counted OR counted <> CASE WHEN l.max_running IS NULL THEN 0 ELSE t.running END
            OR l.overhang > greatest(l.running - l.max_running, 0)",
    ),
    (
        "a queue cap that counts other tasks than run, or lets too many",
        "SELECT to_jsonb(q)::text FROM queue.queues q,
             LATERAL (SELECT count(*) AS running, count(*) FILTER (WHERE queue_capped) AS counted FROM queue.tasks t
                      WHERE t.queue = q.queue AND t.state = 'running') t
         WHERE q.running <> counted OR counted <> CASE WHEN q.max_running IS NULL THEN 0 ELSE t.running END
            OR q.overhang > greatest(q.running - q.max_running, 0)",
    ),
    (
        "a ready task whose lane sleeps",
        "SELECT t.id::text FROM queue.tasks t WHERE t.state = 'ready' AND NOT EXISTS (
             SELECT FROM queue.lane_counts c WHERE c.account_id = t.account_id AND c.queue = t.queue AND c.awake)",
    ),
    (
        "a lease that two tasks have",
        "SELECT lease::text FROM queue.tasks WHERE state = 'running' GROUP BY lease HAVING count(*) > 1",
    ),
    (
        "a lease of nobody",
        "SELECT id::text FROM queue.tasks t
         WHERE state = 'running' AND NOT EXISTS (SELECT FROM queue.workers w WHERE w.id = t.worker_id)",
    ),
    (
        "a task that is also a dead letter",
        "SELECT id::text FROM queue.tasks JOIN queue.dead_letters USING (account_id, id)",
    ),
];

pub(super) async fn assert_nothing_forbidden(owner: &PgPool) -> Done {
    let all: Vec<String> = FORBIDDEN
        .iter()
        .map(|(what, sql)| format!("SELECT '{what}' AS what, * FROM ({sql}) AS found (row)"))
        .collect();
    let found: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(all.join(" UNION ALL "))).fetch_all(owner).await.map_err(text)?;
    if found.is_empty() { Ok(()) } else { Err(format!("there must be no such row: {found:?}")) }
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    account_id: Uuid,
    id: Uuid,
    state: String,
    rank: i16,
    position: i64,
    attempts: i32,
    lost: i16,
    lease: Option<i64>,
    worker_id: Option<Uuid>,
}

/// What a worker process remembers.
struct Worker {
    id: Uuid,
    lanes: Lanes,
    /// What the lanes were listed under: for the database, and for the oracle.
    settings: (i64, u64),
    now: Duration,
}

impl Worker {
    fn new(id: Uuid) -> Self {
        Self { id, lanes: Lanes::default(), settings: (-1, u64::MAX), now: Duration::ZERO }
    }
}

pub(super) struct Engine {
    owner: PgPool,
    worker: Database,
    operator: Database,
    worker_pool: PgPool,
    api_pool: PgPool,
    workers: Vec<Worker>,
    /// Every lease that was ever given, and every task that there ever was.
    leases: Vec<Lease>,
    ids: Vec<(usize, Uuid)>,
}

type Done = Result<(), String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[expect(clippy::needless_pass_by_value, reason = "both are made for the comparison")]
fn same<T: PartialEq + std::fmt::Debug>(what: &str, engine: T, oracle: T) -> Done {
    if engine == oracle { Ok(()) } else { Err(format!("{what}: {engine:?}, the oracle says {oracle:?}")) }
}

impl Engine {
    pub(super) async fn start() -> Self {
        let db = TestDb::new().await;
        db.open_accounts((0..ACCOUNTS).map(account)).await;
        let connect = async |role| Database::connect(&db.role_url(role), role, 4, true).await.unwrap();
        let pool = async |role| store::connect(&db.role_url(role), role, 4, true).await.unwrap();
        Self {
            owner: db.owner().await,
            worker: connect(Role::Worker).await,
            operator: connect(Role::Operator).await,
            worker_pool: pool(Role::Worker).await,
            api_pool: pool(Role::Api).await,
            workers: Vec::new(),
            leases: Vec::new(),
            ids: Vec::new(),
        }
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.owner).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// An empty queue without settings, and new workers.
    pub(super) async fn reset(&mut self) {
        self.run(
            "TRUNCATE queue.tasks, queue.dead_letters, queue.workers, queue.lanes, queue.lane_counts;
             UPDATE queue.queues SET max_running = NULL, running = 0, overhang = 0",
        )
        .await;
        (self.workers, self.leases, self.ids) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..WORKERS {
            let id = self.sign_in().await.unwrap();
            self.workers.push(Worker::new(id));
        }
    }

    pub(super) fn worker_ids(&self) -> [Uuid; WORKERS] {
        std::array::from_fn(|nr| self.workers[nr].id)
    }

    async fn sign_in(&self) -> Result<Uuid, String> {
        let timeout = Duration::from_mins(TIMEOUT_MINUTES);
        workers::register(&self.worker, "model", timeout).await.map_err(text)
    }

    fn lease(&self, pick: usize) -> Option<Lease> {
        (!self.leases.is_empty()).then(|| self.leases[self.leases.len() - 1 - pick % self.leases.len()])
    }

    /// Does it, and lets the oracle do it; what both return must be the same.
    pub(super) async fn step(&mut self, oracle: &mut Oracle, op: Op) -> Done {
        oracle.begin_step();
        match op {
            Op::Enqueue(new) => self.enqueue(oracle, &[new], false).await,
            Op::Bulk(new) => self.enqueue(oracle, &new, true).await,
            Op::Claim { worker, limit, list } => self.claim(oracle, worker, limit, list).await.map(drop),
            Op::Finish { picks } => {
                let mut leases: Vec<Lease> = picks.into_iter().filter_map(|pick| self.lease(pick)).collect();
                leases.sort_by_key(|lease| lease.token);
                leases.dedup();
                let mut held = queue::finish_all(&self.worker, &leases).await.map_err(text)?;
                held.sort_unstable();
                let expected = leases.iter().filter(|lease| oracle.finish(**lease)).map(|lease| lease.token);
                same("finished", held, expected.collect())
            }
            Op::Retry { pick, hours } => {
                let Some(lease) = self.lease(pick) else { return Ok(()) };
                let mut tx = TenantTx::begin(&self.worker_pool, lease.account).await.map_err(text)?;
                let at = tx.now().await.map_err(text)? + HOUR * u32::try_from(hours).unwrap();
                let held = store::retry_at(&mut tx, lease, at, &error()).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("retried", held, oracle.retry(lease, hours))
            }
            Op::Bury { pick } => {
                let Some(lease) = self.lease(pick) else { return Ok(()) };
                let mut tx = TenantTx::begin(&self.worker_pool, lease.account).await.map_err(text)?;
                let held = store::bury(&mut tx, lease, &error()).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("buried", held, oracle.bury(lease))
            }
            Op::Release { pick } => {
                let Some(lease) = self.lease(pick) else { return Ok(()) };
                let mut tx = TenantTx::begin(&self.worker_pool, lease.account).await.map_err(text)?;
                let held = store::release(&mut tx, lease).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("released", held, oracle.release(lease))
            }
            Op::Cancel { pick } => {
                if self.ids.is_empty() {
                    return Ok(());
                }
                let (of, id) = self.ids[pick % self.ids.len()];
                // As the API does it; and another tenant's attempt does nothing.
                let mut tx =
                    TenantTx::begin(&self.api_pool, account((of + 1) % ACCOUNTS)).await.map_err(text)?;
                same("cancelled for another", store::delete_task(&mut tx, id).await.map_err(text)?, false)?;
                tx.commit().await.map_err(text)?;
                let mut tx = TenantTx::begin(&self.api_pool, account(of)).await.map_err(text)?;
                let cancelled = store::delete_task(&mut tx, id).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("cancelled", cancelled, oracle.cancel(id))
            }
            Op::Heartbeat { worker } => {
                let id = self.workers[worker].id;
                let heard = workers::heartbeat(&self.worker, id, 0).await.map_err(text)?;
                let held = heard.map(|leases| {
                    let mut tokens: Vec<i64> = leases.into_iter().map(|lease| lease.token).collect();
                    tokens.sort_unstable();
                    tokens
                });
                let given_up = held.is_none();
                same("held", held, oracle.heartbeat(id))?;
                if given_up { self.sign_in_anew(oracle, worker).await } else { Ok(()) }
            }
            Op::SignOut { worker } => {
                let id = self.workers[worker].id;
                workers::deregister(&self.worker, id).await.map_err(text)?;
                oracle.sign_out(id);
                self.sign_in_anew(oracle, worker).await
            }
            Op::Sweep => {
                let swept = sweep::sweep(&self.worker, &mut Rounds::default()).await.map_err(text)?;
                oracle.sweep();
                same("orphans and lost wake-ups", (swept.orphans, swept.lost_wakeups), (0, 0))
            }
            Op::Sleep { worker, accounts } => {
                let accounts: Vec<_> = accounts.into_iter().map(account).collect();
                let asleep = queue::put_to_sleep(&self.worker, QUEUE, &accounts).await.map_err(text)?;
                for account in asleep {
                    self.workers[worker].lanes.forget(account);
                }
                Ok(())
            }
            Op::SetLane { account: nr, weight, cap } => {
                let change = LaneChange { weight: Some(weight), max_running: Some(Cap(cap)) };
                let changed = queue::change_lane(&self.operator, QUEUE, account(nr), Actor::Shell, change);
                changed.await.map_err(text)?;
                oracle.lane_caps[nr] = cap;
                oracle.settings += 1;
                Ok(())
            }
            Op::SetQueue { cap } => {
                queue::set_queue(&self.operator, QUEUE, Actor::Shell, cap).await.map_err(text)?;
                oracle.queue_cap = cap;
                oracle.settings += 1;
                Ok(())
            }
            Op::Promote => {
                queue::promote_due(&self.worker, QUEUE).await.map_err(text)?;
                oracle.promote();
                Ok(())
            }
            Op::Clock { hours } => {
                self.run(&format!(
                    "UPDATE queue.tasks SET run_at = run_at - interval '{hours} h', expires_at = expires_at - interval '{hours} h';
                     UPDATE queue.workers SET heartbeat_at = heartbeat_at - interval '{hours} h'"
                ))
                .await;
                oracle.hour += hours;
                self.workers.iter_mut().for_each(|worker| worker.now += HOUR * u32::try_from(hours).unwrap());
                Ok(())
            }
        }
    }

    async fn sign_in_anew(&mut self, oracle: &mut Oracle, worker: usize) -> Done {
        let id = self.sign_in().await?;
        oracle.workers.insert(id, Some(oracle.hour));
        self.workers[worker].id = id;
        Ok(())
    }

    async fn enqueue(&mut self, oracle: &mut Oracle, new: &[New], bulk: bool) -> Done {
        let now: chrono::DateTime<chrono::Utc> =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.owner).await.map_err(text)?;
        let payload = json!({});
        // One statement has one time to live.
        let ttl = new[0].ttl;
        let mut tasks = Vec::new();
        for new in new {
            let id = ids::new_id();
            let later = (new.due > 0).then(|| now + HOUR * u32::try_from(new.due).unwrap());
            let task = NewTask {
                id,
                queue: QUEUE,
                task_type: "model",
                payload: &payload,
                priority: new.priority,
                max_attempts: 3,
                run_at: later,
                ttl: HOUR * u32::try_from(ttl).unwrap(),
            };
            tasks.push((account(new.account), task));
            oracle.enqueue(id, New { ttl, ..*new });
            self.ids.push((new.account, id));
        }
        if bulk {
            let ttl = HOUR * u32::try_from(ttl).unwrap();
            return queue::enqueue_all(&self.worker, QUEUE, ttl, &tasks).await.map_err(text);
        }
        for (account, task) in tasks {
            // As a submission does it: in the tenant's own transaction.
            let mut tx = TenantTx::begin(&self.api_pool, account).await.map_err(text)?;
            store::enqueue(&mut tx, account, task).await.map_err(text)?;
            tx.commit().await.map_err(text)?;
        }
        Ok(())
    }

    async fn claim(
        &mut self,
        oracle: &mut Oracle,
        nr: usize,
        limit: usize,
        list: bool,
    ) -> Result<usize, String> {
        let worker = &mut self.workers[nr];
        if list {
            let first = AccountId(Uuid::nil());
            let listing = queue::list_lanes(&self.worker, QUEUE, worker.id, first).await.map_err(text)?;
            worker.lanes.list(&listing.lanes, true);
            worker.settings = (listing.settings, oracle.settings);
        }
        // Far enough apart that the next claim begins where this one stops.
        worker.now += Duration::from_millis(100);
        let mut plan = worker.lanes.plan(limit, worker.now);
        let claimed =
            queue::claim(&self.worker, QUEUE, worker.id, worker.settings.0, &mut plan).await.map_err(text)?;
        let taken: Vec<_> =
            claimed.iter().map(|task| Taken { account: task.lease.account, place: task.place }).collect();
        worker.lanes.observe(&plan, &taken, worker.now);
        let claimed: Vec<(usize, ClaimedTask)> =
            claimed.into_iter().map(|task| (number(task.lease.account), task)).collect();
        self.leases.extend(claimed.iter().map(|(_, task)| task.lease));
        let in_force = worker.settings.1 == oracle.settings;
        oracle.claimed(worker.id, limit, in_force, &claimed)?;
        Ok(claimed.len())
    }

    /// A worker that knows nothing yet gets all that there is to be had, whatever happened before.
    pub(super) async fn drain(&mut self, oracle: &mut Oracle) -> Done {
        self.sign_in_anew(oracle, 0).await?;
        self.workers[0] = Worker::new(self.workers[0].id);
        let mut in_vain = 0;
        let mut list = true;
        while oracle.has_work() {
            let got = self.claim(oracle, 0, 3, list).await?;
            list = got == 0;
            in_vain = if got == 0 { in_vain + 1 } else { 0 };
            if in_vain > ACCOUNTS {
                return Err("there are tasks to be claimed, and room, and nobody gets them".into());
            }
        }
        Ok(())
    }

    /// Holds the tables against the oracle.
    pub(super) async fn compare(&mut self, oracle: &mut Oracle) -> Done {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT account_id, id, state, rank, position, attempts, lost, lease, worker_id FROM queue.tasks
             ORDER BY position",
        )
        .fetch_all(&self.owner)
        .await
        .map_err(text)?;
        let mut last = BTreeMap::new();
        for row in &rows {
            let Some(task) = oracle.tasks.get_mut(&row.id) else {
                return Err(format!("{row:?}: should be gone"));
            };
            let state = match (row.state.as_str(), row.worker_id, row.lease) {
                ("scheduled", None, None) => State::Scheduled,
                ("ready", None, None) => State::Ready,
                ("running", Some(worker), Some(token)) => State::Running { worker, token },
                _ => return Err(format!("{row:?}")),
            };
            same(&format!("{} is", row.id), state, task.state)?;
            let counted = (number(AccountId(row.account_id)), row.rank, row.attempts, row.lost);
            same(&format!("{} has", row.id), counted, (task.account, task.rank, task.attempts, task.lost))?;
            if state == State::Ready {
                task.position = row.position;
                let last = last.entry((task.account, task.rank)).or_insert(0);
                if task.since < *last {
                    return Err(format!("{} stands behind one that became ready after it", row.id));
                }
                *last = task.since;
            }
        }
        same("tasks", rows.len(), oracle.tasks.len())?;
        assert_nothing_forbidden(&self.owner).await?;
        let ended: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(
            "SELECT account_id, sum(done)::bigint, sum(failed)::bigint, (SELECT count(*) FROM queue.dead_letters)
             FROM queue.lane_counts GROUP BY 1",
        )
        .fetch_all(&self.owner)
        .await
        .map_err(text)?;
        let mut counted = [Ended::default(); ACCOUNTS];
        let mut letters = 0;
        for (account, done, failed, all) in ended {
            counted[number(AccountId(account))] = Ended { done, failed };
            letters = all;
        }
        same("ended", counted, oracle.ended)?;
        same("dead letters", letters, oracle.ended.iter().map(|ended| ended.failed).sum())
    }
}

pub(super) fn error() -> JobError {
    JobError { code: "SERVER_ERROR".into(), message: "model".into() }
}
