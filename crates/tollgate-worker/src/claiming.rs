//! The claiming loop: free slots, a plan, a claim, a run for each task it brought.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
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

/// It need not come sooner than this: a task that has just been told of waits for the claim alone.
const LISTED_AFTER: Duration = Duration::from_millis(20);

/// But it is never put off for longer, however long it takes: a busy worker knows of a newcomer by nothing else.
const LISTED_WITHIN: Duration = Duration::from_millis(500);

/// So many claims that bring something, within this time, are fast.
const PACE: usize = 16;
const FAST: Duration = Duration::from_millis(32);

/// From one look to the next while they are fast: a claim of ten tasks costs little more than a claim of one.
const GAP: Duration = Duration::from_millis(3);

/// A worker with at least so many slots makes two claims at a time, so that PostgreSQL works on the one while the tasks of
/// the other are started.
const MANY_SLOTS: usize = 512;

/// Claims until `shutdown`. Runs go to `tracker`.
pub(crate) async fn claim<W: Work>(
    worker: &Arc<Worker<W>>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let concurrency = worker.config.policy.concurrency;
    let slots = Arc::new(Semaphore::new(concurrency));
    let loops = if concurrency >= MANY_SLOTS { 2 } else { 1 };
    join_all((0..loops).map(|_| claim_loop(worker, &slots, tracker, shutdown))).await;
}

