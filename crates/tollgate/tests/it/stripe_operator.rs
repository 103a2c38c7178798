//! What Stripe has sent, as operators see it and what they can do: customers nobody knows, currencies without a rate, events
//! that never came.

use serde_json::{Value, json};
use tollgate_domain::{Database, Role, stripe};
use tollgate_model::account::AccountId;
use tollgate_testkit::{StripeLike, TestApp};

use crate::operators::command;
use crate::stripe::{
    COMPLETED, OPENING, RATES, Sender, assert_books, charge, credits, entered, event, session, start,
};

/// The ids of the events in a state, newest first.
pub(crate) async fn listed(app: &TestApp, state: &str) -> Vec<String> {
    let (code, list, said) = command(app, &format!("stripe events --state {state}")).await;
    assert_eq!((code, said.as_str()), (0, ""));
    list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_unknown_customer_waits_for_an_operator_and_all_that_hangs_on_it_follows() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let mut bought = session("1", None, 300);
    bought["customer"] = "cus_1".into();
    sender.send(&event("evt_refund", "charge.refunded", &charge("1", 100))).await;
    sender.send(&event("evt_1", COMPLETED, &bought)).await;
    // A guest, whom the merchant has called something else.
    let mut guest = session("2", None, 500);
    guest["client_reference_id"] = "order 17".into();
    sender.send(&event("evt_2", COMPLETED, &guest)).await;
    let mut nobody = session("3", None, 500);
    nobody["metadata"]["account_id"] = "01900000-0000-7000-8000-000000000000".into();
    sender.send(&event("evt_3", COMPLETED, &nobody)).await;
    sender.send(&event("evt_other", "customer.created", &json!({ "id": "cus_1" }))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING, 0));
    assert_eq!(listed(&app, "unknown_customer").await, ["evt_3", "evt_2", "evt_1"]);
    assert_eq!(listed(&app, "unknown_payment").await, ["evt_refund"]);
    assert_eq!(listed(&app, "ignored").await, ["evt_other"]);

    let account = app.account;
    let (_, linked, _) = command(&app, &format!("stripe link --customer cus_1 --account {account}")).await;
    assert_eq!(linked, json!({ "object": "cus_1", "account_id": account, "released": 1, "before": null }));
    let (_, linked, _) = command(&app, &format!("stripe link --event evt_2 --account {account}")).await;
    assert_eq!(linked["released"], 1);
    entered(&app).await;
    let refunded = || async { listed(&app, "unknown_payment").await.is_empty().then_some(()) };
    tollgate_testkit::eventually("the refund is entered", std::time::Duration::from_secs(20), refunded).await;
    entered(&app).await;
    assert_eq!(credits(&app, account).await, (OPENING + 2000 + 5000, 0));
    // From now on the customer is known.
    bought["id"] = "cs_9".into();
    bought["payment_intent"] = "pi_9".into();
    sender.send(&event("evt_9", COMPLETED, &bought)).await;
    entered(&app).await;
    assert_eq!(credits(&app, account).await, (OPENING + 2000 + 5000 + 3000, 0));
    assert_eq!(listed(&app, "unknown_customer").await, ["evt_3"]);
    assert_books(&app).await;

    // The same to another account: what was entered stays.
    let (other, _) = app.open_account().await;
    let (_, linked, _) = command(&app, &format!("stripe link --customer cus_1 --account {other}")).await;
    assert_eq!((&linked["released"], &linked["before"]), (&json!(0), &json!(account)));
    assert_eq!(credits(&app, account).await, (OPENING + 10_000, 0));
}

