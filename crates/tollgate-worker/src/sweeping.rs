//! The sweep, from time to time in every worker.

use std::sync::Arc;
use std::time::Duration;

use tollgate_domain::sweep::{self, Rounds, Swept};

use crate::backoff::{Backoff, jitter, within};
use crate::{Work, Worker};

/// Less than the longest list takes, but every batch of it is a commit of its own: the next sweep goes on there.
const DEADLINE: Duration = Duration::from_mins(5);

/// Sweeps until it is dropped. Each pause is drawn anew, so that many workers do not sweep in step.
pub(crate) async fn sweep<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("sweeping", &worker.db);
    let mut rounds = Rounds::default();
    // There from the start, so that an alert on more than 0 has something to look at.
    count(Swept::default());
    loop {
        let pause = (worker.config.visibility_timeout / 3).mul_f64(0.5 + jitter());
        tokio::time::sleep(pause).await;
        database.while_away().await;
        rounds.sweeper = Some(*worker.id.borrow());
        match within(DEADLINE, sweep::sweep(&worker.db, &mut rounds)).await {
            Ok(swept) => {
                database.succeeded();
                report(swept);
                if swept.requeued > 0 || swept.lost_wakeups > 0 {
                    worker.ready.notify_one();
                }
            }
            Err(error) => database.failed(&error).await,
        }
    }
}

fn report(swept: Swept) {
    if swept == Swept::default() {
        return;
    }
    count(swept);
    let Swept { dead_workers, requeued, poisoned, expired, orphans, lost_wakeups } = swept;
    tracing::warn!(dead_workers, requeued, poisoned, expired, orphans, lost_wakeups, "swept");
}

fn count(swept: Swept) {
    let Swept { dead_workers, requeued, poisoned, expired, orphans, lost_wakeups } = swept;
    for (what, count) in [
        ("dead_workers", dead_workers),
        ("requeued", requeued as u64),
        ("poisoned", poisoned as u64),
        ("expired", expired as u64),
        ("orphans", orphans as u64),
        ("lost_wakeups", u64::try_from(lost_wakeups).unwrap_or(0)),
    ] {
        metrics::counter!("tollgate_swept_total", "what" => what).increment(count);
    }
}
