//! A provider that answers later than we wait.

use std::time::Duration;

use serde_json::json;
use tollgate_model::guard::circuit::State;
use tollgate_sim::Behaviour;
use tollgate_testkit::eventually;

use super::fleet::{Fleet, now};
use super::{Times, judge};

/// Milliseconds of a real installation.
const TIMEOUT: u32 = 60_000;
const ANSWER: u32 = 65_000;
/// When it is well again; so slow that jobs are left when all concurrency is back.
const WELL: u32 = 3_000;
const OPEN: u32 = 20_000;
const RAMP: u32 = 30_000;

/// Calls at once, of both workers.
const WHOLE: u64 = 8;

/// A provider that takes 65 s against a timeout of 60 s, so many times faster: calls end at the timeout, three in a row
/// open the circuit, three good probes close it, and concurrency comes back step by step.
async fn answers_too_late(scale: u32) {
    let scaled = |millis: u32| format!("{}ms", millis / scale);
    let figures = json!({
        "timeout_floor": scaled(TIMEOUT), "timeout_initial": scaled(TIMEOUT), "timeout_ceiling": scaled(TIMEOUT),
        "open_period": scaled(OPEN), "open_growth": 2.0, "open_period_cap": scaled(15 * OPEN),
        "sample_max_age": scaled(2 * TIMEOUT), "probe_interval": scaled(2_000), "ramp": scaled(RAMP),
    });
    let settings =
        [("Q_GEN_CREATE_CONCURRENCY", "4"), ("REQUEST_TIMEOUT_MS", "600000"), ("GENERATION_JOB_TTL", "1h")];
    let slow = Behaviour { latency_median_ms: ANSWER / scale, ..Behaviour::default() };
    let fleet = Fleet::start(2, &figures, &settings, slow).await;
    let start = now();
    fleet.submit(160).await;
    let began = fleet.look("the first call", start, |look| look.arrivals > 0).await;
    let aborted = fleet.look("the first call given up", began, |look| look.aborted > 0).await;
    let opened = fleet.becomes("open", began).await;
    // One probe meets the same fault. Calls that were on their way when it opened are over by then, too: beside ones that
    // hang, those that are answered would all seem to be under way.
    let is_later = |state: &State| state.name() == "open" && state.since() > opened;
    fleet.state("open once more", opened, is_later).await;
    eventually("every call is given up", Duration::from_mins(2), || async {
        (fleet.stats().in_flight == 0).then_some(())
    })
    .await;
    let repaired = fleet.provider_is(Behaviour { latency_median_ms: WELL / scale, ..Behaviour::default() });
    let closed = fleet.becomes("closed", repaired).await;
    let times = Times { began, opened, repaired, closed };
    judge(&format!("65 s against 60 s, {scale} times faster"), &fleet, &times).await;

    let timeout = i64::from(TIMEOUT / scale);
    let after = (aborted - began).num_milliseconds();
    // Either is seen late, on a busy machine.
    assert!((timeout - 400..timeout + 400).contains(&after), "given up after {after} ms");
    let ramp = chrono::TimeDelta::milliseconds(i64::from(RAMP / scale));
    let (first, then) = (fleet.most_at_once(closed, closed + ramp / 4), fleet.most_at_once(closed, now()));
    println!(
        "  given up after {after} ms of {timeout}; {first} calls at once in the first quarter of the ramp, then {then}"
    );
    assert!(first <= WHOLE / 2, "{first} calls at once just after it closed");
    assert_eq!(then, WHOLE, "not all concurrency came back");
}

#[tokio::test]
async fn the_provider_hangs() {
    answers_too_late(30).await;
}

#[tokio::test]
#[ignore = "takes five minutes: the same with its true figures"]
async fn the_provider_hangs_in_real_time() {
    answers_too_late(1).await;
}
