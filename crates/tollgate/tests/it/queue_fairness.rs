//! Fair shares and caps, with the worker's own loop on a real PostgreSQL: who starts when, counted where tasks start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tollgate_domain::queue::{self, Cap, LaneChange, NewTask};
use tollgate_domain::{Database, Role, ids, waker};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::lanes::Plan;
use tollgate_model::queue::{ClaimedTask, QueueName, QueuePolicy};
use tollgate_model::retry::RetrySchedule;
use tollgate_store::{TenantTx, delete_task};
use tollgate_testkit::{TestDb, eventually};
use tollgate_worker::{HeldLease, Work, Worker, WorkerConfig};
use uuid::Uuid;

const QUEUE: QueueName = QueueName::WebhookDelivery;
const DAY: Duration = Duration::from_hours(24);

fn account(nr: u128) -> AccountId {
    AccountId(Uuid::from_u128(nr + 1))
}

/// What the handlers see, of all workers together.
#[derive(Debug, Default)]
struct Seen {
    /// Whose task started, and when, in order.
    starts: Vec<(AccountId, Instant)>,
    running: HashMap<AccountId, usize>,
    most: HashMap<AccountId, usize>,
    most_of_all: usize,
}

/// Takes this long over each task; or for each task of account 0 waits for a permit, where there is a gate.
#[derive(Clone)]
struct Slow {
    seen: Arc<Mutex<Seen>>,
    lasting: Duration,
    gate: Option<Arc<Semaphore>>,
}

impl Work for Slow {
    type Run = ClaimedTask;
    type Leave = ();

    fn leave(&self, want: usize) -> Option<(usize, ())> {
        Some((want, ()))
    }

    async fn claim(
        &self,
        db: &Database,
        worker: Uuid,
        settings: i64,
        plan: &mut Plan,
        _leave: (),
    ) -> tollgate_domain::Result<Vec<ClaimedTask>> {
        queue::claim(db, QUEUE, worker, settings, plan).await
    }

    fn task(run: &ClaimedTask) -> &ClaimedTask {
        run
    }

    async fn run(worker: &Worker<Self>, run: ClaimedTask, _held: &HeldLease<'_>) {
        let work = worker.work().clone();
        let of = run.lease.account;
        {
            let mut seen = work.seen.lock().unwrap();
            seen.starts.push((of, Instant::now()));
            let running = seen.running.entry(of).or_default();
            *running += 1;
            let running = *running;
            let most = seen.most.entry(of).or_default();
            *most = running.max(*most);
            seen.most_of_all = seen.most_of_all.max(seen.running.values().sum());
        }
        match &work.gate {
            Some(gate) if of == account(0) => gate.acquire().await.unwrap().forget(),
            _ => tokio::time::sleep(work.lasting).await,
        }
        *work.seen.lock().unwrap().running.get_mut(&of).unwrap() -= 1;
        worker.finish(run.lease).await;
    }
}

