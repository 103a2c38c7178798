//! API keys: made, shown once, limited to their scopes and their account, revoked everywhere at once; and nowhere to
//! be found afterwards, neither in the database nor in a log.

use std::path::Path;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tollgate_domain::{Role, ids};
use tollgate_model::key::{ApiKey, Scope};
use tollgate_testkit::{Process, TestApp, Tune};

use crate::operators::STRIPE;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
#[rustfmt::skip]
const KEY: &[&str] = &[
    "created_at", "daily_credit_limit", "expires_at", "id", "last_used_at", "name", "prefix", "rate_limit", "revoked_at", "rotated_from",
    "scopes",
];
#[rustfmt::skip]
const NEW_KEY: &[&str] = &[
    "created_at", "daily_credit_limit", "expires_at", "id", "key", "key_id", "last_used_at", "name", "prefix", "rate_limit", "revoked_at",
    "rotated_from", "scopes",
];

/// Who has a key, and asks the API with it.
pub(crate) struct Holder {
    http: Client,
    url: String,
    pub(crate) key: String,
}

impl Holder {
    pub(crate) fn new(url: &str, key: &str) -> Self {
        tollgate_outbound::install_crypto_provider();
        let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { http, url: url.to_owned(), key: key.to_owned() }
    }

    pub(crate) fn of(app: &TestApp) -> Self {
        Self::new(&app.api.url(), &app.key)
    }

