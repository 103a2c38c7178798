//! Stripe over HTTP: what is signed comes in once, and ends as credits; what is not, nowhere.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_model::account::AccountId;
use tollgate_testkit::{STRIPE_SECRET, TestApp, Tune, eventually, stripe_signature};

use crate::operators::{BINARY, STRIPE};

/// Ten credits a cent.
pub(crate) const RATES: (&str, &str) = ("STRIPE", r#"{"credits_per_unit": {"usd": 10}}"#);
/// What every account of a test begins with.
pub(crate) const OPENING: i64 = 1000;

/// A Tollgate that Stripe may talk to.
pub(crate) async fn start(workers: usize, settings: &[(&'static str, &str)]) -> TestApp {
    let settings = [&[("STRIPE_WEBHOOK_SECRET", STRIPE_SECRET), RATES], settings].concat();
    TestApp::start(BINARY, Tune { workers, credits: Some(1000), ..Tune::worker(&settings) }).await
}

/// Stripe's side of the webhook.
#[derive(Clone)]
pub(crate) struct Sender {
    http: Client,
    url: String,
}

impl Sender {
    pub(crate) fn of(app: &TestApp) -> Self {
        tollgate_outbound::install_crypto_provider();
        let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { http, url: format!("{}{STRIPE}", app.api.url()) }
    }

    pub(crate) async fn post(&self, body: &[u8], signature: Option<&str>) -> Response {
        let mut request = self.http.post(&self.url).body(body.to_vec());
        if let Some(signature) = signature {
            request = request.header("Stripe-Signature", signature);
        }
        request.send().await.unwrap()
    }

    /// Sends an event until it is acknowledged, as Stripe does.
    pub(crate) async fn send(&self, event: &Value) {
        let body = event.to_string();
        eventually("the event is acknowledged", Duration::from_mins(1), || async {
            let signature = stripe_signature(body.as_bytes(), STRIPE_SECRET, 0);
            let reply = self.post(body.as_bytes(), Some(&signature)).await;
            let status = reply.status();
            assert!(status == 200 || status == 503, "{status}: {}", reply.text().await.unwrap());
            if status == 503 {
                return None;
            }
            assert_eq!(reply.json::<Value>().await.unwrap(), json!({ "received": true }));
            Some(())
        })
        .await;
    }
}

/// An event about an object.
pub(crate) fn event(id: &str, kind: &str, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "api_version": "2025-03-31.basil", "created": 1_767_225_600, "livemode": false,
        "type": kind, "data": { "object": object }, "pending_webhooks": 1, "request": { "id": null },
    })
}

/// A checkout session of mode `payment` that was paid.
pub(crate) fn session(id: &str, account: Option<AccountId>, cents: i64) -> Value {
    json!({
        "id": format!("cs_{id}"), "object": "checkout.session", "mode": "payment", "payment_status": "paid",
        "amount_total": cents, "currency": "usd", "client_reference_id": account, "customer": null, "metadata": {},
        "payment_intent": format!("pi_{id}"), "subscription": null, "invoice": null,
    })
}

pub(crate) fn charge(id: &str, refunded: i64) -> Value {
    json!({ "id": format!("ch_{id}"), "object": "charge", "payment_intent": format!("pi_{id}"), "amount_refunded": refunded })
}

pub(crate) const COMPLETED: &str = "checkout.session.completed";

/// The account's balance and what it owes.
pub(crate) async fn credits(app: &TestApp, account: AccountId) -> (i64, i64) {
    let sql = "SELECT posted - held, owed FROM app.credit_balances WHERE account_id = $1";
    sqlx::query_as(sql).bind(account.0).fetch_one(&app.owner).await.unwrap()
}

/// Waits until everything that has come is in the books, or waits for an operator.
pub(crate) async fn entered(app: &TestApp) {
    eventually("every event is entered", Duration::from_mins(1), || async {
        let open = "SELECT (SELECT count(*) FROM billing.stripe_events WHERE state = 'received')
                         + (SELECT count(*) FROM queue.tasks WHERE queue = 'billing.credit_grant')";
        (app.number(open).await == 0).then_some(())
    })
    .await;
}

/// The books of every account add up.
pub(crate) async fn assert_books(app: &TestApp) {
    for (what, sql) in [
        (
            "balances that are not the sum of their entries",
            "SELECT count(*) FROM app.credit_balances b WHERE (b.posted - b.held, b.owed) <>
                 (SELECT coalesce(sum(delta), 0), coalesce(sum(owed), 0) FROM app.credits_ledger l
                  WHERE l.account_id = b.account_id)",
        ),
        (
            "purchases whose entries are not what is left of them",
            "SELECT count(*) FROM app.stripe_grants g WHERE g.credits - g.taken_back <>
                 (SELECT coalesce(sum(granted), 0) FROM app.credits_ledger l
                  WHERE l.account_id = g.account_id AND l.reason = 'stripe' AND l.note = g.object_id)",
        ),
        (
            "accounts whose events say otherwise",
            "SELECT count(*) FROM (SELECT account_id, sum(credits) AS credits FROM app.stripe_events GROUP BY 1) e
             WHERE e.credits <> (SELECT coalesce(sum(granted), 0) FROM app.credits_ledger l
                                 WHERE l.account_id = e.account_id AND l.reason = 'stripe')",
        ),
    ] {
        assert_eq!(app.number(sql).await, 0, "{what}");
    }
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_purchase_is_granted_once_however_often_it_is_told() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let bought = session("1", Some(app.account), 500);
    let mut sending = JoinSet::new();
    for nr in 0..24 {
        // Two events of one purchase, each delivered twelve times at once.
        let kind = if nr % 2 == 0 { COMPLETED } else { "checkout.session.async_payment_succeeded" };
        let (sender, event) = (sender.clone(), event(&format!("evt_{}", nr % 2), kind, &bought));
        sending.spawn(async move { sender.send(&event).await });
    }
    sending.join_all().await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 5000, 0));
    assert_eq!(app.number("SELECT count(*) FROM billing.stripe_events WHERE state = 'processed'").await, 2);
    assert_eq!(app.number("SELECT count(*) FROM app.stripe_events").await, 2);
    assert_eq!(app.api.metric("tollgate_stripe_events_total").await.to_string(), "24");
    let counted = app.workers[0].metric("tollgate_credits_granted_total").await;
    assert_eq!(counted.to_string(), "5000");
    assert_books(&app).await;
}

