//! The sweep, from time to time in every worker.

use std::sync::Arc;

use tollgate_domain::sweep::{self, Swept};

use crate::Worker;
use crate::backoff::{Backoff, jitter};

/// Sweeps until it is dropped. Each pause is drawn anew, so that many workers do not sweep in step.
pub(crate) async fn sweep(worker: Arc<Worker>) {
    let mut database = Backoff::new("sweeping");
    loop {
        let pause = (worker.config.visibility_timeout / 3).mul_f64(0.5 + jitter());
        tokio::time::sleep(pause).await;
        match sweep::sweep(&worker.db).await {
            Ok(swept) => {
                database.succeeded();
                report(swept);
                if swept.requeued > 0 {
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
    let Swept { dead_workers, requeued, poisoned, expired } = swept;
    tracing::warn!(dead_workers, requeued, poisoned, expired, "swept");
    for (what, count) in [
        ("dead_workers", dead_workers),
        ("requeued", requeued as u64),
        ("poisoned", poisoned as u64),
        ("expired", expired as u64),
    ] {
        metrics::counter!("tollgate_swept_total", "what" => what).increment(count);
    }
}
