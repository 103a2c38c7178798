//! The audit log: everything that is done to an account and by its keys, and nothing that could be taken back.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tollgate_model::key::Scope;
use tollgate_testkit::TestApp;

use crate::api_keys::Holder;
use crate::operators::{BINARY, Operator, command, tune};

/// The account's log, oldest first.
async fn log(holder: &Holder) -> Vec<Value> {
    let page: Value = holder.send(Method::GET, "/v1/audit-log?limit=100", None).await.json().await.unwrap();
    assert_eq!(page["next_cursor"], Value::Null);
    page["data"].as_array().unwrap().iter().rev().cloned().collect()
}

fn told(entry: &Value) -> (&str, &str, &str) {
    let text = |name: &str| entry[name].as_str().unwrap();
    (text("actor"), text("action"), text("object"))
}

#[tokio::test]
async fn who_did_what_is_kept() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let owner = Holder::of(&app);
    let account = app.account;
    let (first, _) = app.key_with(&[Scope::JobsRead]).await;
    let (_, new) = owner.create(&["jobs:read"]).await;
    let made = new["id"].as_str().unwrap();
    let rotate = format!("/v1/api-keys/{made}/rotate");
    let rotated: Value =
        owner.send(Method::POST, &rotate, Some(json!({"overlap_seconds": 60}))).await.json().await.unwrap();
    for _ in 0..2 {
        assert_eq!(owner.status(Method::DELETE, &format!("/v1/api-keys/{first}")).await, 200);
    }
    // What is refused leaves nothing.
    assert_eq!(owner.create(&[]).await.0, 400);
    assert_eq!(owner.status(Method::POST, &format!("/v1/api-keys/{first}/rotate")).await, 400);
    assert_eq!(
        command(&app, &format!("account grant --account {account} --credits 7 --reason gift")).await.0,
        0
    );
    assert_eq!(
        command(&app, &format!("account grant --account {account} --credits 0 --reason gift")).await.0,
        2
    );
    assert_eq!(command(&app, &format!("lane set --account {account} --weight 3")).await.0, 0);
    let lane = format!("/internal/lanes/{account}/generation.create");
    Operator::of(&app).put(&lane, &json!({"max_running": 2})).await;

    let entries = log(&owner).await;
    let key = app.number("SELECT count(*) FROM app.api_keys").await;
    assert_eq!(key, 4);
    let own: uuid::Uuid = sqlx::query_scalar("SELECT id FROM app.api_keys ORDER BY id LIMIT 1")
        .fetch_one(&app.owner)
        .await
        .unwrap();
    let tenant = format!("key:{own}");
    let ledger: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM app.credits_ledger ORDER BY id")
        .fetch_all(&app.owner)
        .await
        .unwrap();
    // The login, as the database knows it.
    let shell = "operator:shell:app_operator";
    let objects = [
        format!("account:{account}"),
        format!("entry:{}", ledger[0]),
        format!("key:{own}"),
        format!("key:{first}"),
        format!("key:{made}"),
        format!("entry:{}", ledger[1]),
    ];
    let [opened, opening, own, first, made, grant] = &objects;
    assert_eq!(
        entries.iter().map(told).collect::<Vec<_>>(),
        [
            (shell, "account.created", opened.as_str()),
            (shell, "credits.granted", opening),
            (shell, "key.created", own),
            (shell, "key.created", first),
            (&tenant, "key.created", made),
            (&tenant, "key.rotated", made),
            (&tenant, "key.revoked", first),
            (shell, "credits.granted", grant),
            (shell, "lane.set", "lane:generation.create"),
            ("operator:api", "lane.set", "lane:generation.create"),
        ]
    );
    assert_eq!(entries[5]["detail"]["new"], rotated["id"]);
    assert_eq!(entries[5]["detail"]["overlap_seconds"], json!(60));
    assert_eq!(entries[7]["detail"], json!({"credits": 7, "reason": "gift"}));
    assert_eq!(entries[9]["detail"], json!({"weight": 3, "max_running": 2}));
    let text = serde_json::to_string(&entries).unwrap();
    for key in [&app.key, new["key"].as_str().unwrap(), rotated["key"].as_str().unwrap()] {
        assert!(!text.contains(key.rsplit_once('_').unwrap().1), "a secret is in the log");
    }
    assert!(!text.contains("argon2"), "{text}");

    // Page by page, at the shell, and for nobody else.
    let (mut cursor, mut paged) = (String::new(), Vec::new());
    loop {
        let page = owner.send(Method::GET, &format!("/v1/audit-log?limit=3{cursor}"), None).await;
        let page: Value = page.json().await.unwrap();
        paged.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    paged.reverse();
    assert_eq!(paged, entries);
    let (code, listed, _) = command(&app, &format!("audit list --account {account} --limit 3")).await;
    let mut listed = listed["data"].as_array().unwrap().clone();
    listed.reverse();
    assert_eq!((code, listed.as_slice()), (0, &entries[7..]));
    let (_, others) = app.open_account().await;
    let others = log(&owner.with(&others)).await;
    assert_eq!(
        others.iter().map(|entry| &entry["action"]).collect::<Vec<_>>(),
        ["account.created", "credits.granted", "key.created"]
    );
    let (code, _, said) = command(&app, "audit list --account 01900000-0000-7000-8000-000000000000").await;
    assert!(code == 1 && said.contains("no such account"), "{said}");
}

