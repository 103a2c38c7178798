//! The sweep, from time to time in every worker.

use std::sync::Arc;

use tollgate_domain::sweep::{self, Rounds, Swept};

use crate::backoff::{Backoff, jitter};
use crate::{Work, Worker};

/// Sweeps until it is dropped. Each pause is drawn anew, so that many workers do not sweep in step.
pub(crate) async fn sweep<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("sweeping");
    let mut rounds = Rounds::default();
    loop {
        let pause = (worker.config.visibility_timeout / 3).mul_f64(0.5 + jitter());
        tokio::time::sleep(pause).await;
        match sweep::sweep(&worker.db, &mut rounds).await {
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
    let Swept { dead_workers, requeued, poisoned, expired, orphans, lost_wakeups } = swept;
    tracing::warn!(dead_workers, requeued, poisoned, expired, orphans, lost_wakeups, "swept");
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
