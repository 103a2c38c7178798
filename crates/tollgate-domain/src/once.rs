//! Requests that are to be done once (SPEC K3): what is done, and the answer that says so, are one commit.

use std::time::Duration;

use tollgate_model::account::AccountId;
use tollgate_model::idempotency::Once;
use tollgate_store as store;
use tollgate_store::{Claim, TenantTx};
use uuid::Uuid;

use crate::error::has_code;
use crate::{Database, Error, Result};

pub use tollgate_model::idempotency::Answer;

/// How long an answer is kept for its key.
pub(crate) const KEEP: Duration = Duration::from_hours(24);

/// Claims a request that is to be done once. An answer: it was done before. `None`: it is to be done now, and its answer
/// [kept](keep) in the same transaction.
pub(crate) async fn claim(tx: &mut TenantTx, once: Option<&Once>) -> Result<Option<Answer>> {
    let Some(once) = once else { return Ok(None) };
    answered(store::claim_once(tx, once, KEEP).await.map_err(in_flight)?)
}

fn answered(claim: Claim) -> Result<Option<Answer>> {
    match claim {
        Claim::Ours => Ok(None),
        Claim::Done(answer) => Ok(Some(answer)),
        Claim::Conflict => Err(Error::IdempotencyConflict),
        Claim::InFlight => Err(Error::IdempotencyInFlight),
    }
}

/// The answer to a request that would be refused now, but was done before. `None`: it was not.
pub(crate) async fn before(
    db: &Database,
    account: AccountId,
    key: Uuid,
    once: Option<&Once>,
) -> Result<Option<Answer>> {
    let Some(once) = once else { return Ok(None) };
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let known = store::look_once(&mut tx, once, key).await?;
    tx.commit().await?;
    known.map_or(Ok(None), answered)
}

/// Keeps the answer of a request that was claimed.
pub(crate) async fn keep(tx: &mut TenantTx, once: Option<&Once>, answer: &Answer) -> Result<()> {
    let Some(once) = once else { return Ok(()) };
    Ok(store::save_answer(tx, once, answer).await?)
}

/// Who waited for the same request for as long as one may is told that it is under way.
pub(crate) fn in_flight(error: store::Error) -> Error {
    if has_code(&error, "55P03") { Error::IdempotencyInFlight } else { error.into() }
}