    /// The same, with another key.
    pub(crate) fn with(&self, key: &str) -> Self {
        Self { key: key.to_owned(), http: self.http.clone(), url: self.url.clone() }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if !self.key.is_empty() {
            request = request.bearer_auth(&self.key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn status(&self, method: Method, path: &str) -> u16 {
        self.send(method, path, None).await.status().as_u16()
    }

    pub(crate) async fn create(&self, scopes: &[&str]) -> (u16, Value) {
        let reply =
            self.send(Method::POST, "/v1/api-keys", Some(json!({"scopes": scopes, "name": "new"}))).await;
        (reply.status().as_u16(), reply.json().await.unwrap())
    }
}

async fn start_api(app: &TestApp) -> Process {
    let environment =
        [("DATABASE_URL".to_owned(), app.db.role_url(Role::Api)), ("LOG_LEVEL".to_owned(), "warn".into())];
    Process::start(Path::new(BINARY), &["--json", "api", "--listen", "127.0.0.1:0"], &environment).await
}

fn assert_members(value: &Value, members: &[&str]) {
    let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, members, "{value}");
}

/// The part that nobody but its holder may know.
fn secret(key: &str) -> &str {
    key.rsplit_once('_').unwrap().1
}

#[tokio::test]
async fn a_key_is_shown_once_and_listed_without_its_secret() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let owner = Holder::of(&app);
    let (status, new) = owner.create(&["jobs:read", "jobs:write", "jobs:read"]).await;
    assert_eq!(status, 201);
    assert_members(&new, NEW_KEY);
    let key = new["key"].as_str().unwrap();
    let parsed = ApiKey::parse(key).expect("the key's own form");
    assert_eq!((&new["prefix"], &new["key_id"]), (&json!(parsed.prefix()), &new["id"]));
    assert_eq!((&new["name"], &new["revoked_at"]), (&json!("new"), &Value::Null));
    let mut scopes: Vec<_> =
        new["scopes"].as_array().unwrap().iter().map(|scope| scope.as_str().unwrap()).collect();
    scopes.sort_unstable();
    assert_eq!(scopes, ["jobs:read", "jobs:write"]);
    assert_eq!(owner.with(key).status(Method::GET, "/v1/jobs").await, 200);

    let path = format!("/v1/api-keys/{}", new["id"].as_str().unwrap());
    let mut first = None;
    for _ in 0..2 {
        let reply = owner.send(Method::DELETE, &path, None).await;
        assert_eq!(reply.status(), 200);
        let revoked: Value = reply.json().await.unwrap();
        assert_members(&revoked, KEY);
        // Revoking it again changes nothing, the time least of all.
        assert_eq!(*first.get_or_insert(revoked["revoked_at"].clone()), revoked["revoked_at"]);
        assert!(revoked["revoked_at"].is_string());
    }

    let text = owner.send(Method::GET, "/v1/api-keys", None).await.text().await.unwrap();
    for hidden in [secret(key), secret(&app.key), "secret_hash", "argon2"] {
        assert!(!text.contains(hidden), "the list holds {hidden}");
    }
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_members(&list, &["data", "next_cursor"]);
    let rows = list["data"].as_array().unwrap();
    for row in rows {
        assert_members(row, KEY);
    }
    assert_eq!((rows.len(), &rows[0]["id"], rows[0]["revoked_at"].is_string()), (2, &new["id"], true));
    assert_eq!(owner.status(Method::DELETE, &format!("/v1/api-keys/{}", ids::new_id())).await, 404);
}

#[tokio::test]
async fn operators_make_list_and_revoke_keys_from_the_shell() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let account = app.account.to_string();
    let create =
        ["key", "create", "--account", &account, "--scopes", "jobs:read,jobs:write", "--name", "shell"];
    let (code, out, err) = app.command(&[&["--json"], &create[..]].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let new: Value = serde_json::from_str(&out).unwrap();
    assert_members(&new, &["key", "key_id"]);
    let (id, key) = (new["key_id"].as_str().unwrap(), new["key"].as_str().unwrap());
    let holder = Holder::new(&app.api.url(), key);
    assert_eq!(holder.status(Method::GET, "/v1/jobs").await, 200);
    assert_eq!(holder.status(Method::GET, "/v1/api-keys").await, 403);

    let (code, out, _) = app.command(&create).await;
    assert_eq!(code, 0);
    assert!(ApiKey::parse(out.lines().next().unwrap()).is_some(), "{out}");
    assert!(out.contains("only time"), "{out}");

    let (code, out, _) = app.command(&["--json", "key", "list", "--account", &account]).await;
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, list["data"].as_array().unwrap().len()), (0, 3));
    for row in list["data"].as_array().unwrap() {
        assert_members(row, KEY);
    }
    assert!(!out.contains(secret(key)) && !out.contains("argon2"), "{out}");
    let (code, out, _) = app.command(&["key", "list", "--account", &account]).await;
    assert_eq!((code, out.lines().count(), out.contains(secret(key))), (0, 3, false), "{out}");

    let revoke = ["key", "revoke", "--account", &account, "--key", id];
    let (code, out, _) = app.command(&[&["--json"], &revoke[..]].concat()).await;
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()["revoked_at"].is_string()), (0, true));
    assert_eq!(holder.status(Method::GET, "/v1/jobs").await, 401);
    let (code, out, _) = app.command(&revoke).await;
    assert_eq!((code, out.contains(id)), (0, true), "{out}");

    let nobody = ids::new_id().to_string();
    for (code, arguments) in [
        (1, ["create", "--account", &nobody, "--scopes", "jobs:read"]),
        (1, ["revoke", "--account", &account, "--key", &nobody]),
        (1, ["revoke", "--account", &nobody, "--key", id]),
        (2, ["create", "--account", &account, "--scopes", "jobs:rule"]),
        (2, ["create", "--account", &account, "--scopes", ""]),
        (2, ["create", "--account", "me", "--scopes", "jobs:read"]),
        (2, ["revoke", "--account", &account, "--key", "k"]),
    ] {
        let (was, out, err) = app.command(&[&["key"], &arguments[..]].concat()).await;
        assert_eq!((was, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(!err.is_empty(), "{arguments:?} failed without a word");
    }
}

/// Walks the served document, so that an operation added tomorrow is tested as well.
#[tokio::test]
async fn every_operation_demands_a_key_and_its_scope() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let document: Value =
        Holder::of(&app).send(Method::GET, "/openapi.json", None).await.json().await.unwrap();
    let nobody = Holder::new(&app.api.url(), "");
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let what = format!("{method} {path}");
            // Any other parameter of a path must be taught to this test.
            let id = ids::new_id().to_string();
            let path = path
                .replace("{id}", &id)
                .replace("{account_id}", &id)
                .replace("{queue}", "generation.create")
                .replace("{class}", "text");
            assert!(!path.contains('{'), "{what}");
            if path == STRIPE {
                assert_eq!(operation["security"], json!([{"stripe_signature": []}]), "{what}");
                continue;
            }
            if path.starts_with("/internal/") {
                assert_eq!(
                    operation["security"],
                    json!([{"admin_token": []}]),
                    "{what} is for operators alone"
                );
                assert_eq!(nobody.status(method.clone(), &path).await, 401, "{what} without a token");
                assert_eq!(Holder::of(&app).status(method, &path).await, 401, "{what} with a tenant's key");
                continue;
            }
            // Some serve those without a key as well, if the operator says so; this one does not.
            let optional = operation["security"][0] == json!({});
            if !path.starts_with("/v1/") && !optional {
                assert!(operation["security"].is_null(), "{what}: no key is asked for outside of /v1");
                continue;
            }
            walked += 1;
            let scopes = operation["security"][usize::from(optional)]["api_key"]
                .as_array()
                .unwrap_or_else(|| panic!("{what}: open"));
            let [scope] = scopes.as_slice() else { panic!("{what}: {scopes:?}") };
            let scope = Scope::parse(scope.as_str().unwrap()).unwrap_or_else(|| panic!("{what}: {scope}"));

            let reply = nobody.send(method.clone(), &path, None).await;
            assert_eq!(reply.status(), 401, "{what} without a key");
            assert_eq!(reply.json::<Value>().await.unwrap()["code"], "unauthorized", "{what}");

            let others: Vec<Scope> = Scope::ALL.into_iter().filter(|other| *other != scope).collect();
            let (_, key) = app.key_with(&others).await;
            let reply = nobody.with(&key).send(method.clone(), &path, None).await;
            assert_eq!(reply.status(), 403, "{what} with {others:?}");
            let problem: Value = reply.json().await.unwrap();
            assert_eq!(problem["code"], "forbidden_scope", "{what}");
            assert!(problem["detail"].as_str().unwrap().contains(&format!("`{scope}`")), "{what}: {problem}");

            let (_, key) = app.key_with(&[scope]).await;
            let status = nobody.with(&key).status(method, &path).await;
            assert!(![401, 403].contains(&status) && status < 500, "{what} with {scope} alone: {status}");
        }
    }
    assert!(walked >= 8, "only {walked} operations under /v1");
}

