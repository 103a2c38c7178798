//! An event of Stripe's always comes to an end: what nobody else will ever end, an operator does, and what has died says so.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate_domain::{Database, Role, stripe, sweep};
use tollgate_model::queue::MAX_LOST_LEASES;
use tollgate_testkit::{TestApp, eventually};

use crate::operators::command;
use crate::stripe::{
    COMPLETED, OPENING, RATES, Sender, assert_books, charge, credits, entered, event, session, start,
};
use crate::stripe_operator::listed;

/// A purchase in a currency that has no rate: it needs attention, and its task is a dead letter.
fn without_rate(app: &TestApp, nr: &str) -> Value {
    let mut bought = session(nr, Some(app.account), 500);
    bought["currency"] = "eur".into();
    event(&format!("evt_eur_{nr}"), COMPLETED, &bought)
}

async fn as_worker(app: &TestApp) -> Database {
    Database::connect(&app.db.role_url(Role::Worker), Role::Worker, 2, true).await.unwrap()
}

/// What the log of an account, or that of no account, has about resolved events, oldest first: which event, and why.
async fn resolved(app: &TestApp, whose: &str) -> Vec<(String, String)> {
    let (_, log, _) = command(app, &format!("audit list {whose}")).await;
    let entries = log["data"].as_array().unwrap().iter().rev();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    entries
        .filter(|entry| entry["action"] == "stripe.resolved")
        .map(|entry| (text(&entry["object"]), text(&entry["detail"]["reason"])))
        .collect()
}

#[tokio::test]
async fn what_an_operator_has_dealt_with_is_resolved_and_nothing_more_comes_of_it() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let mut unknown = session("1", None, 300);
    unknown["customer"] = "cus_1".into();
    let unknown = event("evt_unknown", COMPLETED, &unknown);
    sender.send(&unknown).await;
    sender.send(&event("evt_refund", "charge.refunded", &charge("9", 100))).await;
    sender.send(&without_rate(&app, "2")).await;
    sender.send(&event("evt_good", COMPLETED, &session("3", Some(app.account), 500))).await;
    sender.send(&event("evt_other", "customer.created", &json!({ "id": "cus_2" }))).await;
    entered(&app).await;
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 1);

    for (event, was) in [
        ("evt_unknown", "unknown_customer"),
        ("evt_refund", "unknown_payment"),
        ("evt_eur_2", "needs_attention"),
    ] {
        let line = format!("stripe resolve --event {event} --reason not-ours");
        let (code, done, said) = command(&app, &line).await;
        assert_eq!((code, done), (0, json!({ "event_id": event, "was": was })), "{said}");
        // Not a second time.
        let (code, _, said) = command(&app, &line).await;
        assert!(
            code == 1 && said.contains(&format!("{event} is resolved already: nothing is left")),
            "{said}"
        );
        assert_eq!(listed(&app, was).await, [""; 0]);
    }
    for (event, reason, code, says) in [
        ("evt_good", "r", 1, "evt_good is processed already"),
        ("evt_other", "r", 1, "evt_other is ignored already"),
        ("evt_never", "r", 1, "no such event; `tollgate stripe events`"),
        ("evt_good", "", 2, "`reason` must have 1 to 500 characters"),
    ] {
        let (was, out, said) =
            app.command(&["stripe", "resolve", "--event", event, "--reason", reason]).await;
        assert_eq!((was, out.as_str()), (code, ""), "{event}: {said}");
        assert!(said.contains(says), "{event}: {said}");
    }
    assert_eq!(listed(&app, "resolved").await, ["evt_eur_2", "evt_refund", "evt_unknown"]);
    let entry = |event: &str| (format!("stripe:{event}"), "not-ours".to_owned());
    assert_eq!(resolved(&app, &format!("--account {}", app.account)).await, [entry("evt_eur_2")]);
    let of_none = [entry("evt_unknown"), entry("evt_refund")];
    assert_eq!(resolved(&app, "").await, of_none, "of no account's");

    // Whatever would have brought it back.
    assert_eq!(app.number("SELECT count(*) FROM billing.stripe_waiting").await, 0);
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 0);
    let (_, linked, _) =
        command(&app, &format!("stripe link --customer cus_1 --account {}", app.account)).await;
    assert_eq!(linked["released"], 0);
    sender.send(&unknown).await;
    entered(&app).await;
    assert_eq!(listed(&app, "resolved").await.len(), 3);
    assert_eq!(credits(&app, app.account).await, (OPENING + 5000, 0));
    app.assert_books().await;
    app.assert_consistent_but_for_purged().await;

    // Its payload goes in time, with those of the others.
    let keep = Duration::from_hours(90 * 24);
    let old = "UPDATE billing.stripe_events SET id = (
                   lpad(to_hex((extract(epoch FROM now() - interval '91 days') * 1000)::bigint), 12, '0')
                   || right(replace(id::text, '-', ''), 20))::uuid";
    assert_eq!(app.change(old).await, 5);
    stripe::forget(&as_worker(&app).await, keep).await.unwrap();
    assert_eq!(app.number("SELECT count(*) FROM billing.stripe_events").await, 0);
}

