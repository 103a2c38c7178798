//! Rate limits over real processes (SPEC K2): exact, shared, and told in every answer.

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_domain::ids;
use tollgate_model::key::Scope;
use tollgate_testkit::{Process, TestApp, Tune};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const JOBS: &str = "/v1/jobs";
const SUBMIT: &str = "/v1/jobs/generations";

async fn limited(limit: &str) -> TestApp {
    tollgate_outbound::install_crypto_provider();
    let settings = vec![("RATE_LIMIT_DEFAULT", limit.to_owned())];
    TestApp::start(BINARY, Tune { settings, ..Tune::default() }).await
}

async fn send(api: &Process, key: &str, method: Method, path: &str, body: Option<&str>) -> Response {
    let mut request = http().request(method, format!("{}{path}", api.url()));
    if !key.is_empty() {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    request.send().await.unwrap()
}

async fn get(api: &Process, key: &str, path: &str) -> Response {
    send(api, key, Method::GET, path, None).await
}

/// Whether it was within the limit.
async fn accepted(api: &Process, key: &str) -> bool {
    reaches(&api.url(), key).await
}

async fn reaches(url: &str, key: &str) -> bool {
    let status = http().get(format!("{url}{JOBS}")).bearer_auth(key).send().await.unwrap().status().as_u16();
    assert!([200, 429].contains(&status), "{status}");
    status == 200
}

fn http() -> Client {
    Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name}: {response:?}")).to_str().unwrap()
}

fn number(response: &Response, name: &str) -> u64 {
    header(response, name).parse().unwrap()
}

/// Holds the five headers against each other, and returns what is left.
fn remaining(response: &Response, group: &str, requests: u64, window: u64) -> u64 {
    let left = number(response, "ratelimit-remaining");
    let reset = number(response, "ratelimit-reset");
    assert_eq!(number(response, "ratelimit-limit"), requests);
    assert!((1..=window).contains(&reset), "{reset}");
    assert_eq!(header(response, "ratelimit-policy"), format!("\"{group}\";q={requests};w={window}"));
    assert_eq!(header(response, "ratelimit"), format!("\"{group}\";r={left};t={reset}"));
    left
}

#[tokio::test]
async fn one_process_counts_down_to_the_last_request_and_refuses_the_next() {
    let app = limited("60,1h").await;
    for left in (0..60).rev() {
        let reply = get(&app.api, &app.key, JOBS).await;
        assert_eq!(reply.status(), 200);
        assert_eq!(remaining(&reply, "GET /v1/jobs", 60, 3600), left);
    }
    for _ in 0..3 {
        let reply = get(&app.api, &app.key, JOBS).await;
        assert_eq!((reply.status().as_u16(), remaining(&reply, "GET /v1/jobs", 60, 3600)), (429, 0));
        // Official SDKs take no notice of more.
        assert_eq!(header(&reply, RETRY_AFTER.as_str()), "60");
        let problem: Value = reply.json().await.unwrap();
        assert_eq!(problem["code"], "rate_limited");
        assert!(problem["detail"].as_str().unwrap().contains("60,1h"), "{problem}");
    }
    assert!(app.api.metric("tollgate_rate_limited_total").await >= 3.0);

    // Neither another operation nor another key has had any of it.
    let reply = get(&app.api, &app.key, "/v1/api-keys").await;
    assert_eq!((reply.status().as_u16(), remaining(&reply, "GET /v1/api-keys", 60, 3600)), (200, 59));
    let (_, other) = app.key_with(&[Scope::JobsRead]).await;
    let reply = get(&app.api, &other, JOBS).await;
    assert_eq!((reply.status().as_u16(), remaining(&reply, "GET /v1/jobs", 60, 3600)), (200, 59));
    // To start anew gives nothing back.
    let again = app.start_api().await;
    assert!(!accepted(&again, &app.key).await);
}

#[tokio::test]
async fn many_processes_share_one_limit() {
    let app = limited("40,1h").await;
    let others = [app.start_api().await, app.start_api().await];
    let fleet = [&app.api, &others[0], &others[1]];
    let (_, key) = app.key_with(&[Scope::JobsRead]).await;
    let mut by_turns = 0;
    for nr in 0..60 {
        by_turns += u32::from(accepted(fleet[nr % 3], &key).await);
    }
    assert_eq!(by_turns, 40);

    // All at once: the same, once nobody has any left.
    let (_, key) = app.key_with(&[Scope::JobsRead]).await;
    let mut burst = JoinSet::new();
    for nr in 0..120 {
        let (url, key) = (fleet[nr % 3].url(), key.clone());
        burst.spawn(async move { reaches(&url, &key).await });
    }
    let at_once = burst.join_all().await.into_iter().filter(|accepted| *accepted).count();
    assert_eq!(at_once, 40);

    // A process that is killed takes what it held with it, and no more.
    let (_, key) = app.key_with(&[Scope::JobsRead]).await;
    let [first, second] = others;
    let mut total = 0;
    for _ in 0..10 {
        total += u32::from(accepted(&first, &key).await);
    }
    first.kill().await;
    for _ in 0..60 {
        total += u32::from(accepted(&second, &key).await);
    }
    assert!((36..=40).contains(&total), "{total}");
}

