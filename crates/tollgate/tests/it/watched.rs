//! An API that is watched while it is mistreated, and the checks of a refusal.

use std::path::Path;

use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Body, Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tempfile::NamedTempFile;
use tollgate_domain::Role;
use tollgate_testkit::{Process, TestApp, Tune};

pub(crate) const SUBMIT: &str = "/v1/jobs/generations";
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An API whose log is kept, to be looked at in the end.
pub(crate) struct Watched {
    pub(crate) app: TestApp,
    pub(crate) http: Client,
    pub(crate) url: String,
    pub(crate) log: NamedTempFile,
    _api: Process,
}

impl Watched {
    pub(crate) async fn start() -> Self {
        let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::default()).await;
        let log = NamedTempFile::new().unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_tollgate"));
        let environment = [
            ("DATABASE_URL".to_owned(), app.db.role_url(Role::Api)),
            ("RATE_LIMIT_DEFAULT".to_owned(), "off".to_owned()),
        ];
        let arguments = ["--json", "api", "--listen", "127.0.0.1:0"];
        let api = Process::start_logged(binary, &arguments, &environment, Some(log.path())).await;
        tollgate_outbound::install_crypto_provider();
        let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { app, http, url: api.url(), log, _api: api }
    }

    /// A request without a key.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A request of the first account.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.app.key)
    }

    pub(crate) fn post(&self, path: &str, body: impl Into<Body>) -> RequestBuilder {
        self.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body)
    }

    /// Nothing was harmed, and there are so many jobs.
    pub(crate) async fn assert_unharmed(&self, jobs: i64) {
        let ready = self.bare(Method::GET, "/readyz").send().await.unwrap();
        assert_eq!(ready.status(), 200);
        for table in ["app.jobs", "queue.tasks"] {
            let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let rows: i64 = sqlx::query_scalar(sql).fetch_one(&self.app.owner).await.unwrap();
            assert_eq!(rows, jobs, "a refused request changed {table}");
        }
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        assert!(log.contains("answered"), "the log that is searched is empty");
        for word in ["panic", "\"ERROR\""] {
            assert!(!log.contains(word), "{word} in the log:\n{log}");
        }
    }
}

/// Checks that this is a whole problem document with that code, and returns its detail.
pub(crate) async fn refused(what: &str, reply: Response, status: u16, code: &str) -> String {
    let (was, headers) = (reply.status(), reply.headers().clone());
    let body = reply.text().await.unwrap();
    assert_eq!(was, status, "{what}: {body}");
    assert_eq!(headers[CONTENT_TYPE], "application/problem+json", "{what}");
    let document: Value =
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{what}: {error}: {body}"));
    let mut members: Vec<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["code", "detail", "request_id", "status", "title", "type"], "{what}");
    assert_eq!(document["status"], status, "{what}");
    assert_eq!(document["code"], code, "{what}: {body}");
    assert_eq!(document["type"], format!("urn:tollgate:problem:{code}"), "{what}");
    assert!(!document["title"].as_str().unwrap().is_empty(), "{what}");
    assert_eq!(document["request_id"], headers[REQUEST_ID].to_str().unwrap(), "{what}");
    document["detail"].as_str().unwrap().to_owned()
}

/// Checks that this is refused as invalid, in words that hold `says`.
pub(crate) async fn invalid(what: &str, reply: Response, says: &str) {
    let detail = refused(what, reply, 400, "invalid_request").await;
    assert!(detail.contains(says), "{what}: `{detail}` does not say `{says}`");
}
