//! Into an account's books: what an event says, and what follows from it for the account's credits. One fenced commit.

use std::time::Duration;

use tollgate_model::account::AccountId;
use tollgate_model::credits::EntryReason;
use tollgate_model::job::{JobError, codes};
use tollgate_model::queue::ClaimedTask;
use tollgate_model::stripe::book::Bought;
use tollgate_model::stripe::inbox::EventState;
use tollgate_model::stripe::rates::CreditRates;
use tollgate_model::stripe::reading::{Event, Fact};
use tollgate_store as store;
use tollgate_store::{StoredGrant, StoredReversal, TenantTx};

use super::{QUEUE, let_go};
use crate::ids::new_id;
use crate::waker::wake_workers;
use crate::{Database, Error, Result, dead_letters};

/// How entering an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is in the books.
    Done,
    /// An operator has to do something; it is in the dead letters, or marked.
    NeedsAttention,
    /// The lease was lost. Nothing was changed.
    LeaseLost,
}

impl Entered {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NeedsAttention => "needs_attention",
            Self::LeaseLost => "lease_lost",
        }
    }
}

/// Enters the event that a task stands for. The objects are locked before the task, as by whoever takes events in.
pub async fn enter(db: &Database, task: &ClaimedTask, rates: &CreditRates, ttl: Duration) -> Result<Entered> {
    let (lease, id) = (task.lease, task.lease.task);
    let mut tx = TenantTx::begin(db.pool(), lease.account).await?;
    let stored = store::stripe_event(&mut tx, id).await?;
    let stored = stored.ok_or_else(|| Error::Internal("a task without an event of Stripe's".into()))?;
    let event = Event::read(stored.payload.get().as_bytes());
    let event = event.map_err(|error| Error::Internal(format!("{} {error}", stored.event_id)))?;
    let links: Vec<&str> = event.links.iter().map(String::as_str).collect();
    let known = match links.as_slice() {
        [] => Vec::new(),
        links => store::tell(&mut tx, links, Some(lease.account)).await?,
    };
    let (state, words, bought) = match &event.fact {
        Fact::ByHand(words) => (EventState::NeedsAttention, Some(words.clone()), None),
        Fact::Bought(purchase) => match purchase.bought(rates) {
            Ok(bought) => (EventState::Processed, None, Some(bought)),
            Err(words) => return give_up(db, tx, task, &links, ttl, &words).await,
        },
        _ => (EventState::Processed, None, None),
    };
    if !store::finish(&mut tx, lease).await? {
        return Ok(Entered::LeaseLost);
    }
    let released = let_go(&mut tx, &links, ttl).await?;
    if !store::lock_balance(&mut tx).await? {
        return Err(Error::Internal(format!("{} is of an account that is not there", stored.event_id)));
    }
    let is_ours = |customer: &&String| {
        known.iter().any(|(object, account)| object == *customer && *account == Some(lease.account))
    };
    if let Some(customer) = event.customer.as_ref().filter(is_ours) {
        store::add_customer(&mut tx, customer).await?;
    }
    let Settlement { moves, problem } = settle(&mut tx, &event.fact, bought).await?;
    let (state, words) = match problem {
        Some(problem) => (EventState::NeedsAttention, Some(problem)),
        None => (state, words),
    };
    let credits = moves.iter().map(|moved| moved.credits).sum();
    let entered = store::add_event(&mut tx, &event.id, &event.kind, credits).await?;
    if !entered && !moves.is_empty() {
        return Err(Error::Internal(format!("{} would move credits a second time", event.id)));
    }
    store::mark_event(&mut tx, id, state, words.as_deref()).await?;
    tx.commit().await?;
    if released > 0 {
        wake_workers(db, QUEUE).await;
    }
    for moved in &moves {
        announce(lease.account, &event.id, moved);
    }
    Ok(if state == EventState::Processed { Entered::Done } else { Entered::NeedsAttention })
}

