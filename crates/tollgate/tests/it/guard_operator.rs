//! What operators say to a guard, at the shell and at the API, and how the breaker is switched off.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tollgate_sim::{Behaviour, Faults};
use tollgate_testkit::eventually;

use crate::guard_matrix::fleet::{Fleet, now, pause};
use crate::guard_matrix::well;
use crate::operators::{Operator, command};
use crate::watched::{invalid, refused};

fn failing() -> Behaviour {
    Behaviour { faults: Faults { server_error: 1.0, ..Faults::default() }, ..well() }
}

/// Runs an operator's command on the guard, which must succeed.
async fn guard(fleet: &Fleet, line: &str) -> Value {
    let (code, result, said) = command(&fleet.app, &format!("guard {line}")).await;
    assert_eq!(code, 0, "{line}: {said}");
    result
}

/// Nobody calls for so long.
async fn nobody_calls(fleet: &Fleet, millis: u64) {
    pause(300).await;
    let before = fleet.stats().arrivals;
    pause(millis).await;
    assert_eq!(fleet.stats().arrivals, before, "somebody called");
}

#[tokio::test]
async fn an_operators_word_holds_at_once_and_until_further_notice() {
    let fleet = Fleet::start(2, &json!({}), &[], well()).await;
    let api = Operator::of(&fleet.app);
    assert_eq!(guard(&fleet, "open text").await["circuit"]["state"], "open");
    fleet.submit(10).await;
    nobody_calls(&fleet, 2000).await;
    assert_eq!(fleet.stats().arrivals, 0);
    let order = json!({"order": "close"});
    assert_eq!(api.put("/internal/guard/text", &order).await["order"], "close");
    let stock = fleet.stock().await;
    assert_eq!((stock.calls, stock.failed, stock.burnt, stock.handed_back), (10, 0, 0, 0));
    assert_eq!(fleet.states(), ["open", "closed"]);

    // A pause, by the API, and its end.
    let asked = now();
    let order = json!({"order": "pause", "for_ms": 60_000});
    assert_eq!(api.put("/internal/guard/text", &order).await["for_ms"], 60_000);
    // A shorter one does not shorten it.
    let status = guard(&fleet, "pause text --for 1s").await;
    let until = status["paused_until"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!((until - asked - TimeDelta::seconds(60)).num_milliseconds().abs() < 2000, "{status}");
    fleet.submit(10).await;
    nobody_calls(&fleet, 1500).await;
    assert_eq!(fleet.stats().arrivals, 10);
    assert_eq!(guard(&fleet, "close text").await["paused_until"], Value::Null);
    let ended = now();
    let first = fleet.look("the first call", ended, |look| look.arrivals > 10).await;
    println!("operator: the first call {} ms after the end of a pause", (first - ended).num_milliseconds());
    assert!((first - ended).num_milliseconds() < 1500, "{}", first - ended);
    let stock = fleet.stock().await;
    assert_eq!((stock.calls, stock.failed, stock.burnt), (20, 0, 0));

    for (body, says) in [
        (json!({"order": "close", "for_ms": 1}), "`for_ms`"),
        (json!({"order": "pause"}), "`for_ms`"),
        (json!({"order": "pause", "for_ms": 9_007_199_254_740_991_u64}), "calendar"),
        (json!({"order": "shut"}), "shut"),
    ] {
        let reply = api.send(Method::PUT, "/internal/guard/text", Some(&body)).await;
        invalid(&body.to_string(), reply, says).await;
    }
    let reply = api.send(Method::PUT, "/internal/guard/nope", Some(&order)).await;
    refused("no such class", reply, 404, "not_found").await;
    let (code, _, said) = command(&fleet.app, "guard open nope").await;
    assert!(code != 0 && said.contains("known are text, image"), "{said}");
}

#[tokio::test]
async fn a_breaker_that_was_off_from_the_start_opens_on_paper_alone() {
    let fleet = Fleet::start(2, &json!({}), &[("GEN_BREAKER_ENABLED", "false")], failing()).await;
    let start = now();
    fleet.submit(30).await;
    let opened = fleet.becomes("open", start).await;
    // Every job has its five attempts, whatever the circuit says.
    let stock = fleet.stock().await;
    println!(
        "breaker off: open after {} ms on paper, {} calls for 30 jobs",
        (opened - start).num_milliseconds(),
        stock.calls
    );
    assert_eq!((stock.calls, stock.failed, stock.burnt), (150, 30, 0));
    let health = Operator::of(&fleet.app).get("/internal/gen-health").await;
    assert_eq!(health["data"][0]["circuit"]["enabled"], false);
}

#[tokio::test]
async fn the_breaker_is_switched_by_command_while_it_is_open() {
    let fleet = Fleet::start(2, &json!({"open_period": "1m", "open_period_cap": "1m"}), &[], failing()).await;
    let start = now();
    fleet.submit(60).await;
    fleet.becomes("open", start).await;
    nobody_calls(&fleet, 700).await;
    assert_eq!(guard(&fleet, "breaker off").await["breaker_enabled"], false);
    let off = now();
    let before = fleet.stats().arrivals;
    let resumed = fleet.look("calls", off, |look| look.arrivals > before).await;
    println!("breaker off: the first call {} ms after the command", (resumed - off).num_milliseconds());
    assert!((resumed - off).num_milliseconds() < 1500, "{}", resumed - off);
    assert_eq!(guard(&fleet, "breaker on").await["breaker_enabled"], true);
    nobody_calls(&fleet, 1000).await;
    // What the operator says holds with the breaker off, too.
    guard(&fleet, "breaker off").await;
    guard(&fleet, "open text").await;
    nobody_calls(&fleet, 1000).await;
}

#[tokio::test]
async fn the_breaker_is_switched_by_the_configurations_file_without_a_restart() {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "gen_breaker_enabled = true\n").unwrap();
    let path = [("TOLLGATE_CONFIG", file.path().to_str().unwrap())];
    let fleet =
        Fleet::start(2, &json!({"open_period": "1m", "open_period_cap": "1m"}), &path, failing()).await;
    let start = now();
    fleet.submit(60).await;
    fleet.becomes("open", start).await;
    nobody_calls(&fleet, 700).await;
    let before = fleet.stats().arrivals;
    std::fs::write(file.path(), "gen_breaker_enabled = false\n").unwrap();
    let off = now();
    let resumed = fleet.look("calls", off, |look| look.arrivals > before).await;
    println!(
        "breaker off: the first call {} ms after the file has changed",
        (resumed - off).num_milliseconds()
    );
    assert!((resumed - off).num_milliseconds() < 4000, "{}", resumed - off);
    let health = Operator::of(&fleet.app);
    eventually("the API knows it too", Duration::from_secs(5), || async {
        (health.get("/internal/gen-health").await["data"][0]["circuit"]["enabled"] == false).then_some(())
    })
    .await;
    // A file that cannot be used changes nothing.
    std::fs::write(file.path(), "gen_breaker_enabled = maybe\n").unwrap();
    pause(2500).await;
    assert_eq!(fleet.lines("cannot be used"), 2, "one line of each worker");
    let before = fleet.stats().arrivals;
    fleet.look("calls", now(), |look| look.arrivals > before).await;
}
