//! The schedule: tasks become ready when their time has come.

use std::sync::Arc;
use std::time::Duration;

use tollgate_domain::queue;

use crate::backoff::{Backoff, in_time};
use crate::{Work, Worker};

/// Hints say nothing of what they are about: a busy queue's must not make this loop spin.
const PAUSE: Duration = Duration::from_millis(20);

/// A busy worker is sent no hints, and so is not told of what is scheduled meanwhile: it looks this often by itself.
const UNTOLD: Duration = Duration::from_secs(1);

/// Promotes until it is dropped.
pub(crate) async fn promote<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("scheduling", &worker.db);
    loop {
        database.while_away().await;
        match in_time(queue::promote_due(&worker.db, worker.queue())).await {
            Ok(promotion) => {
                database.succeeded();
                if promotion.promoted > 0 {
                    worker.ready.notify_one();
                }
                // A task that is due in less than a timer's resolution is not worth spinning for.
                let patience = promotion.next.unwrap_or(UNTOLD).min(UNTOLD).min(worker.config.poll_interval);
                let patience = patience.max(Duration::from_millis(1));
                let hint = async {
                    worker.scheduled.notified().await;
                    tokio::time::sleep(PAUSE).await;
                };
                let _ = tokio::time::timeout(patience, hint).await;
            }
            Err(error) => database.failed(&error).await,
        }
    }
}
