//! The audit log: who did what to an account, and with it. Entries are only ever added.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The holder of one of the account's keys, over HTTP.
    Key(Uuid),
    /// An operator at the shell. The store adds the login, which the database knows.
    Shell,
    /// An operator over HTTP, by the installation's token.
    AdminToken,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Shell => f.write_str("operator:shell"),
            Self::AdminToken => f.write_str("operator:api"),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The account was opened.
    AccountCreated,
    /// An operator posted credits.
    CreditsGranted,
    /// A key was made.
    KeyCreated,
    /// A key was replaced by another.
    KeyRotated,
    /// A key was revoked.
    KeyRevoked,
    /// An operator set the account's share of a queue.
    LaneSet,
    /// An operator set a queue's limit, for all accounts.
    QueueSet,
    /// An operator opened, closed or paused a guard.
    GuardOrdered,
    /// An operator switched the breaker's decisions on or off.
    BreakerSwitched,
    /// An operator put dead letters back into their queues.
    LettersRedriven,
    /// An operator deleted dead letters.
    LettersPurged,
    /// An operator set a price, for all accounts.
    PriceSet,
    /// An operator said that something of Stripe's is the account's.
    StripeLinked,
    /// An operator said that something of Stripe's is another account's from here on.
    StripeUnlinked,
    /// An operator has read from Stripe what never came.
    StripeReconciled,
    /// An operator has dealt with an event of Stripe's by hand.
    StripeResolved,
}

impl Action {
    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccountCreated => "account.created",
            Self::CreditsGranted => "credits.granted",
            Self::KeyCreated => "key.created",
            Self::KeyRotated => "key.rotated",
            Self::KeyRevoked => "key.revoked",
            Self::LaneSet => "lane.set",
            Self::QueueSet => "queue.set",
            Self::GuardOrdered => "guard.ordered",
            Self::BreakerSwitched => "breaker.switched",
            Self::LettersRedriven => "dlq.redriven",
            Self::LettersPurged => "dlq.purged",
            Self::PriceSet => "price.set",
            Self::StripeLinked => "stripe.linked",
            Self::StripeUnlinked => "stripe.unlinked",
            Self::StripeReconciled => "stripe.reconciled",
            Self::StripeResolved => "stripe.resolved",
        }
    }
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({
    "id": "01a2016d-3205-72a3-a0af-c3d39231b414",
    "at": "2026-03-01T12:00:00Z",
    "actor": "key:01a2016d-3205-72a3-a0af-c3d39231b415",
    "action": "key.revoked",
    "object": "key:01a2016d-3205-72a3-a0af-c3d39231b416",
    "detail": {"name": "batch importer"},
})))]
pub struct AuditEntry {
    /// UUIDv7: sorts by age.
    pub id: Uuid,
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// Who: `key:` and the key's id, `operator:api`, or `operator:shell:` and the database login.
    pub actor: String,
    /// What was done: `account.created`, `credits.granted`, `key.created`, `key.rotated`, `key.revoked`, `lane.set`,
    /// `stripe.linked`, `stripe.unlinked` or `stripe.resolved`.
    pub action: String,
    /// What it was done to: its kind, a colon and its id.
    pub object: String,
    /// Particulars; never a secret.
    #[schema(value_type = Object)]
    pub detail: Value,
}
