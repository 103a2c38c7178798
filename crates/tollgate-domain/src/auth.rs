//! Who is asking: from the key in a request to its account and scopes.
//!
//! The key's row is read for every request, in one round trip, so a revocation holds at once. Argon2id, which costs
//! tens of milliseconds of CPU, runs once a key and process: what it verified is remembered by an HMAC of the whole
//! key under a secret that lives and dies with the process, together with the hash that was verified. Only a key that is not
//! remembered can be refused for [wrong ones](crate::attempts) that came before it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tollgate_model::account::AccountId;
use tollgate_model::key::{ApiKey, Scope};
use tollgate_model::rate_limit::{RateLimit, Standing};
use tollgate_store as store;
use uuid::Uuid;

use crate::attempts::Attempts;
use crate::process_secret::ProcessSecret;
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
    /// How often, if that was said of this key.
    pub rate_limit: Option<RateLimit>,
}

/// Verifies keys. One a process; clones share their memory.
#[derive(Clone)]
pub struct Authenticator {
    secret: ProcessSecret,
    verified: Cache<[u8; 32], String>,
    /// Those that are being verified, each once at a time.
    verifying: Cache<[u8; 32], Arc<tokio::sync::Mutex<()>>>,
    attempts: Attempts,
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
            verifying: Cache::builder().max_capacity(10_000).time_to_idle(Duration::from_mins(1)).build(),
            attempts: Attempts::new(),
        })
    }

    /// The holder of the key; `None`: it is no key, or it is revoked. `from`: who shows it; where that is not known, all
    /// are one.
    pub async fn authenticate(
        &self,
        db: &Database,
        presented: &str,
        from: Option<IpAddr>,
    ) -> Result<Option<Caller>> {
        let Some(key) = ApiKey::parse(presented) else { return Ok(None) };
        for candidate in store::find_key(db.pool(), key.prefix()).await? {
            if self.matches(&key, &candidate.secret_hash, from).await? {
                let store::KeyCandidate { account, key_id: key, scopes, rate_limit, .. } = candidate;
                let rate_limit = own_rate_limit(key, rate_limit.as_deref());
                return Ok(Some(Caller { account, key, scopes, rate_limit }));
            }
        }
        Ok(None)
    }

    /// How many wrong keys may still come from there.
    pub fn attempts_left(&self, from: Option<IpAddr>) -> Standing {
        self.attempts.standing(from.unwrap_or(NOWHERE))
    }

    async fn matches(&self, key: &ApiKey, hash: &str, from: Option<IpAddr>) -> Result<bool> {
        let fingerprint = self.secret.tag(key.expose().as_bytes());
        if is_verified(&self.verified, &fingerprint, hash) {
            return Ok(true);
        }
        // Where many come with one key that is not known yet, the first finds out for all.
        let turn = self.verifying.get_with(fingerprint, Arc::default);
        let _turn = turn.lock().await;
        if is_verified(&self.verified, &fingerprint, hash) {
            return Ok(true);
        }
        let attempt = self.attempts.begin(from.unwrap_or(NOWHERE), key.prefix())?;
        let matches = hashing::verify(key, hash).await?;
        if matches {
            attempt.succeeded();
            self.verified.insert(fingerprint, hash.to_owned());
        }
        Ok(matches)
    }
}

const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A limit that cannot be read is none: the usual one holds.
fn own_rate_limit(key: Uuid, text: Option<&str>) -> Option<RateLimit> {
    let limit = text?.parse();
    if let Err(error) = &limit {
        tracing::warn!(%key, %error, "the rate limit of this key cannot be read; RATE_LIMIT_DEFAULT holds");
    }
    limit.ok()
}

fn is_verified(verified: &Cache<[u8; 32], String>, fingerprint: &[u8; 32], hash: &str) -> bool {
    verified.get(fingerprint).is_some_and(|verified| verified == hash)
}
