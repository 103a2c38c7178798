//! An account is a tenant: the owner of keys, jobs, credits and everything else in schema `app`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Whose rows these are. A type of its own, since mixing it up with a job's id would cross the tenants' wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub Uuid);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AccountId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An account as its operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// The account.
    pub account_id: AccountId,
    /// For people; not unique.
    pub name: String,
    /// Credits it can spend: the sum of its ledger.
    pub credits: i64,
    /// Credits that were taken back, or cost, beyond what it had.
    pub owed: i64,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
}