#[tokio::test]
async fn what_operators_do_to_the_whole_is_kept_too() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let operator = Operator::of(&app);
    crate::operators::other_letters(&app, 3).await;
    assert_eq!(command(&app, "audit list").await.1, json!({"data": []}));
    operator.put("/internal/queues/generation.create", &json!({"max_running": 9})).await;
    operator.put("/internal/guard/text", &json!({"order": "pause", "for_ms": 1000})).await;
    assert_eq!(command(&app, "guard breaker off").await.0, 0);
    operator.post("/internal/dlq/purge", &json!({"queue": "billing.credit_grant"})).await;
    assert_eq!(command(&app, "dlq purge --queue billing.credit_grant").await.0, 0);
    let (code, redriven, said) = command(&app, "dlq redrive --queue webhook.delivery").await;
    assert_eq!((code, &redriven["redriven"]), (0, &json!(1)), "{said}");

    let (_, listed, _) = command(&app, "audit list").await;
    let entries: Vec<_> = listed["data"].as_array().unwrap().iter().rev().collect();
    let shell = "operator:shell:app_operator";
    assert_eq!(entries.len(), 5, "{listed}");
    assert_eq!(told(entries[0]), ("operator:api", "queue.set", "queue:generation.create"));
    assert_eq!(told(entries[1]), ("operator:api", "guard.ordered", "class:text"));
    assert_eq!(entries[1]["detail"], json!({"order": "pause", "for_ms": 1000}));
    assert_eq!(told(entries[2]), (shell, "breaker.switched", "breaker:*"));
    assert_eq!((told(entries[3]).0, told(entries[3]).1), ("operator:api", "dlq.purged"));
    assert_eq!(entries[3]["detail"], json!({"letters": 1}));
    assert_eq!((told(entries[4]).0, told(entries[4]).1), (shell, "dlq.redriven"));
    // Their own alone.
    assert_eq!(log(&Holder::of(&app)).await.len(), 3);
}

/// What PostgreSQL calls a lack of rights.
const REFUSED: &str = "42501";

#[tokio::test]
async fn no_role_changes_an_entry() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    assert_eq!(command(&app, "queue set generation.create --max-running 9").await.0, 0);
    let account = app.account;
    let count = "SELECT (SELECT count(*) FROM app.audit_log) + (SELECT count(*) FROM queue.audit_log)";
    let before = app.number(count).await;
    for role in ["app_api", "app_worker", "app_operator", "app_migrator"] {
        let mut conn = PgConnection::connect(&app.db.url_as(role)).await.unwrap();
        let set = format!("SET app.account_id = '{account}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut conn).await.unwrap();
        for table in ["app.audit_log", "queue.audit_log"] {
            for attempt in [
                format!("UPDATE {table} SET actor = 'nobody'"),
                format!("UPDATE {table} SET detail = detail"),
                format!("DELETE FROM {table}"),
                format!("TRUNCATE {table}"),
            ] {
                let error =
                    sqlx::raw_sql(AssertSqlSafe(attempt.clone())).execute(&mut conn).await.unwrap_err();
                let code = error.as_database_error().unwrap().code().unwrap().into_owned();
                assert_eq!(code, REFUSED, "{role}: {attempt}: {error}");
            }
        }
        // When it was, nobody says but the database.
        if role != "app_migrator" {
            let forged = format!(
                "INSERT INTO app.audit_log (account_id, id, at, actor, action, object, detail)
                 VALUES ('{account}', '{account}', 'epoch', 'a', 'a', 'o', '{{}}')"
            );
            let error = sqlx::raw_sql(AssertSqlSafe(forged)).execute(&mut conn).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().code().unwrap(), REFUSED, "{role}: {error}");
        }
    }
    assert_eq!(app.number(count).await, before);
}