#[tokio::test]
async fn a_key_cannot_give_what_it_has_not() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let (_, key) = app.key_with(&[Scope::KeysWrite, Scope::JobsRead]).await;
    let holder = Holder::of(&app).with(&key);
    let keys = "SELECT count(*) FROM app.api_keys";
    let before: i64 = sqlx::query_scalar(keys).fetch_one(&app.owner).await.unwrap();
    for scopes in [&["jobs:write"][..], &["jobs:read", "billing:read"], &["keys:write", "webhooks:write"]] {
        let (status, problem) = holder.create(scopes).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden_scope")), "{scopes:?}");
    }
    let after: i64 = sqlx::query_scalar(keys).fetch_one(&app.owner).await.unwrap();
    assert_eq!(before, after, "a refused key was made");
    assert_eq!(holder.create(&["jobs:read"]).await.0, 201);
    assert_eq!(holder.create(&["keys:write", "jobs:read"]).await.0, 201);
}

#[tokio::test]
async fn a_revocation_holds_at_once_in_every_process() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let second = start_api(&app).await;
    let owner = Holder::of(&app);
    for _ in 0..3 {
        let (id, key) = app.key_with(&[Scope::JobsRead]).await;
        let here = owner.with(&key);
        let there = Holder::new(&second.url(), &key);
        // Both have verified it, and remember that.
        for _ in 0..2 {
            assert_eq!(here.status(Method::GET, "/v1/jobs").await, 200);
            assert_eq!(there.status(Method::GET, "/v1/jobs").await, 200);
        }
        assert_eq!(owner.status(Method::DELETE, &format!("/v1/api-keys/{id}")).await, 200);
        assert_eq!(there.status(Method::GET, "/v1/jobs").await, 401);
        assert_eq!(here.status(Method::GET, "/v1/jobs").await, 401);
    }
}

