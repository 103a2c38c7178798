//! Done tasks leave the queue together: as many as were done while the last commit was under way.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tollgate_domain::queue;
use tollgate_model::queue::Lease;

use crate::backoff::{Backoff, in_time};
use crate::{Work, Worker};

/// One commit ends this many leases at most.
const BATCH: usize = 1000;

/// Fewer than so many wait for more, but not for long.
const FEW: usize = 100;
const GAP: Duration = Duration::from_millis(2);

type Done = (Lease, oneshot::Sender<bool>);

/// The way from the runs to the loop.
#[derive(Debug)]
pub(crate) struct Finishing {
    done: mpsc::Sender<Done>,
    /// Until the loop takes it up.
    queue: Mutex<mpsc::Receiver<Done>>,
}

impl Default for Finishing {
    fn default() -> Self {
        let (done, queue) = mpsc::channel(BATCH);
        Self { done, queue: Mutex::new(queue) }
    }
}

impl Finishing {
    /// Returns when the lease has ended; `false`: it was lost, or nobody finishes any more.
    pub(crate) async fn finish(&self, lease: Lease) -> bool {
        let (tell, told) = oneshot::channel();
        self.done.send((lease, tell)).await.is_ok() && told.await.unwrap_or(false)
    }
}

/// Finishes until it is dropped.
pub(crate) async fn finish<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("finishing", &worker.db);
    let mut batch = Vec::with_capacity(BATCH);
    // Two of these loops take turns: while one commits, the other gathers.
    let mut last = Instant::now();
    loop {
        // What comes soon after a commit waits for company: a commit of ten costs little more than a commit of one.
        let mut done = worker.finishing.queue.lock().await;
        if done.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        if batch.len() < FEW && last.elapsed() < GAP {
            tokio::time::sleep_until(last + GAP).await;
            while batch.len() < BATCH
                && let Ok(next) = done.try_recv()
            {
                batch.push(next);
            }
        }
        drop(done);
        let leases: Vec<Lease> = batch.iter().map(|(lease, _)| *lease).collect();
        let held: HashSet<i64> = loop {
            match in_time(queue::finish_all(&worker.db, &leases)).await {
                Ok(held) => break held.into_iter().collect(),
                Err(error) => database.failed(&error).await,
            }
        };
        database.succeeded();
        last = Instant::now();
        for (lease, tell) in batch.drain(..) {
            // Whoever no longer waits for it has been told to stop.
            let _ = tell.send(held.contains(&lease.token));
        }
    }
}
