//! The claiming loop: free slots, a plan, a claim, a run for each task it brought.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollgate_domain::Result;
use tollgate_domain::queue::{self, Idle};
use tollgate_model::account::AccountId;
use tollgate_model::lanes::{Lanes, Taken};
use uuid::Uuid;

use crate::backoff::{Backoff, in_time};
use crate::{Work, Worker};

/// Listing the lanes may take up this part of the time, and no more.
const LISTING_SHARE: u32 = 20;

/// After this long without a pause the worker is busy, and needs no hints.
const BUSY: Duration = Duration::from_millis(10);

/// Claims until `shutdown`. Runs go to `tracker`.
pub(crate) async fn claim<W: Work>(
    worker: &Arc<Worker<W>>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(worker.config.policy.concurrency));
    let mut database = Backoff::new("claiming");
    let mut claiming = Claiming::new(worker.clone());
    loop {
        let Some(free) = shutdown.run_until_cancelled(worker.free_slots(&slots)).await else { return };
        // Not cut short by the shutdown: a claim that commits without us would leave its tasks leased to nobody, until
        // the heartbeat finds them or we sign out.
        let runs = match in_time(claiming.claim(free.len())).await {
            Ok(runs) => runs,
            Err(error) => {
                drop(free);
                // What was known may be of a time before a restore, and a connection may be gone.
                claiming = Claiming::new(worker.clone());
                if shutdown.run_until_cancelled(database.failed(&error)).await.is_none() {
                    return;
                }
                continue;
            }
        };
        database.succeeded();
        let idle = runs.is_empty();
        for (run, slot) in runs.into_iter().zip(free) {
            let worker = worker.clone();
            tracker.spawn(async move { worker.run_one(run, slot).await });
        }
        if idle && shutdown.run_until_cancelled(worker.something_to_do()).await.is_none() {
            return;
        }
    }
}

impl<W: Work> Worker<W> {
    /// Waits for a free slot, then takes all there are, up to a part of them all: while one claim's tasks run, the next
    /// claim is made.
    async fn free_slots(&self, slots: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
        let most = (self.config.policy.concurrency / 4).max(64);
        let mut free = Vec::new();
        if let Ok(slot) = slots.clone().acquire_owned().await {
            free.push(slot);
        }
        while free.len() < most
            && let Ok(slot) = slots.clone().try_acquire_owned()
        {
            free.push(slot);
        }
        free
    }

    /// Waits for a hint, or the safety net.
    async fn something_to_do(&self) {
        let _ = tokio::time::timeout(self.config.poll_interval, self.ready.notified()).await;
    }

    async fn run_one(&self, run: W::Run, _slot: OwnedSemaphorePermit) {
        let task = W::task(&run);
        let held = self.held.take(task.lease);
        let queue = self.queue().as_str();
        metrics::gauge!("tollgate_tasks_in_flight", "queue" => queue).increment(1);
        metrics::counter!("tollgate_tasks_claimed_total", "queue" => queue).increment(1);
        metrics::histogram!("tollgate_task_wait_seconds", "queue" => queue).record(task.waited.as_secs_f64());
        W::run(self, run, &held).await;
        metrics::gauge!("tollgate_tasks_in_flight", "queue" => queue).decrement(1);
    }
}

/// What the loop remembers from one claim to the next.
struct Claiming<W> {
    worker: Arc<Worker<W>>,
    began: Instant,
    lanes: Lanes,
    /// The settings under which the lanes were listed.
    settings: i64,
    /// Where the next listing goes on; `None`: at the start.
    after: Option<AccountId>,
    /// When the lanes may be listed again, though nothing asks for it.
    list_at: Instant,
    idle: Option<Idle>,
    busy_since: Option<Instant>,
}

impl<W: Work> Claiming<W> {
    fn new(worker: Arc<Worker<W>>) -> Self {
        let now = Instant::now();
        Self {
            worker,
            began: now,
            lanes: Lanes::default(),
            settings: -1,
            after: None,
            list_at: now,
            idle: None,
            busy_since: None,
        }
    }

    /// Claims up to `limit` tasks; none only if there are none to be had, and the sign is up that says so.
    async fn claim(&mut self, limit: usize) -> Result<Vec<W::Run>> {
        loop {
            let listed = self.list_if_due().await?;
            let runs = self.claim_as_planned(limit).await?;
            if !runs.is_empty() {
                self.busy().await;
                return Ok(runs);
            }
            if !listed {
                self.list_at = Instant::now();
            } else if !self.idle().await? {
                self.settle_down().await?;
                return Ok(runs);
            }
        }
    }

    async fn claim_as_planned(&mut self, limit: usize) -> Result<Vec<W::Run>> {
        let now = self.began.elapsed();
        let plan = self.lanes.plan(limit, now);
        if plan.shares.is_empty() {
            return Ok(Vec::new());
        }
        let worker = &self.worker;
        let id: Uuid = *worker.id.borrow();
        let runs = worker.work.claim(&worker.db, id, self.settings, &plan).await?;
        let taken: Vec<Taken> = runs
            .iter()
            .map(W::task)
            .map(|task| Taken { account: task.lease.account, place: task.place })
            .collect();
        self.lanes.observe(&plan, &taken, self.began.elapsed());
        Ok(runs)
    }

    /// `true`: the lanes were listed anew.
    async fn list_if_due(&mut self) -> Result<bool> {
        let began = Instant::now();
        if began < self.list_at {
            return Ok(false);
        }
        let id = *self.worker.id.borrow();
        let from = self.after.unwrap_or(AccountId(Uuid::nil()));
        let listing = queue::list_lanes(&self.worker.db, self.worker.queue(), id, from).await?;
        self.settings = listing.settings;
        self.lanes.list(&listing.lanes, self.after.is_none() && !listing.more);
        self.after = listing.lanes.last().filter(|_| listing.more).map(|lane| lane.account);
        self.list_at = Instant::now() + began.elapsed() * LISTING_SHARE;
        if !self.lanes.drowsy(self.began.elapsed()).is_empty() {
            self.settle_down().await?;
        }
        Ok(true)
    }

    /// Lanes that have long been empty sleep from now on.
    async fn settle_down(&mut self) -> Result<()> {
        let drowsy = self.lanes.drowsy(self.began.elapsed());
        if drowsy.is_empty() {
            return Ok(());
        }
        let asleep = queue::put_to_sleep(&self.worker.db, self.worker.queue(), &drowsy).await?;
        for account in drowsy {
            if asleep.binary_search(&account).is_ok() {
                self.lanes.forget(account);
            } else {
                self.lanes.stir(account);
            }
        }
        Ok(())
    }

    /// `true`: the sign that we are idle was put up just now, so there must be one more look.
    async fn idle(&mut self) -> Result<bool> {
        self.busy_since = None;
        let idle = match &mut self.idle {
            Some(idle) => idle,
            none => none.insert(Idle::connect(&self.worker.db, self.worker.queue()).await?),
        };
        idle.raise().await
    }

    /// Takes the sign down once there has been no pause for a while. What was claimed must not be lost to an error here: a
    /// sign that cannot be lowered goes with its connection.
    async fn busy(&mut self) {
        let since = *self.busy_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= BUSY
            && let Some(idle) = &mut self.idle
            && idle.lower().await.is_err()
        {
            self.idle = None;
        }
    }
}
