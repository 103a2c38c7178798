//! The life of a key beyond being made and revoked (SPEC K1): rotated, expired, last used; the same in every process.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tollgate_domain::{Role, ids};
use tollgate_model::key::Scope;
use tollgate_testkit::{Process, TestApp, Tune, eventually};

use crate::api_keys::Holder;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const PATIENCE: Duration = Duration::from_secs(30);

/// A Tollgate with two API processes.
struct Pair {
    app: TestApp,
    second: Process,
}

impl Pair {
    async fn start() -> Self {
        let app = TestApp::start(BINARY, Tune::default()).await;
        let second = app.start_api().await;
        Self { app, second }
    }

    /// What the key's holder is answered by each process.
    async fn statuses(&self, key: &str) -> [u16; 2] {
        let (here, there) = (Holder::of(&self.app).with(key), Holder::new(&self.second.url(), key));
        [here.status(Method::GET, "/v1/jobs").await, there.status(Method::GET, "/v1/jobs").await]
    }

    async fn both(&self, what: &str, key: &str, statuses: [u16; 2]) {
        eventually(what, PATIENCE, || async { (self.statuses(key).await == statuses).then_some(()) }).await;
    }

    async fn rotate(&self, by: &Holder, id: &str, body: Option<Value>) -> (u16, Value) {
        answer(by.send(Method::POST, &format!("/v1/api-keys/{id}/rotate"), body).await).await
    }

    /// A row of the list of keys.
    async fn listed(&self, id: &str) -> Value {
        let list = Holder::of(&self.app).send(Method::GET, "/v1/api-keys?limit=100", None).await;
        let list: Value = list.json().await.unwrap();
        let mut rows = list["data"].as_array().unwrap().iter();
        rows.find(|row| row["id"] == id).unwrap_or_else(|| panic!("{id} is not in {list}")).clone()
    }
}

async fn answer(reply: Response) -> (u16, Value) {
    (reply.status().as_u16(), reply.json().await.unwrap())
}

#[tokio::test]
async fn a_rotated_key_works_beside_the_new_one_until_it_is_deactivated() {
    let pair = Pair::start().await;
    let owner = Holder::of(&pair.app);
    let (id, old) = pair.app.key_with(&[Scope::JobsRead, Scope::KeysWrite]).await;
    assert_eq!(pair.statuses(&old).await, [200, 200]);

    // It rotates itself.
    let (status, new) = pair.rotate(&owner.with(&old), &id.to_string(), None).await;
    assert_eq!(status, 201, "{new}");
    let key = new["key"].as_str().unwrap();
    assert_eq!((&new["rotated_from"], &new["name"]), (&json!(id), &json!("test")));
    assert_eq!((&new["scopes"], &new["expires_at"]), (&json!(["jobs:read", "keys:write"]), &Value::Null));
    assert_ne!(new["id"], json!(id));
    assert_eq!((pair.statuses(&old).await, pair.statuses(key).await), ([200, 200], [200, 200]));
    assert_eq!(pair.listed(&id.to_string()).await["expires_at"], Value::Null);
    assert_eq!(owner.status(Method::DELETE, &format!("/v1/api-keys/{id}")).await, 200);
    assert_eq!((pair.statuses(&old).await, pair.statuses(key).await), ([401, 401], [200, 200]));

    // With no overlap, the old key ends in the commit that makes the new one.
    let second_id = new["id"].as_str().unwrap();
    let (status, third) = pair.rotate(&owner.with(key), second_id, Some(json!({"overlap_seconds": 0}))).await;
    assert_eq!(status, 201, "{third}");
    let third_key = third["key"].as_str().unwrap();
    assert_eq!((pair.statuses(key).await, pair.statuses(third_key).await), ([401, 401], [200, 200]));

    // With a short one, a little later; nobody has to do anything.
    let third_id = third["id"].as_str().unwrap();
    let body = Some(json!({"overlap_seconds": 1, "expires_at": "2999-01-01T00:00:00Z"}));
    let (status, fourth) = pair.rotate(&owner, third_id, body).await;
    assert_eq!((status, &fourth["expires_at"]), (201, &json!("2999-01-01T00:00:00Z")));
    pair.both("the old key has ended", third_key, [401, 401]).await;
    assert_eq!(pair.statuses(fourth["key"].as_str().unwrap()).await, [200, 200]);
}

