//! What only operators may do at the API, and what they set: caps that hold at once and exactly, shares that take effect.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tollgate_domain::Role;
use tollgate_model::account::AccountId;
use tollgate_model::job::JobStatus;
use tollgate_model::submission::Submission;
use tollgate_sim::Behaviour;
use tollgate_testkit::{Process, TestApp, TestDb, Tune, eventually};
use uuid::Uuid;

use crate::operators::{BINARY, NO_POLLING, Operator, STRIPE, TOKEN, command, tune};
use crate::watched::{invalid, refused};

const QUEUE: &str = "/internal/queues/generation.create";
const REDRIVE: &str = "/internal/dlq/redrive";

/// Every operation under `/internal` that the document knows.
async fn operations(operator: &Operator) -> Vec<(Method, String)> {
    let document = operator.get("/openapi.json").await;
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/internal/") || path == STRIPE {
            continue;
        }
        let id = Uuid::from_u128(1).to_string();
        let path = path
            .replace("{id}", &id)
            .replace("{account_id}", &id)
            .replace("{queue}", "generation.create")
            .replace("{class}", "text");
        assert!(!path.contains('{'), "{path}");
        operations.extend(
            item.as_object()
                .unwrap()
                .keys()
                .map(|method| (method.to_uppercase().parse().unwrap(), path.clone())),
        );
    }
    assert!(operations.len() >= 8, "{operations:?}");
    operations
}

#[tokio::test]
async fn nobody_gets_in_but_by_the_token() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let operator = Operator::of(&app);
    for (method, path) in operations(&operator).await {
        let what = format!("{method} {path}");
        let (longer, other) = (format!("{TOKEN}x"), TOKEN.to_uppercase());
        for token in ["", "wrong", &other, &TOKEN[1..], &TOKEN[..TOKEN.len() - 1], &longer, &app.key] {
            let reply = operator.with(token).send(method.clone(), &path, None).await;
            assert_eq!(reply.headers()["www-authenticate"], "Bearer realm=\"tollgate\"", "{what}");
            let detail = refused(&what, reply, 401, "unauthorized").await;
            assert!(!detail.contains(TOKEN), "{detail}");
        }
        let reply = operator.send(method, &path, None).await;
        assert_eq!(reply.headers()["cache-control"], "no-store", "{what}");
        assert!([200, 400, 404].contains(&reply.status().as_u16()), "{what}: {}", reply.status());
    }
    // The token is no tenant's key either.
    assert_eq!(operator.send(Method::GET, "/v1/jobs", None).await.status(), 401);
}

#[tokio::test]
async fn without_a_token_the_operator_api_is_off() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let operator = Operator::of(&app);
    for (method, path) in operations(&operator).await {
        for token in ["", TOKEN, &app.key] {
            let reply = operator.with(token).send(method.clone(), &path, None).await;
            let detail = refused(&format!("{method} {path}"), reply, 401, "unauthorized").await;
            assert!(detail.contains("off") && detail.contains("TOLLGATE_ADMIN_TOKEN is not set"), "{detail}");
        }
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = 'tollgate app_operator'";
    assert_eq!(app.number(sessions).await, 0, "the API has connections that nobody may use");
}

