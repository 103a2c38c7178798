//! The limits of a key hold however many keys are made of it (SPEC K1, K2): those that it made, and those that replace it,
//! count as it.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_domain::Role;
use tollgate_model::key::Scope;
use tollgate_store as store;
use tollgate_store::{SubmitTerms, Submitted};
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

use crate::api_keys::Holder;
use crate::credits_crash::Hand;
use crate::credits_model::new_job;
use crate::idempotency_client::{BINARY, Till, as_role, job, open, operator, priced};

const PATIENCE: Duration = Duration::from_secs(30);

async fn made(by: &Holder, path: &str, body: Value) -> (Uuid, String) {
    let reply = by.send(Method::POST, path, Some(body)).await;
    let (status, new): (_, Value) = (reply.status(), reply.json().await.unwrap());
    assert_eq!(status, 201, "{new}");
    (new["id"].as_str().unwrap().parse().unwrap(), new["key"].as_str().unwrap().to_owned())
}

async fn create(by: &Holder, daily_credit_limit: Option<i64>) -> (Uuid, String) {
    let scopes = ["jobs:write", "jobs:read", "keys:write"];
    made(by, "/v1/api-keys", json!({"scopes": scopes, "daily_credit_limit": daily_credit_limit})).await
}

async fn rotate(by: &Holder, id: Uuid) -> (Uuid, String) {
    made(by, &format!("/v1/api-keys/{id}/rotate"), json!({})).await
}

/// What is counted of today, by key.
async fn spent(app: &TestApp) -> Vec<(Uuid, i64)> {
    let sql = "SELECT key_id, credits FROM app.key_spending ORDER BY key_id";
    sqlx::query_as(sql).fetch_all(&app.owner).await.unwrap()
}

#[tokio::test]
async fn a_chain_of_keys_spends_one_limit_a_day() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (_, till) = open(&app, 1000).await;
    let owner = Holder::of(&app).with(&till.key);
    let (root, key) = create(&owner, Some(50)).await;
    let (child, child_key) = create(&owner.with(&key), None).await;
    let (_, small_key) = create(&owner.with(&key), Some(20)).await;
    let (grandchild, grandchild_key) = rotate(&owner.with(&child_key), child).await;
    let (_, rotated_key) = rotate(&owner, grandchild).await;
    let (_, later_key) = rotate(&owner.with(&rotated_key), root).await;
    let chain = [&key, &child_key, &grandchild_key, &rotated_key, &later_key].map(|key| till.with_key(key));

    let mut hand = Hand::new(as_role(&app, Role::Worker).await, operator(&app).await).await;
    for (nr, till) in chain.iter().enumerate() {
        till.submit_plain(&job(&format!("{nr}"), 10)).await.job();
    }
    let refused =
        async |till: &Till| till.submit_plain(&job("more", 1)).await.refused(402, "insufficient_credits");
    for till in &chain {
        refused(till).await;
    }
    assert_eq!(spent(&app).await, [(root, 50)]);

    // What is free again, and what was not used, may be spent by any of them; and what one may at most is its own affair.
    hand.fail_one().await;
    let run = hand.claim().await;
    hand.succeed(&run, 4).await;
    assert_eq!(spent(&app).await, [(root, 34)]);
    refused(&till.with_key(&small_key)).await;
    chain[4].submit_plain(&job("rest", 16)).await.job();
    refused(&chain[0]).await;

    // A key without limits hands on none: what it makes counts for itself.
    let (other, other_key) = create(&owner, Some(50)).await;
    till.with_key(&other_key).submit_plain(&job("other", 7)).await.job();
    assert_eq!(spent(&app).await, [(root, 50), (other, 7)]);
    app.assert_books().await;
}

/// What the balance does not pay for is given back by who was counted beyond his own limit meanwhile, too.
#[tokio::test]
async fn what_is_given_back_is_taken_beyond_a_lower_limit() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 5).await;
    let owner = Holder::of(&app).with(&till.key);
    let (root, key) = create(&owner, Some(50)).await;
    let (small, _) = create(&owner.with(&key), Some(20)).await;
    let pool = store::connect(&app.db.role_url(Role::Api), Role::Api, 1, true).await.unwrap();
    let terms = SubmitTerms { ttl: PATIENCE, max_queued: 1000, keep: PATIENCE };
    let batch = [new_job(account, small, 10), new_job(account, root, 30)];
    let told = store::submit(&pool, &terms, PATIENCE, &batch).await.unwrap();
    assert!(told.iter().all(|told| matches!(told, Submitted::Short { .. })), "{told:?}");
    assert_eq!(spent(&app).await, [(root, 0)]);
}