/// To the dead letters, until an operator has done what the words say and redrives it.
/// What waits for the objects that it made known goes on all the same.
async fn give_up(
    db: &Database,
    mut tx: TenantTx,
    task: &ClaimedTask,
    links: &[&str],
    ttl: Duration,
    words: &str,
) -> Result<Entered> {
    let lease = task.lease;
    let reason = JobError { code: codes::NEEDS_ATTENTION.into(), message: words.into() };
    if !store::bury(&mut tx, lease, &reason).await? {
        return Ok(Entered::LeaseLost);
    }
    store::mark_event(&mut tx, lease.task, EventState::NeedsAttention, Some(words)).await?;
    let released = let_go(&mut tx, links, ttl).await?;
    tx.commit().await?;
    if released > 0 {
        wake_workers(db, QUEUE).await;
    }
    dead_letters::died(QUEUE, lease.account, lease.task, &reason.code);
    Ok(Entered::NeedsAttention)
}

/// Credits that were moved for a purchase.
struct Moved {
    purchase: String,
    credits: i64,
}

/// What became of a fact.
#[derive(Default)]
struct Settlement {
    moves: Vec<Moved>,
    /// What could not be entered, and an operator has to see to; in words.
    problem: Option<String>,
}

/// Adds the fact to the books, and brings the credits of each purchase that it is about in line with them.
async fn settle(tx: &mut TenantTx, fact: &Fact, bought: Option<Bought>) -> Result<Settlement> {
    let mut settled = Settlement::default();
    // What was not known before: whether there is a grant, and of which payments.
    let (mut granted, mut paid) = (false, Vec::new());
    let purchases = match fact {
        Fact::Bought(purchase) => {
            paid = store::add_payments(tx, &purchase.object, &purchase.payments).await?;
            if let Some(bought) = bought
                && store::add_grant(tx, purchase, bought).await?
            {
                granted = true;
                settled.moves.push(post(tx, &purchase.object, bought.credits).await?);
            }
            vec![purchase.object.clone()]
        }
        Fact::Paid { purchase, payments } => {
            paid = store::add_payments(tx, purchase, payments).await?;
            vec![purchase.clone()]
        }
        Fact::Reversed { reversal, payment, currency, what } => {
            store::join_reversal(tx, payment, reversal, currency.as_deref(), *what).await?;
            store::purchases_of(tx, payment).await?
        }
        Fact::Nothing | Fact::Links | Fact::ByHand(_) => Vec::new(),
    };
    for purchase in purchases {
        let Some(StoredGrant { bought, currency, taken_back }) = store::grant_of(tx, &purchase).await? else {
            continue;
        };
        let reversals = store::reversals_of(tx, &purchase).await?;
        let is_comparable = |other: &StoredReversal| other.currency.as_ref().is_none_or(|of| *of == currency);
        let (counted, foreign): (Vec<_>, Vec<_>) = reversals.into_iter().partition(is_comparable);
        // An operator is told by the event that the money is gone by, or by the one that brings that and its purchase together;
        // not by those that come after.
        let is_news = |other: &&StoredReversal| {
            let own = matches!(fact, Fact::Reversed { reversal, .. } if *reversal == other.id);
            other.what.is_gone() && (own || granted || paid.contains(&other.payment))
        };
        if let Some(StoredReversal { id, currency: Some(theirs), .. }) = foreign.iter().find(is_news) {
            settled.problem = Some(format!(
                "{id} takes money back in `{theirs}`, but {purchase} was paid in `{currency}`: nobody knows how much of it \
                 that is, and none of its credits were taken back; settle it with the customer"
            ));
        }
        let now = bought.taken_back(counted.into_iter().map(|reversal| reversal.what));
        if now != taken_back {
            store::set_taken_back(tx, &purchase, now).await?;
            settled.moves.push(post(tx, &purchase, taken_back - now).await?);
        }
    }
    Ok(settled)
}

async fn post(tx: &mut TenantTx, purchase: &str, credits: i64) -> Result<Moved> {
    store::grant(tx, new_id(), credits, EntryReason::Stripe, Some(purchase)).await?;
    Ok(Moved { purchase: purchase.to_owned(), credits })
}

/// Makes `credits.granted` known, and its reverse: the one place where it is.
fn announce(account: AccountId, event: &str, moved: &Moved) {
    let Moved { purchase, credits } = moved;
    let (name, metric) = if *credits > 0 {
        ("credits.granted", "tollgate_credits_granted_total")
    } else {
        ("credits.taken_back", "tollgate_credits_taken_back_total")
    };
    metrics::counter!(metric, "source" => "stripe").increment(credits.unsigned_abs());
    tracing::info!(account_id = %account, event, purchase, credits, "{name}");
}
