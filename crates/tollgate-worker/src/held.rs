//! The leases that this process has in hand, and the switch by which each run is stopped when its lease is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tollgate_model::queue::Lease;
use uuid::Uuid;

/// Leases by fencing token.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashMap<i64, (Uuid, CancellationToken)>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<i64, (Uuid, CancellationToken)>> {
        // Nothing panics while the map is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lease up; it is put down when the guard is dropped.
    pub(crate) fn take(&self, lease: Lease) -> HeldLease<'_> {
        let lost = CancellationToken::new();
        self.lock().insert(lease.token, (lease.task, lost.clone()));
        HeldLease { held: self, token: lease.token, lost }
    }

    /// The fencing tokens in hand.
    pub(crate) fn tokens(&self) -> Vec<i64> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn contains(&self, token: i64) -> bool {
        self.lock().contains_key(&token)
    }

    /// This lease is lost: its run stops.
    pub(crate) fn lose(&self, token: i64) {
        if let Some((_, lost)) = self.lock().get(&token) {
            lost.cancel();
        }
    }

    /// The task was called off: its run, if it is here, stops.
    pub(crate) fn lose_task(&self, task: Uuid) {
        for (_, lost) in self.lock().values().filter(|(held, _)| *held == task) {
            lost.cancel();
        }
    }

    /// Every lease is lost.
    pub(crate) fn lose_all(&self) {
        for (_, lost) in self.lock().values() {
            lost.cancel();
        }
    }
}

/// A lease in hand.
#[derive(Debug)]
pub struct HeldLease<'a> {
    held: &'a Held,
    token: i64,
    lost: CancellationToken,
}

impl HeldLease<'_> {
    /// Returns once the lease is known to be lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for HeldLease<'_> {
    fn drop(&mut self) {
        self.held.lock().remove(&self.token);
    }
}