/// A queue with workers.
struct Queue {
    db: TestDb,
    owner: PgPool,
    worker: Database,
    operator: Database,
    work: Slow,
    poll: Duration,
    running: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Queue {
    async fn new(lasting: Duration) -> Self {
        let db = TestDb::new().await;
        db.open_accounts((0..12).map(account)).await;
        let stop = CancellationToken::new();
        Self {
            owner: db.owner().await,
            worker: Database::connect(&db.role_url(Role::Worker), Role::Worker, 4, true).await.unwrap(),
            operator: Database::connect(&db.role_url(Role::Operator), Role::Operator, 1, true).await.unwrap(),
            db,
            work: Slow { seen: Arc::default(), lasting, gate: None },
            // Longer than any test: what happens in time happens because somebody looked.
            poll: Duration::from_mins(5),
            running: TaskTracker::new(),
            _stop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// A worker with a pool of its own.
    async fn start(&self, concurrency: usize) {
        let pool = Database::connect(&self.db.role_url(Role::Worker), Role::Worker, 6, true).await.unwrap();
        let policy = QueuePolicy { name: QUEUE, concurrency, ttl: DAY, retry: RetrySchedule::default() };
        let config = WorkerConfig {
            name: "fairness".into(),
            policy,
            visibility_timeout: Duration::from_mins(1),
            poll_interval: self.poll,
            drain: Duration::from_secs(5),
        };
        let worker = Worker::start(pool, self.work.clone(), config).await.unwrap();
        self.running.spawn(worker.run(self.stop.clone()));
    }

    /// Enqueues as a producer does: a commit, and then a hint.
    async fn enqueue(&self, of: AccountId, tasks: usize, later: Option<Duration>) -> Vec<Uuid> {
        let now: chrono::DateTime<chrono::Utc> =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.owner).await.unwrap();
        let payload = json!({});
        let (wake, send) = waker(self.worker.clone(), QUEUE);
        let ids: Vec<Uuid> = (0..tasks).map(|_| ids::new_id()).collect();
        for some in ids.chunks(5_000) {
            let new = |id: &Uuid| NewTask {
                id: *id,
                queue: QUEUE,
                task_type: "fairness",
                payload: &payload,
                priority: 5,
                max_attempts: 1,
                run_at: later.map(|later| now + later),
                ttl: DAY,
            };
            let tasks: Vec<_> = some.iter().map(|id| (of, new(id))).collect();
            queue::enqueue_all(&self.worker, QUEUE, DAY, &tasks).await.unwrap();
        }
        wake.wake();
        let _ = tokio::time::timeout(Duration::from_millis(50), send).await;
        ids
    }

    async fn set(&self, of: AccountId, weight: u16, max_running: Option<i32>) {
        let change = LaneChange { weight: Some(weight), max_running: Some(Cap(max_running)) };
        queue::change_lane(&self.operator, QUEUE, of, Actor::Shell, change).await.unwrap();
    }

    fn starts(&self) -> Vec<AccountId> {
        self.work.seen.lock().unwrap().starts.iter().map(|(of, _)| *of).collect()
    }

    /// Waits until so many tasks have started, of one account or of all.
    async fn started(&self, of: Option<AccountId>, tasks: usize, patience: u64) {
        let count = || self.starts().iter().filter(|start| of.is_none_or(|of| **start == of)).count();
        eventually(&format!("{tasks} started of {of:?}"), Duration::from_secs(patience), || async {
            (count() >= tasks).then_some(())
        })
        .await;
    }

    /// Running tasks of an account and of all, by the database's account, until `until` says so; whether both ever were
    /// as many as is allowed.
    async fn watch(
        &self,
        of: AccountId,
        most: i64,
        most_of_all: i64,
        until: impl Fn() -> bool,
    ) -> (bool, bool) {
        let mut reached = (false, false);
        while !until() {
            let sql = "SELECT count(*) FILTER (WHERE account_id = $1), count(*) FROM queue.tasks WHERE state = 'running'";
            let (lane, all): (i64, i64) =
                sqlx::query_as(sql).bind(of.0).fetch_one(&self.owner).await.unwrap();
            assert!(lane <= most && all <= most_of_all, "{lane} of one and {all} of all ran at once");
            reached = (reached.0 || lane == most, reached.1 || all == most_of_all);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        reached
    }
}

/// Four times, at whatever moment: no more tasks start before it than the worker had slots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fairness_a_single_task_starts_before_a_hundred_thousand() {
    const SLOTS: usize = 40;
    let queue = Queue::new(Duration::from_secs(1)).await;
    queue.enqueue(account(0), 100_000, None).await;
    queue.start(SLOTS).await;
    queue.started(None, SLOTS * 2, 20).await;
    for nr in 1..=4 {
        let single = account(nr);
        queue.enqueue(single, 1, None).await;
        let before = queue.starts().len();
        queue.started(Some(single), 1, 20).await;
        let starts = queue.starts();
        let at = starts.iter().position(|start| *start == single).unwrap();
        let waited = at.saturating_sub(before);
        println!("{waited} tasks started before the single one");
        assert!(waited <= SLOTS, "{waited} tasks of another account started before it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fairness_completions_follow_the_weights() {
    const WEIGHTS: [u16; 4] = [1, 1, 2, 4];
    const ALL: usize = 10_000;
    let queue = Queue::new(Duration::ZERO).await;
    for (nr, weight) in (0..).zip(WEIGHTS) {
        queue.set(account(nr), weight, None).await;
        queue.enqueue(account(nr), ALL, None).await;
    }
    tokio::join!(queue.start(64), queue.start(100));
    // As many of all as leave every account with a backlog.
    queue.started(None, ALL, 40).await;
    let starts = queue.starts();
    for (nr, weight) in (0..).zip(WEIGHTS) {
        let got = starts[..ALL].iter().filter(|of| **of == account(nr)).count();
        let fair = ALL as f64 * f64::from(weight) / 8.0;
        println!("weight {weight}: {got} of {ALL}");
        assert!((got as f64 - fair).abs() <= 0.05 * fair, "{got} of {ALL} at weight {weight}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fairness_tasks_of_the_future_freeze_nobody_and_start_when_due() {
    let (busy, future) = (account(0), account(1));
    let queue = Queue::new(Duration::from_millis(20)).await;
    let later = Duration::from_secs(2);
    queue.enqueue(busy, 20_000, None).await;
    queue.start(20).await;
    queue.started(Some(busy), 20, 20).await;
    let began = Instant::now();
    queue.enqueue(future, 500, Some(later)).await;
    queue.started(Some(future), 100, 20).await;
    let starts = queue.work.seen.lock().unwrap().starts.clone();
    let first = starts.iter().find(|(of, _)| *of == future).unwrap().1;
    let due = began + later;
    assert!(first >= due, "early by {:?}", due - first);
    assert!(first < due + Duration::from_secs(2), "late by {:?}", first - due);
    let meanwhile = starts.iter().filter(|(of, at)| *of == busy && *at > began && *at < due).count();
    // 20 slots of 20 ms could start 2,000: on the busiest machine, that is no worker that stands still.
    assert!(meanwhile > 100, "only {meanwhile} tasks of the other started meanwhile");
    let share =
        starts.iter().filter(|(_, at)| *at >= first).take(200).filter(|(of, _)| *of == future).count();
    assert!((80..=120).contains(&share), "{share} of 200 once it was due");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caps_are_reached_and_never_exceeded_by_four_workers() {
    let (capped, free) = (account(0), account(1));
    let queue = Queue::new(Duration::from_millis(20)).await;
    queue.set(capped, 1, Some(3)).await;
    queue::set_queue(&queue.operator, QUEUE, Actor::Shell, Some(5)).await.unwrap();
    tokio::join!(queue.start(8), queue.start(8), queue.start(8), queue.start(8));
    tokio::join!(queue.enqueue(capped, 150, None), queue.enqueue(free, 150, None));
    let reached = queue.watch(capped, 3, 5, || queue.starts().len() == 300);
    let reached = tokio::time::timeout(Duration::from_secs(40), reached).await.expect("every task started");
    assert_eq!(reached, (true, true), "the caps were to be reached");
    // The handlers' own account, which misses no moment.
    let seen = queue.work.seen.lock().unwrap();
    assert_eq!((seen.most[&capped], seen.most_of_all), (3, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_lowered_below_what_runs_lets_nothing_start_until_there_is_room() {
    let capped = account(0);
    let mut queue = Queue::new(Duration::ZERO).await;
    let gate = Arc::new(Semaphore::new(0));
    queue.work.gate = Some(gate.clone());
    queue.enqueue(capped, 20, None).await;
    tokio::join!(queue.start(4), queue.start(4));
    queue.started(Some(capped), 8, 10).await;
    queue.set(capped, 1, Some(3)).await;
    // One after the other ends: 8, 7, 6 … and the first that may start is the one for which there is room.
    for (ended, expected) in [(1, 8), (2, 8), (3, 8), (4, 8), (5, 8), (6, 9), (7, 10)] {
        gate.add_permits(1);
        let ran = 8 - i64::from(ended);
        eventually(&format!("{ended} ended and {expected} started"), Duration::from_secs(10), || async {
            let left: i64 =
                sqlx::query_scalar("SELECT count(*) FROM queue.tasks").fetch_one(&queue.owner).await.unwrap();
            (left == 20 - i64::from(ended) && queue.starts().len() >= expected).then_some(())
        })
        .await;
        // Time for one that must not start.
        queue
            .watch(capped, ran.max(3), ran.max(3), {
                let until = Instant::now() + Duration::from_millis(150);
                move || Instant::now() >= until
            })
            .await;
        assert_eq!(queue.starts().len(), expected, "after {ended} had ended");
    }
    queue.set(capped, 1, None).await;
    queue.started(Some(capped), 15, 10).await;
    gate.add_permits(100);
    queue.started(Some(capped), 20, 10).await;
}

/// With one slot, a worker looks at one lane a claim. Those that others have emptied meanwhile must not make it believe
/// that there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_others_have_emptied_do_not_put_a_worker_to_sleep() {
    let mut queue = Queue::new(Duration::ZERO).await;
    let gate = Arc::new(Semaphore::new(0));
    queue.work.gate = Some(gate.clone());
    let api = tollgate_store::connect(&queue.db.role_url(Role::Api), Role::Api, 2, true).await.unwrap();
    let mut waiting = Vec::new();
    for nr in 0..12 {
        waiting.push((account(nr), queue.enqueue(account(nr), 1, None).await[0]));
    }
    queue.start(1).await;
    queue.started(Some(account(0)), 1, 10).await;
    for (of, task) in &waiting[1..11] {
        let mut tx = TenantTx::begin(&api, *of).await.unwrap();
        assert!(delete_task(&mut tx, *task).await.unwrap());
        tx.commit().await.unwrap();
    }
    gate.add_permits(1);
    queue.started(Some(account(11)), 1, 5).await;
}
