//! The fault matrix: what a provider can do to a fleet, and what the guard makes of it. Each case prints its figures.
//!
//! The workers are real processes, and so is the time, but for its scale: the guards of these fleets wait a second where
//! they would wait a minute ([`fleet::quick`]).

mod credentials;
pub(crate) mod fleet;
mod outage;
mod pauses;
mod probes;
mod timeouts;

use chrono::{DateTime, Utc};
use serde_json::json;
use tollgate_model::guard::circuit::State;
use tollgate_sim::{Behaviour, Faults};

use self::fleet::{Fleet, now};

/// A provider without faults, that takes a moment.
pub(crate) fn well() -> Behaviour {
    Behaviour { latency_median_ms: 30, ..Behaviour::default() }
}

/// Most calls a job, on average, that a fault may cost.
const CALLS_PER_JOB: f64 = 1.1;

/// When things happened in a case.
struct Times {
    /// The first call that failed.
    began: DateTime<Utc>,
    opened: DateTime<Utc>,
    repaired: DateTime<Utc>,
    closed: DateTime<Utc>,
}

/// Prints a case's figures, and holds them against what every case must keep.
async fn judge(case: &str, fleet: &Fleet, times: &Times) {
    let stock = fleet.stock().await;
    let (on_their_way, late) = fleet.arrivals_while_open();
    let probes = fleet.probes_at_once();
    let (detected, recovered) = (times.opened - times.began, times.closed - times.repaired);
    println!(
        "{case}: open after {} ms, closed {} ms after the repair; {late} calls while open ({on_their_way} on their way), \
         {probes} probe at once ({} of our own), {:.2} calls per job over {} jobs, {} lost, {} attempts by waiting, {} handed back",
        detected.num_milliseconds(),
        recovered.num_milliseconds(),
        stock.probes,
        stock.calls_per_job(),
        stock.jobs,
        stock.failed,
        stock.burnt,
        stock.handed_back,
    );
    assert_eq!(late, 0, "{case}: calls while open");
    assert!(probes <= 1, "{case}: {probes} probes at once");
    assert_eq!((stock.failed, stock.burnt), (0, 0), "{case}: jobs lost, attempts by waiting");
    assert!(stock.calls_per_job() <= CALLS_PER_JOB, "{case}: {:.2} calls per job", stock.calls_per_job());
}

/// A provider that fails like this from its first call on, until a probe has failed too, and is then well again.
async fn fails_for_a_while(case: &str, faults: Faults) {
    let fleet = Fleet::start(2, &json!({}), &[], Behaviour { faults, seed: 7, ..well() }).await;
    live_through(case, &fleet).await;
}

/// The same, for a provider that fails already.
async fn live_through(case: &str, fleet: &Fleet) {
    let start = now();
    fleet.submit(240).await;
    let began = fleet.look("the first call", start, |look| look.arrivals > 0).await;
    let opened = fleet.becomes("open", began).await;
    let is_later = |state: &State| state.name() == "open" && state.since() > opened;
    fleet.state("open once more", opened, is_later).await;
    let repaired = fleet.provider_is(well());
    let closed = fleet.becomes("closed", repaired).await;
    let times = Times { began, opened, repaired, closed };
    judge(case, fleet, &times).await;
    assert!((opened - began).num_milliseconds() < 4000, "{case}: open after {}", opened - began);
    assert!((closed - repaired).num_milliseconds() < 6000, "{case}: closed after {}", closed - repaired);
    // One line for each change of state, whoever made it.
    let (lines, changes) = (fleet.lines("breaker.state"), fleet.metric("tollgate_guard_changes_total").await);
    assert!((changes - lines as f64).abs() < 0.5 && lines >= 4, "{lines} lines for {changes} changes");
}

#[tokio::test]
async fn three_in_five_calls_fail() {
    fails_for_a_while("60% 5xx", Faults { server_error: 0.6, ..Faults::default() }).await;
}

#[tokio::test]
async fn replies_break_off() {
    fails_for_a_while("reset in mid-body", Faults { reset: 1.0, ..Faults::default() }).await;
}

#[tokio::test]
async fn replies_are_not_json() {
    fails_for_a_while("malformed JSON", Faults { malformed: 1.0, ..Faults::default() }).await;
}

#[tokio::test]
async fn bodies_fall_silent() {
    fails_for_a_while("silent body", Faults { silent_body: 1.0, ..Faults::default() }).await;
}

#[tokio::test]
async fn the_provider_asks_to_slow_down() {
    fails_for_a_while("slow_down", Faults { slow_down: 1.0, ..Faults::default() }).await;
}

/// What is the request's own fault says that the provider is well.
#[tokio::test]
async fn requests_at_fault_never_open_it() {
    let faults = Faults { bad_request: 1.0, ..Faults::default() };
    let fleet = Fleet::start(2, &json!({}), &[], Behaviour { faults, ..well() }).await;
    fleet.submit(40).await;
    let stock = fleet.stock().await;
    println!("content 4xx: {} calls for {} jobs, never open", stock.calls, stock.jobs);
    assert_eq!((stock.calls, stock.failed, stock.burnt), (40, 40, 0));
    assert!(fleet.states().is_empty(), "{:?}", fleet.states());
}