#[tokio::test]
async fn what_has_no_rate_waits_for_one_and_is_granted_by_a_redrive() {
    let mut app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let mut bought = session("1", Some(app.account), 500);
    bought["currency"] = "eur".into();
    sender.send(&event("evt_1", COMPLETED, &bought)).await;
    let mut wrong = session("2", Some(app.account), 500);
    wrong["metadata"]["credits"] = "many".into();
    sender.send(&event("evt_2", COMPLETED, &wrong)).await;
    let mut named = session("3", Some(app.account), 500);
    (named["metadata"]["credits"], named["currency"]) = ("42".into(), "eur".into());
    sender.send(&event("evt_3", COMPLETED, &named)).await;
    // Its refund is entered, and takes nothing from what was not granted.
    sender.send(&event("evt_4", "charge.refunded", &charge("1", 250))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 42, 0));
    assert_eq!(listed(&app, "needs_attention").await, ["evt_2", "evt_1"]);
    let (_, list, _) = app.command(&["stripe", "events", "--state", "needs_attention"]).await;
    assert!(list.contains("no rate for `eur`") && list.contains("no whole number"), "{list}");

    app.workers.clear();
    app.set(RATES.0, r#"{"credits_per_unit": {"usd": 10, "eur": 20}}"#);
    let worker = app.start_worker().await;
    app.workers.push(worker);
    let (_, redriven, _) = command(&app, "dlq redrive --code NEEDS_ATTENTION").await;
    assert_eq!(redriven["redriven"], 2, "{redriven}");
    tollgate_testkit::eventually("one is granted", std::time::Duration::from_secs(30), || async {
        (credits(&app, app.account).await == (OPENING + 42 + 5000, 0)).then_some(())
    })
    .await;
    entered_but_for_letters(&app).await;
    assert_eq!(listed(&app, "needs_attention").await, ["evt_2"]);
    assert_books(&app).await;
}

/// A dispute counts in the currency of the cardholder's bank, which need not be that of the purchase: 500 yen are not 500
/// cents.
#[tokio::test]
async fn what_is_taken_back_in_another_currency_counts_for_nothing_and_an_operator_is_told() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let dispute = |id: &str, of: &str, currency: &str| json!({ "id": id, "payment_intent": of, "amount": 500, "currency": currency, "status": "needs_response" });
    // Before the purchase, and after it.
    sender.send(&event("evt_1", "charge.dispute.created", &dispute("dp_1", "pi_1", "jpy"))).await;
    for nr in ["1", "2"] {
        sender.send(&event(&format!("evt_cs_{nr}"), COMPLETED, &session(nr, Some(app.account), 500))).await;
    }
    entered(&app).await;
    sender.send(&event("evt_2", "charge.dispute.created", &dispute("dp_2", "pi_2", "jpy"))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 10_000, 0));
    let (_, list, _) = command(&app, "stripe events --state needs_attention").await;
    let said: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|event| event["error"].as_str().unwrap()).collect();
    assert!(said.iter().any(|words| words.starts_with("dp_1 takes money back in `jpy`")), "{said:?}");
    assert!(said[0].contains("but cs_2 was paid in `usd`"), "{said:?}");
    assert_eq!(listed(&app, "needs_attention").await, ["evt_2", "evt_1"]);
    // No money is gone: it was only announced, or it came back.
    sender.send(&event("evt_cs_3", COMPLETED, &session("3", Some(app.account), 500))).await;
    let mut inquiry = dispute("dp_3", "pi_3", "jpy");
    inquiry["status"] = "warning_needs_response".into();
    sender.send(&event("evt_inquiry", "charge.dispute.created", &inquiry)).await;
    let mut won = dispute("dp_1", "pi_1", "jpy");
    won["status"] = "won".into();
    sender.send(&event("evt_won", "charge.dispute.closed", &won)).await;
    // The purchase is told once more, by which an operator learns nothing.
    let again = session("2", Some(app.account), 500);
    sender.send(&event("evt_again", "checkout.session.async_payment_succeeded", &again)).await;
    // What is in its own currency counts beside it.
    let mut refunded = charge("2", 100);
    refunded["currency"] = "usd".into();
    sender.send(&event("evt_3", "charge.refunded", &refunded)).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 14_000, 0));
    assert_eq!(listed(&app, "needs_attention").await, ["evt_2", "evt_1"], "and none of the others");
    // Where the money was gone first, by what brings it and its purchase together; and by nothing else of that purchase.
    for nr in ["4", "6"] {
        let (id, gone) = (format!("evt_gone_{nr}"), dispute(&format!("dp_{nr}"), &format!("pi_{nr}"), "jpy"));
        sender.send(&event(&id, "charge.dispute.created", &gone)).await;
        assert_eq!(command(&app, &format!("stripe link --event {id} --account {}", app.account)).await.0, 0);
    }
    let invoice = json!({ "id": "in_4", "amount_paid": 500, "currency": "usd", "subscription": "sub_4",
                          "subscription_details": { "metadata": { "account_id": app.account } } });
    entered(&app).await;
    sender.send(&event("evt_in_4", "invoice.paid", &invoice)).await;
    for (nr, payment) in ["pi_5", "pi_4", "pi_4", "pi_5"].into_iter().enumerate() {
        let paid = json!({ "invoice": "in_4", "payment": { "payment_intent": payment } });
        sender.send(&event(&format!("evt_paid_{nr}"), "invoice_payment.paid", &paid)).await;
        entered(&app).await;
    }
    sender.send(&event("evt_cs_6", COMPLETED, &session("6", Some(app.account), 500))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 24_000, 0));
    assert_eq!(listed(&app, "needs_attention").await, ["evt_cs_6", "evt_paid_1", "evt_2", "evt_1"]);
    assert_books(&app).await;
}

