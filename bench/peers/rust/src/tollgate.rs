//! Tollgate's own queue, through the functions that its roles use: the domain's enqueue and the worker's loop.
use crate::common::{env, payload, producers, url, Kind, Peer, Producer, Result, Seen};
use serde_json::{json, Value};
use sqlx::Connection as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tollgate_domain::queue::{self, Enqueuer, NewTask};
use tollgate_domain::{ids, migrate, waker, Database, Role, Waker};
use tollgate_model::account::AccountId;
use tollgate_model::lanes::Plan;
use tollgate_model::queue::{ClaimedTask, QueueName, QueuePolicy};
use tollgate_model::retry::RetrySchedule;
use tollgate_store::{SystemTx, Tx as _};
use tollgate_worker::{HeldLease, Work, Worker, WorkerConfig};
use uuid::Uuid;

const QUEUE: QueueName = QueueName::WebhookDelivery;
const TTL: Duration = Duration::from_secs(7 * 86_400);

pub struct Tollgate {
    name: &'static str,
    accounts: u64,
    db: Database,
    pool: tollgate_store::PgPool,
    waker: Waker,
    concurrency: usize,
}

impl Tollgate {
    /// `accounts`: how many share the work.
    pub async fn new(name: &'static str, accounts: u64) -> Result<Self> {
        migrate(&url()).await?;
        // w5's application rows are the owner's.
        let mut owner = sqlx::PgConnection::connect(&url()).await?;
        for what in ["TABLES", "SEQUENCES"] {
            let grant = format!("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON {what} TO app_worker");
            sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&mut owner).await?;
        }
        let most = 2 * producers() as u32 + 8;
        let db = Database::connect(&url(), Role::Worker, most, false).await?;
        let pool = tollgate_store::connect(&url(), Role::Worker, most, false).await?;
        let (waker, send) = waker(db.clone(), QUEUE);
        tokio::spawn(send);
        Ok(Self { name, accounts, db, pool, waker, concurrency: env("TOLLGATE_CONCURRENCY", 2000) as usize })
    }
}

/// A handler that does nothing but be counted.
struct NoOp(Arc<Seen>);
impl Work for NoOp {
    type Run = ClaimedTask;
    type Leave = ();
    fn leave(&self, want: usize) -> Option<(usize, ())> {
        Some((want, ()))
    }
    async fn claim(&self, db: &Database, worker: Uuid, settings: i64, plan: &mut Plan, _leave: ()) -> tollgate_domain::Result<Vec<ClaimedTask>> {
        queue::claim(db, QUEUE, worker, settings, plan).await
    }
    fn task(run: &ClaimedTask) -> &ClaimedTask {
        run
    }
    async fn run(worker: &Worker<Self>, run: ClaimedTask, _held: &HeldLease<'_>) {
        #[derive(serde::Deserialize)]
        struct Payload { n: i64 }
        worker.work().0.handle(serde_json::from_str(run.payload.get()).map_or(-1, |Payload { n }| n));
        worker.finish(run.lease).await;
    }
}

impl Peer for Tollgate {
    type Producer = TollgateProducer;
    fn name(&self) -> &'static str {
        self.name
    }
    fn settings(&self) -> Value {
        json!({"concurrency": self.concurrency, "accounts": self.accounts})
    }
    async fn setup(&self) -> Result<()> {
        Ok(())
    }
    async fn producer(&self) -> Result<TollgateProducer> {
        let alone = Enqueuer::connect(&self.db).await?;
        Ok(TollgateProducer { alone, db: self.db.clone(), pool: self.pool.clone(), waker: self.waker.clone(), accounts: self.accounts })
    }
    async fn start_worker(&self, seen: Arc<Seen>) -> Result<()> {
        let policy = QueuePolicy { name: QUEUE, concurrency: self.concurrency, ttl: TTL, retry: RetrySchedule::default() };
        let config = WorkerConfig {
            name: "bench".into(),
            policy,
            visibility_timeout: Duration::from_secs(30),
            poll_interval: Duration::from_secs(1),
            drain: Duration::from_secs(5),
        };
        let worker = Worker::start(self.db.clone(), NoOp(seen), config).await?;
        tokio::spawn(worker.run(CancellationToken::new()));
        Ok(())
    }
    fn mark_sql(&self) -> &'static str {
        "select coalesce(max(position), 0)::text from queue.tasks"
    }
    fn done_sql(&self) -> &'static str {
        // Each half is a walk along a small part of an index: a scan of a million others would be timed as ours.
        "select not exists (select from queue.tasks where state = 'running' and priority < 10 and position > $1::text::bigint)
            and not exists (select from queue.tasks where queue = 'webhook.delivery' and state = 'ready' and rank < 20 and position > $1::text::bigint)"
    }
    fn remaining_sql(&self) -> &'static str {
        "select count(*) from queue.tasks"
    }
}

fn task<'a>(id: Uuid, payload: &'a Value) -> NewTask<'a> {
    NewTask { id, queue: QUEUE, task_type: "bench", payload, priority: 5, max_attempts: 5, run_at: None, ttl: TTL }
}

/// Accounts take turns.
fn account(of: u64) -> AccountId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    AccountId(Uuid::from_u128(1 + u128::from(NEXT.fetch_add(1, Ordering::Relaxed) % of)))
}

pub struct TollgateProducer {
    /// A connection of its own, as the other drivers' producers have.
    alone: Enqueuer,
    db: Database,
    pool: tollgate_store::PgPool,
    waker: Waker,
    accounts: u64,
}
impl Producer for TollgateProducer {
    async fn send(&mut self, n: i64) -> Result<()> {
        self.alone.enqueue(account(self.accounts), task(ids::new_id(), &payload(n))).await?;
        self.waker.wake();
        Ok(())
    }
    async fn send_tx(&mut self, n: i64) -> Result<()> {
        let mut tx = SystemTx::begin(&self.pool).await?;
        sqlx::query("insert into public.app_rows (note) values ('order')").execute(tx.connection()).await?;
        tollgate_store::enqueue(&mut tx, account(self.accounts), task(ids::new_id(), &payload(n))).await?;
        tx.commit().await?;
        self.waker.wake();
        Ok(())
    }
    async fn bulk(&mut self, jobs: Vec<Value>, kind: Kind) -> Result<()> {
        let later = (kind == Kind::Future).then(|| (std::time::SystemTime::now() + Duration::from_secs(86_400)).into());
        let tasks: Vec<_> = jobs
            .iter()
            .map(|payload| {
                let task = NewTask { run_at: later, priority: if kind == Kind::Low { 10 } else { 5 }, ..task(ids::new_id(), payload) };
                (account(self.accounts), task)
            })
            .collect();
        queue::enqueue_all(&self.db, QUEUE, TTL, &tasks).await?;
        self.waker.wake();
        Ok(())
    }
}
