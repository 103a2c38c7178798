//! Into the inbox, and what operators do with it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use serde_json::value::RawValue;
use tollgate_model::account::AccountId;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::stripe::inbox::{EventState, InboxEvent};
use tollgate_model::stripe::reading::{Clue, Event, NotAnEvent};
use tollgate_store as store;
use tollgate_store::{Alone, NewEvent, SystemTx, TenantTx, Tx as _};
use uuid::Uuid;

use super::{QUEUE, enqueue, let_go};
use crate::ids::new_id;
use crate::waker::wake_workers;
use crate::{Database, Error, Result, accounts, audit, ids, retention};

/// What became of an event that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is stored, and what follows from it will.
    New,
    /// It had come before; nothing was changed.
    Known,
}

impl Received {
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Known => "known",
        }
    }
}

/// Takes an event in whose signature is right, or that was read from Stripe: the event, whose it is, and the task that will
/// enter it, in one commit.
pub async fn receive(db: &Database, body: &[u8], ttl: Duration) -> Result<Received> {
    let refuse = |error: NotAnEvent| Error::Invalid { field: "body", problem: error.to_string() };
    let event = Event::read(body).map_err(refuse)?;
    let payload: &RawValue = serde_json::from_slice(body).map_err(|_not_json| refuse(NotAnEvent))?;
    let named = named_account(db, &event).await?;
    let mut new = NewEvent {
        id: new_id(),
        event_id: &event.id,
        event_type: &event.kind,
        created: event.created,
        livemode: event.livemode,
        customer: event.customer.as_deref(),
        account: None,
        state: event.without_account(),
        payload,
    };
    let mut tx = SystemTx::begin(db.pool()).await?;
    let account = tell(&mut tx, &event, named).await?;
    let received = if let Some(account) = account {
        (new.account, new.state) = (Some(account), EventState::Received);
        let mut tx = tx.enter(account).await?;
        let is_new = store::enter_event(&mut tx, new).await?;
        if is_new {
            enqueue(&mut tx, new.id, &event.kind, ttl).await?;
            tx.commit().await?;
            wake_workers(db, QUEUE).await;
        }
        is_new
    } else {
        let is_new = store::enter_event(&mut tx, new).await?;
        if is_new {
            if new.state != EventState::Ignored {
                // By its own id as well, so that an operator can say whose it is when it names nothing else.
                let mut objects = event.waits_for();
                objects.push(&event.id);
                store::tell(&mut tx, &[&event.id], None).await?;
                store::wait_for(&mut tx, &event.id, &objects).await?;
            }
            tx.commit().await?;
        }
        is_new
    };
    Ok(if received { Received::New } else { Received::Known })
}

/// The account that the merchant's server has named, if there is such an account.
async fn named_account(db: &Database, event: &Event) -> Result<Option<AccountId>> {
    for clue in &event.clues {
        if let Clue::Account(account) = clue {
            match accounts::exists(db, *account).await {
                Ok(()) => return Ok(Some(*account)),
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Whose the event is, as far as is known; what it links is that account's from here on. Either way the rows of all its
/// objects are locked: who waits for one and who makes it known take turns, so that neither misses the other.
async fn tell(tx: &mut SystemTx, event: &Event, named: Option<AccountId>) -> Result<Option<AccountId>> {
    let links: Vec<&str> = event.links.iter().map(String::as_str).collect();
    let clues = event.waits_for();
    let all: Vec<&str> = clues.iter().chain(&links).copied().collect();
    if all.is_empty() {
        return Ok(named);
    }
    let known = store::tell(tx, &all, named).await?;
    let whose = |object: &&str| known.iter().find(|(id, _)| id == object).and_then(|(_, account)| *account);
    let account = named.or_else(|| clues.iter().find_map(whose));
    if named.is_none() && account.is_some() && !links.is_empty() {
        store::tell(tx, &links, account).await?;
    }
    Ok(account)
}

/// What a link has brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linked {
    /// Events that waited for it, and are being entered now.
    pub released: usize,
    /// Whose it was before, if it was another account's. What was entered there stays there.
    pub before: Option<AccountId>,
}

/// Says that an object of Stripe's (a customer, an event that names none) is the account's.
pub async fn link(
    db: &Database,
    actor: Actor,
    object: &str,
    account: AccountId,
    ttl: Duration,
) -> Result<Linked> {
    let plausible = (1..=255).contains(&object.len()) && object.bytes().all(|byte| byte.is_ascii_graphic());
    if !plausible {
        return Err(Error::Invalid {
            field: "customer",
            problem: "is no id of Stripe's, such as cus_…".into(),
        });
    }
    accounts::exists(db, account).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let before = store::linked(&mut tx, object).await?.filter(|before| *before != account);
    store::link(&mut tx, object).await?;
    let released = let_go(&mut tx, &[object], ttl).await?;
    let named = format!("stripe:{object}");
    audit::record(&mut tx, actor, Action::StripeLinked, &named, &json!({ "released": released })).await?;
    if let Some(before) = before {
        // Each in its own log, which says nothing of the other.
        tx = tx.enter(before).await?;
        audit::record(&mut tx, actor, Action::StripeUnlinked, &named, &json!({})).await?;
    }
    tx.commit().await?;
    wake_workers(db, QUEUE).await;
    Ok(Linked { released, before })
}

/// An operator is about to [take in](receive) what Stripe has sent for so long, and never came: since when that is, by the
/// database's clock. It is noted before it is done, since each event is a commit of its own.
pub async fn begin_to_reconcile(db: &Database, actor: Actor, span: Duration) -> Result<DateTime<Utc>> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    let since = tx.now().await? - span;
    let detail = json!({ "since": since });
    audit::record_for_all(&mut tx, actor, Action::StripeReconciled, "stripe:events", &detail).await?;
    tx.commit().await?;
    Ok(since)
}

/// Events that one statement removes, of each state.
const BATCH: i64 = 500;

/// Removes some events that came longer than `keep` ago, and of which nothing is left to do. `true`: there may be more.
///
/// The row goes whole. It is there so that no event is taken in twice, and Stripe sends or shows none that is older than 30
/// days, less than `keep` is let be; and what an event has come to stands in its account's books, which know it by its id.
pub async fn forget(db: &Database, keep: Duration) -> Result<bool> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let now = alone.now().await?;
    let Some(until) = retention::kept_until(now, keep) else { return Ok(false) };
    let before = ids::first_id_of(until);
    let removed = store::remove_events(&mut alone, &EventState::ENDED, before, BATCH).await?;
    Ok(removed >= BATCH.unsigned_abs())
}

/// Events, newest first: up to `limit` of those that came before the one at `before`.
pub async fn events(
    db: &Database,
    state: Option<EventState>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<InboxEvent>> {
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::inbox_page(&mut alone, state, before, limit).await?)
}
