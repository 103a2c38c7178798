//! API keys: their format, and what they may do (SPEC K1).
//!
//! `sk_live_<prefix>_<random><checksum>`: the prefix (12 characters) finds the key's row, the random part (32, over
//! 190 bits) is the secret, and the checksum (6, CRC-32 of all before it) lets a typing error or plain junk be
//! refused without asking the database or computing a hash.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

const MARK: &str = "sk_live_";
const PREFIX_LEN: usize = 12;
const SECRET_LEN: usize = 32;
const CHECKSUM_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Random bytes that [`ApiKey::from_entropy`] needs.
pub const ENTROPY_LEN: usize = PREFIX_LEN + SECRET_LEN;

/// A well-formed API key: shown once when created, and in every request of its holder. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
}

impl ApiKey {
    /// Makes a key of random bytes. Bytes of 248 and above would favour some characters; they are folded, which
    /// costs less than 0.1 bit of the 190.
    pub fn from_entropy(entropy: &[u8; ENTROPY_LEN]) -> Self {
        let symbol = |byte: &u8| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]);
        let mut text = String::from(MARK);
        text.extend(entropy[..PREFIX_LEN].iter().map(symbol));
        text.push('_');
        text.extend(entropy[PREFIX_LEN..].iter().map(symbol));
        let checksum = checksum(&text);
        text.push_str(&checksum);
        Self { text }
    }

    /// Reads a key as a client sends it; `None` if it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, rest) = text.strip_prefix(MARK)?.split_once('_')?;
        let alphanumeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let shaped = prefix.len() == PREFIX_LEN
            && rest.len() == SECRET_LEN + CHECKSUM_LEN
            && alphanumeric(prefix)
            && alphanumeric(rest);
        if !shaped {
            return None;
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM_LEN);
        (checksum(body) == sum).then(|| Self { text: text.to_owned() })
    }

    /// The public part, by which the key's row is found.
    pub fn prefix(&self) -> &str {
        &self.text[MARK.len()..MARK.len() + PREFIX_LEN]
    }

    /// The whole key: for hashing, and to be shown once.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({MARK}{}_…)", self.prefix())
    }
}

fn checksum(body: &str) -> String {
    let mut value = crc32fast::hash(body.as_bytes()) as usize;
    let mut text = [b'0'; CHECKSUM_LEN];
    for slot in text.iter_mut().rev() {
        *slot = ALPHABET[value % ALPHABET.len()];
        value /= ALPHABET.len();
    }
    text.iter().copied().map(char::from).collect()
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Submit and cancel jobs.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Read jobs, their events and results.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// List, create and revoke the account's keys.
    #[serde(rename = "keys:write")]
    KeysWrite,
    /// Manage webhook endpoints.
    #[serde(rename = "webhooks:write")]
    WebhooksWrite,
    /// Read the balance and the ledger.
    #[serde(rename = "billing:read")]
    BillingRead,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] =
        [Self::JobsWrite, Self::JobsRead, Self::KeysWrite, Self::WebhooksWrite, Self::BillingRead];

    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsWrite => "jobs:write",
            Self::JobsRead => "jobs:read",
            Self::KeysWrite => "keys:write",
            Self::WebhooksWrite => "webhooks:write",
            Self::BillingRead => "billing:read",
        }
    }

    /// Reads a scope's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads a key's own rate limit, such as `600,1m`: so many requests in such a time.
pub fn parse_rate_limit(text: &str) -> Result<(u32, Duration), String> {
    let wrong = || format!("`{text}` is not a rate limit such as 600,1m: requests, a comma, and a time");
    let (requests, time) = text.split_once(',').ok_or_else(wrong)?;
    let requests = requests.trim().parse().ok().filter(|requests| *requests >= 1).ok_or_else(wrong)?;
    let time =
        humantime::parse_duration(time.trim()).ok().filter(|time| !time.is_zero()).ok_or_else(wrong)?;
    Ok((requests, time))
}

/// A key as it is listed: without its secret, which nobody has but its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyInfo {
    /// UUIDv7: sorts by age.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// The public part of the key.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working by itself, or did; null: it does not.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to within half a minute; null: never.
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked, if it was.
    #[schema(required)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// The key that this one replaces, if it was made by rotating one.
    #[schema(required)]
    pub rotated_from: Option<Uuid>,
    /// Its own rate limit, such as `600,1m`, if an operator has set one.
    #[schema(required)]
    pub rate_limit: Option<String>,
    /// Credits that its jobs may cost a day (UTC), if an operator has set a limit.
    #[schema(required)]
    pub daily_credit_limit: Option<i64>,
}

impl KeyInfo {
    /// Whether it has stopped working.
    pub fn has_ended(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_some() || self.expires_at.is_some_and(|end| end <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_a_round_trip_and_no_single_change(
            entropy in prop::array::uniform32(any::<u8>()),
            at in 0_usize..(8 + PREFIX_LEN + 1 + SECRET_LEN + CHECKSUM_LEN),
            with in "[0-9A-Za-z_]",
        ) {
            let mut full = [0; ENTROPY_LEN];
            full[..32].copy_from_slice(&entropy);
            let key = ApiKey::from_entropy(&full);
            prop_assert_eq!(ApiKey::parse(key.expose()), Some(key.clone()));

            let mut changed = key.expose().to_owned();
            changed.replace_range(at..=at, &with);
            if changed != key.expose() {
                prop_assert_eq!(ApiKey::parse(&changed), None);
            }
        }

        #[test]
        fn junk_is_no_key(junk in ".{0,80}") {
            prop_assert_eq!(ApiKey::parse(&junk), None);
        }
    }

    #[test]
    fn a_rate_limit_is_requests_and_a_time() {
        assert_eq!(parse_rate_limit("600,1m"), Ok((600, Duration::from_mins(1))));
        assert_eq!(parse_rate_limit("1, 500ms"), Ok((1, Duration::from_millis(500))));
        for wrong in ["", "600", "600,", ",1m", "0,1m", "-1,1m", "600,0s", "600,soon", "600 per 1m", "1,2,3s"]
        {
            assert!(parse_rate_limit(wrong).unwrap_err().contains("such as 600,1m"), "{wrong}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = ApiKey::from_entropy(&[7; ENTROPY_LEN]);
        let shown = format!("{key:?}");
        assert!(!shown.contains(&key.expose()[MARK.len() + PREFIX_LEN + 1..]), "{shown}");
    }
}
