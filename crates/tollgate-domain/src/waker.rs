//! Wakes idle workers after a commit that gave them something to do.
//!
//! Not inside the transaction (a notifying commit takes a lock that is global to the cluster), and not once a commit:
//! commits that come while one hint is under way share the next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tollgate_model::queue::QueueName;
use tollgate_store as store;

use crate::Database;

/// At most one hint in this time and process. A worker that is busy needs none; an idle one waits this long at most.
const GAP: Duration = Duration::from_millis(1);

/// After an outage a pool's connections are dead, one by one, and the first hint is the one that finds it out: it is sent
/// again until it gets through, since no other may follow it.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Asks for a hint to be sent. Cheap, and never waits.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Notify>);

impl Waker {
    /// Something was committed that a worker can claim.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Tells idle workers at once of what has just been committed. Where it fails, their scan finds it without a hint.
pub(crate) async fn wake_workers(db: &Database, queue: QueueName) {
    if let Err(error) = store::notify_ready(db.pool(), queue).await {
        tracing::debug!(%error, queue = queue.as_str(), "could not wake the workers; their scan finds the tasks");
    }
}

/// A waker for each line of generation jobs.
#[derive(Debug, Clone)]
pub struct Wakers([(QueueName, Waker); QueueName::GENERATION.len()]);

impl Wakers {
    /// Something was committed in that line. Cheap, and never waits.
    pub fn wake(&self, line: QueueName) {
        if let Some((_, waker)) = self.0.iter().find(|(known, _)| *known == line) {
            waker.wake();
        }
    }
}

/// Wakers for the lines of generation jobs, and the loop that sends their hints; whoever holds the loop ends it by
/// dropping it.
pub fn wakers(db: Database) -> (Wakers, impl Future<Output = ()> + Send) {
    let (text, send_texts) = waker(db.clone(), QueueName::GenerationCreate);
    let (image, send_images) = waker(db, QueueName::GenerationImage);
    let wakers = [(QueueName::GenerationCreate, text), (QueueName::GenerationImage, image)];
    (Wakers(wakers), async move {
        tokio::join!(send_texts, send_images);
    })
}

/// A waker and the loop that sends its hints; whoever holds the loop ends it by dropping it.
pub fn waker(db: Database, queue: QueueName) -> (Waker, impl Future<Output = ()> + Send) {
    let asked = Arc::new(Notify::new());
    let waker = Waker(asked.clone());
    let send = async move {
        loop {
            asked.notified().await;
            let mut retry = RETRY;
            while let Err(error) = store::notify_ready(db.pool(), queue).await {
                tracing::debug!(%error, "could not wake the workers");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_LONGEST);
            }
            tokio::time::sleep(GAP).await;
        }
    };
    (waker, send)
}
