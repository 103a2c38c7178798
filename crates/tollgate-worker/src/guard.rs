//! The guard's local half: what stands between this process's workers and a provider, for one class of models.
//!
//! Before a claim it says how many tasks may be claimed ([`Guard::admitted`], [`Guard::leave`]); before a call, whether it
//! may still begin ([`Pass::begin`]); after it, it takes down how it ended ([`Call::ended`]). None of these asks the
//! database: a loop beside them ([`Guard::watch`]) tells the others what happened here and learns what may be done, at once
//! where it is bad news and at most once a second where it is good.
//!
//! **Architecture invariant:** no call waits for the guard's database, and a guard without a database goes on as it last
//! knew. Nothing can be claimed meanwhile anyway.

mod local;
mod pass;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tollgate_domain::{Database, Result, guard};
use tollgate_model::guard::circuit::Waiting;
use tollgate_model::guard::class::ModelClass;
use tollgate_model::guard::outcome::Fingerprint;
use tollgate_model::guard::timeout::LatencyKey;
use uuid::Uuid;

use crate::LAST_WORDS;
use crate::backoff::{Backoff, in_time, jitter};
use local::{Local, May};

pub use pass::{Call, HeldBack, Leave, Pass};

/// From one report to the next, where nothing is urgent.
const REPORTS: Duration = Duration::from_secs(1);

/// A guard with nothing to tell asks this often: hints can be lost.
const UNTOLD: Duration = Duration::from_secs(10);

/// One class's guard in this process. Clones share it.
#[derive(Debug, Clone)]
pub struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Database,
    class: ModelClass,
    credential: Fingerprint,
    /// What this process is called in reports.
    caller: Uuid,
    /// Whether the breaker's decisions hold, by the configuration as it is now.
    enabled: watch::Receiver<bool>,
    local: Mutex<Local>,
    /// There is something to tell, or to ask, at once.
    urgent: Notify,
    /// What may be done may have changed.
    changed: Notify,
}

impl Guard {
    /// One that lets calls begin until it has heard otherwise.
    pub fn new(
        db: Database,
        class: ModelClass,
        credential: Fingerprint,
        concurrency: usize,
        enabled: watch::Receiver<bool>,
    ) -> Self {
        let local = Mutex::new(Local::new(&class.settings, concurrency, Instant::now()));
        let caller = tollgate_domain::ids::new_id();
        Self(Arc::new(Inner {
            db,
            class,
            credential,
            caller,
            enabled,
            local,
            urgent: Notify::new(),
            changed: Notify::new(),
        }))
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        // Nothing panics while it is half changed.
        self.0.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once something may be claimed, and holds nothing back for it: [`leave`](Self::leave) does.
    pub async fn admitted(&self) {
        let mut ask_at = Instant::now();
        loop {
            let changed = self.0.changed.notified();
            let now = Instant::now();
            let may = self.local().may(now);
            let until = match may {
                May::Call(_) | May::Probe => return,
                May::Ask if now >= ask_at => {
                    self.local().ask();
                    self.0.urgent.notify_one();
                    ask_at = now + REPORTS;
                    ask_at
                }
                // The same answer again must not be asked for as fast as it comes.
                May::Ask => ask_at,
                May::Wait(until) => until.unwrap_or_else(|| Instant::now() + UNTOLD),
            };
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    /// Leave to claim, and then call, up to `want` times; `None`: not now.
    pub fn leave(&self, want: usize) -> Option<Leave> {
        let passes = {
            let mut local = self.local();
            let passes = local.leave(want, Instant::now());
            if local.asks() {
                self.0.urgent.notify_one();
            }
            passes
        };
        passes.map(|passes| Leave::new(self, passes))
    }

    /// The leave to make a probe that nobody's task was there for.
    pub fn lone_probe(&self) -> Option<Pass> {
        let probe = self.local().lone_probe(Instant::now())?;
        Leave::new(self, probe).take()
    }

    /// How long a call of this kind may take.
    pub fn timeout(&self, key: &LatencyKey) -> Duration {
        self.local().timeout(key).unwrap_or(self.0.class.settings.timeout_initial)
    }

    /// Whether the provider refuses the credential.
    pub fn credential_is_refused(&self) -> bool {
        self.local().shut_for(Waiting::Credential)
    }

    /// How many calls might begin now; `None`: no limit.
    pub fn budget(&self) -> Option<u32> {
        self.local().budget()
    }

    /// Somebody else had news.
    pub fn has_news(&self) {
        self.local().ask();
        self.0.urgent.notify_one();
    }

    /// Tells and learns until `stop`, then gives back what it holds.
    pub async fn watch(self, stop: CancellationToken) {
        let mut database = Backoff::new("guard", &self.0.db);
        // Boxed, here and below: a class's state is large, and would be part of every future around this one.
        let known = Box::pin(in_time(guard::timeouts(&self.0.db, &self.0.class)));
        let known = stop.run_until_cancelled(known).await;
        match known.unwrap_or_else(|| Ok(HashMap::new())) {
            Ok(timeouts) => self.local().learn(timeouts),
            Err(error) => {
                tracing::debug!(%error, "could not read how long calls take; they have the initial timeout");
            }
        }
        let mut enabled = self.0.enabled.clone();
        loop {
            // Not cut short by the stop: what a report took along would be lost.
            if self.local().has_to_report(Instant::now())
                && let Err(error) = self.report().await
                && stop.run_until_cancelled(database.failed(&error)).await.is_none()
            {
                break;
            }
            let pause = async {
                tokio::select! {
                    () = tokio::time::sleep(REPORTS) => {}
                    () = self.0.urgent.notified() => {}
                    Ok(()) = enabled.changed() => self.local().ask(),
                }
            };
            if stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
        }
        self.local().close();
        let last = tokio::time::timeout(LAST_WORDS, self.report()).await;
        if !matches!(last, Ok(Ok(()))) {
            tracing::warn!(class = self.0.class.name.as_str(), "the guard's last report did not get through");
        }
    }

    async fn report(&self) -> Result<()> {
        let inner = &*self.0;
        let (report, unsent) = self.local().report(Instant::now());
        let enabled = *inner.enabled.borrow();
        let reported =
            guard::report(&inner.db, &inner.class, enabled, inner.caller, &inner.credential, report);
        match Box::pin(in_time(reported)).await {
            Ok(leave) => {
                self.local().learn_leave(leave, &inner.class.settings, jitter(), Instant::now());
                inner.changed.notify_waiters();
                Ok(())
            }
            Err(error) => {
                self.local().report_failed(unsent);
                Err(error)
            }
        }
    }
}