#[tokio::test]
async fn an_overlap_shortens_a_life_and_never_lengthens_it() {
    let pair = Pair::start().await;
    let owner = Holder::of(&pair.app);
    for (before, overlap, after) in [("NULL", 3600, 3600), ("now() + interval '60 s'", 3600, 60)] {
        let (id, key) = pair.app.key_with(&[Scope::JobsRead]).await;
        pair.app.change(&format!("UPDATE app.api_keys SET expires_at = {before} WHERE id = '{id}'")).await;
        let body = Some(json!({"overlap_seconds": overlap}));
        assert_eq!(pair.rotate(&owner, &id.to_string(), body).await.0, 201);
        let left = format!(
            "SELECT ceil(extract(epoch FROM expires_at - now()))::bigint FROM app.api_keys WHERE id = '{id}'"
        );
        let left = pair.app.number(&left).await;
        assert!((after - 30..=after).contains(&left), "{left} s are left of {after}");
        assert_eq!(pair.statuses(&key).await, [200, 200]);
        // Its time comes.
        pair.app.change(&format!("UPDATE app.api_keys SET expires_at = now() WHERE id = '{id}'")).await;
        assert_eq!(pair.statuses(&key).await, [401, 401]);
    }
}

#[tokio::test]
async fn a_rotation_widens_nothing_and_wakes_nobody() {
    let pair = Pair::start().await;
    let owner = Holder::of(&pair.app);
    let (_, narrow) = pair.app.key_with(&[Scope::KeysWrite, Scope::JobsRead]).await;
    let (wide, _) = pair.app.key_with(&[Scope::JobsRead, Scope::JobsWrite]).await;
    let (revoked, _) = pair.app.key_with(&[Scope::JobsRead]).await;
    let (expired, _) = pair.app.key_with(&[Scope::JobsRead]).await;
    assert_eq!(owner.status(Method::DELETE, &format!("/v1/api-keys/{revoked}")).await, 200);
    pair.app.change(&format!("UPDATE app.api_keys SET expires_at = now() WHERE id = '{expired}'")).await;
    let (_, others) = pair.app.open_account().await;
    let (nobody, count) = (ids::new_id(), "SELECT count(*) FROM app.api_keys");
    let before = pair.app.number(count).await;
    let (narrow, stranger) = (owner.with(&narrow), owner.with(&others));
    for (by, id, body, status, code, said) in [
        (&narrow, wide, None, 403, "forbidden_scope", "`jobs:write`"),
        (&owner, revoked, None, 400, "invalid_request", "create a new one"),
        (&owner, expired, Some(json!({})), 400, "invalid_request", "create a new one"),
        (&owner, nobody, None, 404, "not_found", "no such API key"),
        (&stranger, wide, None, 404, "not_found", "no such API key"),
        (&owner, wide, Some(json!({"overlap_seconds": 2_592_001})), 400, "invalid_request", "30 days"),
        (&owner, wide, Some(json!({"overlap_seconds": -1})), 400, "invalid_request", "`overlap_seconds`"),
        (&owner, wide, Some(json!({"scopes": ["keys:write"]})), 400, "invalid_request", "`scopes`"),
        (
            &owner,
            wide,
            Some(json!({"expires_at": "2001-01-01T00:00:00Z"})),
            400,
            "invalid_request",
            "`expires_at`",
        ),
    ] {
        let (was, problem) = pair.rotate(by, &id.to_string(), body).await;
        assert_eq!((was, &problem["code"]), (status, &json!(code)), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{said}: {problem}");
    }
    assert_eq!(pair.app.number(count).await, before, "a refused rotation made a key");
    assert_eq!(pair.listed(&wide.to_string()).await["expires_at"], Value::Null);
}

#[tokio::test]
async fn a_key_ends_by_itself_in_every_process() {
    let pair = Pair::start().await;
    let owner = Holder::of(&pair.app);
    // By the database's clock, a second or two from now.
    let soon: String = sqlx::query_scalar(
        "SELECT to_char((now() + interval '2 s') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
    )
    .fetch_one(&pair.app.owner)
    .await
    .unwrap();
    let body = |expires: &str| Some(json!({"scopes": ["jobs:read"], "expires_at": expires}));
    let (status, new) = answer(owner.send(Method::POST, "/v1/api-keys", body(&soon)).await).await;
    assert_eq!(status, 201, "{new}");
    let listed = pair.listed(new["id"].as_str().unwrap()).await;
    assert_eq!((listed["expires_at"].is_string(), &listed["revoked_at"]), (true, &Value::Null));
    pair.both("the key has expired", new["key"].as_str().unwrap(), [401, 401]).await;

    for wrong in ["2001-01-01T00:00:00Z", "+262142-01-01T00:00:00Z", "tomorrow"] {
        let (status, problem) = answer(owner.send(Method::POST, "/v1/api-keys", body(wrong)).await).await;
        assert_eq!(status, 400, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("`expires_at`"), "{problem}");
    }
    // Nobody lifts his own limit.
    let raised = json!({"scopes": ["jobs:read"], "rate_limit": "1000000,1s"});
    let (status, problem) = answer(owner.send(Method::POST, "/v1/api-keys", Some(raised)).await).await;
    assert_eq!(
        (status, problem["detail"].as_str().unwrap().contains("`rate_limit`")),
        (400, true),
        "{problem}"
    );
}

#[tokio::test]
async fn a_key_hands_on_no_more_life_than_it_has() {
    let pair = Pair::start().await;
    let owner = Holder::of(&pair.app);
    let (id, key) = pair.app.key_with(&[Scope::JobsRead, Scope::KeysWrite]).await;
    let (other, _) = pair.app.key_with(&[Scope::JobsRead]).await;
    let brief = owner.with(&key);
    let end = "2999-06-01T12:00:00Z";
    pair.app.change(&format!("UPDATE app.api_keys SET expires_at = '{end}' WHERE id = '{id}'")).await;
    let create = "/v1/api-keys".to_owned();
    let ways = [create, format!("/v1/api-keys/{other}/rotate"), format!("/v1/api-keys/{id}/rotate")];
    let ask = async |by: &Holder, path: &str, expires: Option<&str>| {
        let mut body = if path.ends_with("rotate") { json!({}) } else { json!({"scopes": ["jobs:read"]}) };
        if let Some(expires) = expires {
            body["expires_at"] = expires.into();
        }
        answer(by.send(Method::POST, path, Some(body)).await).await
    };
    let count = "SELECT count(*) FROM app.api_keys";
    for path in &ways {
        let before = pair.app.number(count).await;
        for later in ["2999-06-01T12:00:00.000001Z", "9999-01-01T00:00:00Z"] {
            let (status, problem) = ask(&brief, path, Some(later)).await;
            assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{path}: {problem}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("`expires_at` must be 2999-06-01T12:00:00Z at the latest"), "{detail}");
        }
        assert_eq!(pair.app.number(count).await, before, "{path}: a refusal made a key");
        let earlier = "2998-01-01T00:00:00Z";
        for (asked, given) in [(None, end), (Some(end), end), (Some(earlier), earlier)] {
            let (status, new) = ask(&brief, path, asked).await;
            assert_eq!((status, &new["expires_at"]), (201, &json!(given)), "{path}: {new}");
        }
        // Who has no end of his own is bound by none.
        for (asked, given) in
            [(None, Value::Null), (Some("2999-07-01T00:00:00Z"), json!("2999-07-01T00:00:00Z"))]
        {
            let (status, new) = ask(&owner, path, asked).await;
            assert_eq!((status, &new["expires_at"]), (201, &given), "{path}: {new}");
        }
    }
}

