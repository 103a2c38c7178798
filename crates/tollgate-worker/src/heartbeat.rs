//! The heartbeat: one row a process says that all its leases are alive, and one query says which still are.
//!
//! A worker that cannot beat for longer than its visibility timeout does *not* drop what it has in hand. Where the
//! database was away for everybody, nobody has taken anything from it (the sweep does not count such a time), and to
//! hang up would throw away answers that are paid for, and pay for them again. Where it alone was cut off, others have
//! begun its jobs anew already; to hang up would not undo that, and what its own calls would still cost is most often
//! charged to the end anyhow. Either way the first beat that gets through says which leases are lost, and those calls
//! are hung up at once; what is settled before that beat is fenced by its token like everything else. Meanwhile it
//! begins nothing new: a claim needs the database too.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tollgate_domain::{Result, runs, workers};

use crate::backoff::{Backoff, within};
use crate::{Work, Worker};

/// Beats until it is dropped.
pub(crate) async fn beat<W: Work>(worker: Arc<Worker<W>>) {
    let timeout = worker.config.visibility_timeout;
    // Six beats before a worker is given up: five may be lost.
    let pause = timeout / 6;
    let mut database = Backoff::new("heartbeat", &worker.db).at_most(pause);
    let mut seen = Seen::default();
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // A server that says nothing must leave us the time to ask once more, on another connection.
        match within(timeout / 3, once(&worker, &mut seen)).await {
            Ok(()) => database.succeeded(),
            Err(error) => {
                database.failed(&error).await;
                tick.reset_immediately();
            }
        }
    }
}

/// What the last beat left behind.
#[derive(Default)]
struct Seen {
    /// Leases in our name that nobody here had in hand.
    strangers: HashSet<i64>,
    /// The last token that anybody had been given, beat by beat.
    tokens: VecDeque<(Instant, i64)>,
}

/// A claim draws its tokens before it commits, and may take this long until it does or fails: the statement's own limits,
/// and ours for its answer, with room to spare.
const OPEN_CLAIM: Duration = Duration::from_mins(2);

impl Seen {
    /// No lease older than this one is ours, but for those in hand: every claim that drew an older token has ended, and
    /// beats have seen since what it left behind.
    fn from(&mut self, next: i64) -> i64 {
        let now = Instant::now();
        self.tokens.push_back((now, next));
        while self.tokens.get(1).is_some_and(|(at, _)| now - *at > OPEN_CLAIM) {
            self.tokens.pop_front();
        }
        let oldest = self.tokens.front().filter(|(at, _)| now - *at > OPEN_CLAIM);
        oldest.map_or(0, |(_, token)| *token).min(self.strangers.iter().copied().min().unwrap_or(i64::MAX))
    }
}

async fn once<W: Work>(worker: &Worker<W>, seen: &mut Seen) -> Result<()> {
    // Before the question, so that a lease taken while it is asked is not mistaken for a lost one.
    let in_hand = worker.held.tokens();
    let next = workers::last_token(&worker.db).await?;
    let from = in_hand.iter().copied().min().unwrap_or(i64::MAX).min(seen.from(next));
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
        if runs::release(&worker.db, worker.queue(), *lease, "claim was lost with its connection").await? {
            tracing::warn!(job_id = %lease.task, "a lease that was in nobody's hands went back to the queue");
        }
        back.insert(lease.token);
    }
    seen.strangers =
        unknown.into_iter().map(|lease| lease.token).filter(|token| !back.contains(token)).collect();
    Ok(())
}
