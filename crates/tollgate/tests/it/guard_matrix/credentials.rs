//! A provider that refuses the key, or has no money left for it: nothing helps but another key, or the operator.

use serde_json::json;
use tollgate_sim::{Behaviour, Faults};

use super::fleet::{CONCURRENCY, Fleet, NEWS, now, pause};
use super::well;
use crate::operators::command;

/// Jobs whose call was under way when the first refusal came, at most.
const IN_FLIGHT: usize = 2 * CONCURRENCY;

/// Long enough that nobody tries the key again in this test.
const NEVER: &str = "5m";

fn broke() -> Behaviour {
    Behaviour { faults: Faults { insufficient_quota: 1.0, ..Faults::default() }, ..well() }
}

#[tokio::test]
async fn a_refused_key_stops_the_calls_and_a_new_one_starts_them() {
    let picky = Behaviour { api_key: Some("sk-new".to_owned()), ..well() };
    let mut fleet = Fleet::start(2, &json!({"credential_recheck": NEVER}), &[], picky).await;
    let start = now();
    fleet.submit(60).await;
    let first = fleet.look("the first call", start, |look| look.arrivals > 0).await;
    let disabled = fleet.becomes("disabled", start).await;
    pause(1500).await;
    let refused = fleet.stats().arrivals;
    assert!(refused <= IN_FLIGHT as u64, "{refused} calls with a refused key");

    let renewed = now();
    let _new = fleet.worker_with(&[("OPENAI_API_KEY", "sk-new")]).await;
    let closed = fleet.becomes("closed", renewed).await;
    let stock = fleet.stock().await;
    println!(
        "401: disabled after {} ms, {refused} calls refused, the same afterwards: {}; closed {} ms after the start of a \
         worker with another key; {} of {} jobs failed, {} attempts by waiting",
        (disabled - first).num_milliseconds(),
        fleet.stats().refused,
        (closed - renewed).num_milliseconds(),
        stock.failed,
        stock.jobs,
        stock.burnt,
    );
    assert_eq!(fleet.stats().refused, refused, "a worker went on with the refused key");
    assert_eq!((stock.failed as u64, stock.burnt), (refused, 0));
    assert_eq!(fleet.lines("\"ERROR\""), 1, "the alert");
}

#[tokio::test]
async fn no_money_left_is_found_out_now_and_then_at_no_jobs_cost() {
    let fleet = Fleet::start(2, &json!({"credential_recheck": "1s"}), &[], broke()).await;
    let start = now();
    fleet.submit(60).await;
    let disabled = fleet.becomes("disabled", start).await;
    let in_flight = fleet.arrivals(start, disabled + NEWS);
    assert!(in_flight <= IN_FLIGHT as u64, "{in_flight} calls");
    // Two probes later it is still so.
    fleet.look("two probes", start, |look| look.arrivals >= in_flight + 2 && look.in_flight == 0).await;
    let (refused, after) = (fleet.stats().arrivals, now() - start);
    let repaired = fleet.provider_is(well());
    let closed = fleet.becomes("closed", repaired).await;
    let stock = fleet.stock().await;
    println!(
        "insufficient_quota: {in_flight} calls at once, {} in {} ms, closed {} ms after the repair; {} of {} jobs failed, \
         {} attempts by waiting, {} handed back, {} probes of our own",
        refused,
        after.num_milliseconds(),
        (closed - repaired).num_milliseconds(),
        stock.failed,
        stock.jobs,
        stock.burnt,
        stock.handed_back,
        stock.probes,
    );
    assert_eq!(stock.failed as u64, in_flight, "a probe has cost a job");
    assert_eq!(stock.burnt, 0);
}

#[tokio::test]
async fn an_operator_who_paid_says_so() {
    let fleet = Fleet::start(1, &json!({"credential_recheck": NEVER}), &[], broke()).await;
    let start = now();
    fleet.submit(20).await;
    fleet.becomes("disabled", start).await;
    let repaired = fleet.provider_is(well());
    pause(500).await;
    let before = fleet.stats().arrivals;
    pause(500).await;
    assert_eq!(fleet.stats().arrivals, before, "somebody called");
    let (code, status, said) = command(&fleet.app, "guard close text").await;
    assert_eq!((code, &status["circuit"]["state"]), (0, &json!("closed")), "{said}");
    fleet.becomes("closed", repaired).await;
    let stock = fleet.stock().await;
    assert!(stock.failed <= CONCURRENCY && stock.burnt == 0, "{stock:?}");
}
