//! How many event streams are open: a bound for all, and one for each account.
//!
//! A stream holds a connection and asks the database once a second, so their number must be bounded; and one tenant
//! must not be able to take every place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tollgate_model::account::AccountId;

/// The places there are. Clones share them.
#[derive(Clone)]
pub(crate) struct Streams {
    open: Arc<Mutex<HashMap<AccountId, usize>>>,
    most: usize,
}

/// A place, until dropped.
pub(crate) struct Place {
    streams: Streams,
    account: AccountId,
}

impl Streams {
    pub(crate) fn new(most: usize) -> Self {
        Self { open: Arc::default(), most }
    }

    /// A place for a stream of the account, if there is one left.
    pub(crate) fn take(&self, account: AccountId) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.get(&account).copied().unwrap_or(0);
        if all >= self.most || own >= self.most.div_ceil(2) {
            return None;
        }
        open.insert(account, own + 1);
        metrics::gauge!("tollgate_http_event_streams").increment(1.0);
        Some(Place { streams: self.clone(), account })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.account);
            }
        }
        metrics::gauge!("tollgate_http_event_streams").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_account_takes_half_and_all_together_take_all() {
        let [a, b, c] = [1, 2, 3].map(|n| AccountId(Uuid::from_u128(n)));
        let streams = Streams::new(4);
        let places: Vec<_> = [a, a, b, b].map(|account| streams.take(account).unwrap()).into();
        assert!(streams.take(c).is_none());
        drop(places);
        assert!(streams.open.lock().unwrap().is_empty());

        let _held = [a, a].map(|account| streams.take(account).unwrap());
        assert!(streams.take(a).is_none());
        assert!(streams.take(c).is_some());
        assert!(Streams::new(1).take(a).is_some());
        assert!(Streams::new(0).take(a).is_none());
    }
}
