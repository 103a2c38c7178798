//! What an operator has dealt with by hand, or what will never be: an event that nothing else would ever end, and whose
//! payload, which holds what is known of people, would stay for ever.

use serde_json::json;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::stripe::inbox::EventState;
use tollgate_store as store;
use tollgate_store::SystemTx;

use crate::{Database, Error, Result, audit};

/// What became of the wish to resolve an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It is resolved, and was in this state.
    Resolved(EventState),
    /// It has ended already, so. Nothing was changed.
    Ended(EventState),
    /// It is in the queue: a worker will enter it. Nothing was changed.
    UnderWay,
}

/// Nothing more comes of an event: it waits for nobody, its dead letter is gone and cannot be redriven, and retention takes
/// it in its time. What it has already come to in its account's books stays.
pub async fn resolve(db: &Database, actor: Actor, event_id: &str, reason: &str) -> Result<Resolution> {
    audit::check_reason(reason)?;
    let mut tx = SystemTx::begin(db.pool()).await?;
    let event = store::named_event(&mut tx, event_id).await?.ok_or(Error::NotFound("event"))?;
    let from = event.state;
    if !from.can_be_resolved() {
        let ended = EventState::ENDED.contains(&from);
        return Ok(if ended { Resolution::Ended(from) } else { Resolution::UnderWay });
    }
    // Before the event: what is just being redriven is a task by then, and found.
    let letter = store::delete_dead_letter(&mut tx, event.id).await?;
    if !store::resolve_event(&mut tx, event_id, from).await? {
        return Ok(Resolution::UnderWay);
    }
    let (named, detail) =
        (format!("stripe:{event_id}"), json!({ "reason": reason, "was": from, "letter": letter }));
    if let Some(account) = event.account {
        let mut tx = tx.enter(account).await?;
        audit::record(&mut tx, actor, Action::StripeResolved, &named, &detail).await?;
        tx.commit().await?;
    } else {
        audit::record_for_all(&mut tx, actor, Action::StripeResolved, &named, &detail).await?;
        tx.commit().await?;
    }
    Ok(Resolution::Resolved(from))
}
