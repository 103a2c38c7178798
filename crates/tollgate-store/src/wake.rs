//! Hints between processes, by LISTEN/NOTIFY. A lost hint costs latency, never a job: the scan is the truth.

use sqlx::postgres::PgListener;
use sqlx::{Acquire as _, Connection as _, PgConnection, PgPool};
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use crate::Result;

const READY: &str = "tollgate_ready";
const CANCELLED: &str = "tollgate_cancelled";
const GUARD: &str = "tollgate_guard";

/// The class of the advisory locks by which workers say that they are idle; the queue is the other half of the key.
const IDLE: i32 = 0x746f_6c6c;

fn idle_key(queue: QueueName) -> i32 {
    match queue {
        QueueName::GenerationCreate => 1,
        QueueName::GenerationProbe => 2,
        QueueName::WebhookDelivery => 3,
        QueueName::BillingCreditGrant => 4,
        QueueName::GenerationImage => 5,
    }
}

/// Tells idle workers, if there are any, that a queue has something to claim. Sent after the commit that put it there,
/// never inside: a notifying commit takes a lock that is global to the cluster (measured: it halves the rate of
/// enqueues). An idle worker holds a shared advisory lock; where the exclusive one can be had, nobody is idle, and this
/// is a statement that writes nothing.
pub async fn notify_ready(pool: &PgPool, queue: QueueName) -> Result<()> {
    sqlx::query!(
        "SELECT pg_notify($1, $2) WHERE NOT pg_try_advisory_xact_lock($3, $4)",
        READY,
        queue.as_str(),
        IDLE,
        idle_key(queue),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A worker's sign that it is idle, up until it is dropped: a connection of its own with a shared advisory lock. The
/// worker looks once more after it has put it up; whoever commits before that look is seen by it, whoever commits
/// after it sees the sign.
#[derive(Debug)]
pub struct IdleSign {
    /// Not the pool's any more: closing it is what takes the sign down, whatever state it is in.
    conn: PgConnection,
}

impl IdleSign {
    /// Connects; the sign is not up yet.
    pub async fn connect(pool: &PgPool) -> Result<Self> {
        Ok(Self { conn: pool.acquire().await?.detach() })
    }

    /// Whether the connection, and so the sign, still stands.
    pub async fn check(&mut self) -> Result<()> {
        self.conn.ping().await
    }

    /// Takes it down for now.
    pub async fn lower(&mut self, queue: QueueName) -> Result<()> {
        sqlx::query_scalar!("SELECT pg_advisory_unlock_shared($1, $2)", IDLE, idle_key(queue))
            .fetch_one(&mut self.conn)
            .await?;
        Ok(())
    }

    /// Puts it up.
    pub async fn raise(&mut self, queue: QueueName) -> Result<()> {
        sqlx::query!("SELECT pg_advisory_lock_shared($1, $2)", IDLE, idle_key(queue))
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }
}

/// Tells the worker that runs a task that it was called off.
pub async fn notify_cancelled(pool: &PgPool, task: Uuid) -> Result<()> {
    notify(pool, CANCELLED, &task.to_string()).await
}

/// Tells the workers that a class's guard has news.
pub async fn notify_guard(pool: &PgPool, class: &str) -> Result<()> {
    notify(pool, GUARD, class).await
}

async fn notify(pool: &PgPool, channel: &str, payload: &str) -> Result<()> {
    sqlx::query!("SELECT pg_notify($1, $2)", channel, payload).execute(pool).await?;
    Ok(())
}

/// What a worker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// There may be something to claim, in this queue.
    Ready(QueueName),
    /// This task was called off.
    Cancelled(Uuid),
    /// A guard has news.
    Guard,
}

/// A worker's ear: one connection of its own. Once it is lost, hints may have been missed: whoever listens anew has to
/// look.
#[derive(Debug)]
pub struct Wakeups {
    listener: PgListener,
}

impl Wakeups {
    /// Begins to listen.
    pub async fn listen(pool: &PgPool) -> Result<Self> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all([READY, CANCELLED, GUARD]).await?;
        Ok(Self { listener })
    }

    /// Whether the connection still stands.
    pub async fn check(&mut self) -> Result<()> {
        self.listener.acquire().await?.ping().await
    }

    /// The next hint; an error once the connection is lost.
    pub async fn next(&mut self) -> Result<Signal> {
        loop {
            let Some(notification) = self.listener.try_recv().await? else {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
            };
            match notification.channel() {
                CANCELLED => {
                    if let Ok(task) = notification.payload().parse() {
                        return Ok(Signal::Cancelled(task));
                    }
                }
                GUARD => return Ok(Signal::Guard),
                _ => {
                    if let Some(queue) = QueueName::parse(notification.payload()) {
                        return Ok(Signal::Ready(queue));
                    }
                }
            }
        }
    }
}
