//! API keys: made, listed and revoked. The key itself is returned once and stored nowhere.

use tollgate_model::account::AccountId;
use tollgate_model::key::{ApiKey, ENTROPY_LEN, KeyInfo, Scope};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Error, Result, hashing};

/// Makes a key of the account. The second value is the only copy of the key there will ever be.
pub async fn create(
    db: &Database,
    account: AccountId,
    name: &str,
    scopes: &[Scope],
) -> Result<(KeyInfo, ApiKey)> {
    if name.len() > 200 || name.contains('\0') {
        return Err(Error::Invalid { field: "name", problem: "must have at most 200 characters".into() });
    }
    if scopes.is_empty() {
        return Err(Error::Invalid { field: "scopes", problem: "must name at least one scope".into() });
    }
    let mut scopes = scopes.to_vec();
    scopes.sort_unstable();
    scopes.dedup();
    let mut entropy = [0; ENTROPY_LEN];
    getrandom::fill(&mut entropy).map_err(|error| Error::Internal(error.to_string()))?;
    let key = ApiKey::from_entropy(&entropy);
    let hash = hashing::hash(&key).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let inserted = store::insert_key(&mut tx, new_id(), name, key.prefix(), &hash, &scopes).await;
    let info = match inserted {
        Err(store::Error::Database(error)) if error.is_foreign_key_violation() => {
            return Err(Error::NotFound("account"));
        }
        other => other?,
    };
    tx.commit().await?;
    Ok((info, key))
}

/// The account's keys, newest first, older than `before`.
pub async fn list(
    db: &Database,
    account: AccountId,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<KeyInfo>> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let keys = store::list_keys(&mut tx, before, limit).await?;
    tx.commit().await?;
    Ok(keys)
}

/// Revokes a key. It is read anew for each request, so this holds from the commit on, in every process.
pub async fn revoke(db: &Database, account: AccountId, id: Uuid) -> Result<KeyInfo> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let key = store::revoke_key(&mut tx, id).await?.ok_or(Error::NotFound("API key"))?;
    tx.commit().await?;
    Ok(key)
}
