//! The ear for hints: wakes the claiming loop, and stops runs whose job was called off.

use std::sync::Arc;

use tollgate_domain::workers::{Hints, Signal};

use crate::backoff::Backoff;
use crate::{Work, Worker};

/// Listens until it is dropped.
pub(crate) async fn listen<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("listening");
    loop {
        match Hints::listen(&worker.db).await {
            Ok(mut hints) => {
                // What came while nobody listened is found by looking.
                worker.look_again();
                loop {
                    match hints.next().await {
                        Ok(Signal::Ready) => worker.look_again(),
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
