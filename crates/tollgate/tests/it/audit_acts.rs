//! Whatever an operator changes, by whatever command or request, is in the audit log. A command or a request that is new has
//! to be named here before this passes.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tollgate_domain::ids;
use tollgate_testkit::{StripeLike, TestApp};

use crate::operators::{BINARY, Operator, STRIPE, command, other_letters, tune};

/// Commands that are not an operator's, or no act of his on what Tollgate keeps.
const OTHERS: [&str; 11] =
    ["api", "audit", "demo", "dev", "doctor", "help", "job", "migrate", "openapi", "provider-sim", "worker"];

/// An operator's commands that change nothing.
const LOOKS: [&str; 10] = [
    "account list",
    "account reconcile",
    "dlq list",
    "dlq show",
    "guard status",
    "key list",
    "lane show",
    "price list",
    "queue list",
    "stripe events",
];

/// The others, in an order in which each has something to do, and how the log calls what they do.
const ACTS: [(&str, &str, &str); 16] = [
    ("account create", "--name more", "account.created"),
    ("account grant", "--account ACCOUNT --credits 7 --reason gift", "credits.granted"),
    ("dlq purge", "--queue billing.credit_grant --code A", "dlq.purged"),
    ("dlq redrive", "--queue webhook.delivery --code A", "dlq.redriven"),
    ("guard breaker", "off", "breaker.switched"),
    ("guard close", "text", "guard.ordered"),
    ("guard open", "text", "guard.ordered"),
    ("guard pause", "text --for 1s", "guard.ordered"),
    ("key create", "--account ACCOUNT --scopes jobs:read", "key.created"),
    ("key rotate", "--account ACCOUNT --key KEY", "key.rotated"),
    ("key revoke", "--account ACCOUNT --key KEY", "key.revoked"),
    ("lane set", "--account ACCOUNT --weight 3", "lane.set"),
    ("price set", "--model dear --prompt 5", "price.set"),
    ("queue set", "generation.create --max-running 9", "queue.set"),
    ("stripe link", "--customer cus_1 --account ACCOUNT", "stripe.linked"),
    ("stripe resolve", "--event evt_1 --reason not-ours", "stripe.resolved"),
];
/// It needs a Stripe.
const RECONCILE: (&str, &str, &str) = ("stripe reconcile", "", "stripe.reconciled");

/// An operator's requests that change something.
fn requests() -> [(Method, &'static str, Value, &'static str); 5] {
    let letters = |queue: &str| json!({"queue": queue, "code": "B"});
    [
        (Method::POST, "/internal/dlq/purge", letters("billing.credit_grant"), "dlq.purged"),
        (Method::POST, "/internal/dlq/redrive", letters("webhook.delivery"), "dlq.redriven"),
        (Method::PUT, "/internal/guard/{class}", json!({"order": "close"}), "guard.ordered"),
        (Method::PUT, "/internal/lanes/{account_id}/{queue}", json!({"weight": 4}), "lane.set"),
        (Method::PUT, "/internal/queues/{queue}", json!({"max_running": 8}), "queue.set"),
    ]
}

/// The commands below a command.
async fn below(app: &TestApp, command: &str) -> Vec<String> {
    let (_, help, _) = app.command(&command.split_whitespace().chain(["--help"]).collect::<Vec<_>>()).await;
    let commands = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
    let names = commands.lines().take_while(|line| !line.is_empty());
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// What the logs have, all together: entries, and who did what last.
async fn logged(app: &TestApp) -> (i64, String) {
    let all = "(SELECT id, actor, action FROM app.audit_log
                UNION ALL SELECT id, actor, action FROM queue.audit_log) AS entries";
    let last = format!("SELECT actor || ' ' || action FROM {all} ORDER BY id DESC LIMIT 1");
    let last = sqlx::query_scalar(sqlx::AssertSqlSafe(last)).fetch_one(&app.owner).await.unwrap();
    (app.number(&format!("SELECT count(*) FROM {all}")).await, last)
}