#[tokio::test]
async fn a_login_that_is_not_the_operators_is_refused_at_start() {
    let db = TestDb::new().await;
    let start = async |api: String, operator: Option<String>, token: &str| {
        let mut settings =
            vec![("DATABASE_URL".to_owned(), api), ("TOLLGATE_ADMIN_TOKEN".to_owned(), token.to_owned())];
        settings.extend(operator.map(|url| ("OPERATOR_DATABASE_URL".to_owned(), url)));
        Process::run(Path::new(BINARY), &["api", "--listen", "127.0.0.1:0"], &settings).await
    };
    let api = db.role_url(Role::Api);
    for (operator, words) in [
        (None, &["TOLLGATE_ADMIN_TOKEN", "OPERATOR_DATABASE_URL", "as app_operator"][..]),
        (Some(db.role_url(Role::Worker)), &["OPERATOR_DATABASE_URL", "as app_operator"]),
        (Some(db.owner_url()), &["OPERATOR_DATABASE_URL", "is a superuser", "`app_operator`"]),
        (Some(db.url_as("app_migrator")), &["OPERATOR_DATABASE_URL", "as app_operator"]),
    ] {
        let (code, out, said) = start(api.clone(), operator, TOKEN).await;
        assert_eq!((code, out.as_str()), (1, ""), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!said.contains("only-for-tests") && !said.contains(TOKEN), "{said}");
    }
    let (code, _, said) = start(api.clone(), Some(db.role_url(Role::Operator)), "fifteen-letters").await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("at least 16 characters") && !said.contains("fifteen-letters"), "{said}");

    // One login that is a member of both will do for both.
    let member = "CREATE ROLE api_and_operator LOGIN PASSWORD 'only-for-tests' NOINHERIT IN ROLE app_api, app_operator";
    sqlx::raw_sql(member).execute(&db.owner().await).await.unwrap();
    let settings = [
        ("DATABASE_URL".to_owned(), db.url_as("api_and_operator")),
        ("TOLLGATE_ADMIN_TOKEN".to_owned(), TOKEN.to_owned()),
    ];
    let api =
        Process::start(Path::new(BINARY), &["--json", "api", "--listen", "127.0.0.1:0"], &settings).await;
    assert_eq!(api.terminate().await, 0);
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_in_words() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let operator = Operator::of(&app);
    for (query, says) in [
        ("queue=nonsense", "queue: no such queue; known are generation.create"),
        ("account=me", "account"),
        ("since=yesterday", "since"),
        ("before=2026-13-01T00:00:00Z", "before"),
        ("since=-262143-01-01T00:00:00Z", "`since` must be a time of the years 1 to 9999"),
        ("before=%2B262142-12-31T23:59:59Z", "`until` must be a time"),
        ("code=a%00b", "`code` is not the code of a reason"),
        ("limit=0", "limit: must be a whole number from 1 to 100"),
        ("cursor=e30", "cursor"),
        ("colour=red", "unknown field `colour`"),
    ] {
        let reply = operator.send(Method::GET, &format!("/internal/dlq?{query}"), None).await;
        invalid(query, reply, says).await;
    }
    let far = tollgate_model::cursor::encode(
        "dlq",
        &json!({ "died_at": "-262143-01-01T00:00:00Z", "id": Uuid::nil() }),
    );
    let reply = operator.send(Method::GET, &format!("/internal/dlq?cursor={far}"), None).await;
    invalid("a made-up cursor", reply, "`cursor` is not one that was given out").await;
    let foreign = tollgate_model::cursor::encode("jobs", &Uuid::nil());
    let reply = operator.send(Method::GET, &format!("/internal/dlq?cursor={foreign}"), None).await;
    invalid("another list's cursor", reply, "does not belong to this list").await;

    let id = Uuid::from_u128(1);
    for path in [REDRIVE, "/internal/dlq/purge"] {
        for (body, says) in [
            (json!({}), "`all` must be true"),
            (json!({ "all": false }), "`all` must be true"),
            (json!({ "dry_run": true }), "`all` must be true"),
            (json!({ "all": true, "queue": "generation.create" }), "`all` does not go with a filter"),
            (json!({ "all": true, "ids": [id] }), "`ids` goes with neither a filter nor `all`"),
            (json!({ "code": "X", "ids": [id] }), "`ids` goes with neither"),
            (json!({ "ids": [] }), "`ids` must name at least one"),
            (json!({ "ids": ["x"] }), "`ids[0]`"),
            (json!({ "ids": [id], "limit": 5 }), "unknown field `limit`"),
            (json!({ "queue": "generation" }), "no such queue"),
            (json!({ "account": app.account }), "unknown field `account`"),
            (json!({ "since": "2026" }), "`since`"),
            (json!({ "until": "-262143-01-01T00:00:00Z" }), "`until` must be a time of the years"),
        ] {
            let reply = operator.send(Method::POST, path, Some(&body)).await;
            invalid(&format!("{path} {body}"), reply, says).await;
        }
        let reply = operator.send(Method::POST, path, Some(&json!({ "ids": [id] }))).await;
        assert_eq!(refused(path, reply, 404, "not_found").await, "no such dead letter");
        let reply = operator.send(Method::POST, path, Some(&json!({ "ids": [id], "dry_run": true }))).await;
        assert_eq!(refused(path, reply, 404, "not_found").await, "no such dead letter");
    }

    let lane = format!("/internal/lanes/{}/generation.create", app.account);
    for (path, body, says) in [
        (QUEUE, json!({}), "missing field `max_running`"),
        (QUEUE, json!({ "max_running": -1 }), "`max_running` must not be negative"),
        (QUEUE, json!({ "max_running": "many" }), "`max_running`"),
        (QUEUE, json!({ "max_running": 1.5 }), "`max_running`"),
        (QUEUE, json!({ "max_running": 1, "weight": 1 }), "unknown field `weight`"),
        (&lane, json!({}), "there is nothing to set"),
        (&lane, json!({ "weight": 0 }), "`weight` must be between 1 and 1000"),
        (&lane, json!({ "weight": 1001 }), "`weight` must be between 1 and 1000"),
        (&lane, json!({ "weight": 2, "max_running": -1 }), "`max_running` must not be negative"),
    ] {
        let reply = operator.send(Method::PUT, path, Some(&body)).await;
        invalid(&format!("{path} {body}"), reply, says).await;
    }
    let nobody = Uuid::from_u128(1);
    for path in [
        "/internal/dlq/1".to_owned(),
        format!("/internal/dlq/{nobody}"),
        format!("/internal/lanes/{nobody}/generation.create"),
        format!("/internal/lanes/{}/nonsense", app.account),
        "/internal/lanes/me/generation.create".to_owned(),
    ] {
        refused(&path, operator.send(Method::GET, &path, None).await, 404, "not_found").await;
    }
    let body = json!({ "max_running": 1 });
    for path in
        ["/internal/queues/nonsense".to_owned(), format!("/internal/lanes/{nobody}/generation.create")]
    {
        refused(&path, operator.send(Method::PUT, &path, Some(&body)).await, 404, "not_found").await;
    }
    assert_eq!(app.number("SELECT count(*) FROM queue.lanes").await, 0, "a refused request set something");
}

