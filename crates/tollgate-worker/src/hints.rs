//! The ear for hints: wakes the claiming loop, and stops runs whose job was called off.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tollgate_domain::workers::{Hints, Signal};
use tollgate_domain::{Error, Result};

use crate::backoff::{Backoff, in_time, within};
use crate::{Work, Worker};

/// After this long without a word the ear is tried. A connection that was cut without a trace stays silent for ever, and
/// one that only listens never finds out.
const SILENCE: Duration = Duration::from_secs(15);

/// For a connection to be made, the first time and at most. A pool that is refused tries again by itself, and more and more
/// seldom; an ear that waits for it is deaf for longer than the database is away.
const PATIENCE: Duration = Duration::from_millis(300);
const PATIENCE_LONGEST: Duration = Duration::from_secs(10);

/// Listens until it is dropped.
pub(crate) async fn listen<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("listening", &worker.db);
    let mut patience = PATIENCE;
    loop {
        let error = tokio::select! {
            biased;
            Err(error) = hear(&worker, &mut database, &mut patience) => error,
            () = worker.db.gone() => Error::timed_out(),
        };
        database.failed(&error).await;
    }
}

/// Listens until the connection breaks.
async fn hear<W: Work>(
    worker: &Worker<W>,
    database: &mut Backoff,
    patience: &mut Duration,
) -> Result<Infallible> {
    let now = std::mem::replace(patience, (*patience * 2).min(PATIENCE_LONGEST));
    let mut hints = within(now, Hints::listen(&worker.db)).await?;
    *patience = PATIENCE;
    // What came while nobody listened is found by looking; and other connections may have been lost with the last ear.
    worker.ears.fetch_add(1, Ordering::Relaxed);
    worker.look_again();
    worker.work().guard_has_news();
    database.succeeded();
    loop {
        match tokio::time::timeout(SILENCE, hints.next()).await {
            Ok(hint) => match hint? {
                Signal::Ready(queue) if queue == worker.queue() => worker.look_again(),
                Signal::Ready(_) => {}
                Signal::Guard => worker.work().guard_has_news(),
                Signal::Cancelled(task) => worker.held.lose_task(task),
            },
            Err(_silence) => in_time(hints.check()).await?,
        }
    }
}