#[tokio::test]
async fn what_is_settled_is_forgotten_in_time_and_what_waits_for_somebody_stays() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    for nr in ["1", "2"] {
        sender.send(&event(&format!("evt_cs_{nr}"), COMPLETED, &session(nr, Some(app.account), 500))).await;
    }
    sender.send(&event("evt_3", COMPLETED, &session("3", None, 500))).await;
    sender.send(&event("evt_4", "charge.refunded", &charge("4", 500))).await;
    sender.send(&event("evt_5", "refund.failed", &json!({ "id": "re_5", "payment_intent": "pi_1" }))).await;
    sender.send(&event("evt_6", "customer.created", &json!({ "id": "cus_1" }))).await;
    entered(&app).await;
    // An id holds the time at which its event came: 91 days ago.
    let old = "UPDATE billing.stripe_events SET id = (
                   lpad(to_hex((extract(epoch FROM now() - interval '91 days') * 1000)::bigint), 12, '0')
                   || right(replace(id::text, '-', ''), 20))::uuid
               WHERE event_id <> 'evt_cs_2'";
    assert_eq!(app.change(old).await, 5);
    let worker = Database::connect(&app.db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    let keep = std::time::Duration::from_hours(90 * 24);
    assert!(!stripe::forget(&worker, keep).await.unwrap());
    let left = "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM billing.stripe_events";
    let left: String = sqlx::query_scalar(left).fetch_one(&app.owner).await.unwrap();
    assert_eq!(left, "evt_3 evt_4 evt_5 evt_cs_2");
    // Should it come once more after all, its account's books know it.
    sender.send(&event("evt_cs_1", COMPLETED, &session("1", Some(app.account), 500))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 10_000, 0));
    assert_books(&app).await;
}

async fn entered_but_for_letters(app: &TestApp) {
    let tasks = || async { (app.number("SELECT count(*) FROM queue.tasks").await == 0).then_some(()) };
    tollgate_testkit::eventually("no task is left", std::time::Duration::from_secs(30), tasks).await;
}

/// `count` purchases of an account, a cent each, one a minute.
fn purchases(account: AccountId, count: usize, first: i64) -> Vec<Value> {
    let purchase = |nr: usize| {
        let mut event = event(&format!("evt_{nr}"), COMPLETED, &session(&nr.to_string(), Some(account), 1));
        event["created"] = (first + 60 * i64::try_from(nr).unwrap()).into();
        event
    };
    (0..count).map(purchase).collect()
}