#[tokio::test]
async fn commands_say_what_they_need_and_what_they_did() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let account = app.account.to_string();
    for (line, code, says) in [
        ("dlq redrive", 2, "say --all"),
        ("dlq purge", 2, "--dry-run counts them first"),
        ("dlq purge --dry-run", 2, "--all"),
        ("dlq redrive --all --queue generation.create", 2, "`all` does not go with a filter"),
        ("dlq redrive 00000000-0000-0000-0000-000000000001 --code X", 2, "`ids` goes with neither"),
        ("dlq redrive 1", 2, "'1'"),
        (
            "dlq list --queue nonsense",
            2,
            "known are generation.create, generation.create.image, generation.probe",
        ),
        ("dlq list --since yesterday", 2, "must be a time such as 2030-01-01T00:00:00Z"),
        ("dlq list --limit 101", 2, "1..=100"),
        ("dlq list --cursor x", 2, "--cursor: this cursor does not belong"),
        ("dlq show 00000000-0000-0000-0000-000000000001", 1, "`tollgate dlq list`"),
        ("queue set nonsense --max-running 1", 2, "no such queue"),
        ("queue set generation.create", 2, "--max-running"),
        ("queue set generation.create --max-running -1", 2, "0 or more, or `none`"),
        ("queue set generation.create --max-running all", 2, "0 or more, or `none`"),
        ("lane set --account ACCOUNT", 2, "give --weight, --max-running or both"),
        ("lane set --account ACCOUNT --weight 0", 2, "1..=1000"),
        ("lane set --weight 2", 2, "--account"),
        (
            "lane set --account 00000000-0000-0000-0000-000000000001 --weight 2",
            1,
            "no such account; `tollgate account list`",
        ),
        ("lane show --account 00000000-0000-0000-0000-000000000001", 1, "no such account"),
    ] {
        let line = line.replace("ACCOUNT", &account);
        let (was, out, said) = app.command(&line.split_whitespace().collect::<Vec<_>>()).await;
        assert_eq!((was, out.as_str()), (code, ""), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
    }

    let lane = |weight: u16, max_running: Option<i32>| {
        let queue = "generation.create";
        json!({ "account_id": account, "queue": queue, "weight": weight, "max_running": max_running })
    };
    let operator = Operator::of(&app);
    let path = format!("/internal/lanes/{account}/generation.create");
    for (line, expected) in [
        ("lane show", lane(1, None)),
        ("lane set --weight 3", lane(3, None)),
        ("lane set --max-running 7", lane(3, Some(7))),
        ("lane set --weight 2 --max-running none", lane(2, None)),
        ("lane set --queue generation.create --max-running 0", lane(2, Some(0))),
        ("lane show", lane(2, Some(0))),
    ] {
        let (code, set, said) = command(&app, &format!("{line} --account {account}")).await;
        assert_eq!((code, &set, said.as_str()), (0, &expected, ""), "{line}");
        let shown = operator.get(&path).await;
        assert_eq!(shown, json!({ "weight": set["weight"], "max_running": set["max_running"] }), "{line}");
    }
    assert_eq!(operator.put(&path, &json!({ "weight": 9 })).await, json!({ "weight": 9, "max_running": 0 }));
    assert_eq!(
        operator.put(&path, &json!({ "max_running": null })).await,
        json!({ "weight": 9, "max_running": null })
    );

    let (_, set, _) = command(&app, "queue set webhook.delivery --max-running 4").await;
    assert_eq!(set, json!({ "queue": "webhook.delivery", "max_running": 4 }));
    assert_eq!(operator.put(QUEUE, &json!({ "max_running": 8 })).await, json!({ "max_running": 8 }));
    app.submit("waits").await;
    let (_, list, _) = command(&app, "queue list").await;
    let state = |queue: &str, queued: i64, max_running: Option<i32>| {
        let mut state = json!({ "queue": queue, "queued": queued, "max_running": max_running });
        for count in ["running", "done", "failed"] {
            state[count] = json!(0);
        }
        state
    };
    let expected = json!([
        state("billing.credit_grant", 0, None),
        state("generation.create", 1, Some(8)),
        state("generation.create.image", 0, None),
        state("generation.probe", 0, None),
        state("webhook.delivery", 0, Some(4)),
    ]);
    assert_eq!(list, json!({ "data": expected }));
    assert_eq!(operator.get("/internal/queues").await, json!({ "data": expected, "next_cursor": null }));
    let (_, out, _) = app.command(&["queue", "list"]).await;
    assert!(
        out.contains("generation.create        1 queued, 0 running, 0 done, 0 failed; at most 8 at a time"),
        "{out}"
    );
    let (_, out, _) = app.command(&["dlq", "list"]).await;
    assert_eq!(out, "no dead letters\n");
}