/// What is in the queue is a worker's: it would be entered all the same, after the operator has settled it some other way.
#[tokio::test]
async fn what_a_worker_is_about_to_enter_cannot_be_resolved() {
    let mut app = start(1, &[]).await;
    let sender = Sender::of(&app);
    sender.send(&without_rate(&app, "1")).await;
    sender.send(&without_rate(&app, "2")).await;
    entered(&app).await;
    app.workers.clear();
    sender.send(&event("evt_3", COMPLETED, &session("3", Some(app.account), 500))).await;
    let refused = |event: &'static str| {
        let app = &app;
        async move {
            let (code, _, said) =
                command(app, &format!("stripe resolve --event {event} --reason by-hand")).await;
            assert!(
                code == 1 && said.contains("is in the queue: a worker will enter it"),
                "{event}: {code} {said}"
            );
        }
    };
    refused("evt_3").await;

    // Of two letters one is redriven, and of the other one somebody is just about to.
    let id = |event: &str| format!("(SELECT id FROM billing.stripe_events WHERE event_id = '{event}')");
    let letter = format!("SELECT id::text FROM queue.dead_letters WHERE id = {}", id("evt_eur_1"));
    let letter: String = sqlx::query_scalar(sqlx::AssertSqlSafe(letter)).fetch_one(&app.owner).await.unwrap();
    assert_eq!(command(&app, &format!("dlq redrive {letter}")).await.1["redriven"], 1);
    refused("evt_eur_1").await;
    let mut redriving = app.owner.begin().await.unwrap();
    let redrive = format!(
        "WITH letter AS (DELETE FROM queue.dead_letters WHERE id = {} RETURNING *)
         INSERT INTO queue.tasks (account_id, id, queue, type, state, rank, position, run_at, expires_at, priority)
         SELECT account_id, id, queue, type, 'ready', 10, nextval('queue.position'), now(), now() + interval '1 hour', 5
         FROM letter",
        id("evt_eur_2")
    );
    let moved = sqlx::query(sqlx::AssertSqlSafe(redrive)).execute(&mut *redriving).await.unwrap();
    assert_eq!(moved.rows_affected(), 1);
    let waits_then_commit = async {
        eventually("it waits for the redrive", Duration::from_secs(30), || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                           AND wait_event_type = 'Lock'";
            (app.number(waiting).await == 1).then_some(())
        })
        .await;
        redriving.commit().await.unwrap();
    };
    tokio::join!(refused("evt_eur_2"), waits_then_commit);

    // Nothing was changed.
    assert_eq!(listed(&app, "needs_attention").await, ["evt_eur_2", "evt_eur_1"]);
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 3);
    assert_eq!(resolved(&app, &format!("--account {}", app.account)).await, []);
    app.set(RATES.0, r#"{"credits_per_unit": {"usd": 10, "eur": 20}}"#);
    let worker = app.start_worker().await;
    app.workers.push(worker);
    eventually("all is granted", Duration::from_secs(30), || async {
        (credits(&app, app.account).await == (OPENING + 5000 + 2 * 10_000, 0)).then_some(())
    })
    .await;
}

/// Paid and not granted: whoever looks for that looks at what needs attention.
#[tokio::test]
async fn an_event_whose_task_has_died_needs_attention_however_it_died() {
    let mut app = start(0, &[]).await;
    let (sender, db) = (Sender::of(&app), as_worker(&app).await);
    let bought = |nr: &str| event(&format!("evt_{nr}"), COMPLETED, &session(nr, Some(app.account), 500));
    let mut dead = Vec::new();
    for (nr, change, says) in [
        (
            "lost",
            format!(
                "BEGIN;
                 UPDATE queue.tasks SET state = 'running', lease = nextval('queue.lease_token'), attempts = 1,
                     worker_id = gen_random_uuid(), lost = {MAX_LOST_LEASES} - 1;
                 UPDATE queue.lane_counts SET queued = queued - 1, running = running + 1 WHERE queued > 0;
                 COMMIT"
            ),
            "its worker died",
        ),
        (
            "expired",
            "UPDATE queue.tasks SET expires_at = now()".to_owned(),
            "not finished within its time to live",
        ),
    ] {
        sender.send(&bought(nr)).await;
        app.change(&change).await;
        sweep::sweep(&db, &mut sweep::Rounds::default()).await.unwrap();
        dead.push((format!("evt_{nr}"), says));
    }
    // A defect of ours: the event cannot be read.
    let good = bought("odd");
    sender.send(&good).await;
    app.change("UPDATE billing.stripe_events SET payload = '{}' WHERE event_id = 'evt_odd'").await;
    app.change("UPDATE queue.tasks SET max_attempts = 1").await;
    dead.push(("evt_odd".to_owned(), "evt_odd is not an event"));
    let worker = app.start_worker().await;
    app.workers.push(worker);
    entered(&app).await;

    let (_, list, _) = command(&app, "stripe events --state needs_attention").await;
    let shown: Vec<_> = list["data"].as_array().unwrap().iter().rev().collect();
    assert_eq!(shown.len(), dead.len(), "{list}");
    for (shown, (event, says)) in shown.into_iter().zip(&dead) {
        assert_eq!(shown["event_id"], **event);
        assert!(shown["error"].as_str().unwrap().contains(says), "{shown}");
    }
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 3);
    let mend = "UPDATE billing.stripe_events SET payload = $1::text::json WHERE event_id = 'evt_odd'";
    sqlx::query(mend).bind(good.to_string()).execute(&app.owner).await.unwrap();
    let (_, redriven, said) = command(&app, "dlq redrive --queue billing.credit_grant").await;
    assert_eq!(redriven["redriven"], 3, "{said}");
    eventually("all is granted", Duration::from_secs(30), || async {
        (credits(&app, app.account).await == (OPENING + 3 * 5000, 0)).then_some(())
    })
    .await;
    entered(&app).await;
    assert_eq!(listed(&app, "needs_attention").await, [""; 0]);
    assert_books(&app).await;
}
