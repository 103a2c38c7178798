//! The same operations from eight at once: no error and no deadlock, every count right in every snapshot, no cap exceeded,
//! and at the end nothing lost and nothing done twice.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tollgate_domain::queue::{self, Cap, Enqueuer, LaneChange, NewTask};
use tollgate_domain::sweep::{self, Rounds};
use tollgate_domain::{Database, Role, ids, workers};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::lanes::{Lanes, Taken};
use tollgate_model::queue::Lease;
use tollgate_store as store;
use tollgate_store::{TenantTx, Tx as _};
use tollgate_testkit::TestDb;
use uuid::Uuid;

use super::ACCOUNTS;
use super::engine::{QUEUE, account, assert_nothing_forbidden, error};

const AT_ONCE: usize = 8;
const HOUR: Duration = Duration::from_hours(1);

/// What all of them share.
struct Shared {
    worker: Database,
    operator: Database,
    worker_pool: PgPool,
    api_pool: PgPool,
    /// Every task there ever was.
    ids: Mutex<Vec<(AccountId, Uuid)>>,
    done: AtomicI64,
    failed: AtomicI64,
    cancelled: AtomicUsize,
}

/// One of the eight: a worker, and whatever else it likes to be.
struct Party {
    shared: Arc<Shared>,
    rng: TestRng,
    enqueuer: Enqueuer,
    id: Uuid,
    lanes: Lanes,
    settings: i64,
    began: Instant,
    /// Every lease it ever had.
    leases: Vec<Lease>,
}

type Result<T = ()> = std::result::Result<T, tollgate_domain::Error>;

impl Party {
    async fn start(shared: Arc<Shared>, seed: usize) -> Self {
        let seed = [u8::try_from(seed).unwrap(); 32];
        Self {
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
            enqueuer: Enqueuer::connect(&shared.worker).await.unwrap(),
            id: workers::register(&shared.worker, "at once", HOUR).await.unwrap(),
            lanes: Lanes::default(),
            settings: -1,
            began: Instant::now(),
            leases: Vec::new(),
            shared,
        }
    }

    fn below(&mut self, most: usize) -> usize {
        self.rng.random_range(0..most)
    }

    fn lease(&mut self) -> Option<Lease> {
        // Mostly one that may still hold.
        let last = self.leases.len().min(12);
        let back = if self.below(8) == 0 { self.leases.len() } else { last };
        let back = (back > 0).then(|| self.below(back))?;
        Some(self.leases[self.leases.len() - 1 - back])
    }

    async fn enqueue(&mut self, tasks: usize) -> Result {
        let payload = json!({});
        let mut new = Vec::new();
        for _ in 0..tasks {
            let of = account(self.below(ACCOUNTS));
            let mut tx = TenantTx::begin(&self.shared.api_pool, of).await?;
            let soon = tx.now().await? + Duration::from_millis(20);
            let task = NewTask {
                id: ids::new_id(),
                queue: QUEUE,
                task_type: "at once",
                payload: &payload,
                priority: i16::try_from(1 + self.below(10)).unwrap(),
                max_attempts: 3,
                run_at: (self.below(3) == 0).then_some(soon),
                ttl: HOUR,
            };
            self.shared.ids.lock().unwrap().push((of, task.id));
            match (tasks, self.below(2)) {
                (1, 0) => {
                    store::enqueue(&mut tx, of, task).await?;
                    tx.commit().await?;
                }
                (1, _) => self.enqueuer.enqueue(of, task).await?,
                _ => new.push((of, task)),
            }
        }
        if !new.is_empty() {
            queue::enqueue_all(&self.shared.worker, QUEUE, HOUR, &new).await?;
        }
        Ok(())
    }

    async fn claim(&mut self) -> Result<usize> {
        if self.below(2) == 0 {
            let first = AccountId(Uuid::nil());
            let listing = queue::list_lanes(&self.shared.worker, QUEUE, self.id, first).await?;
            self.lanes.list(&listing.lanes, true);
            self.settings = listing.settings;
        }
        let limit = 1 + self.below(20);
        let mut plan = self.lanes.plan(limit, self.began.elapsed());
        let claimed = queue::claim(&self.shared.worker, QUEUE, self.id, self.settings, &mut plan).await?;
        let taken: Vec<_> =
            claimed.iter().map(|task| Taken { account: task.lease.account, place: task.place }).collect();
        self.lanes.observe(&plan, &taken, self.began.elapsed());
        self.leases.extend(claimed.iter().map(|task| task.lease));
        Ok(claimed.len())
    }

