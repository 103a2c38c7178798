//! What the connections of one simulator share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use crate::behaviour::Behaviour;
use crate::clock;
use crate::plan::Plan;
use crate::random::mix;
use crate::stats::Counters;

/// Shared by all connections and by [`crate::Control`].
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Arc<Counters>,
    plan: Mutex<Plan>,
    ids: Ids,
}

impl Shared {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        Self { counters: Arc::default(), plan: Mutex::new(Plan::new(behaviour)), ids: Ids::new() }
    }

    /// The plan, for a moment: never across an await.
    pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new id with this prefix.
    pub(crate) fn id(&self, prefix: &str) -> String {
        let Ids { boot, next } = &self.ids;
        format!("{prefix}{boot:016x}{:08x}", next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Ids are no part of what a seed repeats: a store that outlives the simulator must not meet one twice.
#[derive(Debug)]
struct Ids {
    boot: u64,
    next: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        let since = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = mix(since.as_secs() ^ mix(since.subsec_nanos().into()) ^ u64::from(std::process::id()));
        Self { boot, next: AtomicU64::new(0) }
    }
}