#[tokio::test]
async fn a_process_that_serves_only_submissions_sees_what_becomes_of_the_key() {
    let pair = Pair::start().await;
    let (id, key) = pair.app.key_with(&[Scope::JobsRead]).await;
    let there = Holder::new(&pair.second.url(), &key);
    let submit = || there.send(Method::POST, "/v1/jobs/generations", Some(json!({"prompt": "hello"})));
    assert_eq!(submit().await.status(), 403);
    pair.app.change(&format!("UPDATE app.api_keys SET scopes = '{{jobs:write}}' WHERE id = '{id}'")).await;
    eventually("the new scope", PATIENCE, || async { (submit().await.status() == 202).then_some(()) }).await;
    for limit in ["700,2h", "900,3h"] {
        let (requests, _) = limit.split_once(',').unwrap();
        pair.app.change(&format!("UPDATE app.api_keys SET rate_limit = '{limit}' WHERE id = '{id}'")).await;
        eventually(limit, PATIENCE, || async {
            let reply = submit().await;
            assert_eq!(reply.status(), 202);
            (reply.headers()["ratelimit-limit"] == requests).then_some(())
        })
        .await;
    }
    // An end is seen at once: the submission itself looks at it.
    pair.app.change(&format!("UPDATE app.api_keys SET expires_at = now() WHERE id = '{id}'")).await;
    assert_eq!(submit().await.status(), 401);
}