    async fn finish(&mut self) -> Result {
        let mut leases: Vec<Lease> = (0..10).filter_map(|_| self.lease()).collect();
        leases.sort_by_key(|lease| lease.token);
        leases.dedup();
        let held = queue::finish_all(&self.shared.worker, &leases).await?;
        self.shared.done.fetch_add(i64::try_from(held.len()).unwrap(), Ordering::Relaxed);
        Ok(())
    }

    /// Ends a lease in one of the other ways.
    async fn give_back(&mut self) -> Result {
        let Some(lease) = self.lease() else { return Ok(()) };
        let mut tx = TenantTx::begin(&self.shared.worker_pool, lease.account).await?;
        match self.below(3) {
            0 => {
                let soon = tx.now().await? + Duration::from_millis(10);
                store::retry_at(&mut tx, lease, soon, &error()).await?;
            }
            1 => {
                store::release(&mut tx, lease).await?;
            }
            _ => {
                let buried = store::bury(&mut tx, lease, &error()).await?;
                self.shared.failed.fetch_add(i64::from(buried), Ordering::Relaxed);
            }
        }
        Ok(tx.commit().await?)
    }

    async fn cancel(&mut self) -> Result {
        let all = self.shared.ids.lock().unwrap().len();
        if all == 0 {
            return Ok(());
        }
        let nr = self.below(all);
        let (of, id) = self.shared.ids.lock().unwrap()[nr];
        let mut tx = TenantTx::begin(&self.shared.api_pool, of).await?;
        let cancelled = store::delete_task(&mut tx, id).await?;
        tx.commit().await?;
        self.shared.cancelled.fetch_add(usize::from(cancelled), Ordering::Relaxed);
        Ok(())
    }

    async fn set(&mut self) -> Result {
        let max_running = match self.below(4) {
            0 => None,
            _ => Some(i32::try_from(self.below(12)).unwrap()),
        };
        if self.below(3) == 0 {
            return queue::set_queue(
                &self.shared.operator,
                QUEUE,
                Actor::Shell,
                max_running.map(|max| max * 3),
            )
            .await;
        }
        let weight = u16::try_from(1 + self.below(4)).unwrap();
        let change = LaneChange { weight: Some(weight), max_running: Some(Cap(max_running)) };
        let of = account(self.below(ACCOUNTS));
        queue::change_lane(&self.shared.operator, QUEUE, of, Actor::Shell, change).await.map(drop)
    }

    /// Signs out, with whatever it has in hand, and in again.
    async fn leave(&mut self) -> Result {
        workers::deregister(&self.shared.worker, self.id).await?;
        self.id = workers::register(&self.shared.worker, "at once", HOUR).await?;
        Ok(())
    }

    async fn step(&mut self) -> Result {
        let db = self.shared.worker.clone();
        match self.below(40) {
            0..8 => self.enqueue(1).await,
            8..11 => self.enqueue(8).await,
            11..21 => self.claim().await.map(drop),
            21..28 => self.finish().await,
            28..31 => self.give_back().await,
            31..33 => self.cancel().await,
            33 => queue::promote_due(&db, QUEUE).await.map(drop),
            34..36 => {
                let swept = sweep::sweep(&db, &mut Rounds::default()).await?;
                assert_eq!((swept.orphans, swept.lost_wakeups), (0, 0));
                Ok(())
            }
            36 => {
                let all: Vec<_> = (0..ACCOUNTS).map(account).collect();
                let asleep = queue::put_to_sleep(&db, QUEUE, &all).await?;
                for account in asleep {
                    self.lanes.forget(account);
                }
                Ok(())
            }
            37 => workers::heartbeat(&db, self.id, 0).await.map(drop),
            38 => self.leave().await,
            _ => self.set().await,
        }
    }

