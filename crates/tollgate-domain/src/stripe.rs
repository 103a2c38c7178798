//! Stripe's events: taken in as they come, entered into an account's books once it is known whose they are, and shown to
//! operators.
//!
//! The inbox (schema `billing`) is the platform's: an event comes without an account. Whose it is follows from what it
//! names (an account, or objects of Stripe's that are known); until then it waits, and whatever makes an object known
//! lets go of what waits for it. Entering is the queue's: one task an event, one commit.

mod enter;
mod inbox;
mod resolve;

use std::time::Duration;

use serde_json::Value;
use tollgate_model::queue::QueueName;
use tollgate_store as store;
use tollgate_store::{NewTask, TenantTx};
use uuid::Uuid;

use crate::Result;

pub use enter::{Entered, enter};
pub use inbox::{Linked, Received, begin_to_reconcile, events, forget, link, receive};
pub use resolve::{Resolution, resolve};

const QUEUE: QueueName = QueueName::BillingCreditGrant;

/// An attempt that fails otherwise than for want of the database is a defect, and five of them are enough.
const ATTEMPTS: i32 = 5;

/// Enqueues what has waited to be told whose these objects are, now that their rows are locked and say so. Returns how many
/// events that were.
async fn let_go(tx: &mut TenantTx, objects: &[&str], ttl: Duration) -> Result<usize> {
    if objects.is_empty() {
        return Ok(0);
    }
    let adopted = store::adopt(tx, objects).await?;
    for (id, kind) in &adopted {
        enqueue(tx, *id, kind, ttl).await?;
    }
    Ok(adopted.len())
}

async fn enqueue(tx: &mut TenantTx, id: Uuid, kind: &str, ttl: Duration) -> Result<()> {
    let task = NewTask {
        id,
        queue: QUEUE,
        task_type: kind,
        // The event's row holds what there is to do.
        payload: &Value::Object(serde_json::Map::new()),
        priority: 5,
        max_attempts: ATTEMPTS,
        run_at: None,
        ttl,
    };
    let account = tx.account();
    Ok(store::enqueue(tx, account, task).await?)
}
