//! The heartbeat: one row a process says that all its leases are alive, and one query says which still are.

use std::collections::HashSet;
use std::sync::Arc;

use tollgate_domain::{Result, runs, workers};

use crate::backoff::{Backoff, in_time};
use crate::{Work, Worker};

/// Beats until it is dropped.
pub(crate) async fn beat<W: Work>(worker: Arc<Worker<W>>) {
    let mut database = Backoff::new("heartbeat");
    let mut seen = Seen::default();
    // Six beats before a worker is given up: five may be lost.
    let mut tick = tokio::time::interval(worker.config.visibility_timeout / 6);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match in_time(once(&worker, &mut seen)).await {
            Ok(()) => database.succeeded(),
            Err(error) => database.failed(&error).await,
        }
    }
}

/// What the last beat left behind.
#[derive(Default)]
struct Seen {
    /// Leases in our name that nobody here had in hand.
    strangers: HashSet<i64>,
    /// No lease older than this one is ours, but for those in hand.
    from: i64,
}

async fn once<W: Work>(worker: &Worker<W>, seen: &mut Seen) -> Result<()> {
    // Before the question, so that a lease taken while it is asked is not mistaken for a lost one.
    let in_hand = worker.held.tokens();
    let next = workers::last_token(&worker.db).await?;
    let from = in_hand.iter().copied().min().unwrap_or(i64::MAX).min(seen.from);
    let id = *worker.id.borrow();
    let Some(leases) = workers::heartbeat(&worker.db, id, from).await? else {
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
    let mut back = HashSet::new();
    for lease in unknown.iter().filter(|lease| seen.strangers.contains(&lease.token)) {
        if runs::release(&worker.db, *lease, "claim was lost with its connection").await? {
            tracing::warn!(job_id = %lease.task, "a lease that was in nobody's hands went back to the queue");
        }
        back.insert(lease.token);
    }
    seen.strangers =
        unknown.into_iter().map(|lease| lease.token).filter(|token| !back.contains(token)).collect();
    seen.from = seen.strangers.iter().copied().min().unwrap_or(i64::MAX).min(next);
    Ok(())
}