/// Each loop is fair by itself: it has its own memory of the lanes.
async fn claim_loop<W: Work>(
    worker: &Arc<Worker<W>>,
    slots: &Arc<Semaphore>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let mut database = Backoff::new("claiming", &worker.db);
    let mut claiming = Claiming::new(worker.clone());
    loop {
        let Some(free) = shutdown.run_until_cancelled(worker.free_slots(slots)).await else { return };
        if shutdown.run_until_cancelled(worker.work.admitted()).await.is_none() {
            return;
        }
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
        if claiming.held_back {
            continue;
        }
        let idle = runs.is_empty();
        if runs.len() == free.len() {
            // There may be more than this loop can take.
            worker.ready.notify_one();
        }
        for (run, slot) in runs.into_iter().zip(free) {
            let worker = worker.clone();
            tracker.spawn(async move { worker.run_one(run, slot).await });
        }
        if idle {
            let prober = worker.clone();
            tracker.spawn(async move {
                tokio::select! {
                    () = prober.work.nothing_there() => {}
                    () = prober.handing_back() => {}
                }
            });
            let Some(by_hint) = shutdown.run_until_cancelled(worker.something_to_do()).await else { return };
            claiming.awoken(by_hint);
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

    /// Waits for a hint, or the safety net. `true`: it was a hint.
    async fn something_to_do(&self) -> bool {
        tokio::time::timeout(self.config.poll_interval, self.ready.notified()).await.is_ok()
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
        if self.caps.load(Ordering::Relaxed) {
            // It may have left room under a cap.
            self.ready.notify_one();
        }
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
    /// The last claim got less than it could have taken, and no lane is left that may have more.
    short: bool,
    /// There was something to claim, but no leave to do so.
    held_back: bool,
    idle: Option<Idle>,
    /// Which connection of the ear the sign was last known to be up with.
    ears: u64,
    /// Looking every few milliseconds, the sign down.
    polling: bool,
    /// When the last claim came back.
    last: Instant,
    /// When the last few that brought something did, by turns.
    pace: [Option<Instant>; PACE],
    claims: usize,
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
            short: false,
            held_back: false,
            idle: None,
            ears: 0,
            polling: false,
            last: now,
            pace: [None; PACE],
            claims: 0,
        }
    }

    /// Claims up to `limit` tasks; none only if there are none to be had, and the sign is up that says so, or if it is held
    /// back.
    async fn claim(&mut self, limit: usize) -> Result<Vec<W::Run>> {
        self.held_back = false;
        loop {
            if self.short && self.polling {
                tokio::time::sleep_until(self.last + GAP).await;
            } else if self.short {
                // A claim that came back short has looked at every lane that is known: only news are worth another.
                let news = self.list().await? > 0;
                if !news && !self.raise_sign().await? {
                    self.settle_down().await?;
                    return Ok(Vec::new());
                }
            }
            if Instant::now() >= self.list_at {
                self.list().await?;
            }
            let runs = self.claim_as_planned(limit).await?;
            self.last = Instant::now();
            if !runs.is_empty() {
                self.mind_the_pace().await;
                return Ok(runs);
            }
            if self.held_back {
                return Ok(runs);
            }
            self.polling = false;
        }
    }

    /// Somebody gave a hint, or it is time to look without one.
    fn awoken(&mut self, by_hint: bool) {
        self.short = false;
        if !by_hint && let Some(idle) = &mut self.idle {
            idle.doubt();
        }
    }

    async fn claim_as_planned(&mut self, limit: usize) -> Result<Vec<W::Run>> {
        let now = self.began.elapsed();
        let mut plan = self.lanes.plan(limit, now);
        if plan.shares.is_empty() {
            self.short = true;
            return Ok(Vec::new());
        }
        let worker = &self.worker;
        let Some((limit, leave)) = worker.work.leave(limit) else {
            self.held_back = true;
            return Ok(Vec::new());
        };
        plan.limit = limit;
        let id: Uuid = *worker.id.borrow();
        let runs = worker.work.claim(&worker.db, id, self.settings, &mut plan, leave).await?;
        let taken: Vec<Taken> = runs
            .iter()
            .map(W::task)
            .map(|task| Taken { account: task.lease.account, place: task.place })
            .collect();
        self.lanes.observe(&plan, &taken, self.began.elapsed());
        // Where the queue's cap leaves no room for more, there is none to be had, whatever waits.
        let no_room = plan.limit < limit;
        self.short = runs.len() < limit && (no_room || !self.lanes.any_waiting());
        Ok(runs)
    }

    /// Lists the lanes. Returns how many were not known.
    async fn list(&mut self) -> Result<usize> {
        let began = Instant::now();
        let id = *self.worker.id.borrow();
        let from = self.after.unwrap_or(AccountId(Uuid::nil()));
        let mut listing = queue::list_lanes(&self.worker.db, self.worker.queue(), id, from).await?;
        if self.after.is_some() && (listing.lanes.is_empty() || listing.settings != self.settings) {
            // The last page was full; or what the pages before this one said of caps and weights holds no more.
            self.after = None;
            let first = AccountId(Uuid::nil());
            listing = queue::list_lanes(&self.worker.db, self.worker.queue(), id, first).await?;
        }
        if std::mem::replace(&mut self.settings, listing.settings) != listing.settings {
            // Lanes that are not on this page were listed under other settings.
            self.lanes = Lanes::default();
        }
        let news = self.lanes.list(&listing.lanes, self.after.is_none() && !listing.more);
        // The rest of a long list is news too, until it has been looked at.
        let news = news + usize::from(listing.more);
        self.after = listing.lanes.last().filter(|_| listing.more).map(|lane| lane.account);
        self.list_at = Instant::now() + (began.elapsed() * LISTING_SHARE).clamp(LISTED_AFTER, LISTED_WITHIN);
        self.worker.caps.store(self.lanes.any_capped(), Ordering::Relaxed);
        self.settle_down().await?;
        Ok(news)
    }

    /// Lanes that have long been empty sleep from now on.
    async fn settle_down(&mut self) -> Result<()> {
        let drowsy = self.lanes.drowsy(self.began.elapsed());
        if drowsy.is_empty() {
            return Ok(());
        }
        queue::put_to_sleep(&self.worker.db, self.worker.queue(), &drowsy).await?;
        // One that could not be put to sleep is listed again; one that another loop has put to sleep must not be kept.
        for account in drowsy {
            self.lanes.forget(account);
        }
        Ok(())
    }

    /// `true`: the sign that we are idle was put up just now, so there must be one more look.
    async fn raise_sign(&mut self) -> Result<bool> {
        let idle = match &mut self.idle {
            Some(idle) => idle,
            none => none.insert(Idle::connect(&self.worker.db, self.worker.queue()).await?),
        };
        // The sign's connection may have gone where the ear's went.
        let ears = self.worker.ears.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.ears, ears) != ears {
            idle.doubt();
        }
        idle.raise().await
    }

    /// Where claims follow each other fast, hints cost more than looking: takes the sign down, and looks every few
    /// milliseconds, until a look finds nothing. What was claimed must not be lost to an error here: a sign that cannot
    /// be lowered goes with its connection.
    async fn mind_the_pace(&mut self) {
        if self.polling {
            return;
        }
        let oldest = self.pace[self.claims % PACE];
        self.pace[self.claims % PACE] = Some(self.last);
        self.claims += 1;
        if oldest.is_some_and(|at| self.last - at < FAST) {
            self.polling = true;
            if let Some(idle) = &mut self.idle
                && idle.lower().await.is_err()
            {
                self.idle = None;
            }
        }
    }
}