#[tokio::test]
async fn operators_give_keys_a_term_and_a_limit_and_rotate_them() {
    let pair = Pair::start().await;
    let app = &pair.app;
    let account = app.account.to_string();
    let made = async |arguments: &[&str]| {
        let (code, out, err) =
            app.command(&[&["--json", "key"], arguments, &["--account", &account]].concat()).await;
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
        let new: Value = serde_json::from_str(&out).unwrap();
        (new["key_id"].as_str().unwrap().to_owned(), new["key"].as_str().unwrap().to_owned())
    };
    let create =
        ["create", "--scopes", "jobs:read", "--name", "ci", "--expires-in", "90d", "--rate-limit", "600,1m"];
    let (id, key) = made(&create).await;
    let row = pair.listed(&id).await;
    assert_eq!((&row["rate_limit"], row["expires_at"].is_string()), (&json!("600,1m"), true));
    let days = format!(
        "SELECT extract(day FROM expires_at - created_at)::bigint FROM app.api_keys WHERE id = '{id}'"
    );
    assert_eq!(app.number(&days).await, 90);

    let (new_id, new_key) = made(&["rotate", "--key", &id, "--overlap", "24h"]).await;
    let row = pair.listed(&new_id).await;
    assert_eq!((&row["rate_limit"], &row["rotated_from"]), (&json!("600,1m"), &json!(id)));
    assert_eq!((&row["expires_at"], &row["name"]), (&Value::Null, &json!("ci")));
    assert_eq!((pair.statuses(&key).await, pair.statuses(&new_key).await), ([200, 200], [200, 200]));
    let hours = format!(
        "SELECT round(extract(epoch FROM expires_at - now()) / 3600)::bigint FROM app.api_keys WHERE id = '{id}'"
    );
    assert_eq!(app.number(&hours).await, 24);
    let (code, list, _) = app.command(&["key", "list", "--account", &account]).await;
    assert!(code == 0 && list.contains("limit 600,1m  ") && list.contains("until 2"), "{list}");

    made(&["rotate", "--key", &new_id, "--overlap", "0s"]).await;
    assert_eq!((pair.statuses(&key).await, pair.statuses(&new_key).await), ([200, 200], [401, 401]));
    for (code, key, overlap, said) in [
        (1, new_id.as_str(), "1h", "create a new one"),
        (1, account.as_str(), "1h", "no such key"),
        (2, id.as_str(), "31d", "30 days"),
    ] {
        let line = ["key", "rotate", "--account", &account, "--key", key, "--overlap", overlap];
        let (was, out, err) = app.command(&line).await;
        assert_eq!((was, out.as_str()), (code, ""), "{err}");
        assert!(err.contains(said), "{said}: {err}");
    }
}

#[tokio::test]
async fn when_a_key_was_last_used_is_written_down_in_batches() {
    let pair = Pair::start().await;
    let Pair { app, second } = &pair;
    let (id, key) = app.key_with(&[Scope::JobsRead]).await;
    let id = id.to_string();
    let last = "SELECT extract(epoch FROM last_used_at)::bigint FROM app.api_keys WHERE last_used_at IS NOT NULL AND id = ";
    let last = async || {
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!("{last}'{id}'")))
            .fetch_optional(&app.owner)
            .await
            .unwrap()
    };
    assert_eq!((last().await, pair.listed(&id).await["last_used_at"].is_null()), (None, true));

    // Without being asked to.
    assert_eq!(Holder::new(&second.url(), &key).status(Method::GET, "/v1/jobs").await, 200);
    eventually("the use is written down", PATIENCE, last).await;
    assert!(pair.listed(&id).await["last_used_at"].is_string());

    // At the latest when the process ends; and a later use is not overwritten by an earlier one.
    app.change(&format!("UPDATE app.api_keys SET last_used_at = NULL WHERE id = '{id}'")).await;
    for later in [false, true] {
        if later {
            app.change(&format!(
                "UPDATE app.api_keys SET last_used_at = to_timestamp(10000000000) WHERE id = '{id}'"
            ))
            .await;
        }
        let third = app.start_api().await;
        assert_eq!(Holder::new(&third.url(), &key).status(Method::GET, "/v1/jobs").await, 200);
        assert_eq!(third.terminate().await, 0);
        let last = last().await.unwrap();
        assert_eq!(last == 10_000_000_000, later, "{last}");
    }
}

#[tokio::test]
async fn keys_are_hashed_as_configured_and_those_of_before_go_on_working() {
    let pair = Pair::start().await;
    let mut settings = vec![
        ("DATABASE_URL".to_owned(), pair.app.db.role_url(Role::Api)),
        ("LOG_LEVEL".to_owned(), "warn".into()),
    ];
    settings.push(("API_KEY_HASH_ALGO".to_owned(), "argon2id:m=64,t=1,p=1".to_owned()));
    let arguments = ["--json", "api", "--listen", "127.0.0.1:0"];
    let third = Process::start(Path::new(BINARY), &arguments, &settings).await;
    // Made before, with the usual parameters.
    let owner = Holder::new(&third.url(), &pair.app.key);
    let (status, new) = owner.create(&["jobs:read"]).await;
    assert_eq!(status, 201);
    let key = new["key"].as_str().unwrap();
    assert_eq!(pair.statuses(key).await, [200, 200]);
    let sql = "SELECT count(*) FROM app.api_keys WHERE secret_hash LIKE '$argon2id$v=19$m=64,t=1,p=1$%'";
    assert_eq!(pair.app.number(sql).await, 1);

    settings.pop();
    settings.push(("API_KEY_HASH_ALGO".to_owned(), "bcrypt".to_owned()));
    let (code, _, said) = Process::run(Path::new(BINARY), &arguments, &settings).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("`bcrypt` is no way to hash keys"), "{said}");
}
