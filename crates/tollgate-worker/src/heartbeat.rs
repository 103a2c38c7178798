//! The heartbeat: one row a process says that all its leases are alive, and one query says which still are.

use std::collections::HashSet;
use std::sync::Arc;

use tollgate_domain::{Result, runs, workers};

use crate::Worker;
use crate::backoff::{Backoff, in_time};

/// Beats until it is dropped.
pub(crate) async fn beat(worker: Arc<Worker>) {
    let mut database = Backoff::new("heartbeat");
    let mut strangers = HashSet::new();
    // Six beats before a worker is given up: five may be lost.
    let mut tick = tokio::time::interval(worker.config.visibility_timeout / 6);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match in_time(once(&worker, &mut strangers)).await {
            Ok(()) => database.succeeded(),
            Err(error) => database.failed(&error).await,
        }
    }
}

async fn once(worker: &Worker, strangers: &mut HashSet<i64>) -> Result<()> {
    // Before the question, so that a lease taken while it is asked is not mistaken for a lost one.
    let in_hand = worker.held.tokens();
    let id = *worker.id.borrow();
    let Some(leases) = workers::heartbeat(&worker.db, id).await? else {
        tracing::warn!(worker = %id, "given up by the others: too long without a heartbeat; signing in anew");
        worker.held.lose_all();
        let new =
            workers::register(&worker.db, &worker.config.name, worker.config.visibility_timeout).await?;
        worker.id.send_replace(new);
        worker.ready.notify_one();
        return Ok(());
    };
    let alive: HashSet<i64> = leases.iter().map(|lease| lease.token).collect();
    for token in in_hand.into_iter().filter(|token| !alive.contains(token)) {
        worker.held.lose(token);
    }
    // A lease in our name that nobody here has in hand: its claim committed, but the answer was lost with the
    // connection. Seen twice in a row, it is not one that was just taken.
    let unknown: Vec<_> = leases.into_iter().filter(|lease| !worker.held.contains(lease.token)).collect();
    for lease in unknown.iter().filter(|lease| strangers.contains(&lease.token)) {
        let queue = worker.config.policy.name;
        if runs::release(&worker.db, queue, *lease, "claim was lost with its connection").await? {
            tracing::warn!(job_id = %lease.task, "a lease that was in nobody's hands went back to the queue");
        }
    }
    *strangers = unknown.into_iter().map(|lease| lease.token).collect();
    Ok(())
}