#[tokio::test]
async fn a_chain_of_keys_makes_the_requests_of_one() {
    let app = TestApp::start(
        BINARY,
        Tune { settings: vec![("RATE_LIMIT_DEFAULT", "6,1h".into())], ..Tune::default() },
    )
    .await;
    let owner = Holder::of(&app);
    let scopes = [Scope::JobsRead, Scope::JobsWrite, Scope::KeysWrite];
    let (plain, plain_key) = app.key_with(&scopes).await;
    let (limited, limited_key) = app.key_with(&scopes).await;
    app.change(&format!("UPDATE app.api_keys SET rate_limit = '6,2h' WHERE id = '{limited}'")).await;
    let left = async |key: &str| {
        let reply = owner.with(key).send(Method::GET, "/v1/jobs", None).await;
        let left: i64 = reply.headers()["ratelimit-remaining"].to_str().unwrap().parse().unwrap();
        (reply.status().as_u16(), left)
    };
    // Whether the key has a limit of its own or not, who replaces it goes on in its window.
    for (id, key) in [(plain, plain_key.as_str()), (limited, limited_key.as_str())] {
        assert_eq!((left(key).await, left(key).await), ((200, 5), (200, 4)));
        let (second, second_key) = rotate(&owner.with(key), id).await;
        assert_eq!(left(&second_key).await, (200, 3));
        let (_, third_key) = rotate(&owner, second).await;
        assert_eq!((left(&third_key).await, left(key).await), ((200, 2), (200, 1)));
    }
    // So does what a key with a limit makes, and nothing else.
    let (_, child_key) = create(&owner.with(&limited_key), None).await;
    assert_eq!((left(&child_key).await, left(&child_key).await), ((200, 0), (429, 0)));
    assert_eq!(left(&limited_key).await, (429, 0));
    let (_, child_key) = create(&owner.with(&plain_key), None).await;
    assert_eq!(left(&child_key).await, (200, 5));
    // In every process.
    let second = app.start_api().await;
    assert_eq!(Holder::new(&second.url(), &limited_key).status(Method::GET, "/v1/jobs").await, 429);
}

#[tokio::test]
async fn a_rotation_gives_the_stricter_rate_limit() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let owner = Holder::of(&app);
    let (asks, key) = app.key_with(&[Scope::JobsRead, Scope::KeysWrite]).await;
    for (old_limit, own_limit, given) in [
        (Some("600,1m"), Some("100,1m"), Some("100,1m")),
        (Some("50,1m"), Some("100,1m"), Some("50,1m")),
        (Some("5000,1h"), Some("100,1m"), Some("5000,1h")),
        (Some("off"), Some("100,1m"), Some("100,1m")),
        (Some("lots"), Some("100,1m"), Some("100,1m")),
        (None, Some("100,1m"), Some("100,1m")),
        (Some("600,1m"), None, Some("600,1m")),
        (None, None, None),
    ] {
        let (old, _) = app.key_with(&[Scope::JobsRead]).await;
        for (id, limit) in [(old, old_limit), (asks, own_limit)] {
            let sql = "UPDATE app.api_keys SET rate_limit = $2 WHERE id = $1";
            sqlx::query(sql).bind(id).bind(limit).execute(&app.owner).await.unwrap();
        }
        let (new, _) = rotate(&owner.with(&key), old).await;
        let sql = "SELECT rate_limit FROM app.api_keys WHERE id = $1";
        let has: Option<String> = sqlx::query_scalar(sql).bind(new).fetch_one(&app.owner).await.unwrap();
        assert_eq!(has.as_deref(), given, "{old_limit:?} by {own_limit:?}");
    }
}

/// Whoever waits for one of two keys has not locked the other, if that is the later one.
#[tokio::test]
async fn two_keys_that_replace_each_other_do_not_wait_for_each_other() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let owner = Holder::of(&app);
    let (first, first_key) = app.key_with(&[Scope::KeysWrite]).await;
    let (second, second_key) = app.key_with(&[Scope::KeysWrite]).await;
    for (by, id) in [(&first_key, second), (&second_key, first)] {
        let mut lock = app.owner.begin().await.unwrap();
        let sql = "SELECT FROM app.api_keys WHERE id = $1 FOR NO KEY UPDATE";
        sqlx::query(sql).bind(first).execute(&mut *lock).await.unwrap();
        let by = owner.with(by);
        let mut rotations = JoinSet::new();
        rotations.spawn(async move { rotate(&by, id).await });
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'
                       AND query LIKE '%FOR NO KEY UPDATE'";
        eventually("the rotation waits", PATIENCE, || async { (app.number(waits).await == 1).then_some(()) })
            .await;
        let sql = "SELECT FROM app.api_keys WHERE id = $1 FOR NO KEY UPDATE NOWAIT";
        sqlx::query(sql).bind(second).execute(&mut *lock).await.unwrap();
        lock.commit().await.unwrap();
        rotations.join_next().await.unwrap().unwrap();
    }
}