    /// Takes and finishes what is left.
    async fn finish_all_that_is_left(&mut self, owner: &PgPool) -> Result {
        for nr in 0..ACCOUNTS {
            let change = LaneChange { weight: Some(1), max_running: Some(Cap(None)) };
            queue::change_lane(&self.shared.operator, QUEUE, account(nr), Actor::Shell, change).await?;
        }
        queue::set_queue(&self.shared.operator, QUEUE, Actor::Shell, None).await?;
        self.leave().await?;
        sweep::sweep(&self.shared.worker, &mut Rounds::default()).await?;
        // Nothing has gone to sleep that should not: from here on no sweep looks after it.
        let began = Instant::now();
        loop {
            queue::promote_due(&self.shared.worker, QUEUE).await?;
            (self.lanes, self.leases) = (Lanes::default(), Vec::new());
            while self.claim().await? > 0 {}
            let held = queue::finish_all(&self.shared.worker, &self.leases).await?;
            assert_eq!(held.len(), self.leases.len());
            self.shared.done.fetch_add(i64::try_from(held.len()).unwrap(), Ordering::Relaxed);
            let left = sqlx::query_scalar("SELECT count(*) FROM queue.tasks").fetch_one(owner).await;
            if left.unwrap_or(-1_i64) == 0 {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "something is left for ever");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_keeps_its_counts_whatever_eight_do_at_once() {
    let lasting = std::env::var("QUEUE_MODEL_SECONDS").map_or(4, |seconds| seconds.parse().unwrap());
    let db = TestDb::new().await;
    db.open_accounts((0..ACCOUNTS).map(account)).await;
    let owner = db.owner().await;
    // Each of the eight has one of the workers' connections for good, and shares the others.
    let shared = Arc::new(Shared {
        worker: Database::connect(&db.role_url(Role::Worker), Role::Worker, 14, true).await.unwrap(),
        operator: Database::connect(&db.role_url(Role::Operator), Role::Operator, 2, true).await.unwrap(),
        worker_pool: store::connect(&db.role_url(Role::Worker), Role::Worker, 3, true).await.unwrap(),
        api_pool: store::connect(&db.role_url(Role::Api), Role::Api, 4, true).await.unwrap(),
        ids: Mutex::default(),
        done: AtomicI64::new(0),
        failed: AtomicI64::new(0),
        cancelled: AtomicUsize::new(0),
    });

    let mut all = Vec::new();
    for nr in 0..AT_ONCE {
        all.push(Party::start(shared.clone(), nr).await);
    }
    let until = Instant::now() + Duration::from_secs(lasting);
    let mut parties = JoinSet::new();
    for (nr, mut party) in all.into_iter().enumerate() {
        parties.spawn(async move {
            let mut steps = 0;
            while Instant::now() < until {
                party.step().await.unwrap_or_else(|error| panic!("step {steps} of {nr}: {error:?}"));
                steps += 1;
            }
            party.leave().await.unwrap();
            steps
        });
    }
    let mut looks = 0;
    while Instant::now() < until {
        assert_nothing_forbidden(&owner).await.unwrap();
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let steps: usize = parties.join_all().await.into_iter().sum();

    let mut last = Party::start(shared.clone(), AT_ONCE).await;
    last.finish_all_that_is_left(&owner).await.unwrap();
    assert_nothing_forbidden(&owner).await.unwrap();
    let counts = queue::counts(&shared.worker, &[QUEUE]).await.unwrap();
    assert_eq!((counts.queued, counts.running), (0, 0));
    let (done, failed) = (shared.done.load(Ordering::Relaxed), shared.failed.load(Ordering::Relaxed));
    let letters: i64 =
        sqlx::query_scalar("SELECT count(*) FROM queue.dead_letters").fetch_one(&owner).await.unwrap();
    // A task that was lost with its worker ten times is buried by the sweep.
    let poisoned =
        sqlx::query_scalar("SELECT count(*) FROM queue.dead_letters WHERE reason ->> 'code' = 'WORKER_LOST'");
    let poisoned: i64 = poisoned.fetch_one(&owner).await.unwrap();
    assert_eq!((counts.done, counts.failed, letters), (done, failed + poisoned, failed + poisoned));
    let cancelled = i64::try_from(shared.cancelled.load(Ordering::Relaxed)).unwrap();
    let all = i64::try_from(shared.ids.lock().unwrap().len()).unwrap();
    assert_eq!(done + failed + poisoned + cancelled, all, "each task ended once");
    println!(
        "{steps} steps, {looks} looks, {all} tasks: {done} done, {failed} failed, {cancelled} cancelled"
    );
}
