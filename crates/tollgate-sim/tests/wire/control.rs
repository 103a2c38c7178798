//! The controls over HTTP.

use serde_json::json;
use tollgate_sim::{Behaviour, Stats};

use crate::client::start;

#[tokio::test]
async fn a_script_is_answered_in_order() {
    let sim = start(Behaviour::default()).await;
    let script = json!([
        {"fault": "rate_limit", "retry_after": "2"},
        {"fault": "server_error", "status": 502},
        {"fault": "ok", "latency_ms": 5, "text": "four"},
        {"match": "poem", "fault": "bad_request"},
    ]);
    let reply = sim.call("POST /sim/script", "", &script.to_string()).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"queued": 3, "rules": 1})));

    let mut statuses = Vec::new();
    for prompt in ["x", "a poem", "x", "x", "x", "a poem"] {
        let reply = sim.chat(prompt).await;
        if statuses.len() == 3 {
            assert_eq!(reply.json()["choices"][0]["message"]["content"], "four");
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [429, 400, 502, 200, 200, 400]);
}

#[tokio::test]
async fn statistics_say_what_was_seen() {
    let sim = start(Behaviour::default()).await;
    sim.call("POST /sim/script", "", r#"[{"fault": "malformed"}]"#).await;
    for id in ["a", "b", "a"] {
        let headers = format!("x-client-request-id: {id}\r\n");
        let body = crate::client::chat_body("x");
        sim.call("POST /v1/chat/completions", &headers, &body).await;
    }
    let reply = sim.call("GET /sim/stats", "", "").await;
    let stats = reply.json();
    assert_eq!(stats["faults"], json!({"ok": 2, "malformed": 1}));
    assert_eq!(
        (&stats["arrivals"], &stats["completed"], &stats["in_flight"]),
        (&json!(3), &json!(3), &json!(0))
    );
    assert_eq!(
        (&stats["distinct_request_ids"], &stats["repeated_request_ids"]),
        (&json!(2), &json!({"a": 2}))
    );
    let read: Stats = serde_json::from_value(stats).unwrap();
    assert_eq!(read.completed, sim.control.stats().completed);
    assert_eq!(sim.control.arrivals_of("a"), 2);
    let ids = sim.call("GET /sim/request-ids", "", "").await.json();
    assert_eq!(ids, json!({"a": 2, "b": 1}));
}

#[tokio::test]
async fn faults_are_replaced_and_reset() {
    let sim = start(Behaviour { seed: 9, ..Behaviour::default() }).await;
    let put = json!({"faults": {"bad_request": 1}, "retry_after": "date:3"}).to_string();
    let reply = sim.call("PUT /sim/faults", "", &put).await;
    assert_eq!((reply.status, &reply.json()["faults"]["bad_request"]), (200, &json!(1.0)));
    assert_eq!(sim.chat("x").await.status, 400);
    let now = sim.call("GET /sim/faults", "", "").await.json();
    assert_eq!((&now["retry_after"], &now["seed"]), (&json!("date:3"), &json!(0)));

    sim.call("POST /sim/script", "", r#"[{"fault": "hang"}]"#).await;
    let reply = sim.call("POST /sim/reset", "", "").await;
    assert_eq!((reply.status, &reply.json()["arrivals"]), (200, &json!(0)));
    assert_eq!(sim.chat("x").await.status, 200);
    assert_eq!(sim.control.behaviour().seed, 9);
}

#[tokio::test]
async fn mistakes_are_named_and_change_nothing() {
    let sim = start(Behaviour::default()).await;
    for (line, body, message) in [
        ("PUT /sim/faults", r#"{"fault": {}}"#, "unknown field `fault`, expected one of `latency_median_ms`"),
        ("PUT /sim/faults", r#"{"faults": {"hangs": 1}}"#, "unknown field `hangs`"),
        ("PUT /sim/faults", r#"{"faults": {"hang": 2}}"#, "faults.hang must be a probability"),
        ("PUT /sim/faults", r#"{"retry_after": "soon"}"#, "retry_after must be"),
        ("PUT /sim/faults", "{", "not JSON: "),
        ("POST /sim/script", r#"{"fault": "hang"}"#, "a script is a JSON array of steps"),
        ("POST /sim/script", r#"[{}, {"falt": "hang"}]"#, "step 1: unknown field `falt`"),
        ("POST /sim/script", r#"[{}, {"fault": "fire"}]"#, "step 1: unknown variant `fire`"),
        ("POST /sim/script", r#"[{}, {"times": 0}]"#, "step 1: times must be at least 1"),
        ("GET /sim/script", "", "Not allowed to GET on /sim/script; it takes POST."),
        ("GET /sim/nothing", "", "Invalid URL (GET /sim/nothing)"),
    ] {
        let reply = sim.call(line, "", body).await;
        let found = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!((400..=405).contains(&reply.status) && found.starts_with(message), "{line} {body}: {found}");
    }
    assert_eq!(sim.control.behaviour(), Behaviour::default());
    assert_eq!(sim.chat("x").await.status, 200);
    assert_eq!(sim.control.stats().faults.len(), 1, "no half of a refused script was kept");
}
