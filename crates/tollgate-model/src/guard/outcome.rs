//! How a call to a provider ended, as far as that says something about the provider.
//!
//! The queue asks whether a job is to be tried again
//! ([`ProviderFailure`](crate::generation::ProviderFailure)); the guard asks whether anybody should call at all. The same
//! reply may mean different things to them: a request that is at fault fails its job, and shows that the provider is well.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What tells one credential from another, and cannot be turned back into it: the beginning of its hash, say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl Fingerprint {
    /// That of a secret; `None`: there is no credential.
    pub fn of(secret: Option<&str>) -> Self {
        let Some(secret) = secret else { return Self("none".to_owned()) };
        let hash: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let beginning = hash.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        Self(format!("{beginning:016x}"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How one call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Success {
        /// From the first byte sent to the last one received.
        latency: Duration,
    },
    /// 5xx, a connection that broke, or a reply that is not what the protocol says.
    ServerError,
    /// No connection.
    Connect,
    /// A connection on which nothing came.
    SilentSocket,
    /// Our total deadline, while something did come, or might have.
    Deadline,
    /// The provider asks for fewer calls (503 `slow_down` and the like).
    SlowDown,
    /// 429, and waiting helps.
    RateLimited {
        /// How long it asks us to stay away.
        pause: Option<Duration>,
    },
    /// Any other 4xx: the request was at fault, the provider is alive.
    Content,
    /// 401, 403, or no money left (`insufficient_quota`): no call of this credential will do better.
    CredentialRefused {
        /// What the provider said; never a secret.
        reason: String,
        /// Whom it refused.
        credential: Fingerprint,
    },
    /// We gave it up ourselves: a job was cancelled, a lease lost, a process stopped.
    Cancelled,
}

impl Outcome {
    /// Without what belongs to this call alone.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Self::Success { .. } => OutcomeKind::Success,
            Self::ServerError => OutcomeKind::ServerError,
            Self::Connect => OutcomeKind::Connect,
            Self::SilentSocket => OutcomeKind::SilentSocket,
            Self::Deadline => OutcomeKind::Deadline,
            Self::SlowDown => OutcomeKind::SlowDown,
            Self::RateLimited { .. } => OutcomeKind::RateLimited,
            Self::Content => OutcomeKind::Content,
            Self::CredentialRefused { .. } => OutcomeKind::CredentialRefused,
            Self::Cancelled => OutcomeKind::Cancelled,
        }
    }
}

/// The kind of an [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is that of the same name in `Outcome`")]
pub enum OutcomeKind {
    Success,
    ServerError,
    Connect,
    SilentSocket,
    Deadline,
    SlowDown,
    RateLimited,
    Content,
    CredentialRefused,
    Cancelled,
}

impl OutcomeKind {
    /// Every kind, for metrics that are to begin at 0.
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::ServerError,
        Self::Connect,
        Self::SilentSocket,
        Self::Deadline,
        Self::SlowDown,
        Self::RateLimited,
        Self::Content,
        Self::CredentialRefused,
        Self::Cancelled,
    ];

    /// As stored, and as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ServerError => "server_error",
            Self::Connect => "connect",
            Self::SilentSocket => "silent_socket",
            Self::Deadline => "deadline",
            Self::SlowDown => "slow_down",
            Self::RateLimited => "rate_limited",
            Self::Content => "content",
            Self::CredentialRefused => "credential_refused",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the provider did what it is there for, even if the request was at fault.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Success | Self::Content)
    }

    /// Whether our patience ended the call. A silent socket counts like a deadline: it is the same hang, seen sooner.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::Deadline | Self::SilentSocket)
    }

    /// Whether the provider said something, whatever it was.
    pub fn is_answer(self) -> bool {
        match self {
            Self::Success
            | Self::ServerError
            | Self::SlowDown
            | Self::RateLimited
            | Self::Content
            | Self::CredentialRefused => true,
            Self::Connect | Self::SilentSocket | Self::Deadline | Self::Cancelled => false,
        }
    }
}

/// A call that is over, as a worker reports it.
///
/// In ages rather than times, measured on the worker's monotonic clock up to the moment at which the report is made: so
/// that no worker's wall clock has to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// How it ended.
    pub outcome: Outcome,
    /// How long ago it began.
    pub began_ago: Duration,
    /// How long ago it ended.
    pub ended_ago: Duration,
}
