//! The claiming loop: a free slot, a claim, a run for each job it brought.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollgate_domain::runs;

use crate::backoff::{Backoff, in_time};
use crate::{Worker, running};

/// Claims until `shutdown`. Runs go to `tracker`.
pub(crate) async fn claim(worker: &Arc<Worker>, tracker: &TaskTracker, shutdown: &CancellationToken) {
    let slots = Arc::new(Semaphore::new(worker.config.policy.concurrency));
    let mut database = Backoff::new("claiming");
    loop {
        let Some(free) = shutdown.run_until_cancelled(free_slots(&slots)).await else { return };
        // Not cut short by the shutdown: a claim that commits without us would leave its tasks leased to nobody, until
        // the heartbeat finds them or we sign out.
        let id = *worker.id.borrow();
        let claim = match in_time(runs::claim(&worker.db, &worker.config.policy, id, free.len())).await {
            Ok(claim) => claim,
            Err(error) => {
                drop(free);
                if shutdown.run_until_cancelled(database.failed(&error)).await.is_none() {
                    return;
                }
                continue;
            }
        };
        database.succeeded();
        let idle = claim.runs.is_empty();
        for (run, slot) in claim.runs.into_iter().zip(free) {
            tracker.spawn(running::run(worker.clone(), run, slot));
        }
        if idle && shutdown.run_until_cancelled(something_to_do(worker, claim.due_in)).await.is_none() {
            return;
        }
    }
}

/// Waits for a free slot, then takes all there are.
async fn free_slots(slots: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    let mut free = Vec::new();
    if let Ok(slot) = slots.clone().acquire_owned().await {
        free.push(slot);
    }
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        free.push(slot);
    }
    free
}

/// Waits for a hint, the next scheduled task, or the safety net, whichever comes first.
async fn something_to_do(worker: &Worker, due_in: Option<Duration>) {
    let patience = due_in.unwrap_or(Duration::MAX).min(worker.config.poll_interval);
    // A task that is due in less than a timer's resolution is not worth spinning for.
    let patience = patience.max(Duration::from_millis(1));
    let _ = tokio::time::timeout(patience, worker.ready.notified()).await;
}
