//! Hints between processes, by LISTEN/NOTIFY. A lost hint costs latency, never a job: the scan is the truth.

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use crate::Result;

const READY: &str = "tollgate_ready";
const CANCELLED: &str = "tollgate_cancelled";

/// Tells idle workers that a queue has something to claim. Sent after the commit that put it there, never inside: a
/// notifying commit takes a lock that is global to the cluster (measured: it halves the rate of enqueues).
pub async fn notify_ready(pool: &PgPool, queue: QueueName) -> Result<()> {
    sqlx::query!("SELECT pg_notify($1, $2)", READY, queue.as_str()).execute(pool).await?;
    Ok(())
}

/// Tells the worker that runs a task that it was called off.
pub async fn notify_cancelled(pool: &PgPool, task: Uuid) -> Result<()> {
    sqlx::query!("SELECT pg_notify($1, $2)", CANCELLED, task.to_string()).execute(pool).await?;
    Ok(())
}

/// What a worker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// There may be something to claim. Also after each reconnection, since hints may have been missed.
    Ready,
    /// This task was called off.
    Cancelled(Uuid),
}

/// A worker's ear: one connection of its own, which reconnects by itself.
#[derive(Debug)]
pub struct Wakeups {
    listener: PgListener,
}

impl Wakeups {
    /// Begins to listen.
    pub async fn listen(pool: &PgPool) -> Result<Self> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all([READY, CANCELLED]).await?;
        Ok(Self { listener })
    }

    /// The next hint.
    pub async fn next(&mut self) -> Result<Signal> {
        loop {
            let Some(notification) = self.listener.try_recv().await? else {
                return Ok(Signal::Ready);
            };
            match notification.channel() {
                CANCELLED => {
                    if let Ok(task) = notification.payload().parse() {
                        return Ok(Signal::Cancelled(task));
                    }
                }
                _ => return Ok(Signal::Ready),
            }
        }
    }
}
