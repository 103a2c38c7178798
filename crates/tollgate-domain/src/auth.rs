//! Who is asking: from the key in a request to its account and scopes.
//!
//! The key's row is read for every request, in one round trip, so a revocation holds at once. Argon2id, which costs
//! tens of milliseconds of CPU, runs once a key and process: what it verified is remembered by an HMAC of the whole
//! key under a secret that lives and dies with the process, together with the hash that was verified.

use std::time::Duration;

use moka::sync::Cache;
use tollgate_model::account::AccountId;
use tollgate_model::key::{ApiKey, Scope};
use tollgate_store as store;
use uuid::Uuid;

use crate::process_secret::ProcessSecret;
use crate::used_keys::UsedKeys;
use crate::{Database, Result, hashing};

/// The holder of a verified key.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose key.
    pub account: AccountId,
    /// Which key.
    pub key: Uuid,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// Verifies keys. One a process; clones share their memory.
#[derive(Clone)]
pub struct Authenticator {
    secret: ProcessSecret,
    verified: Cache<[u8; 32], String>,
    used: UsedKeys,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator")
            .field("verified", &self.verified.entry_count())
            .finish_non_exhaustive()
    }
}

impl Authenticator {
    /// An authenticator that remembers nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            secret: ProcessSecret::draw()?,
            verified: Cache::builder().max_capacity(100_000).time_to_idle(Duration::from_hours(1)).build(),
            used: UsedKeys::default(),
        })
    }

    /// The keys that were used; somebody has to [write them down](UsedKeys::write_down).
    pub fn used(&self) -> &UsedKeys {
        &self.used
    }

    /// The holder of the key; `None`: it is no key, or it is revoked.
    pub async fn authenticate(&self, db: &Database, presented: &str) -> Result<Option<Caller>> {
        let Some(key) = ApiKey::parse(presented) else { return Ok(None) };
        for candidate in store::find_key(db.pool(), key.prefix()).await? {
            if self.matches(&key, &candidate.secret_hash).await? {
                let store::KeyCandidate { account, key_id: key, scopes, .. } = candidate;
                self.used.mark(account, key);
                return Ok(Some(Caller { account, key, scopes }));
            }
        }
        Ok(None)
    }

    async fn matches(&self, key: &ApiKey, hash: &str) -> Result<bool> {
        let fingerprint = self.secret.tag(key.expose().as_bytes());
        if is_verified(&self.verified, &fingerprint, hash) {
            return Ok(true);
        }
        let known = {
            let (verified, hash) = (self.verified.clone(), hash.to_owned());
            move || is_verified(&verified, &fingerprint, &hash)
        };
        let matches = hashing::verify(key, hash, known).await?;
        if matches {
            self.verified.insert(fingerprint, hash.to_owned());
        }
        Ok(matches)
    }
}

fn is_verified(verified: &Cache<[u8; 32], String>, fingerprint: &[u8; 32], hash: &str) -> bool {
    verified.get(fingerprint).is_some_and(|verified| verified == hash)
}
