//! An operator, at the API and at the shell.

use reqwest::{Client, Method, Response};
use serde_json::Value;
use tollgate_testkit::{TestApp, Tune};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
pub(crate) const TOKEN: &str = "the-operators-own-token";
/// The one route under `/internal` that is no operator's.
pub(crate) const STRIPE: &str = "/internal/stripe/webhook";
/// No test has the patience for this: what happens in time happened because somebody said so.
pub(crate) const NO_POLLING: (&str, &str) = ("QUEUE_POLL_INTERVAL", "60s");

/// An installation with operators, and these further settings.
pub(crate) fn tune(workers: usize, settings: &[(&'static str, &str)]) -> Tune {
    Tune { workers, ..Tune::worker(&[&[("TOLLGATE_ADMIN_TOKEN", TOKEN)], settings].concat()) }
}

/// Asks the API with some token.
pub(crate) struct Operator {
    http: Client,
    url: String,
    token: String,
}

impl Operator {
    pub(crate) fn of(app: &TestApp) -> Self {
        tollgate_outbound::install_crypto_provider();
        let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { http, url: app.api.url(), token: TOKEN.to_owned() }
    }

    /// The same, with another token.
    pub(crate) fn with(&self, token: &str) -> Self {
        Self { http: self.http.clone(), url: self.url.clone(), token: token.to_owned() }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    async fn done(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let what = format!("{method} {path} {body:?}");
        let reply = self.send(method, path, body).await;
        let status = reply.status();
        let text = reply.text().await.unwrap();
        assert_eq!(status, 200, "{what}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.done(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.done(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Value {
        self.done(Method::PUT, path, Some(body)).await
    }
}

/// Runs an operator's command, whose result is one line of JSON. Returns its exit code, the result, and what it said.
pub(crate) async fn command(app: &TestApp, line: &str) -> (i32, Value, String) {
    let arguments: Vec<&str> = ["--json"].into_iter().chain(line.split_whitespace()).collect();
    let (code, out, said) = app.command(&arguments).await;
    let result = if out.is_empty() { Value::Null } else { serde_json::from_str(&out).unwrap() };
    (code, result, said)
}

/// Letters of other queues, which stand for no job: `count` of them, by SQL.
pub(crate) async fn other_letters(app: &TestApp, count: u32) {
    let sql = format!(
        "INSERT INTO queue.dead_letters (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason,
                                         created_at, died_at)
         SELECT md5((n % 3)::text)::uuid, md5('letter' || n)::uuid,
                (ARRAY['billing.credit_grant', 'generation.probe', 'webhook.delivery'])[1 + n % 3], 'odd', '{{}}', 5, 1,
                5, jsonb_build_object('code', (ARRAY['A', 'B'])[1 + n / 3 % 2], 'message', 'm'), now(),
                '2026-01-01Z'::timestamptz + n / 5 * interval '1 second'
         FROM generate_series(1, {count}) AS n"
    );
    assert_eq!(app.change(&sql).await, u64::from(count));
}
