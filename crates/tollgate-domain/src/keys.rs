//! API keys: made, listed, rotated and revoked. The key itself is returned once and stored nowhere.

use std::time::Duration;

use chrono::{DateTime, Datelike as _, SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use tollgate_model::account::AccountId;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::key::{ApiKey, ENTROPY_LEN, KeyInfo, Scope};
use tollgate_model::rate_limit::RateLimit;
use tollgate_store as store;
use tollgate_store::{KeyToInsert, TenantTx, Tx as _};
use uuid::Uuid;

use crate::ids::new_id;
use crate::seal::Seal;
use crate::{Answer, Database, Error, KeyHashing, Once, Result, audit, hashing, once};

/// The longest time for which an old key may work beside the one that replaces it.
pub const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// A key to make.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewKey<'a> {
    /// For people.
    pub name: &'a str,
    /// What it may do: at least one scope.
    pub scopes: &'a [Scope],
    /// When it stops working by itself; `None`: when the key of who asks does, if that does.
    pub expires: Option<Expiry>,
    /// Its own rate limit, such as `600,1m`, instead of the installation's.
    pub rate_limit: Option<&'a str>,
    /// What it may spend in a day (UTC), in credits; `None`: whatever its account has.
    pub daily_credit_limit: Option<i64>,
}

/// When a key stops working by itself: in the future, by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// At this time.
    At(DateTime<Utc>),
    /// So long after it is made.
    In(Duration),
}

impl Expiry {
    async fn time(self, tx: &mut TenantTx) -> Result<DateTime<Utc>> {
        let now = tx.now().await?;
        let time = match self {
            Self::At(time) => Some(time),
            Self::In(span) => TimeDelta::from_std(span).ok().and_then(|span| now.checked_add_signed(span)),
        };
        time.filter(|time| *time > now && time.year() <= 9999).ok_or_else(|| Error::Invalid {
            field: "expires_at",
            problem: "must be a time in the future, of the year 9999 at the latest".into(),
        })
    }
}

/// How a key is to be replaced.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// The key to replace.
    pub key: Uuid,
    /// The scopes that the new key may have at most: those of who asks for it.
    pub within: &'a [Scope],
    /// How long the old key goes on working; `None`: until it is revoked.
    pub overlap: Option<Duration>,
    /// When the new key stops working by itself. It has nothing of this from the old one; `None`: when the key of who asks
    /// does.
    pub expires: Option<Expiry>,
}

/// How a request is answered that brings a key, and, if it is to be done once, is answered again: sealed until then under the
/// API key of who asks, since the answer holds the new one.
pub struct Answering<'a, F> {
    /// What the client calls the request.
    pub once: Option<&'a Once>,
    /// The API key of who asks.
    pub presented: &'a str,
    /// The answer.
    pub answer: F,
}

impl<F: FnOnce(&KeyInfo, &ApiKey) -> Result<Answer>> Answering<'_, F> {
    /// The answer that was given before.
    async fn before(&self, tx: &mut TenantTx) -> Result<Option<Answer>> {
        let Some((once, mut answer)) = self.once.zip(once::claim(tx, self.once).await?) else {
            return Ok(None);
        };
        answer.body = Seal::new(self.presented, once)?.open(&answer.body)?;
        Ok(Some(answer))
    }

    async fn give(self, mut tx: TenantTx, info: &KeyInfo, key: &ApiKey) -> Result<Answer> {
        let answer = (self.answer)(info, key)?;
        if let Some(once) = self.once {
            let body = Seal::new(self.presented, once)?.close(&answer.body)?;
            once::keep(&mut tx, self.once, &Answer { body, ..answer.clone() }).await?;
        }
        tx.commit().await?;
        Ok(answer)
    }
}

/// Makes a key of the account. The second value is the only copy of the key there will ever be.
pub async fn create(
    db: &Database,
    account: AccountId,
    actor: Actor,
    hashing: KeyHashing,
    new: NewKey<'_>,
) -> Result<(KeyInfo, ApiKey)> {
    let scopes = check(&new)?;
    let drawn = Drawn::draw(hashing).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let info = insert(&mut tx, actor, &new, &scopes, &drawn).await?;
    tx.commit().await?;
    Ok((info, drawn.key))
}

/// The same for a request, which may be done once.
pub async fn create_for<F: FnOnce(&KeyInfo, &ApiKey) -> Result<Answer>>(
    db: &Database,
    account: AccountId,
    actor: Actor,
    hashing: KeyHashing,
    new: NewKey<'_>,
    answering: Answering<'_, F>,
) -> Result<Answer> {
    let scopes = check(&new)?;
    let drawn = Drawn::draw(hashing).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    if let Some(answer) = answering.before(&mut tx).await? {
        return Ok(answer);
    }
    let info = insert(&mut tx, actor, &new, &scopes, &drawn).await?;
    answering.give(tx, &info, &drawn.key).await
}