#[tokio::test]
async fn every_act_of_an_operator_is_in_the_log() {
    let stripe = StripeLike::start().await;
    let [base, key] = stripe.settings();
    let app = TestApp::start(BINARY, tune(0, &[(base.0, &base.1), (key.0, &key.1)])).await;
    let acts = || ACTS.into_iter().chain([RECONCILE]);
    let mut named: BTreeSet<String> = acts().map(|(command, ..)| command.to_owned()).collect();
    named.extend(LOOKS.map(str::to_owned));
    let mut known = BTreeSet::new();
    for group in below(&app, "").await.iter().filter(|group| !OTHERS.contains(&group.as_str())) {
        let commands = below(&app, group).await;
        known.extend(commands.iter().filter(|name| *name != "help").map(|name| format!("{group} {name}")));
    }
    assert_eq!(named, known);

    other_letters(&app, 6).await;
    app.change(
        "INSERT INTO billing.stripe_events (event_id, id, type, created, livemode, state, payload)
         VALUES ('evt_1', gen_random_uuid(), 'invoice.paid', now(), false, 'unknown_customer', '{}')",
    )
    .await;
    let account = app.account.to_string();
    let own: uuid::Uuid =
        sqlx::query_scalar("SELECT id FROM app.api_keys").fetch_one(&app.owner).await.unwrap();
    let (mut before, _) = logged(&app).await;
    for (name, arguments, action) in acts() {
        let line =
            format!("{name} {arguments}").replace("ACCOUNT", &account).replace("KEY", &own.to_string());
        let (code, _, said) = command(&app, &line).await;
        assert_eq!(code, 0, "{line}: {said}");
        let (after, last) = logged(&app).await;
        assert_eq!((after, last), (before + 1, format!("operator:shell:app_operator {action}")), "{line}");
        before = after;
    }
    for look in LOOKS {
        let id = ids::new_id();
        let arguments = match look {
            "dlq show" => id.to_string(),
            "key list" | "lane show" => format!("--account {account}"),
            _ => String::new(),
        };
        let (code, _, said) = command(&app, &format!("{look} {arguments}")).await;
        assert!(code == 0 || look == "dlq show", "{look}: {said}");
    }
    assert_eq!(logged(&app).await.0, before, "who looks does nothing");

    let document: Value = serde_json::from_str(&app.command(&["openapi"]).await.1).unwrap();
    let mut known = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys().filter(|method| *method != "get");
        let ours = path.starts_with("/internal/") && path != STRIPE;
        known.extend(methods.filter(|_| ours).map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let named: BTreeSet<_> = requests().iter().map(|(method, path, ..)| format!("{method} {path}")).collect();
    assert_eq!(named, known);
    let operator = Operator::of(&app);
    for (method, path, body, action) in requests() {
        let path = path.replace("{account_id}", &account).replace("{class}", "text");
        let path = path.replace("{queue}", "generation.create");
        let reply = operator.send(method, &path, Some(&body)).await;
        assert_eq!(reply.status(), 200, "{path}: {}", reply.text().await.unwrap());
        let (after, last) = logged(&app).await;
        assert_eq!((after, last), (before + 1, format!("operator:api {action}")), "{path}");
        before = after;
    }
}

#[tokio::test]
async fn what_was_anothers_is_in_both_logs() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    let (other, _) = app.open_account().await;
    for account in [app.account, other] {
        assert_eq!(command(&app, &format!("stripe link --customer cus_1 --account {account}")).await.0, 0);
    }
    for (account, expected) in
        [(app.account, vec!["stripe.unlinked", "stripe.linked"]), (other, vec!["stripe.linked"])]
    {
        let (_, log, _) = command(&app, &format!("audit list --account {account}")).await;
        let entries = log["data"].as_array().unwrap();
        let told = |entry: &&Value| entry["object"] == "stripe:cus_1";
        let actions: Vec<_> =
            entries.iter().filter(told).map(|entry| entry["action"].as_str().unwrap()).collect();
        assert_eq!(actions, expected);
    }
}
