//! A worker process's standing with the queue: sign in, signs of life, hints, sign out.

use std::time::Duration;

use tollgate_model::queue::Lease;
use tollgate_store as store;
use tollgate_store::Wakeups;
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Result};

pub use tollgate_store::Signal;

/// Signs in under a fresh id, to be given up after `timeout` without a sign of life.
pub async fn register(db: &Database, name: &str, timeout: Duration) -> Result<Uuid> {
    let worker = new_id();
    store::register(db.pool(), worker, name, timeout).await?;
    Ok(worker)
}

/// A sign of life. Returns the leases from token `from` on that the worker holds by the database's account, or `None` if
/// it was given up: then it holds none, and must sign in anew.
pub async fn heartbeat(db: &Database, worker: Uuid, from: i64) -> Result<Option<Vec<Lease>>> {
    if !store::heartbeat(db.pool(), worker).await? {
        return Ok(None);
    }
    Ok(Some(store::held_leases(db.pool(), worker, from).await?))
}

/// The last fencing token that anybody was given.
pub async fn last_token(db: &Database) -> Result<i64> {
    Ok(store::last_token(db.pool()).await?)
}

/// Signs out.
pub async fn deregister(db: &Database, worker: Uuid) -> Result<()> {
    Ok(store::deregister(db.pool(), worker).await?)
}

/// A worker's ear for hints.
#[derive(Debug)]
pub struct Hints(Wakeups);

impl Hints {
    /// Begins to listen, on a connection of its own.
    pub async fn listen(db: &Database) -> Result<Self> {
        Ok(Self(Wakeups::listen(db.pool()).await?))
    }

    /// Fails if the connection is gone.
    pub async fn check(&mut self) -> Result<()> {
        Ok(self.0.check().await?)
    }

    /// The next hint.
    pub async fn next(&mut self) -> Result<Signal> {
        Ok(self.0.next().await?)
    }
}
