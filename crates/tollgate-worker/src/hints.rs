//! The ear for hints: wakes the claiming loop, and stops runs whose job was called off.

use std::sync::Arc;

use tollgate_domain::workers::{Hints, Signal};

use crate::Worker;
use crate::backoff::Backoff;

/// Listens until it is dropped.
pub(crate) async fn listen(worker: Arc<Worker>) {
    let mut database = Backoff::new("listening");
    loop {
        match Hints::listen(&worker.db).await {
            Ok(mut hints) => {
                // What came while nobody listened is found by looking.
                worker.ready.notify_one();
                loop {
                    match hints.next().await {
                        Ok(Signal::Ready) => worker.ready.notify_one(),
                        Ok(Signal::Cancelled(task)) => worker.held.lose_task(task),
                        Err(error) => break database.failed(&error).await,
                    }
                    database.succeeded();
                }
            }
            Err(error) => database.failed(&error).await,
        }
    }
}