#[tokio::test]
async fn a_key_opens_its_own_account_only() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let (_, theirs) = app.open_account().await;
    let (ours, theirs) = (Holder::of(&app), Holder::of(&app).with(&theirs));
    let job = app.submit("ours").await;
    let (_, new) = ours.create(&["jobs:read"]).await;
    let key = format!("/v1/api-keys/{}", new["id"].as_str().unwrap());

    let jobs: Value = theirs.send(Method::GET, "/v1/jobs", None).await.json().await.unwrap();
    assert_eq!(jobs, json!({"data": [], "next_cursor": null}));
    let keys: Value = theirs.send(Method::GET, "/v1/api-keys", None).await.json().await.unwrap();
    assert_eq!(keys["data"].as_array().unwrap().len(), 1, "{keys}");
    for (method, path) in [
        (Method::GET, format!("/v1/jobs/{job}")),
        (Method::GET, format!("/v1/jobs/{job}/events")),
        (Method::POST, format!("/v1/jobs/{job}/cancel")),
        (Method::DELETE, key),
    ] {
        assert_eq!(theirs.status(method.clone(), &path).await, 404, "{method} {path}");
    }
    assert_eq!(
        ours.with(new["key"].as_str().unwrap()).status(Method::GET, &format!("/v1/jobs/{job}")).await,
        200
    );
}

/// Keys made and used in every way, right and wrong, with everything logged that can be.
#[tokio::test]
async fn no_key_is_found_in_the_database_or_in_a_log() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let log = NamedTempFile::new().unwrap();
    let environment = [
        ("DATABASE_URL".to_owned(), app.db.role_url(Role::Api)),
        ("LOG_LEVEL".to_owned(), "trace".to_owned()),
    ];
    let arguments = ["--json", "api", "--listen", "127.0.0.1:0"];
    let api = Process::start_logged(Path::new(BINARY), &arguments, &environment, Some(log.path())).await;
    let owner = Holder::new(&api.url(), &app.key);

    let (_, new) = owner.create(&["jobs:read"]).await;
    let made = new["key"].as_str().unwrap().to_owned();
    let strangers = ApiKey::from_entropy(&[9; 44]).expose().to_owned();
    let account = app.account.to_string();
    let create = ["--json", "key", "create", "--account", &account, "--scopes", "jobs:write"];
    let environment = [
        ("DATABASE_URL".to_owned(), app.db.role_url(Role::Operator)),
        ("LOG_LEVEL".to_owned(), "trace".into()),
    ];
    let (code, out, words) = Process::run(Path::new(BINARY), &create, &environment).await;
    assert_eq!((code, words.is_empty()), (0, false), "{words}");
    let shell = serde_json::from_str::<Value>(&out).unwrap()["key"].as_str().unwrap().to_owned();
    for key in [&made, &strangers, &shell] {
        let holder = owner.with(key);
        holder.send(Method::POST, "/v1/jobs/generations", Some(json!({"prompt": "hi"}))).await;
        holder.send(Method::GET, &format!("/v1/jobs?key={key}"), None).await;
        holder.http.get(format!("{}/v1/jobs", owner.url)).header("x-api-key", key).send().await.unwrap();
        let cut = holder.http.post(format!("{}/v1/jobs/generations", owner.url)).bearer_auth(key);
        cut.header(CONTENT_TYPE, "application/json").body("{").send().await.unwrap();
    }
    owner.send(Method::DELETE, &format!("/v1/api-keys/{}", new["id"].as_str().unwrap()), None).await;

    let hashes: Vec<String> =
        sqlx::query_scalar("SELECT secret_hash FROM app.api_keys").fetch_all(&app.owner).await.unwrap();
    assert_eq!(hashes.len(), 3);
    let keys = [&app.key, &made, &strangers, &shell];
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(
        log.contains("\"TRACE\"") && log.contains("answered"),
        "the log that is searched says too little"
    );
    for (place, text) in [("the API's log", log.as_str()), ("the command's stderr", words.as_str())] {
        for hidden in keys.iter().map(|key| secret(key)).chain(hashes.iter().map(String::as_str)) {
            assert!(!text.contains(hidden), "{place} holds {hidden}");
        }
    }

    assert!(hashes.iter().all(|hash| hash.starts_with("$argon2id$")), "{hashes:?}");
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&app.owner)
    .await
    .unwrap();
    assert!(tables.len() > 10, "{tables:?}");
    for table in tables {
        for key in keys {
            let sql = sqlx::AssertSqlSafe(format!(
                "SELECT count(*) FROM {table} t WHERE t::text LIKE '%' || $1 || '%'"
            ));
            let rows: i64 = sqlx::query_scalar(sql).bind(secret(key)).fetch_one(&app.owner).await.unwrap();
            assert_eq!(rows, 0, "{table} holds a key");
        }
    }
}