#[tokio::test]
async fn a_window_ends_and_the_next_begins() {
    let app = limited("3,1s").await;
    let mut accepted_at = Vec::new();
    let began = tokio::time::Instant::now();
    while accepted_at.len() < 10 {
        if accepted(&app.api, &app.key).await {
            accepted_at.push(began.elapsed());
        }
    }
    // Whatever the machine's speed: four windows at least, so three have passed.
    assert!(accepted_at[9] >= std::time::Duration::from_millis(2_900), "{accepted_at:?}");
}

#[tokio::test]
async fn a_key_may_have_a_limit_of_its_own() {
    let app = limited("5,1h").await;
    let set = async |id: Uuid, limit: &str| {
        assert_eq!(
            app.change(&format!("UPDATE app.api_keys SET rate_limit = {limit} WHERE id = '{id}'")).await,
            1
        );
    };
    let (id, key) = app.key_with(&[Scope::JobsRead]).await;
    set(id, "'7,2m'").await;
    for left in (0..7).rev() {
        assert_eq!(remaining(&get(&app.api, &key, JOBS).await, "GET /v1/jobs", 7, 120), left);
    }
    assert!(!accepted(&app.api, &key).await);
    // A change holds at once, for what is left of the window.
    set(id, "'9,2m'").await;
    assert_eq!(remaining(&get(&app.api, &key, JOBS).await, "GET /v1/jobs", 9, 120), 1);
    set(id, "'off'").await;
    let reply = get(&app.api, &key, JOBS).await;
    assert!(reply.status() == 200 && !reply.headers().contains_key("ratelimit-limit"), "{reply:?}");
    // What cannot be read is no limit of its own.
    set(id, "'lots'").await;
    assert_eq!(number(&get(&app.api, &key, JOBS).await, "ratelimit-limit"), 5);
}

#[tokio::test]
async fn every_answer_to_a_key_says_how_much_is_left() {
    let app = limited("100,1m").await;
    let (_, reader) = app.key_with(&[Scope::JobsRead]).await;
    let nothing = format!("/v1/jobs/{}", ids::new_id());
    let good = json!({"prompt": "hello"}).to_string();
    for (key, method, path, body, group, status) in [
        (&app.key, Method::GET, JOBS, None, "GET /v1/jobs", 200),
        (&app.key, Method::HEAD, JOBS, None, "GET /v1/jobs", 200),
        (&app.key, Method::GET, "/v1/jobs?limit=0", None, "GET /v1/jobs", 400),
        (&app.key, Method::POST, SUBMIT, Some(good.as_str()), "POST /v1/jobs/generations", 202),
        (&app.key, Method::POST, SUBMIT, Some("{"), "POST /v1/jobs/generations", 400),
        (&reader, Method::POST, SUBMIT, Some(good.as_str()), "POST /v1/jobs/generations", 403),
        (&app.key, Method::GET, nothing.as_str(), None, "GET /v1/jobs/{id}", 404),
        (&app.key, Method::GET, "/api/ai/status", None, "GET /api/ai/status", 200),
    ] {
        let reply = send(&app.api, key, method, path, body).await;
        assert_eq!(reply.status().as_u16(), status, "{path}");
        assert!((96..100).contains(&remaining(&reply, group, 100, 60)), "{reply:?}");
    }
    // HEAD is GET without a body: it counts as one.
    assert_eq!(remaining(&get(&app.api, &app.key, JOBS).await, "GET /v1/jobs", 100, 60), 96);
}

#[tokio::test]
async fn without_a_limit_nothing_is_counted() {
    let app = limited("off").await;
    let reply = get(&app.api, &app.key, JOBS).await;
    assert!(reply.status() == 200 && !reply.headers().contains_key("ratelimit-limit"), "{reply:?}");
    assert_eq!(app.number("SELECT count(*) FROM app.rate_windows").await, 0);
}

#[tokio::test]
async fn the_common_path_writes_nothing() {
    let app = limited("100000,1h").await;
    let http = http();
    for _ in 0..300 {
        let request = http.get(format!("{}{JOBS}", app.api.url())).bearer_auth(&app.key);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    // Slices of 1, 2, 4, … 256: nine leases.
    assert_eq!(app.number("SELECT used FROM app.rate_windows").await, 511);
}
