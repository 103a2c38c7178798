//! What was seen, counted.
//!
//! A request is counted when its head has arrived and leaves [`Stats::in_flight`] exactly once: its guard
//! ([`InFlight`]) moves from the handler into the reply's body, and whoever drops it unfinished (hyper does, when
//! the client goes away) has aborted the request. So `arrivals = completed + aborted + cut + in_flight` at all times.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// How many distinct `x-client-request-id`s are remembered.
pub const MAX_REQUEST_IDS: usize = 100_000;

/// The longest `x-client-request-id` that is remembered.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// Counts of generation requests (`/v1/models` and `/sim` are left out) since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests whose head has arrived.
    pub arrivals: u64,
    /// Requests being read, waited on or answered now. A reset does not change it.
    pub in_flight: u64,
    /// The most that were in flight at once.
    pub max_in_flight: u64,
    /// Whole replies handed to the socket, whatever they said.
    pub completed: u64,
    /// Requests whose client went away before it had the whole reply.
    pub aborted: u64,
    /// Connections ended by the simulator with a reply unfinished: `reset`, `truncated`, and its own shutdown.
    pub cut: u64,
    /// Requests refused for what they were: 400, 401, 413.
    pub refused: u64,
    /// Requests refused by the rate limit (not by the `rate_limit` fault).
    pub rate_limited: u64,
    /// What was decided for the others; a fault counts when it is decided, before its latency.
    pub faults: BTreeMap<Fault, u64>,
    /// Sockets open now, idle ones too. A reset does not change it.
    pub open_sockets: u64,
    /// Distinct `x-client-request-id`s.
    pub distinct_request_ids: u64,
    /// Those that arrived more than once, and how often.
    pub repeated_request_ids: BTreeMap<String, u64>,
    /// Arrivals with an id that was not remembered: new beyond [`MAX_REQUEST_IDS`], or longer than 256 bytes.
    pub untracked_request_ids: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The number of resets: what arrived before the last one is no longer counted when it ends.
    epoch: u64,
    /// All but the request ids.
    stats: Stats,
    ids: HashMap<String, u64>,
    /// Requests that are dropped now are dropped by us.
    closing: bool,
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let inner = self.lock();
        let mut stats = inner.stats.clone();
        stats.distinct_request_ids = inner.ids.len() as u64;
        let repeated = inner.ids.iter().filter(|(_, n)| **n > 1);
        stats.repeated_request_ids = repeated.map(|(id, n)| (id.clone(), *n)).collect();
        stats
    }

    /// How often each request id arrived.
    pub(crate) fn request_ids(&self) -> BTreeMap<String, u64> {
        self.lock().ids.iter().map(|(id, n)| (id.clone(), *n)).collect()
    }

    /// How often this request id arrived.
    pub(crate) fn arrivals_of(&self, request_id: &str) -> u64 {
        self.lock().ids.get(request_id).copied().unwrap_or(0)
    }

    /// All to zero, but for what is still there.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.ids.clear();
        let (in_flight, open_sockets) = (inner.stats.in_flight, inner.stats.open_sockets);
        inner.stats = Stats { in_flight, max_in_flight: in_flight, open_sockets, ..Stats::default() };
    }

    /// From now on, what is dropped was not dropped by its client.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
    }

    pub(crate) fn refused(&self) {
        self.lock().stats.refused += 1;
    }

    pub(crate) fn rate_limited(&self) {
        self.lock().stats.rate_limited += 1;
    }

    pub(crate) fn decided(&self, fault: Fault) {
        *self.lock().stats.faults.entry(fault).or_default() += 1;
    }

    /// Counts a request in.
    pub(crate) fn arrive(self: &Arc<Self>, request_id: Option<&str>) -> InFlight {
        let mut inner = self.lock();
        inner.stats.arrivals += 1;
        inner.stats.in_flight += 1;
        inner.stats.max_in_flight = inner.stats.max_in_flight.max(inner.stats.in_flight);
        if let Some(id) = request_id {
            inner.note_id(id);
        }
        InFlight { counters: Arc::clone(self), epoch: inner.epoch, finished: false }
    }

    /// Counts a socket in.
    pub(crate) fn open(self: &Arc<Self>) -> OpenSocket {
        self.lock().stats.open_sockets += 1;
        OpenSocket(Arc::clone(self))
    }
}

