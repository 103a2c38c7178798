//! Who is asking: from the key in a request to its account and scopes.
//!
//! The key's row is read for every request, in one round trip, so a revocation holds at once. A submission reads it in
//! the transaction that stores the job, and so needs no round trip of its own: it begins with what is remembered of the
//! key ([`Authenticator::recognise`]). What that transaction does not look at, such as the key's rate limit, would be
//! remembered for ever by a process that serves nothing but submissions: so once a second one of them is sent to read the
//! row.
//!
//! Argon2id, which costs tens of milliseconds of CPU, runs once a key and process: what it verified is remembered by an
//! HMAC of the whole key under a secret that lives and dies with the process, together with the hash that was verified.
//! Only a key that is not remembered can be refused for [wrong ones](crate::attempts) that came before it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;
use tollgate_model::account::AccountId;
use tollgate_model::key::{ApiKey, Scope};
use tollgate_model::rate_limit::{RateLimit, Standing};
use tollgate_store as store;
use uuid::Uuid;

use crate::attempts::Attempts;
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
    /// The key as which its requests are counted: itself, or the one it replaces or was made by.
    pub counted_as: Uuid,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How often, if that was said of this key.
    pub rate_limit: Option<RateLimit>,
}

/// Verifies keys. One a process; clones share their memory.
#[derive(Clone)]
pub struct Authenticator {
    secret: ProcessSecret,
    verified: Cache<[u8; 32], Arc<Verified>>,
    /// Those that are being verified, each once at a time.
    verifying: Cache<[u8; 32], Arc<tokio::sync::Mutex<()>>>,
    attempts: Attempts,
    used: UsedKeys,
    began: Instant,
}

/// For so long a key is as it was read.
const FRESH: Duration = Duration::from_secs(1);

/// What is remembered of a key.
struct Verified {
    hash: String,
    caller: Caller,
    /// When its row was read, or somebody was sent to read it: milliseconds of the authenticator's life.
    read: AtomicU64,
}

impl Verified {
    /// Whether its row is to be read: said to one, and then for a while to nobody else, so that no more than one waits
    /// for the database.
    fn is_due(&self, now: u64) -> bool {
        let read = self.read.load(Ordering::Relaxed);
        now.saturating_sub(read) >= millis(FRESH)
            && self.read.compare_exchange(read, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
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
            used: UsedKeys::default(),
            began: Instant::now(),
        })
    }

    /// The keys that were used; somebody has to [write them down](UsedKeys::write_down).
    pub fn used(&self) -> &UsedKeys {
        &self.used
    }

    /// The holder of the key; `None`: it is no key, or it is revoked, or has expired. `from`: who shows it; where that is not
    /// known, all are one.
    pub async fn authenticate(
        &self,
        db: &Database,
        presented: &str,
        from: Option<IpAddr>,
    ) -> Result<Option<Caller>> {
        let Some(key) = ApiKey::parse(presented) else { return Ok(None) };
        let fingerprint = self.fingerprint(presented);
        let now = self.now();
        for candidate in store::find_key(db.pool(), key.prefix()).await? {
            let store::KeyCandidate { account, key_id, secret_hash: hash, scopes, rate_limit, counted_as } =
                candidate;
            let rate_limit = own_rate_limit(key_id, rate_limit.as_deref());
            let caller = Caller { account, key: key_id, counted_as, scopes, rate_limit };
            let known = Arc::new(Verified { hash, caller: caller.clone(), read: AtomicU64::new(now) });
            if self.matches(&key, fingerprint, &known, from).await? {
                self.verified.insert(fingerprint, known);
                self.used.mark(account, key_id);
                return Ok(Some(caller));
            }
        }
        self.verified.invalidate(&fingerprint);
        Ok(None)
    }

    /// The holder of a key that was verified before, as it was a second ago or so, without asking anybody; `None`: it is
    /// to be [authenticated](Self::authenticate). For who reads the key's row again, in the transaction of what is done
    /// in its name, and then [forgets](Self::forget) it if it is not valid any more.
    pub fn recognise(&self, presented: &str) -> Option<Caller> {
        let known = self.verified.get(&self.fingerprint(presented))?;
        if known.is_due(self.now()) {
            return None;
        }
        self.used.mark(known.caller.account, known.caller.key);
        Some(known.caller.clone())
    }

    /// The key is not valid any more.
    pub fn forget(&self, presented: &str) {
        self.verified.invalidate(&self.fingerprint(presented));
    }

    /// How many wrong keys may still come from there.
    pub fn attempts_left(&self, from: Option<IpAddr>) -> Standing {
        self.attempts.standing(from.unwrap_or(NOWHERE))
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn fingerprint(&self, presented: &str) -> [u8; 32] {
        self.secret.tag(presented.as_bytes())
    }

    fn is_verified(&self, fingerprint: &[u8; 32], hash: &str) -> bool {
        self.verified.get(fingerprint).is_some_and(|known| known.hash == hash)
    }

    async fn matches(
        &self,
        key: &ApiKey,
        fingerprint: [u8; 32],
        candidate: &Arc<Verified>,
        from: Option<IpAddr>,
    ) -> Result<bool> {
        let hash = &candidate.hash;
        if self.is_verified(&fingerprint, hash) {
            return Ok(true);
        }
        // Where many come with one key that is not known yet, the first finds out for all.
        let turn = self.verifying.get_with(fingerprint, Arc::default);
        let _turn = turn.lock().await;
        if self.is_verified(&fingerprint, hash) {
            return Ok(true);
        }
        let attempt = self.attempts.begin(from.unwrap_or(NOWHERE), key.prefix()).await?;
        let matches = hashing::verify(key, hash).await?;
        if matches {
            attempt.succeeded();
            self.verified.insert(fingerprint, candidate.clone());
        }
        Ok(matches)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_sent_to_read_a_row_and_then_nobody_for_a_while() {
        let caller = Caller {
            account: AccountId(Uuid::nil()),
            key: Uuid::nil(),
            counted_as: Uuid::nil(),
            scopes: Vec::new(),
            rate_limit: None,
        };
        let known = Verified { hash: String::new(), caller, read: AtomicU64::new(500) };
        for (now, due) in
            [(400, false), (1499, false), (1500, true), (1500, false), (2499, false), (2700, true)]
        {
            assert_eq!(known.is_due(now), due, "{now}");
        }
    }
}