/// What the key of who asks bounds in the keys it makes: nobody lifts his own limits, nor has them twice, nor hands on more
/// life than he has. Operators are bound by nothing.
#[derive(Default)]
struct Bounds {
    expires_at: Option<DateTime<Utc>>,
    rate_limit: Option<String>,
    daily_credit_limit: Option<i64>,
    /// The key, if it has limits: those it makes count with it.
    limited: Option<Uuid>,
}

impl Bounds {
    async fn of(tx: &mut TenantTx, actor: Actor) -> Result<Self> {
        let Actor::Key(id) = actor else { return Ok(Self::default()) };
        let own = store::lock_key(tx, id).await?.ok_or(Error::KeyGone)?;
        // Since it was recognised.
        if own.has_ended(tx.now().await?) {
            return Err(Error::KeyGone);
        }
        let KeyInfo { expires_at, rate_limit, daily_credit_limit, .. } = own;
        let limited = (rate_limit.is_some() || daily_credit_limit.is_some()).then_some(id);
        Ok(Self { expires_at, rate_limit, daily_credit_limit, limited })
    }

    /// When the new key is to end.
    async fn end(&self, tx: &mut TenantTx, asked: Option<Expiry>) -> Result<Option<DateTime<Utc>>> {
        let Some(asked) = asked else { return Ok(self.expires_at) };
        let asked = asked.time(tx).await?;
        match self.expires_at {
            Some(own) if asked > own => Err(Error::Invalid {
                field: "expires_at",
                problem: format!(
                    "must be {} at the latest, when the API key that asks for it expires; if it is left out, the new key \
                     expires then",
                    own.to_rfc3339_opts(SecondsFormat::AutoSi, true)
                ),
            }),
            _ => Ok(Some(asked)),
        }
    }

    /// The stricter one; one that cannot be read is none.
    fn rate_limit<'a>(&'a self, wanted: Option<&'a str>) -> Option<&'a str> {
        let both = wanted.into_iter().chain(self.rate_limit.as_deref());
        both.min_by_key(|limit| limit.parse::<RateLimit>().map_err(drop))
    }

    fn daily_credit_limit(&self, wanted: Option<i64>) -> Option<i64> {
        wanted.into_iter().chain(self.daily_credit_limit).min()
    }
}

/// The scopes, each once.
fn check(new: &NewKey<'_>) -> Result<Vec<Scope>> {
    if new.name.len() > 200 || new.name.contains('\0') {
        return Err(Error::Invalid { field: "name", problem: "must have at most 200 characters".into() });
    }
    if new.scopes.is_empty() {
        return Err(Error::Invalid { field: "scopes", problem: "must name at least one scope".into() });
    }
    if new.daily_credit_limit.is_some_and(|credits| credits < 0) {
        return Err(Error::Invalid { field: "daily_credit_limit", problem: "must not be below 0".into() });
    }
    if let Some(problem) = new.rate_limit.and_then(|text| text.parse::<RateLimit>().err()) {
        return Err(Error::Invalid {
            field: "rate_limit",
            problem: format!("cannot be accepted: {problem}"),
        });
    }
    let mut scopes = new.scopes.to_vec();
    scopes.sort_unstable();
    scopes.dedup();
    Ok(scopes)
}

async fn insert(
    tx: &mut TenantTx,
    actor: Actor,
    new: &NewKey<'_>,
    scopes: &[Scope],
    drawn: &Drawn,
) -> Result<KeyInfo> {
    let by = Bounds::of(tx, actor).await?;
    let key = KeyToInsert {
        name: new.name,
        scopes,
        expires_at: by.end(tx, new.expires).await?,
        rate_limit: by.rate_limit(new.rate_limit),
        daily_credit_limit: by.daily_credit_limit(new.daily_credit_limit),
        counts_with: by.limited,
        ..drawn.to_insert()
    };
    let inserted = store::insert_key(tx, key).await;
    let info = match inserted {
        Err(store::Error::Database(error)) if error.is_foreign_key_violation() => {
            return Err(Error::NotFound("account"));
        }
        other => other?,
    };
    let detail = json!({
        "name": info.name, "scopes": info.scopes, "expires_at": info.expires_at, "rate_limit": info.rate_limit,
        "daily_credit_limit": info.daily_credit_limit,
    });
    audit::record(tx, actor, Action::KeyCreated, &object(info.id), &detail).await?;
    Ok(info)
}

/// Replaces a key by a new one of the same name, scopes and limits, which counts with it, and lets the old one end as the
/// rotation says. The second value is the only copy of the new key there will ever be.
pub async fn rotate(
    db: &Database,
    account: AccountId,
    actor: Actor,
    hashing: KeyHashing,
    rotation: Rotation<'_>,
) -> Result<(KeyInfo, ApiKey)> {
    check_overlap(&rotation)?;
    // Before the old key is locked: it takes long.
    let drawn = Drawn::draw(hashing).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let info = replace(&mut tx, actor, &rotation, &drawn).await?;
    tx.commit().await?;
    Ok((info, drawn.key))
}

