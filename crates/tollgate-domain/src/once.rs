//! Requests that are to be done once (SPEC K3): what is done, and the answer that says so, are one commit.

use std::time::Duration;

use tollgate_model::account::AccountId;
use tollgate_model::idempotency::Once;
use tollgate_store as store;
use tollgate_store::{Claim, SavedAnswer, TenantTx};
use uuid::Uuid;

use crate::{Database, Error, Result};

/// How long an answer is kept for its key.
pub(crate) const KEEP: Duration = Duration::from_hours(24);

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
    /// Where to find what was made.
    pub location: Option<String>,
    /// It was done before, and this is what was answered then.
    pub replayed: bool,
}

impl Answer {
    /// A first answer.
    pub fn new(status: u16, body: &impl serde::Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Self { status, body, location: None, replayed: false })
    }
}

/// Claims a request that is to be done once. An answer: it was done before. `None`: it is to be done now, and its answer
/// [kept](keep) in the same transaction.
pub(crate) async fn claim(tx: &mut TenantTx, once: Option<&Once>) -> Result<Option<Answer>> {
    let Some(once) = once else { return Ok(None) };
    match store::claim_once(tx, once, KEEP).await.map_err(in_flight)? {
        Claim::Ours => Ok(None),
        Claim::Done(SavedAnswer { status, response: body, location }) => {
            Ok(Some(Answer { status, body, location, replayed: true }))
        }
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
    match known {
        Some(Claim::Done(SavedAnswer { status, response: body, location })) => {
            Ok(Some(Answer { status, body, location, replayed: true }))
        }
        Some(Claim::Conflict) => Err(Error::IdempotencyConflict),
        _ => Ok(None),
    }
}

/// Keeps the answer of a request that was claimed.
pub(crate) async fn keep(tx: &mut TenantTx, once: Option<&Once>, answer: &Answer) -> Result<()> {
    let Some(once) = once else { return Ok(()) };
    let Answer { status, body, location, .. } = answer.clone();
    Ok(store::save_answer(tx, once, &SavedAnswer { status, response: body, location }).await?)
}

/// Who waited for the same request for as long as one may is told that it is under way.
pub(crate) fn in_flight(error: store::Error) -> Error {
    let waited = matches!(&error, store::Error::Database(error) if error.code().as_deref() == Some("55P03"));
    if waited { Error::IdempotencyInFlight } else { error.into() }
}

/// Answers one transaction forgets.
const BATCH: i64 = 1000;

/// Accounts one round looks at.
const ACCOUNTS: i32 = 200;

/// Forgets answers that have expired; goes on after the account at which it stopped.
pub async fn forget_expired(db: &Database, after: &mut Option<AccountId>) -> Result<()> {
    let accounts = store::account_ids(db.pool(), after.unwrap_or(AccountId(Uuid::nil())), ACCOUNTS).await?;
    for &account in &accounts {
        while {
            let mut tx = TenantTx::begin(db.pool(), account).await?;
            let gone = store::remove_expired_answers(&mut tx, BATCH).await?;
            tx.commit().await?;
            i64::try_from(gone) == Ok(BATCH)
        } {}
    }
    *after = accounts.last().copied().filter(|_| i32::try_from(accounts.len()) == Ok(ACCOUNTS));
    Ok(())
}