/// Every job takes this long.
fn slow(ms: u32) -> Behaviour {
    Behaviour { latency_median_ms: ms, ..Behaviour::default() }
}

async fn submit_many(app: &TestApp, key: &str, jobs: usize) -> Vec<Uuid> {
    let client = app.client_with(key);
    let submission = Submission { prompt: Some("one of many".to_owned()), ..Submission::default() };
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(client.submit(&submission).await.unwrap());
    }
    ids
}

/// Tasks that run, of an account or of all.
async fn running(app: &TestApp, account: Option<AccountId>) -> i64 {
    let of = account.map_or(String::new(), |account| format!(" AND account_id = '{account}'"));
    app.number(&format!("SELECT count(*) FROM queue.tasks WHERE state = 'running'{of}")).await
}

/// From now on never more than `cap` run, but for those that ran already, which only become fewer. Looks until `enough`
/// says so, having seen `cap` at once.
async fn holds(app: &TestApp, account: Option<AccountId>, cap: i64, looks: usize) {
    let mut most = i64::MAX;
    let mut reached = false;
    for _ in 0..looks {
        let now = running(app, account).await;
        assert!(now <= most.max(cap), "{now} run at once, of {cap} that may; before it were {most}");
        most = now.max(cap);
        reached |= now == cap;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        reached && most == cap,
        "{cap} may run at once, but it never were as many, or still are more: {most}"
    );
}

