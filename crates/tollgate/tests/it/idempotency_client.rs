//! A client that says what it is told to say, keeps answers byte by byte, and repeats itself as the official SDKs do.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Body, Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tollgate_domain::{Database, KeyHashing, Role, accounts, keys};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::credits::Balance;
use tollgate_model::key::Scope;
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

use crate::watched::SUBMIT;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
pub(crate) const KEY: &str = "idempotency-key";

/// One credit a token that is generated: a job holds its `max_tokens`, or else 20, and costs what it was answered with.
pub(crate) const PRICES: &str = r#"[{"provider": "openai", "completion": 1000000,
                                     "images": {"1024x1024": 40, "any": 70}},
                                    {"provider": "openai", "model": "free"}]"#;

/// These prices, and further settings.
pub(crate) fn priced(workers: usize, settings: &[(&'static str, &str)]) -> Tune {
    let prices = [("PRICES", PRICES), ("EXPECTED_COMPLETION_TOKENS", "20")];
    Tune { workers, ..Tune::worker(&[&prices, settings].concat()) }
}

/// A job that holds so many credits, which are told from others by their prompt.
pub(crate) fn job(prompt: &str, hold: u32) -> Value {
    json!({"prompt": prompt, "max_tokens": hold})
}

/// The operator's side of a Tollgate.
pub(crate) async fn operator(app: &TestApp) -> Database {
    as_role(app, Role::Operator).await
}

pub(crate) async fn as_role(app: &TestApp, role: Role) -> Database {
    Database::connect(&app.db.role_url(role), role, 4, true).await.unwrap()
}

/// An account with so many credits, and a till with a key of its own.
pub(crate) async fn open(app: &TestApp, credits: i64) -> (AccountId, Till) {
    let operator = operator(app).await;
    let account = accounts::create(&operator, "saver", credits).await.unwrap();
    let new = keys::NewKey { name: "test", scopes: &Scope::ALL, ..keys::NewKey::default() };
    let (_, key) = keys::create(&operator, account, Actor::Shell, KeyHashing::default(), new).await.unwrap();
    (account, Till::at(&app.api.url(), key.expose()))
}

/// An account's way to an API.
#[derive(Debug, Clone)]
pub(crate) struct Till {
    http: Client,
    pub(crate) url: String,
    pub(crate) key: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Till {
    pub(crate) fn of(app: &TestApp) -> Self {
        Self::at(&app.api.url(), &app.key)
    }

    pub(crate) fn at(url: &str, key: &str) -> Self {
        tollgate_outbound::install_crypto_provider();
        let http = Client::builder().no_proxy().tls_certs_only([]).retry(reqwest::retry::never());
        Self { http: http.build().unwrap(), url: url.to_owned(), key: key.to_owned() }
    }

    /// The same account at another API.
    pub(crate) fn moved(&self, url: &str) -> Self {
        Self::at(url, &self.key)
    }

    /// The same API, with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self::at(&self.url, key)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Reply, reqwest::Error> {
        let reply = request.send().await?;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        Ok(Reply { status, headers, body: reply.bytes().await?.to_vec() })
    }

    /// Posts, with whatever for an idempotency key.
    pub(crate) async fn post(&self, path: &str, keys: &[&[u8]], body: impl Into<Body>) -> Reply {
        let mut request =
            self.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body);
        for key in keys {
            request = request.header(KEY, HeaderValue::from_bytes(key).unwrap());
        }
        self.send(request).await.unwrap()
    }

    pub(crate) async fn submit(&self, once: &str, job: &Value) -> Reply {
        self.post(SUBMIT, &[once.as_bytes()], job.to_string()).await
    }

    /// Without an idempotency key.
    pub(crate) async fn submit_plain(&self, job: &Value) -> Reply {
        self.post(SUBMIT, &[], job.to_string()).await
    }

    pub(crate) async fn cancel(&self, job: Uuid, once: &str) -> Reply {
        self.post(&format!("/v1/jobs/{job}/cancel"), &[once.as_bytes()], "").await
    }

    /// As an official SDK does it: again and again, until there is an answer that is not to be tried again. Only that it
    /// does not wait for as long as it is asked to.
    pub(crate) async fn insist(&self, path: &str, once: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let what = format!("an answer to `{once}` from {path}");
        eventually(&what, Duration::from_secs(30), || async {
            let request = self.request(Method::POST, path).header(CONTENT_TYPE, "application/json");
            let reply = self.send(request.header(KEY, once).body(body.clone())).await.ok()?;
            (!reply.is_to_be_tried_again()).then_some(reply)
        })
        .await
    }

    pub(crate) async fn balance(&self) -> Balance {
        let reply = self.send(self.request(Method::GET, "/v1/credits")).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        serde_json::from_slice(&reply.body).unwrap()
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it was accepted; the job.
    pub(crate) fn job(&self) -> Uuid {
        assert_eq!(self.status, 202, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        let job = body["job_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(self.headers[LOCATION], format!("/v1/jobs/{job}"));
        job
    }

    /// Checks that it was refused so; the detail.
    pub(crate) fn refused(&self, status: u16, code: &str) -> String {
        let body = self.json();
        assert_eq!((self.status, body["code"].as_str()), (status, Some(code)), "{body}");
        assert!(!self.replayed(), "{body}");
        body["detail"].as_str().unwrap().to_owned()
    }

    /// Checks that a program is told not to ask again.
    pub(crate) fn is_final(&self) -> &Self {
        let told = self.headers.get("x-should-retry").is_some_and(|value| value == "false");
        assert!(told, "{} {}", self.status, String::from_utf8_lossy(&self.body));
        assert!(!self.headers.contains_key(RETRY_AFTER), "{self:?}");
        self
    }

    pub(crate) fn replayed(&self) -> bool {
        self.headers.get("idempotency-replayed").is_some_and(|value| value == "true")
    }

    /// What openai-python does, `_should_retry`.
    fn is_to_be_tried_again(&self) -> bool {
        match self.headers.get("x-should-retry").map(HeaderValue::as_bytes) {
            Some(b"true") => true,
            Some(b"false") => false,
            _ => matches!(self.status, 408 | 409 | 429 | 500..),
        }
    }
}

/// Checks that the second answer is the first one again, and says so.
pub(crate) fn same(first: &Reply, again: &Reply) {
    assert!(again.replayed(), "{again:?}");
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    for header in [LOCATION, CONTENT_TYPE] {
        assert_eq!(first.headers.get(&header), again.headers.get(&header), "{header}");
    }
}

/// Rows there are of what a submission stores: jobs, events, tasks, reservations, answers, and tasks that are counted.
pub(crate) async fn stored(app: &TestApp) -> [i64; 6] {
    let counts = "SELECT ARRAY[(SELECT count(*) FROM app.jobs), (SELECT count(*) FROM app.job_events),
                               (SELECT count(*) FROM queue.tasks),
                               (SELECT count(*) FROM app.credits_ledger WHERE reason = 'reservation'),
                               (SELECT count(*) FROM app.idempotency_keys),
                               (SELECT coalesce(sum(queued), 0)::bigint FROM queue.lane_counts)]";
    let counts: Vec<i64> = sqlx::query_scalar(counts).fetch_one(&app.owner).await.unwrap();
    counts.try_into().unwrap()
}
