//! Each fault, as a client sees it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tollgate_sim::{Behaviour, Fault, Faults, RetryAfter, Step};

use crate::client::{End, Reply, Running, start};

async fn meet(step: Step) -> (Running, Reply) {
    let sim = start(Behaviour::default()).await;
    sim.control.script([step]).unwrap();
    let reply = sim.chat("Why is the sky blue?").await;
    (sim, reply)
}

#[tokio::test]
async fn rate_limit() {
    let (_sim, reply) = meet(Step::fault(Fault::RateLimit).retry_after(RetryAfter::Seconds(2))).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("2")));
    assert_eq!(reply.error(), ("requests".into(), "rate_limit_exceeded".into()));

    let (_sim, reply) = meet(Step::fault(Fault::RateLimit).retry_after(RetryAfter::Missing)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, None));

    let (_sim, reply) = meet(Step::fault(Fault::RateLimit).retry_after(RetryAfter::Date(30))).await;
    let date = httpdate::parse_http_date(reply.header("retry-after").unwrap()).unwrap();
    let now = httpdate::parse_http_date(reply.header("date").unwrap()).unwrap();
    let ahead = date.duration_since(now).unwrap();
    assert!((29..=31).contains(&ahead.as_secs()), "{ahead:?}");
}

#[tokio::test]
async fn insufficient_quota_is_no_rate_limit() {
    let (_sim, reply) = meet(Step::fault(Fault::InsufficientQuota)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, None));
    assert_eq!(reply.error(), ("insufficient_quota".into(), "insufficient_quota".into()));
}

#[tokio::test]
async fn slow_down_in_both_its_forms() {
    let (_sim, reply) = meet(Step::fault(Fault::SlowDown).retry_after(RetryAfter::Seconds(7))).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("7")));
    assert_eq!(reply.error(), ("rate_limit_error".into(), "slow_down".into()));

    let (_sim, reply) = meet(Step::fault(Fault::SlowDown).status(503).retry_after(RetryAfter::Missing)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, None));
    assert_eq!(reply.error().1, "slow_down");
}

#[tokio::test]
async fn unauthorized() {
    let (_sim, reply) = meet(Step::fault(Fault::Unauthorized)).await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.error(), ("invalid_request_error".into(), "invalid_api_key".into()));
}

#[tokio::test]
async fn limits_are_told_on_demand() {
    for fault in [Fault::Ok, Fault::RateLimit, Fault::ServerError] {
        let step = Step::fault(fault)
            .header("retry-after-ms", "250")
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "6m0s");
        let (_sim, reply) = meet(step).await;
        assert_eq!(reply.header("retry-after-ms"), Some("250"), "{fault}");
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("0"), "{fault}");
        assert_eq!(reply.header("x-ratelimit-reset-requests"), Some("6m0s"), "{fault}");
    }
}

#[tokio::test]
async fn images_without_an_image() {
    for (fault, datum) in [(Fault::NoImageUrl, json!({})), (Fault::EmptyImageUrl, json!({"url": ""}))] {
        let sim = start(Behaviour::default()).await;
        sim.control.script([Step::fault(fault).times(2)]).unwrap();
        let reply = sim.image(&json!({"model": "gpt-image-1", "prompt": "a gate"})).await;
        assert_eq!((reply.status, &reply.json()["data"]), (200, &json!([datum])), "{fault}");
        let reply = sim.chat("x").await;
        assert!(
            reply.json()["choices"][0]["message"]["content"].is_string(),
            "{fault} is no matter of chats"
        );
    }
}

#[tokio::test]
async fn bad_request() {
    let (_sim, reply) = meet(Step::fault(Fault::BadRequest)).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.error(), ("invalid_request_error".into(), "content_policy_violation".into()));
}

#[tokio::test]
async fn server_error() {
    let (_sim, reply) = meet(Step::fault(Fault::ServerError).status(503)).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.error().0, "server_error");

    let faults = Faults { server_error: 1.0, ..Faults::default() };
    let sim = start(Behaviour { faults, ..Behaviour::default() }).await;
    let mut seen = BTreeSet::new();
    for _ in 0..30 {
        seen.insert(sim.chat("x").await.status);
    }
    assert_eq!(seen, BTreeSet::from([500, 502, 503]));
}

#[tokio::test]
async fn hang() {
    let (sim, reply) = meet(Step::fault(Fault::Hang)).await;
    assert_eq!((reply.status, reply.end), (0, End::Silent));
    sim.until(|stats| stats.aborted == 1).await;
}

#[tokio::test]
async fn silent_body() {
    let (sim, reply) = meet(Step::fault(Fault::SilentBody)).await;
    assert_eq!((reply.status, reply.end), (200, End::Silent));
    assert_eq!(reply.body.len(), reply.promised() / 2);
    sim.until(|stats| stats.aborted == 1 && stats.in_flight == 0).await;
}

#[tokio::test]
async fn reset() {
    let (sim, reply) = meet(Step::fault(Fault::Reset)).await;
    assert_eq!((reply.status, reply.end), (200, End::Reset));
    assert_eq!(reply.body.len(), reply.promised() / 2);
    let stats = sim.control.stats();
    assert_eq!((stats.cut, stats.aborted, stats.completed, stats.in_flight), (1, 0, 0, 0));
}

#[tokio::test]
async fn truncated() {
    let (sim, reply) = meet(Step::fault(Fault::Truncated)).await;
    assert_eq!((reply.status, reply.end), (200, End::Closed));
    assert_eq!(reply.body.len(), reply.promised() / 2);
    assert_eq!(sim.control.stats().cut, 1);
}

#[tokio::test]
async fn malformed() {
    let (sim, reply) = meet(Step::fault(Fault::Malformed)).await;
    assert_eq!((reply.status, reply.end), (200, End::Complete));
    assert!(serde_json::from_slice::<serde_json::Value>(&reply.body).is_err());
    assert_eq!(sim.control.stats().completed, 1);
}

#[tokio::test]
async fn latency_is_waited_for() {
    let sim = start(Behaviour { latency_median_ms: 150, ..Behaviour::default() }).await;
    let started = Instant::now();
    let reply = sim.chat("x").await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(2), "{took:?}");
    let claimed: u64 = reply.header("openai-processing-ms").unwrap().parse().unwrap();
    assert!((150..2_000).contains(&claimed), "{claimed}");
}

#[tokio::test]
async fn the_bucket_runs_dry() {
    let sim = start(Behaviour { requests_per_minute: Some(2), ..Behaviour::default() }).await;
    let left = |reply: &Reply| reply.header("x-ratelimit-remaining-requests").map(str::to_owned);
    for remaining in ["1", "0"] {
        let reply = sim.chat("x").await;
        assert_eq!((reply.status, left(&reply).as_deref()), (200, Some(remaining)));
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("2"));
    }
    let refused = sim.chat("x").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("30")));
    assert_eq!(refused.header("x-ratelimit-reset-requests"), Some("1m0s"));
    assert_eq!(sim.control.stats().rate_limited, 1);
}

#[tokio::test]
async fn a_seed_repeats_what_clients_see() {
    let faults = Faults { rate_limit: 0.3, server_error: 0.3, malformed: 0.2, ..Faults::default() };
    let behaviour = Behaviour { seed: 7, faults, ..Behaviour::default() };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let sim = start(behaviour.clone()).await;
        let mut run = Vec::new();
        for _ in 0..40 {
            let reply = sim.chat("x").await;
            run.push((reply.status, reply.promised()));
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
}
