//! Wrong keys buy little computing, and keep nobody out whose key is known.

use reqwest::{Client, Response};
use serde_json::Value;
use tokio::task::JoinSet;
use tollgate_model::key::{ApiKey, Scope};
use tollgate_testkit::{Process, TestApp, Tune};

async fn start() -> TestApp {
    tollgate_outbound::install_crypto_provider();
    TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::default()).await
}

async fn jobs(api: &Process, key: &str) -> Response {
    jobs_at(&api.url(), key).await
}

async fn jobs_at(url: &str, key: &str) -> Response {
    let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    http.get(format!("{url}/v1/jobs")).bearer_auth(key).send().await.unwrap()
}

/// A well-formed key with the prefix of `key`, and another secret.
fn forged(key: &str, nr: u8) -> String {
    let prefix = ApiKey::parse(key).unwrap().prefix().to_owned();
    let alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // Its characters are drawn by their places in the alphabet.
    let mut entropy = [nr; 44];
    for (byte, character) in entropy.iter_mut().zip(prefix.chars()) {
        *byte = u8::try_from(alphabet.find(character).unwrap()).unwrap();
    }
    let forged = ApiKey::from_entropy(&entropy);
    assert_eq!(forged.prefix(), prefix);
    forged.expose().to_owned()
}

async fn try_forged(url: &str, key: &str) -> u16 {
    let reply = jobs_at(url, key).await;
    for name in ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"] {
        assert!(reply.headers().contains_key(name), "{reply:?}");
    }
    assert!(reply.headers()["ratelimit-policy"].to_str().unwrap().starts_with("\"wrong-keys\";q=30;"));
    let status = reply.status().as_u16();
    if status == 429 {
        let wait: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(reply.json::<Value>().await.unwrap()["code"], "rate_limited");
    }
    status
}

#[tokio::test]
async fn wrong_secrets_are_refused_unread_and_right_ones_are_not() {
    let app = start().await;
    let (_, known) = app.key_with(&[Scope::JobsRead]).await;
    let (_, unknown) = app.key_with(&[Scope::JobsRead]).await;
    assert_eq!(jobs(&app.api, &known).await.status(), 200);

    let mut tries = JoinSet::new();
    for nr in 0..60 {
        let (url, key) = (app.api.url(), forged(&known, nr));
        tries.spawn(async move { try_forged(&url, &key).await });
    }
    let tries = tries.join_all().await;
    let count = |status| tries.iter().filter(|one| **one == status).count();
    let (wrong, limited) = (count(401), count(429));
    assert_eq!(wrong + limited, 60, "{tries:?}");
    // Ten, and one more each second that this took.
    assert!((10..30).contains(&wrong), "{wrong} were looked at");
    assert!(app.api.metric("tollgate_abuse_limited_total").await >= 30.0);

    // The key whose prefix was tried is known here; the other, from the same address, is not yet.
    assert_eq!(jobs(&app.api, &known).await.status(), 200);
    assert_eq!(jobs(&app.api, &unknown).await.status(), 200);
}

#[tokio::test]
async fn a_crowd_with_one_key_that_is_not_known_yet_is_let_in() {
    let app = start().await;
    let mut crowd = JoinSet::new();
    for _ in 0..64 {
        let (url, key) = (app.api.url(), app.key.clone());
        crowd.spawn(async move { jobs_at(&url, &key).await.status() });
    }
    assert!(crowd.join_all().await.into_iter().all(|status| status == 200));
    assert_eq!(jobs(&app.api, &forged(&app.key, 1)).await.headers()["ratelimit-remaining"], "29");
}

#[tokio::test]
async fn keys_that_nobody_has_cost_no_computing_and_are_not_counted() {
    let app = start().await;
    for nr in 0..40 {
        let reply = jobs(&app.api, ApiKey::from_entropy(&[nr; 44]).expose()).await;
        assert_eq!(
            (reply.status().as_u16(), &reply.headers()["ratelimit-remaining"]),
            (401, &"30".parse().unwrap())
        );
    }
    assert_eq!(jobs(&app.api, "junk").await.headers()["ratelimit-limit"], "30");
}