#[tokio::test]
async fn unpaid_grants_nothing_until_it_is_paid_and_a_subscription_is_granted_by_its_invoices() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    let mut unpaid = session("1", Some(app.account), 500);
    unpaid["payment_status"] = "unpaid".into();
    sender.send(&event("evt_1", COMPLETED, &unpaid)).await;
    let mut subscribed = session("2", Some(app.account), 900);
    (subscribed["mode"], subscribed["subscription"], subscribed["customer"]) =
        ("subscription".into(), "sub_2".into(), "cus_2".into());
    sender.send(&event("evt_2", COMPLETED, &subscribed)).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING, 0));

    sender
        .send(&event(
            "evt_3",
            "checkout.session.async_payment_succeeded",
            &session("1", Some(app.account), 500),
        ))
        .await;
    let invoice = |nr: u32| {
        json!({ "id": format!("in_{nr}"), "amount_paid": 900, "currency": "usd", "customer": "cus_2",
                "parent": { "subscription_details": { "subscription": "sub_2", "metadata": {} } } })
    };
    for nr in [1, 2, 1] {
        sender.send(&event(&format!("evt_in_{nr}"), "invoice.paid", &invoice(nr))).await;
    }
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (OPENING + 5000 + 2 * 9000, 0));
    let customers = "SELECT count(*) FROM app.stripe_customers WHERE customer_id = 'cus_2'";
    assert_eq!(app.number(customers).await, 1);
    assert_books(&app).await;
}