impl Inner {
    fn note_id(&mut self, id: &str) {
        if let Some(n) = self.ids.get_mut(id) {
            *n += 1;
        } else if self.ids.len() < MAX_REQUEST_IDS && id.len() <= MAX_REQUEST_ID_BYTES {
            self.ids.insert(id.to_owned(), 1);
        } else {
            self.stats.untracked_request_ids += 1;
        }
    }
}

/// A request between its arrival and its end; dropped unfinished, it was aborted.
#[derive(Debug)]
pub(crate) struct InFlight {
    counters: Arc<Counters>,
    epoch: u64,
    finished: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Aborted,
    Cut,
}

impl InFlight {
    /// Counts the request out. Only the first call counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut inner = self.counters.lock();
        inner.stats.in_flight -= 1;
        if inner.epoch != self.epoch {
            return;
        }
        match outcome {
            Outcome::Completed => inner.stats.completed += 1,
            Outcome::Aborted if !inner.closing => inner.stats.aborted += 1,
            Outcome::Aborted | Outcome::Cut => inner.stats.cut += 1,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.finish(Outcome::Aborted);
    }
}

/// A socket while it is open.
#[derive(Debug)]
pub(crate) struct OpenSocket(Arc<Counters>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.lock().stats.open_sockets -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arrival_ends_once() {
        let counters = Arc::new(Counters::default());
        let mut completed = counters.arrive(None);
        let mut cut = counters.arrive(None);
        let aborted = counters.arrive(None);
        completed.finish(Outcome::Completed);
        cut.finish(Outcome::Cut);
        drop((completed, cut, aborted));
        let stats = counters.snapshot();
        assert_eq!((stats.arrivals, stats.in_flight, stats.max_in_flight), (3, 0, 3));
        assert_eq!((stats.completed, stats.cut, stats.aborted), (1, 1, 1));
    }

    #[test]
    fn what_arrived_before_a_reset_is_not_counted_after_it() {
        let counters = Arc::new(Counters::default());
        let before = counters.arrive(Some("a"));
        counters.reset();
        assert_eq!((counters.snapshot().in_flight, counters.snapshot().max_in_flight), (1, 1));
        drop(before);
        assert_eq!(counters.snapshot(), Stats { max_in_flight: 1, ..Stats::default() });
    }

    #[test]
    fn our_own_shutdown_is_no_abort() {
        let counters = Arc::new(Counters::default());
        let request = counters.arrive(None);
        counters.close();
        drop(request);
        assert_eq!((counters.snapshot().aborted, counters.snapshot().cut), (0, 1));
    }

    #[test]
    fn request_ids_are_counted_and_bounded() {
        let counters = Arc::new(Counters::default());
        for id in ["a", "b", "a", &"x".repeat(MAX_REQUEST_ID_BYTES + 1)] {
            counters.arrive(Some(id));
        }
        let stats = counters.snapshot();
        assert_eq!((stats.distinct_request_ids, stats.untracked_request_ids), (2, 1));
        assert_eq!(stats.repeated_request_ids, BTreeMap::from([("a".to_owned(), 2)]));
        assert_eq!(
            (counters.arrivals_of("a"), counters.arrivals_of("b"), counters.arrivals_of("c")),
            (2, 1, 0)
        );

        for n in 0..MAX_REQUEST_IDS {
            counters.arrive(Some(&n.to_string()));
        }
        let stats = counters.snapshot();
        assert_eq!((stats.distinct_request_ids, stats.untracked_request_ids), (100_000, 3));
        counters.arrive(Some("a"));
        assert_eq!(counters.arrivals_of("a"), 3, "what is remembered is still counted");
    }
}