/// The same for a request, which may be done once.
pub async fn rotate_for<F: FnOnce(&KeyInfo, &ApiKey) -> Result<Answer>>(
    db: &Database,
    account: AccountId,
    actor: Actor,
    hashing: KeyHashing,
    rotation: Rotation<'_>,
    answering: Answering<'_, F>,
) -> Result<Answer> {
    check_overlap(&rotation)?;
    let drawn = Drawn::draw(hashing).await?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    if let Some(answer) = answering.before(&mut tx).await? {
        return Ok(answer);
    }
    let info = replace(&mut tx, actor, &rotation, &drawn).await?;
    answering.give(tx, &info, &drawn.key).await
}

fn check_overlap(rotation: &Rotation<'_>) -> Result<()> {
    if rotation.overlap.is_some_and(|overlap| overlap > MAX_OVERLAP) {
        let days = MAX_OVERLAP.as_secs() / (24 * 3600);
        return Err(Error::Invalid {
            field: "overlap_seconds",
            problem: format!("must be at most {} ({days} days)", MAX_OVERLAP.as_secs()),
        });
    }
    Ok(())
}

async fn replace(tx: &mut TenantTx, actor: Actor, rotation: &Rotation<'_>, drawn: &Drawn) -> Result<KeyInfo> {
    // In the order of their ids: two keys that replace each other do not wait for each other.
    if let Actor::Key(asks) = actor
        && asks < rotation.key
    {
        store::lock_key(tx, asks).await?;
    }
    let old = store::lock_key(tx, rotation.key).await?.ok_or(Error::NotFound("API key"))?;
    let now = tx.now().await?;
    if old.has_ended(now) {
        return Err(Error::KeyEnded);
    }
    if let Some(&scope) = old.scopes.iter().find(|scope| !rotation.within.contains(scope)) {
        return Err(Error::LacksScope(scope));
    }
    let by = Bounds::of(tx, actor).await?;
    let key = KeyToInsert {
        name: &old.name,
        scopes: &old.scopes,
        expires_at: by.end(tx, rotation.expires).await?,
        rotated_from: Some(old.id),
        rate_limit: by.rate_limit(old.rate_limit.as_deref()),
        daily_credit_limit: by.daily_credit_limit(old.daily_credit_limit),
        counts_with: Some(old.id),
        ..drawn.to_insert()
    };
    let info = store::insert_key(tx, key).await?;
    if let Some(overlap) = rotation.overlap {
        store::end_key(tx, old.id, now + overlap).await?;
    }
    let detail = json!({
        "new": info.id, "name": info.name, "expires_at": info.expires_at,
        "overlap_seconds": rotation.overlap.map(|overlap| overlap.as_secs()),
    });
    audit::record(tx, actor, Action::KeyRotated, &object(old.id), &detail).await?;
    Ok(info)
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

/// Revokes a key; again is no error, and changes nothing. It is read anew for each request, so this holds from the commit
/// on, in every process.
pub async fn revoke(db: &Database, account: AccountId, actor: Actor, id: Uuid) -> Result<KeyInfo> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let key = store::lock_key(&mut tx, id).await?.ok_or(Error::NotFound("API key"))?;
    if key.revoked_at.is_some() {
        return Ok(key);
    }
    let key = store::revoke_key(&mut tx, id).await?.ok_or(Error::NotFound("API key"))?;
    audit::record(&mut tx, actor, Action::KeyRevoked, &object(id), &json!({ "name": key.name })).await?;
    tx.commit().await?;
    Ok(key)
}

/// A key as the audit log names it.
fn object(id: Uuid) -> String {
    format!("key:{id}")
}

/// A key that nobody has seen yet, and what will be stored of it.
struct Drawn {
    id: Uuid,
    key: ApiKey,
    hash: String,
}

impl Drawn {
    async fn draw(hashing: KeyHashing) -> Result<Self> {
        let mut entropy = [0; ENTROPY_LEN];
        getrandom::fill(&mut entropy).map_err(|error| Error::Internal(error.to_string()))?;
        let key = ApiKey::from_entropy(&entropy);
        let hash = hashing::hash(hashing, &key).await?;
        Ok(Self { id: new_id(), key, hash })
    }

    fn to_insert(&self) -> KeyToInsert<'_> {
        KeyToInsert {
            id: self.id,
            name: "",
            prefix: self.key.prefix(),
            secret_hash: &self.hash,
            scopes: &[],
            expires_at: None,
            rotated_from: None,
            rate_limit: None,
            daily_credit_limit: None,
            counts_with: None,
        }
    }
}