#[tokio::test]
async fn what_is_taken_back_beyond_what_there_is_is_owed_and_paid_by_the_next_purchase() {
    let app = start(1, &[]).await;
    let sender = Sender::of(&app);
    sender.send(&event("evt_1", COMPLETED, &session("1", Some(app.account), 200))).await;
    entered(&app).await;
    // All but 400 of the 3000 are spent.
    app.change(&format!(
        "INSERT INTO app.credits_ledger (account_id, id, delta, charged, reason)
             VALUES ('{0}', gen_random_uuid(), -2600, 2600, 'confirm');
         UPDATE app.credit_balances SET posted = posted - 2600 WHERE account_id = '{0}'",
        app.account
    ))
    .await;
    sender.send(&event("evt_2", "charge.refunded", &charge("1", 50))).await;
    sender.send(&event("evt_3", "charge.refunded", &charge("1", 200))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (0, 1600), "2000 went back, of which 400 were there");
    let dispute =
        json!({ "id": "dp_1", "payment_intent": "pi_1", "amount": 200, "status": "needs_response" });
    sender.send(&event("evt_4", "charge.dispute.created", &dispute)).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (0, 1600), "it was all taken back already");
    sender.send(&event("evt_5", COMPLETED, &session("2", Some(app.account), 200))).await;
    entered(&app).await;
    assert_eq!(credits(&app, app.account).await, (400, 0));
    assert_books(&app).await;
}

#[tokio::test]
async fn what_is_not_stripes_is_refused_and_stored_nowhere() {
    let rolled = format!("whsec_the0old0one,{STRIPE_SECRET}");
    let app = start(0, &[("STRIPE_WEBHOOK_SECRET", &rolled)]).await;
    let sender = Sender::of(&app);
    let body = event("evt_1", COMPLETED, &session("1", Some(app.account), 500)).to_string();
    let body = body.as_bytes();
    let good = stripe_signature(body, STRIPE_SECRET, 0);
    let of = |body: &[u8]| stripe_signature(body, STRIPE_SECRET, 0);
    let long = vec![b' '; (1 << 20) + 1];
    for (what, body, signature, status, says) in [
        ("no signature", body, None, 400, "t=<unix time>,v1=<hex>"),
        ("an empty one", body, Some(String::new()), 400, "t=<unix time>,v1=<hex>"),
        (
            "another's secret",
            body,
            Some(stripe_signature(body, "whsec_somebody0elses", 0)),
            400,
            "STRIPE_WEBHOOK_SECRET",
        ),
        ("another body", b"{}".as_slice(), Some(good.clone()), 400, "STRIPE_WEBHOOK_SECRET"),
        ("truncated", body, Some(good[..good.len() - 1].to_owned()), 400, "STRIPE_WEBHOOK_SECRET"),
        ("old", body, Some(stripe_signature(body, STRIPE_SECRET, 301)), 400, "too far from now"),
        ("no event", b"{}", Some(of(b"{}")), 400, "`body` is not an event"),
        ("no JSON", b"\xff", Some(of(b"\xff")), 400, "`body` is not an event"),
        ("empty", b"", Some(of(b"")), 400, "`body` is not an event"),
        ("too long", &long, Some(of(&long)), 413, "longer than 1048576 bytes"),
    ] {
        let reply = sender.post(body, signature.as_deref()).await;
        assert_eq!(reply.status(), status, "{what}");
        let problem: Value = reply.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{what}: {problem}");
        assert!(!problem.to_string().contains("whsec_"), "{problem}");
    }
    assert_eq!(app.number("SELECT count(*) FROM billing.stripe_events").await, 0);
    // With either secret while one is being rolled, and kept as it came.
    let old = stripe_signature(body, "whsec_the0old0one", 200);
    assert_eq!(sender.post(body, Some(&old)).await.status(), 200);
    assert_eq!(sender.post(body, Some(&good)).await.status(), 200);
    let kept: Vec<String> = sqlx::query_scalar("SELECT payload::text FROM billing.stripe_events")
        .fetch_all(&app.owner)
        .await
        .unwrap();
    assert_eq!(kept, [String::from_utf8(body.to_vec()).unwrap()]);
}

#[tokio::test]
async fn without_a_secret_the_webhook_is_off_and_says_so() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let reply = Sender::of(&app).post(b"{}", Some(&stripe_signature(b"{}", STRIPE_SECRET, 0))).await;
    assert_eq!(reply.status(), 503);
    let problem: Value = reply.json().await.unwrap();
    assert_eq!(problem["detail"], "Stripe's webhook is off: STRIPE_WEBHOOK_SECRET is not set");
}
