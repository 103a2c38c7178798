//! Who is asking: from the key in a request to its account and scopes.
//!
//! The key's row is read for every request, in one round trip, so a revocation holds at once. A submission reads it in the
//! transaction that stores the job, and so needs no round trip of its own: it begins with what is remembered of the key
//! ([`Authenticator::recognise`]). Argon2id, which costs tens of milliseconds of CPU, runs once a key and process: what it
//! verified is remembered by an HMAC of the whole key under a secret that lives and dies with the process, together with the
//! hash that was verified.

use std::sync::Arc;
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
    verified: Cache<[u8; 32], Arc<Verified>>,
    used: UsedKeys,
}

/// What is remembered of a key.
struct Verified {
    hash: String,
    caller: Caller,
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

    /// The holder of the key; `None`: it is no key, or it is revoked, or has expired.
    pub async fn authenticate(&self, db: &Database, presented: &str) -> Result<Option<Caller>> {
        let Some(key) = ApiKey::parse(presented) else { return Ok(None) };
        let fingerprint = self.fingerprint(presented);
        for candidate in store::find_key(db.pool(), key.prefix()).await? {
            let store::KeyCandidate { account, key_id, secret_hash: hash, scopes, .. } = candidate;
            if self.matches(&key, fingerprint, &hash).await? {
                let caller = Caller { account, key: key_id, scopes };
                self.used.mark(account, key_id);
                self.verified.insert(fingerprint, Arc::new(Verified { hash, caller: caller.clone() }));
                return Ok(Some(caller));
            }
        }
        self.verified.invalidate(&fingerprint);
        Ok(None)
    }

    /// The holder of a key that was verified before, as it was then, without asking anybody. For who reads the key's row
    /// again, in the transaction of what is done in its name, and then [forgets](Self::forget) it if it is not valid any more.
    pub fn recognise(&self, presented: &str) -> Option<Caller> {
        let known = self.verified.get(&self.fingerprint(presented))?;
        self.used.mark(known.caller.account, known.caller.key);
        Some(known.caller.clone())
    }

    /// The key is not valid any more.
    pub fn forget(&self, presented: &str) {
        self.verified.invalidate(&self.fingerprint(presented));
    }

    fn fingerprint(&self, presented: &str) -> [u8; 32] {
        self.secret.tag(presented.as_bytes())
    }

    async fn matches(&self, key: &ApiKey, fingerprint: [u8; 32], hash: &str) -> Result<bool> {
        let known = {
            let (verified, hash) = (self.verified.clone(), hash.to_owned());
            move || verified.get(&fingerprint).is_some_and(|known| known.hash == hash)
        };
        if known() {
            return Ok(true);
        }
        hashing::verify(key, hash, known).await
    }
}
