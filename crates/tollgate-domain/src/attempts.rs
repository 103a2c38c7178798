//! How often somebody may be wrong about a key: Argon2id costs tens of milliseconds of CPU, and nobody who has not shown a
//! right key is to buy much of it.
//!
//! Only computations are counted, and one that proves right is given back. Few of an address are under way at once, and
//! the others wait: else a new process, to which all its clients come at once from behind one address, would refuse right
//! keys for their number. They are counted by the address they come from, and by address and prefix together: so who
//! knows somebody's prefix, which is public, keeps only himself from trying it, and one program with an old key leaves
//! room for the others behind its address. Rejected: counting by prefix over all addresses, by which anybody could keep a
//! key from being verified at all. What many addresses buy together is bounded by the threads that compute
//! ([`crate::hashing`]), and does not touch keys that this process has verified before.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tollgate_model::rate_limit::Standing;
use tollgate_model::rate_limit::allowance::{Allowance, Taken};

use crate::{Error, Result};

/// Wrong secrets for one prefix, from one address.
const BY_PREFIX: Allowance = Allowance { burst: 10, every: Duration::from_secs(1) };
/// Wrong secrets from one address: more often, so that one prefix cannot use it up.
const BY_ADDRESS: Allowance = Allowance { burst: 30, every: Duration::from_millis(500) };

/// From one address, at once: not so many that they could use up what it may try, if all were wrong.
const AT_ONCE: usize = 8;

/// Each is some hundred bytes.
const REMEMBERED: u64 = 100_000;
/// By then all of an allowance is there again.
const IDLE: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counted {
    Address(IpAddr),
    Prefix(IpAddr, Box<str>),
}

/// The failures of this process.
#[derive(Clone)]
pub(crate) struct Attempts {
    taken: Cache<Counted, Arc<Mutex<Taken>>>,
    turns: Cache<IpAddr, Arc<Semaphore>>,
    began: Instant,
}

/// One try. Dropped without a word it was a failure, or might have been.
pub(crate) struct Attempt {
    by_address: Arc<Mutex<Taken>>,
    by_prefix: Arc<Mutex<Taken>>,
    _turn: OwnedSemaphorePermit,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        for by in ["address", "prefix"] {
            limited(by, 0);
        }
        // The newest is what matters, not the most frequent.
        let newest = EvictionPolicy::lru;
        let (taken, turns) = (Cache::builder(), Cache::builder());
        Self {
            taken: taken.max_capacity(REMEMBERED).time_to_idle(IDLE).eviction_policy(newest()).build(),
            turns: turns.max_capacity(REMEMBERED).time_to_idle(IDLE).eviction_policy(newest()).build(),
            began: Instant::now(),
        }
    }

    /// Leave to compute once, as soon as it is this one's turn.
    pub(crate) async fn begin(&self, from: IpAddr, prefix: &str) -> Result<Attempt> {
        let from = network(from);
        let turns = self.turns.get_with(from, || Arc::new(Semaphore::new(AT_ONCE)));
        let turn = turns.acquire_owned().await.map_err(|error| Error::Internal(error.to_string()))?;
        let now = self.began.elapsed();
        let by_prefix = self.taken(Counted::Prefix(from, prefix.into()));
        let by_address = self.taken(Counted::Address(from));
        let refused = |by| {
            move |wait| {
                limited(by, 1);
                Error::TooManyAttempts { wait }
            }
        };
        BY_PREFIX.take(&mut lock(&by_prefix), now).map_err(refused("prefix"))?;
        if let Err(wait) = BY_ADDRESS.take(&mut lock(&by_address), now) {
            BY_PREFIX.give_back(&mut lock(&by_prefix));
            return Err(refused("address")(wait));
        }
        Ok(Attempt { by_address, by_prefix, _turn: turn })
    }

    /// What an address may still try.
    pub(crate) fn standing(&self, from: IpAddr) -> Standing {
        let taken =
            self.taken.get(&Counted::Address(network(from))).map_or_else(Taken::default, |it| *lock(&it));
        BY_ADDRESS.standing(taken, self.began.elapsed())
    }

    fn taken(&self, counted: Counted) -> Arc<Mutex<Taken>> {
        self.taken.get_with(counted, Arc::default)
    }
}

impl Attempt {
    /// The key was right.
    pub(crate) fn succeeded(self) {
        BY_PREFIX.give_back(&mut lock(&self.by_prefix));
        BY_ADDRESS.give_back(&mut lock(&self.by_address));
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom an address stands for: of IPv6, everybody has a network of 64 bits at least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn limited(by: &'static str, attempts: u64) {
    metrics::counter!("tollgate_abuse_limited_total", "by" => by).increment(attempts);
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_secrets_are_counted_by_address_and_prefix() {
        let attempts = Attempts::new();
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let fails = async |from, prefix: &str| attempts.begin(from, prefix).await.map(drop);
        for _ in 0..10 {
            fails(one, "victim").await.unwrap();
        }
        let refused = fails(one, "victim").await.unwrap_err();
        assert!(matches!(refused, Error::TooManyAttempts { wait } if wait == Duration::from_secs(1)));
        // Nobody else is kept from trying that prefix, nor this address from trying others.
        fails(other, "victim").await.unwrap();
        for number in 0..20 {
            fails(one, &number.to_string()).await.unwrap();
        }
        assert_eq!(attempts.standing(one).remaining, 0);
        fails(one, "another").await.unwrap_err();
        assert_eq!(attempts.standing(other).remaining, 29);

        tokio::time::advance(Duration::from_millis(500)).await;
        // What the address refuses is not counted against the prefix.
        fails(one, "another").await.unwrap();
        fails(one, "another").await.unwrap_err();
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(attempts.standing(one).remaining, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn what_proves_right_costs_nothing() {
        let attempts = Attempts::new();
        for _ in 0..100 {
            attempts.begin(address("192.0.2.1"), "prefix").await.unwrap().succeeded();
        }
        assert_eq!(attempts.standing(address("192.0.2.1")).remaining, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn right_keys_that_come_all_at_once_wait_for_each_other_and_are_not_refused() {
        let (attempts, from) = (Attempts::new(), address("192.0.2.1"));
        let mut all = JoinSet::new();
        for number in 0..100 {
            let attempts = attempts.clone();
            all.spawn(async move {
                let attempt = attempts.begin(from, &number.to_string()).await?;
                tokio::time::sleep(Duration::from_millis(30)).await;
                attempt.succeeded();
                Ok::<_, Error>(())
            });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(attempts.standing(from).remaining, 22);
        for right in all.join_all().await {
            right.unwrap();
        }
        assert_eq!(attempts.standing(from).remaining, 30);
    }

    #[test]
    fn a_network_is_one_client() {
        for (text, same) in [
            ("2001:db8::1", "2001:db8::"),
            ("2001:db8:0:1:ffff::9", "2001:db8:0:1::"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(network(address(text)), address(same), "{text}");
        }
    }
}
