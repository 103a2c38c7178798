//! The worker: claim, call, settle.
//!
//! [`Worker::run`] is the whole life of a worker process. Beside the claiming loop ([`claiming`]) run a heartbeat
//! ([`heartbeat`]), a sweep ([`sweeping`]) and an ear for hints ([`hints`]). Each is a loop of named phases; none holds
//! a transaction while another party is waited for, since none can: transactions are the domain's own.
//!
//! **Architecture invariant:** a slow provider, endpoint or database holds its own slot and nothing else.

mod backoff;
mod claiming;
mod finishing;
mod generation;
mod grants;
mod guard;
mod heartbeat;
mod held;
mod hints;
mod images;
mod scheduling;
mod sweeping;
mod upkeep;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollgate_domain::{Database, Error, Result, workers};
use tollgate_model::queue::{Lease, QueueName, QueuePolicy};
use uuid::Uuid;

use crate::finishing::Finishing;
use crate::held::Held;

pub use generation::{Generation, Guarded};
pub use grants::Grants;
pub use guard::{Call, Guard, HeldBack, Leave, Pass};
pub use held::HeldLease;
pub use images::Images;
pub use upkeep::{Keep, upkeep};
pub use work::Work;

/// What the last statements of a process may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a worker behaves.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// For people: host and process.
    pub name: String,
    /// The queue it serves.
    pub policy: QueuePolicy,
    /// A worker that is silent for this long is given up, and its tasks are run by others.
    pub visibility_timeout: Duration,
    /// How often an idle worker looks without having been told to: the safety net under the hints.
    pub poll_interval: Duration,
    /// At shutdown: how long running tasks may still finish before they are handed back.
    pub drain: Duration,
}

/// A worker process.
pub struct Worker<W> {
    db: Database,
    work: W,
    config: WorkerConfig,
    /// What it is called in the database. Changes when it was given up and signs in anew.
    id: watch::Sender<Uuid>,
    /// The leases in hand.
    held: Held,
    /// There may be something to claim.
    ready: Notify,
    /// How often the ear for hints was connected.
    ears: AtomicU64,
    /// There may be something in the schedule that is due sooner than was known.
    scheduled: Notify,
    /// A lane or the queue has a cap, under which a task that ends leaves room.
    caps: AtomicBool,
    /// Tasks that are done, to be taken out of the queue together.
    finishing: Finishing,
    /// The drain is over: hand back what is left.
    hand_back: CancellationToken,
}

impl<W: Work> Worker<W> {
    /// Signs a worker in.
    pub async fn start(db: Database, work: W, config: WorkerConfig) -> Result<Self> {
        let id = workers::register(&db, &config.name, config.visibility_timeout).await?;
        Ok(Self {
            db,
            work,
            config,
            id: watch::Sender::new(id),
            held: Held::default(),
            ready: Notify::new(),
            ears: AtomicU64::new(0),
            scheduled: Notify::new(),
            caps: AtomicBool::new(false),
            finishing: Finishing::default(),
            hand_back: CancellationToken::new(),
        })
    }

    /// The database.
    pub fn db(&self) -> &Database {
        &self.db
    }

    /// What it does.
    pub fn work(&self) -> &W {
        &self.work
    }

    /// The queue it serves.
    pub fn queue(&self) -> QueueName {
        self.config.policy.name
    }

    /// How that queue treats its tasks.
    pub fn policy(&self) -> &QueuePolicy {
        &self.config.policy
    }

    /// Returns once the drain is over, and what is still in hand is to be handed back.
    pub async fn handing_back(&self) {
        self.hand_back.cancelled().await;
    }

    /// A task went back to the queue that the claiming and scheduling loops may know nothing of.
    pub fn look_again(&self) {
        self.ready.notify_one();
        self.scheduled.notify_one();
    }

    /// Ends the lease of a task that is done and stands for nothing else, in one commit with others. `false`: the lease was
    /// lost. Repeated until the database answers: a commit that nobody saw is found as a lost lease the next time.
    pub async fn finish(&self, lease: Lease) -> bool {
        self.finishing.finish(lease).await
    }

    /// Works until `shutdown`, then stops claiming, lets what runs finish until the drain is over, hands back the
    /// rest unharmed, and signs out.
    pub async fn run(self, shutdown: CancellationToken) {
        let worker = Arc::new(self);
        let beside = TaskTracker::new();
        let stop = CancellationToken::new();
        let _stop_on_unwind = stop.clone().drop_guard();
        beside.spawn(stop.clone().run_until_cancelled_owned(worker.db.clone().watch()));
        beside.spawn(stop.clone().run_until_cancelled_owned(heartbeat::beat(worker.clone())));
        beside.spawn(stop.clone().run_until_cancelled_owned(sweeping::sweep(worker.clone())));
        beside.spawn(stop.clone().run_until_cancelled_owned(hints::listen(worker.clone())));
        beside.spawn(stop.clone().run_until_cancelled_owned(scheduling::promote(worker.clone())));
        for _ in 0..2 {
            beside.spawn(stop.clone().run_until_cancelled_owned(finishing::finish(worker.clone())));
        }

        let runs = TaskTracker::new();
        let claiming = claiming::claim(&worker, &runs, &shutdown);
        tokio::pin!(claiming);
        tokio::select! {
            () = &mut claiming => {}
            // A claim that is under way may end; a database that says nothing must not keep us.
            () = async { shutdown.cancelled().await; tokio::time::sleep(worker.config.drain).await } => {}
        }
        worker.drain(&runs).await;

        stop.cancel();
        beside.close();
        beside.wait().await;
        let id = *worker.id.borrow();
        let signed_out = tokio::time::timeout(LAST_WORDS, workers::deregister(&worker.db, id)).await;
        if let Err(error) = signed_out.unwrap_or_else(|_| Err(Error::timed_out())) {
            tracing::warn!(%error, "could not sign out; the sweep of another worker will");
        }
    }

    async fn drain(&self, runs: &TaskTracker) {
        runs.close();
        if !runs.is_empty() {
            tracing::info!(running = runs.len(), deadline_ms = self.config.drain.as_millis(), "draining");
        }
        if tokio::time::timeout(self.config.drain, runs.wait()).await.is_err() {
            tracing::info!(running = runs.len(), "the drain is over; handing back what is left");
            self.hand_back.cancel();
            // What cannot even be handed back is taken back by the sweep of another worker.
            if tokio::time::timeout(LAST_WORDS, runs.wait()).await.is_err() {
                tracing::warn!(
                    running = runs.len(),
                    "left with jobs in hand; they run again after the visibility timeout"
                );
            }
        }
    }
}
