//! `Idempotency-Key`: what is asked twice is done once, and answered the same both times (SPEC K3).

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use tollgate_domain::{accounts, keys, prices};
use tollgate_model::audit::Actor;
use tollgate_model::key::Scope;
use tollgate_model::pricing::{Price, Rates};
use tollgate_testkit::{TestApp, eventually};
use uuid::Uuid;

use crate::idempotency_client::{BINARY, Till, job, open, operator, priced, same, stored};
use crate::watched::SUBMIT;

async fn start(settings: &[(&'static str, &str)]) -> (TestApp, Till) {
    let app = TestApp::start(BINARY, priced(0, settings)).await;
    let till = Till::of(&app);
    (app, till)
}

#[tokio::test]
async fn what_means_the_same_is_done_once_and_anything_else_is_a_conflict() {
    let (app, till) = start(&[]).await;
    let first = r#"{"prompt": "é", "max_tokens": 9, "metadata": {"a": 1, "b": [1.5, null]}}"#;
    let first = till.post(SUBMIT, &[b"a"], first).await;
    first.job();
    assert!(!first.replayed());
    for again in [
        "{\n \"metadata\": {\"b\" : [ 1.50 , null], \"a\": 1},\t\"max_tokens\":9,\"prompt\":\"\\u00e9\" }",
        r#"{"max_tokens": 9, "metadata": {"a": 1.0, "b": [15e-1, null]}, "prompt": "é"}"#,
    ] {
        same(&first, &till.post(SUBMIT, &[b"a"], again).await);
    }
    for other in [
        json!({"prompt": "é", "max_tokens": 9, "metadata": {"a": 1, "b": [null, 1.5]}}),
        json!({"prompt": "é", "max_tokens": 9, "metadata": {"a": "1", "b": [1.5, null]}}),
        json!({"prompt": "é", "max_tokens": 9, "metadata": {"a": 1, "b": [1.5, null], "c": null}}),
        json!({"prompt": "e\u{301}", "max_tokens": 9, "metadata": {"a": 1, "b": [1.5, null]}}),
        json!({"prompt": "é", "max_tokens": 9}),
    ] {
        let reply = till.submit("a", &other).await;
        reply.is_final().refused(409, "idempotency_key_conflict");
    }
    // Whatever else the key's requests were, the first one is what it was.
    same(
        &first,
        &till
            .post(SUBMIT, &[b"a"], r#"{"prompt":"é","max_tokens":9,"metadata":{"a":1,"b":[1.5,null]}}"#)
            .await,
    );
    assert_eq!(stored(&app).await, [1; 6]);
    app.assert_books().await;
}

#[tokio::test]
async fn keys_and_bodies_of_which_two_might_look_alike_are_refused() {
    let (app, till) = start(&[]).await;
    let body = job("a", 5).to_string();
    let long = [b'k'; 256];
    let bad: [&[&[u8]]; 7] =
        [&[b""], &[&long], &[b"\xe9"], &[b"\xc3\xa9"], &[b"a\tb"], &[b"a", b"a"], &[b"a", b"b"]];
    for keys in bad {
        let reply = till.post(SUBMIT, keys, body.clone()).await;
        let detail = reply.refused(400, "invalid_request");
        assert!(detail.contains("`Idempotency-Key`"), "{detail}");
    }
    for bad in [
        r#"{"prompt": "a", "prompt": "b"}"#,
        r#"{"prompt": "a", "metadata": {"x": 1, "x": 1}}"#,
        r#"{"prompt": "a", "metadata": {"x": [{"y": 1, "y": 2}]}}"#,
        r#"{"prompt": "a", "metadata": {"x": 9007199254740993}}"#,
        r#"{"prompt": "a", "metadata": {"x": [-9007199254740993]}}"#,
        r#"{"prompt": "a", "metadata": {"x": 18446744073709551615}}"#,
        r#"{"prompt": "a", "metadata": {"x": 18446744073709551616}}"#,
        r#"{"prompt": "a", "seed": 9007199254740993}"#,
    ] {
        till.post(SUBMIT, &[b"a"], bad).await.refused(400, "invalid_request");
    }
    assert_eq!(stored(&app).await, [0; 6]);
    // None of that was remembered. A seed may be as large as it likes where nothing is compared.
    let first = till.post(SUBMIT, &[b"a"], r#"{"prompt": "a", "seed": 9007199254740992}"#).await;
    first.job();
    till.post(SUBMIT, &[], r#"{"prompt": "a", "seed": 9007199254740993}"#).await.job();
    let longest = [b'~'; 255];
    for odd in [&longest[..], b"a b", b"\"a\"", b"{}", b"'; DROP TABLE app.jobs --"] {
        let first = till.post(SUBMIT, &[odd], body.clone()).await;
        first.job();
        same(&first, &till.post(SUBMIT, &[odd], body.clone()).await);
    }
    assert_eq!(stored(&app).await, [7, 7, 7, 7, 6, 7]);
    app.assert_books().await;
}

#[tokio::test]
async fn a_key_is_an_accounts_and_a_routes_and_no_api_keys() {
    let (app, till) = start(&[]).await;
    let (_, other) = open(&app, 1000).await;
    let first = till.submit("same", &job("a", 5)).await;
    let others = other.submit("same", &job("b", 6)).await;
    assert_ne!(first.job(), others.job());
    same(&first, &till.submit("same", &job("a", 5)).await);
    same(&others, &other.submit("same", &job("b", 6)).await);

    // Another route is another thing to do; another path of the same route is not what was asked.
    let cancelled = till.cancel(first.job(), "same").await;
    assert_eq!((cancelled.status, cancelled.json()["status"].as_str()), (200, Some("cancelled")));
    same(&cancelled, &till.cancel(first.job(), "same").await);
    let unknown = till.cancel(Uuid::nil(), "same").await;
    unknown.is_final().refused(409, "idempotency_key_conflict");
    other.cancel(first.job(), "same").await.refused(404, "not_found");

    // The account's other API keys are told the same, also once the one that asked is gone.
    let (first_id, first_key) = app.key_with(&Scope::ALL).await;
    let (_, second_key) = app.key_with(&Scope::ALL).await;
    let (asked, rotated) = (till.with_key(&first_key), till.with_key(&second_key));
    let before = asked.submit("rotated", &job("c", 7)).await;
    before.job();
    same(&before, &rotated.submit("rotated", &job("c", 7)).await);
    keys::revoke(&operator(&app).await, app.account, Actor::Shell, first_id).await.unwrap();
    same(&before, &rotated.submit("rotated", &job("c", 7)).await);
    asked.submit("rotated", &job("c", 7)).await.refused(401, "unauthorized");
    asked.submit("new", &job("c", 7)).await.refused(401, "unauthorized");
    assert_eq!(app.number("SELECT count(*) FROM app.jobs").await, 3);
    assert_eq!(app.number("SELECT count(*) FROM app.idempotency_keys").await, 4);
    app.assert_books().await;
}

#[tokio::test]
async fn what_was_refused_may_be_asked_again_with_the_same_key() {
    let (app, _) = start(&[("MAX_QUEUED_PER_ACCOUNT", "2")]).await;
    let (account, till) = open(&app, 9).await;
    let before = stored(&app).await;
    till.submit("poor", &job("a", 10)).await.is_final().refused(402, "insufficient_credits");
    till.submit("poor", &json!({"prompt": "a", "model": ""})).await.refused(400, "invalid_request");
    assert_eq!(stored(&app).await, before);
    accounts::grant(&operator(&app).await, account, 21, "a little more").await.unwrap();
    // Not even as something else: nothing is known of the key.
    let poor = till.submit("poor", &job("b", 10)).await;
    let second = till.submit("second", &job("b", 10)).await;
    second.job();
    till.submit("full", &job("c", 10)).await.refused(429, "queue_full");
    // What was accepted is answered as it was, though nothing more would be.
    same(&poor, &till.submit("poor", &job("b", 10)).await);
    assert_eq!(till.cancel(poor.job(), "cancel").await.status, 200);
    let full = till.submit("full", &job("c", 10)).await;
    assert!(!full.replayed());
    same(&full, &till.submit("full", &job("c", 10)).await);
    till.submit("poorer", &job("c", 11)).await.refused(429, "queue_full");
    assert_eq!(till.cancel(second.job(), "another").await.status, 200);
    till.submit("poorer", &job("c", 21)).await.refused(402, "insufficient_credits");
    till.submit("poorer", &job("c", 20)).await.job();
    same(&poor, &till.submit("poor", &job("b", 10)).await);
    assert_eq!(till.balance().await.balance, 0);
    app.assert_books().await;
}

#[tokio::test]
async fn an_answer_holds_for_a_day_and_outlives_the_process() {
    let (mut app, till) = start(&[]).await;
    let first = till.submit("kept", &job("a", 5)).await;
    let asked = job("b", 5);
    let old = till.submit("old", &asked).await;
    old.job();
    let days = "SELECT count(*) FROM app.idempotency_keys
                WHERE expires_at BETWEEN now() + interval '23 h 59 min' AND now() + interval '24 h'";
    assert_eq!(app.number(days).await, 2);

    app.change("UPDATE app.idempotency_keys SET expires_at = now() - interval '1 ms' WHERE key = 'old'")
        .await;
    // What has expired is as if it had never been, and not waited for.
    let new = till.submit("old", &job("c", 6)).await;
    assert!(!new.replayed() && new.job() != old.job());
    same(&new, &till.submit("old", &job("c", 6)).await);
    till.submit("old", &asked).await.refused(409, "idempotency_key_conflict");
    assert_eq!(app.number(days).await, 2);

    let again = app.start_api().await;
    std::mem::replace(&mut app.api, again).kill().await;
    let till = Till::of(&app);
    same(&first, &till.submit("kept", &job("a", 5)).await);
    same(&new, &till.submit("old", &job("c", 6)).await);
    assert_eq!(stored(&app).await, [3, 3, 3, 3, 2, 3]);
    app.assert_books().await;
}

#[tokio::test]
async fn a_cancellation_is_answered_as_it_was_whatever_became_of_the_job() {
    let (app, till) = start(&[]).await;
    let id = till.submit("a", &job("a", 5)).await.job();
    let first = till.cancel(id, "cancel").await;
    assert_eq!((first.status, first.json()["credits"].clone()), (200, json!({"held": 0, "charged": 0})));
    app.change(r#"UPDATE app.jobs SET metadata = '{"changed": true}', priority = 9"#).await;
    same(&first, &till.cancel(id, "cancel").await);
    let unkeyed = till.post(&format!("/v1/jobs/{id}/cancel"), &[], "").await;
    assert_eq!((unkeyed.status, unkeyed.json()["metadata"].clone()), (200, json!({"changed": true})));
    // Retention has taken it.
    app.change(
        "DELETE FROM app.idempotency_keys WHERE key = 'a'; DELETE FROM app.job_events; DELETE FROM app.jobs",
    )
    .await;
    same(&first, &till.cancel(id, "cancel").await);
    till.cancel(id, "another").await.refused(404, "not_found");

    // A refusal is not kept: it is found out anew.
    let id = till.submit("b", &job("b", 5)).await.job();
    app.change(
        "UPDATE app.jobs SET status = 'failed', finished_at = now(), error_code = 'X', error_message = 'x'",
    )
    .await;
    till.cancel(id, "late").await.is_final().refused(409, "job_finished");
    app.change(
        "UPDATE app.jobs SET status = 'queued', finished_at = NULL, error_code = NULL, error_message = NULL",
    )
    .await;
    assert_eq!(till.cancel(id, "late").await.status, 200);
    let refunds = "SELECT count(*) FROM app.credits_ledger WHERE reason = 'refund'";
    assert_eq!(app.number(refunds).await, 2);
}

/// A retry comes when it comes: also after prices have changed, or while the platform is full. What was accepted was.
#[tokio::test]
async fn what_was_accepted_is_answered_so_whatever_has_changed_since() {
    let (app, till) = start(&[("MAX_QUEUED", "3")]).await;
    let now: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&app.owner).await.unwrap();
    // A model of which no images are offered any more, soon.
    let price = Price {
        provider: "openai".into(),
        model: Some("fleeting".into()),
        from: Some(now + TimeDelta::seconds(8)),
        until: None,
        rates: Rates::default(),
    };
    prices::set(&operator(&app).await, Actor::Shell, price).await.unwrap();
    let image = |prompt: &str| json!({"type": "image", "model": "fleeting", "prompt": prompt});
    let first = till.submit("image", &image("a")).await;
    same(&first, &till.submit("image", &image("a")).await);
    refused_from_now_on(&till, &image("b"), 400).await;
    let after_its_price = till.submit("image", &image("a")).await;

    for key in ["2", "3"] {
        // The room of what was called off may be seen a moment later; a refusal is not kept.
        eventually("there is room", Duration::from_secs(10), || async {
            (till.submit(key, &job(key, 1)).await.status == 202).then_some(())
        })
        .await;
    }
    refused_from_now_on(&till, &job("one more", 1), 429).await;
    let while_full = till.submit("3", &job("3", 1)).await;
    let wrong: Vec<String> = [("after its price", &after_its_price), ("while all is full", &while_full)]
        .into_iter()
        .filter(|(_, reply)| !(reply.status == 202 && reply.replayed()))
        .map(|(when, reply)| format!("{when}: {} {}", reply.status, String::from_utf8_lossy(&reply.body)))
        .collect();
    assert!(wrong.is_empty(), "not what was answered before: {wrong:#?}");
}

/// What is accepted before that is called off again.
async fn refused_from_now_on(till: &Till, job: &Value, status: u16) {
    eventually(&format!("{status}"), Duration::from_secs(20), || async {
        let reply = till.submit_plain(job).await;
        if reply.status == 202 {
            till.post(&format!("/v1/jobs/{}/cancel", reply.job()), &[], "").await;
        }
        (reply.status == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replay_costs_nothing_and_needs_nothing() {
    let (app, _) = start(&[]).await;
    let (_, till) = open(&app, 10).await;
    let first = till.submit("a", &job("a", 10)).await;
    assert_eq!(till.balance().await.balance, 0);
    for _ in 0..5 {
        same(&first, &till.submit("a", &job("a", 10)).await);
    }
    let ledger = till.send(till.request(Method::GET, "/v1/credits/ledger")).await.unwrap().json();
    let reasons: Vec<&Value> =
        ledger["data"].as_array().unwrap().iter().map(|entry| &entry["reason"]).collect();
    assert_eq!(reasons, ["reservation", "adjustment"]);
    assert_eq!(stored(&app).await, [1; 6]);
}
