//! The handle on PostgreSQL that the edges carry.

use std::sync::Arc;
use std::time::Duration;

use tollgate_store::{ConnectError, PgPool, Role, connect, schema_is_current};

use crate::Result;
use crate::presence::Presence;

/// Connections that act as one database role.
#[derive(Debug, Clone)]
pub struct Database {
    pool: PgPool,
    presence: Arc<Presence>,
}

/// Whether work can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// PostgreSQL answers, and the schema is this binary's.
    Ready,
    /// PostgreSQL answers, but `tollgate migrate` is due.
    SchemaOutdated,
}

impl Database {
    /// Connects as `role` with at most `max` connections. `strict`: refuse a login that is more powerful than its
    /// role; everywhere but in dev mode.
    pub async fn connect(url: &str, role: Role, max: u32, strict: bool) -> Result<Self, ConnectError> {
        Ok(Self { pool: connect(url, role, max, strict).await?, presence: Arc::default() })
    }

    /// Asks PostgreSQL.
    pub async fn health(&self) -> Result<Health> {
        Ok(if schema_is_current(&self.pool).await? { Health::Ready } else { Health::SchemaOutdated })
    }

    /// Connections in use, and open at all.
    pub fn connections(&self) -> (usize, u32) {
        let open = self.pool.size();
        ((open as usize).saturating_sub(self.pool.num_idle()), open)
    }

    /// Closes every connection; waits for a silent server no longer than a moment.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.pool.close()).await;
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }
}
