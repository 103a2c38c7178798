//! Whether PostgreSQL is there: what hundreds of requests need not find out one by one.
//!
//! A pool keeps trying while it is refused, so each request would wait for seconds before it is told "not now", and say so
//! in the log. Instead, the first that fails, or waits too long, is a suspicion; the loop ([`Database::watch`])
//! then connects by itself, past the pool, and everybody is told at once until it succeeds. A server that answers, if only
//! to say that it has no room, is there: what it refuses is between it and the request. So is one that has answered
//! somebody while a connection was tried in vain: it is only slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tollgate_store as store;

use crate::{Database, Error, Result};

/// For a connection to be made.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two lines in the log about refusals by a server that is there.
const QUIET: Duration = Duration::from_secs(10);

/// What is known of PostgreSQL's presence.
#[derive(Debug)]
pub(crate) struct Presence {
    away: watch::Sender<bool>,
    suspected: Notify,
    /// How often it has answered.
    answers: AtomicU64,
    refusals: Mutex<Refusals>,
    /// Held by whoever looks.
    watching: tokio::sync::Mutex<()>,
}

/// Refusals that no line in the log tells of yet.
#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    last: Option<String>,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            away: watch::Sender::new(false),
            suspected: Notify::new(),
            answers: AtomicU64::new(0),
            refusals: Mutex::default(),
            watching: tokio::sync::Mutex::default(),
        }
    }
}

impl Presence {
    fn refused(&self, why: Option<String>) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.count += 1;
        refusals.last = why.or(refusals.last.take());
    }

    fn take_refusals(&self) -> Refusals {
        std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_away(&self, away: bool) {
        metrics::gauge!("tollgate_database_away").set(u8::from(away));
        self.away.send_replace(away);
    }
}

impl Database {
    /// Whether PostgreSQL is known to be away.
    pub fn is_away(&self) -> bool {
        *self.presence().away.borrow()
    }

    /// Returns once it is.
    pub async fn gone(&self) {
        // Its sender is ours, so it cannot be closed.
        let _ = self.presence().away.subscribe().wait_for(|away| *away).await;
    }

    /// Returns at once unless it is, and then once it is back.
    pub async fn back(&self) {
        let _ = self.presence().away.subscribe().wait_for(|away| !*away).await;
    }

    /// It has answered something.
    pub fn answered(&self) {
        self.presence().answers.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused because it is: one more for the line that tells of its return.
    pub fn count_refused(&self) {
        self.presence().refused(None);
    }

    /// Something was refused, or takes too long: have a look whether PostgreSQL is there. `why` goes to the log.
    pub fn suspect(&self, why: Option<&str>) {
        if let Some(why) = why {
            self.presence().refused(Some(why.to_owned()));
        }
        self.presence().suspected.notify_one();
    }

    /// Looks whenever there is a suspicion, until it is dropped. One looks for all who share the pool: a second watch waits
    /// until the first is over.
    pub async fn watch(self) {
        let presence = self.presence();
        let _turn = presence.watching.lock().await;
        presence.set_away(false);
        let mut quiet_until = Instant::now();
        loop {
            presence.suspected.notified().await;
            let answers = || presence.answers.load(Ordering::Relaxed);
            let before = answers();
            if let Err(error) = self.probe().await
                && answers() == before
            {
                let began = Instant::now();
                tracing::warn!(%error, "the database is away; nothing is asked of it until it is back");
                presence.set_away(true);
                while self.probe().await.is_err() {
                    sleep(PAUSE).await;
                }
                // Those of before are of no use, and would fail one request each.
                let _ = timeout(PATIENCE, store::drop_broken(self.pool())).await;
                presence.set_away(false);
                let refused = presence.take_refusals().count;
                let away_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(refused, away_ms, "the database is back");
            } else if Instant::now() >= quiet_until
                && let Refusals { count: refused, last: Some(error) } = presence.take_refusals()
            {
                tracing::warn!(refused, error, "refused for now, though the database is there");
                quiet_until = Instant::now() + QUIET;
            }
            sleep(PAUSE).await;
        }
    }

    async fn probe(&self) -> Result<()> {
        timeout(PATIENCE, store::probe(self.pool())).await.unwrap_or_else(|_| Err(timed_out()))?;
        Ok(())
    }
}

fn timed_out() -> store::Error {
    store::Error::Io(std::io::ErrorKind::TimedOut.into())
}

impl Error {
    /// PostgreSQL did not answer in time.
    pub fn timed_out() -> Self {
        Self::Unavailable(timed_out())
    }
}