#[tokio::test]
async fn events_that_never_came_are_read_from_stripe_and_stored_once() {
    let stripe = StripeLike::start().await;
    let [base, key] = stripe.settings();
    let app = start(1, &[(base.0, &base.1), (key.0, &key.1)]).await;
    let sender = Sender::of(&app);
    let now = app.number("SELECT extract(epoch FROM now())::bigint").await;
    // Older ones than are asked for, other kinds, and one that is none.
    let mut happened = purchases(app.account, 450, now + 30 - 100 * 3600);
    for nr in (0..450).step_by(90) {
        let mut other = event(&format!("evt_other_{nr}"), "customer.created", &json!({ "id": "cus_1" }));
        other["created"] = happened[nr]["created"].clone();
        happened.push(other);
    }
    stripe.happened(&happened);
    for event in happened[200..450].iter().step_by(5) {
        sender.send(event).await;
    }
    // 450 minutes are 7.5 hours, which began 100 hours ago.
    let line = "stripe reconcile --since 98h";
    let (code, sums, said) = command(&app, line).await;
    assert_eq!(code, 0, "{said}");
    let expected = 450 - 120;
    let known = 50;
    assert_eq!(
        (&sums["known"], &sums["new"], &sums["failed"]),
        (&json!(known), &json!(expected - known), &json!(0))
    );
    assert!(said.contains(" known, "), "no progress was shown: {said}");
    assert_eq!(stripe.asked(), 4);
    let (_, sums, _) = command(&app, line).await;
    assert_eq!((&sums["known"], &sums["new"]), (&json!(expected), &json!(0)));
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 10 * expected, 0));
    assert_books(&app).await;

    // Pages, as they are shown.
    let (_, first, _) = command(&app, "stripe events --limit 100").await;
    let cursor = first["next_cursor"].as_str().unwrap().to_owned();
    let (_, second, _) = command(&app, &format!("stripe events --limit 100 --cursor {cursor}")).await;
    let ids = |page: &Value| -> Vec<String> {
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = [ids(&first), ids(&second)].concat();
    assert_eq!(all.len(), 200);
    assert!(all.is_sorted_by(|newer, older| newer > older));
    assert!(first["data"][0].get("payload").is_none(), "what people paid with is not shown");
}

#[tokio::test]
async fn commands_say_what_they_need() {
    let stripe = StripeLike::start().await;
    let [base, _] = stripe.settings();
    let mut app = start(0, &[(base.0, &base.1)]).await;
    let account = app.account.to_string();
    for (line, code, says) in [
        ("stripe reconcile", 2, "STRIPE_API_KEY is not set"),
        ("stripe reconcile --since 0s", 2, "at most 30 days"),
        ("stripe reconcile --since 31d", 2, "at most 30 days"),
        ("stripe events --state gone", 2, "known are received, processed"),
        ("stripe events --limit 0", 2, "1..=100"),
        ("stripe events --cursor x", 2, "--cursor: this cursor does not belong"),
        ("stripe link --account ACCOUNT", 2, "--customer"),
        ("stripe link --customer cus_1 --event evt_1 --account ACCOUNT", 2, "cannot be used with"),
        ("stripe link --customer sub_1 --account ACCOUNT", 2, "does not begin with cus_"),
        ("stripe link --customer cus_1 --account 01900000-0000-7000-8000-000000000000", 1, "no such account"),
    ] {
        let line = line.replace("ACCOUNT", &account);
        let (was, out, said) = app.command(&line.split_whitespace().collect::<Vec<_>>()).await;
        assert_eq!((was, out.as_str()), (code, ""), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
    }
    app.set("STRIPE_API_KEY", "sk_live_not0the0right0one");
    let (code, _, said) = app.command(&["stripe", "reconcile"]).await;
    assert_eq!(code, 1);
    assert!(said.contains("Stripe refuses STRIPE_API_KEY (401)") && !said.contains("right0one"), "{said}");
    let (code, out, _) = app.command(&["stripe", "events"]).await;
    assert_eq!((code, out.as_str()), (0, "no events\n"));
}
