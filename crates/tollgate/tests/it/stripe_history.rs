//! Whole histories: shuffled, repeated, at the same time, with a worker killed in between. The credits are those of the
//! story.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_model::account::AccountId;
use tollgate_testkit::eventually;

use crate::stripe::{
    COMPLETED, OPENING, Sender, assert_books, charge, credits, entered, event, session, start,
};

/// What one purchase's events come to in the end.
struct Story {
    events: Vec<Value>,
    credits: i64,
}

/// The `nr`th purchase of an account: each of the ways to pay, with each of the ways to take it back.
fn story(nr: i64, account: AccountId) -> Story {
    let (id, cents) = (nr.to_string(), 100 + 7 * nr);
    let mut events = Vec::new();
    let mut tell = |kind: &str, object: &Value| {
        events.push(event(&format!("evt_{nr}_{}", events.len()), kind, object));
    };
    match nr % 4 {
        0 => tell(COMPLETED, &session(&id, Some(account), cents)),
        1 => {
            let paid = session(&id, Some(account), cents);
            let mut unpaid = paid.clone();
            unpaid["payment_status"] = "unpaid".into();
            tell(COMPLETED, &unpaid);
            tell("checkout.session.async_payment_succeeded", &paid);
        }
        // The invoice's account is known by the session alone, and its payment by a third event.
        2 => {
            let (sub, invoice) = (format!("sub_{nr}"), format!("in_{nr}"));
            let mut subscribed = session(&id, Some(account), cents);
            (subscribed["mode"], subscribed["payment_intent"]) = ("subscription".into(), Value::Null);
            (subscribed["subscription"], subscribed["customer"]) =
                (sub.clone().into(), format!("cus_{nr}").into());
            tell(COMPLETED, &subscribed);
            let parent = json!({ "subscription_details": { "subscription": sub, "metadata": {} } });
            tell(
                "invoice.paid",
                &json!({ "id": invoice, "amount_paid": cents, "currency": "usd", "parent": parent }),
            );
            let payment = json!({ "type": "payment_intent", "payment_intent": format!("pi_{id}") });
            tell("invoice_payment.paid", &json!({ "id": "inpay_1", "invoice": invoice, "payment": payment }));
        }
        _ => {
            let metadata = json!({ "account_id": account });
            tell(
                "invoice.paid",
                &json!({
                    "id": format!("in_{nr}"), "amount_paid": cents, "currency": "usd", "subscription": format!("sub_{nr}"),
                    "payment_intent": format!("pi_{id}"), "subscription_details": { "metadata": metadata },
                }),
            );
        }
    }
    let dispute = |status: &str, cents: i64| json!({ "id": format!("dp_{nr}"), "payment_intent": format!("pi_{id}"), "amount": cents, "status": status });
    let gone = match nr % 5 {
        0 => 0,
        1 => {
            tell("charge.refunded", &charge(&id, cents / 3));
            tell("charge.refunded", &charge(&id, cents / 2));
            cents / 2
        }
        2 => {
            tell("charge.refunded", &charge(&id, cents));
            cents
        }
        3 => {
            tell("charge.dispute.created", &dispute("needs_response", cents));
            tell("charge.dispute.funds_withdrawn", &dispute("needs_response", cents));
            tell("charge.dispute.closed", &dispute("won", cents));
            tell("charge.dispute.funds_reinstated", &dispute("won", cents));
            0
        }
        _ => {
            tell("charge.refunded", &charge(&id, cents / 4));
            tell("charge.dispute.created", &dispute("needs_response", cents));
            tell("charge.dispute.closed", &dispute("lost", cents));
            cents
        }
    };
    Story { events, credits: cents * 10 - cents * 10 * gone / cents }
}

/// Any order, the same for the same seed.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, usize::try_from(seed >> 33).unwrap() % (last + 1));
    }
}

#[tokio::test]
async fn shuffled_repeated_and_concurrent_events_come_to_the_story_though_a_worker_is_killed() {
    let mut app = start(0, &[("VISIBILITY_TIMEOUT", "1s"), ("Q_BILLING_GRANT_CONCURRENCY", "4")]).await;
    let (other, _) = app.open_account().await;
    let accounts = [app.account, other];
    let stories: Vec<(AccountId, Story)> = (0..40)
        .map(|nr| (accounts[usize::from(nr % 3 == 0)], nr))
        .map(|(of, nr)| (of, story(nr, of)))
        .collect();
    let mut heard: Vec<Value> = stories.iter().flat_map(|(_, story)| story.events.clone()).collect();
    // Every second one comes twice.
    heard.extend(heard.iter().step_by(2).cloned().collect::<Vec<_>>());
    for seed in [11, 12] {
        shuffle(&mut heard, seed);
    }
    let first = app.start_worker().await;
    let second = app.start_worker().await;
    let sender = Sender::of(&app);
    let mut sending = JoinSet::new();
    let mut killed = Some(first);
    for (nr, event) in heard.iter().cloned().enumerate() {
        let sender = sender.clone();
        sending.spawn(async move { sender.send(&event).await });
        if sending.len() >= 16 {
            sending.join_next().await.unwrap().unwrap();
        }
        if nr == heard.len() / 2 {
            killed.take().unwrap().kill().await;
            app.workers.push(app.start_worker().await);
        }
    }
    sending.join_all().await;
    app.workers.push(second);
    entered(&app).await;
    eventually("nothing waits any more", Duration::from_mins(1), || async {
        let waiting = "SELECT count(*) FROM billing.stripe_events WHERE state <> 'processed'";
        (app.number(waiting).await == 0).then_some(())
    })
    .await;
    for account in accounts {
        let expected: i64 =
            stories.iter().filter(|(of, _)| *of == account).map(|(_, story)| story.credits).sum();
        assert_eq!(credits(&app, account).await, (OPENING + expected, 0));
    }
    assert_eq!(app.number("SELECT count(*) FROM billing.stripe_waiting").await, 0);
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 0);
    assert_books(&app).await;
}