#[tokio::test]
async fn a_cap_of_a_queue_holds_at_once_for_workers_that_run_and_wakes_them_when_it_is_raised() {
    let settings = [NO_POLLING, ("Q_GEN_CREATE_CONCURRENCY", "8")];
    let app = TestApp::start(BINARY, tune(0, &settings).provider(slow(100))).await;
    let operator = Operator::of(&app);
    let jobs = submit_many(&app, &app.key, 260).await;
    let _workers = [app.start_worker().await, app.start_worker().await];
    eventually("all slots are taken", Duration::from_secs(20), || async {
        (running(&app, None).await == 16).then_some(())
    })
    .await;
    operator.put(QUEUE, &json!({ "max_running": 3 })).await;
    holds(&app, None, 3, 60).await;
    app.assert_consistent().await;
    operator.put(QUEUE, &json!({ "max_running": 6 })).await;
    holds(&app, None, 6, 60).await;
    command(&app, "queue set generation.create --max-running 0").await;
    eventually("what ran has ended", Duration::from_secs(20), || async {
        (running(&app, None).await == 0).then_some(())
    })
    .await;
    let started = "SELECT count(*) FROM app.job_events WHERE type = 'job.started'";
    let before = app.number(started).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(app.number(started).await, before, "a task began although none may");
    app.assert_consistent().await;
    // Both workers are idle now, and would not look for a minute.
    command(&app, "queue set generation.create --max-running none").await;
    eventually("all slots are taken again", Duration::from_secs(20), || async {
        (running(&app, None).await == 16).then_some(())
    })
    .await;
    for id in jobs {
        assert_eq!(app.ended(id).await.status, JobStatus::Succeeded);
    }
    assert!(app.provider.stats().max_in_flight <= 16);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_cap_of_a_lane_holds_its_own_account_back_and_no_other() {
    let settings = [NO_POLLING, ("Q_GEN_CREATE_CONCURRENCY", "4")];
    let app = TestApp::start(BINARY, tune(0, &settings).provider(slow(100))).await;
    let operator = Operator::of(&app);
    let (other, key) = app.open_account().await;
    let lane = format!("/internal/lanes/{}/generation.create", app.account);
    operator.put(&lane, &json!({ "max_running": 2 })).await;
    let capped = submit_many(&app, &app.key, 60).await;
    let free = submit_many(&app, &key, 150).await;
    let _workers = [app.start_worker().await, app.start_worker().await];
    holds(&app, Some(app.account), 2, 60).await;
    eventually("the other has the rest", Duration::from_secs(20), || async {
        (running(&app, Some(other)).await == 6).then_some(())
    })
    .await;
    app.assert_consistent().await;
    operator.put(&lane, &json!({ "max_running": 1 })).await;
    holds(&app, Some(app.account), 1, 60).await;
    // Nothing else is waited for: it is the cap that keeps these.
    for id in free {
        let client = app.client_with(&key);
        eventually("the other's jobs are done", Duration::from_mins(1), || async {
            client.job(id).await.ok().filter(|job| job.status == JobStatus::Succeeded)
        })
        .await;
    }
    operator.put(&lane, &json!({ "max_running": null })).await;
    eventually("it has all slots", Duration::from_secs(20), || async {
        (running(&app, Some(app.account)).await == 8).then_some(())
    })
    .await;
    for id in capped {
        assert_eq!(app.ended(id).await.status, JobStatus::Succeeded);
    }
    app.assert_consistent().await;
}

/// How many of the first `first` starts since event-time `since` were this account's.
async fn starts(app: &TestApp, account: AccountId, after: i64, first: i64) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM (SELECT account_id FROM app.job_events WHERE type = 'job.started'
                               ORDER BY created_at, seq OFFSET {after} LIMIT {first}) e
         WHERE account_id = '{account}'"
    );
    app.number(&sql).await
}

#[tokio::test]
async fn weights_share_the_slots_out_and_a_change_takes_effect_while_jobs_run() {
    let app = TestApp::start(BINARY, tune(0, &[("Q_GEN_CREATE_CONCURRENCY", "2")]).provider(slow(10))).await;
    let operator = Operator::of(&app);
    let (other, key) = app.open_account().await;
    submit_many(&app, &app.key, 160).await;
    submit_many(&app, &key, 160).await;
    let lane = |account| format!("/internal/lanes/{account}/generation.create");
    operator.put(&lane(other), &json!({ "weight": 3 })).await;
    let _worker = app.start_worker().await;
    let begun = "SELECT count(*) FROM app.job_events WHERE type = 'job.started'";
    eventually("80 have begun", Duration::from_mins(1), || async {
        (app.number(begun).await >= 80).then_some(())
    })
    .await;
    let share = starts(&app, other, 0, 80).await;
    assert!((56..=64).contains(&share), "of the first 80, {share} were of the account with weight 3, not 60");
    operator.put(&lane(app.account), &json!({ "weight": 9 })).await;
    // What was planned before has begun soon after.
    let from = app.number(begun).await + 10;
    eventually("80 more have begun", Duration::from_mins(1), || async {
        (app.number(begun).await >= from + 80).then_some(())
    })
    .await;
    let share = starts(&app, app.account, from, 80).await;
    assert!(
        (56..=64).contains(&share),
        "of the next 80, {share} were of the account with weight 9 to 3, not 60"
    );
    app.assert_consistent().await;
}
