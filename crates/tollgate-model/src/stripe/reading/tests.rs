use serde_json::json;

use super::*;

const ACCOUNT: &str = "0a000000-0000-7000-8000-0000000000aa";

fn read(kind: &str, object: &Value) -> Event {
    let event = json!({
        "id": "evt_1", "object": "event", "type": kind, "created": 1_767_225_600, "livemode": true,
        "data": { "object": object },
    });
    Event::read(event.to_string().as_bytes()).unwrap()
}

fn account() -> Clue {
    Clue::Account(ACCOUNT.parse().unwrap())
}

fn object(id: &str) -> Clue {
    Clue::Object(id.into())
}

fn session(mode: &str, status: &str) -> Value {
    json!({
        "id": "cs_1", "mode": mode, "payment_status": status, "amount_total": 1500, "currency": "usd",
        "customer": "cus_1", "client_reference_id": ACCOUNT, "metadata": {}, "payment_intent": "pi_1",
        "subscription": null, "invoice": null,
    })
}

fn rates() -> CreditRates {
    serde_json::from_str(r#"{"usd": 10}"#).unwrap()
}

#[test]
fn a_paid_session_is_a_purchase_whichever_event_says_so() {
    for kind in ["checkout.session.completed", "checkout.session.async_payment_succeeded"] {
        let event = read(kind, &session("payment", "paid"));
        assert_eq!(event.clues, [account(), object("cus_1")]);
        assert_eq!(event.links, ["pi_1", "cus_1"]);
        let Fact::Bought(purchase) = event.fact else { panic!("{event:?}") };
        assert_eq!((purchase.object.as_str(), &purchase.payments[..]), ("cs_1", &["pi_1".to_owned()][..]));
        assert_eq!(purchase.bought(&rates()), Ok(Bought { amount: 1500, credits: 15_000 }));
    }
}

#[test]
fn what_is_unpaid_or_a_subscriptions_grants_nothing_but_says_whose_it_is() {
    for (mode, status) in [
        ("payment", "unpaid"),
        ("payment", "no_payment_required"),
        ("subscription", "paid"),
        ("setup", "paid"),
    ] {
        let event = read("checkout.session.completed", &session(mode, status));
        assert_eq!((event.fact, event.links.len()), (Fact::Links, 2), "{mode} {status}");
    }
}

#[test]
fn an_invoice_of_a_subscription_is_a_purchase_in_old_and_new_api_versions() {
    let old = json!({
        "id": "in_1", "amount_paid": 900, "currency": "usd", "customer": "cus_1", "subscription": "sub_1",
        "payment_intent": "pi_9", "charge": "ch_9", "subscription_details": { "metadata": { "account_id": ACCOUNT } },
    });
    let new = json!({
        "id": "in_1", "amount_paid": 900, "currency": "usd", "customer": "cus_1", "metadata": {},
        "parent": { "subscription_details": { "subscription": "sub_1", "metadata": { "account_id": ACCOUNT } } },
    });
    for (invoice, payments) in [(old, vec!["pi_9".to_owned()]), (new, vec![])] {
        let event = read("invoice.paid", &invoice);
        assert_eq!(event.clues, [account(), object("sub_1"), object("cus_1")]);
        assert!(event.links.contains(&"in_1".to_owned()) && event.links.contains(&"sub_1".to_owned()));
        let Fact::Bought(purchase) = event.fact else { panic!("{event:?}") };
        assert_eq!((purchase.amount, purchase.payments), (900, payments));
    }
    let payment = json!({ "id": "inpay_1", "invoice": "in_1", "payment": { "type": "payment_intent", "payment_intent": "pi_9" } });
    let event = read("invoice_payment.paid", &payment);
    assert_eq!((event.clues, event.links), (vec![object("in_1")], vec!["pi_9".to_owned()]));
    assert_eq!(event.fact, Fact::Paid { purchase: "in_1".into(), payments: vec!["pi_9".into()] });
}

#[test]
fn the_invoice_of_a_checkout_session_grants_nothing_a_second_time() {
    let invoice = json!({ "id": "in_1", "amount_paid": 900, "currency": "usd", "customer": "cus_1", "payment_intent": "pi_1" });
    assert_eq!(read("invoice.paid", &invoice).fact, Fact::Nothing);
}

#[test]
fn reversals_are_known_by_their_payment_alone() {
    let charge = json!({ "id": "ch_1", "payment_intent": "pi_1", "customer": "cus_1", "amount_refunded": 700, "currency": "usd" });
    let event = read("charge.refunded", &charge);
    assert_eq!(
        (&event.clues[..], event.without_account()),
        (&[object("pi_1")][..], EventState::UnknownPayment)
    );
    let what = Reversal { amount: 700, withdrawn: true, returned: false };
    let (reversal, payment, currency) = ("ch_1".into(), "pi_1".into(), Some("usd".into()));
    assert_eq!(event.fact, Fact::Reversed { reversal, payment, currency, what });
    let without_intent = json!({ "id": "ch_1", "payment_intent": null, "amount_refunded": 700 });
    assert_eq!(read("charge.refunded", &without_intent).clues, [object("ch_1")]);
}

#[test]
fn a_dispute_takes_when_money_goes_and_gives_when_it_comes_back() {
    for (kind, status, gone) in [
        ("created", "needs_response", (true, false)),
        ("created", "warning_needs_response", (false, false)),
        ("funds_withdrawn", "needs_response", (true, false)),
        ("funds_reinstated", "won", (false, true)),
        ("closed", "won", (false, true)),
        ("closed", "lost", (true, false)),
        ("closed", "warning_closed", (false, true)),
    ] {
        let dispute = json!({ "id": "dp_1", "charge": "ch_1", "payment_intent": "pi_1", "amount": 300, "status": status });
        let Fact::Reversed { reversal, what, .. } = read(&format!("charge.dispute.{kind}"), &dispute).fact
        else {
            panic!("{kind}")
        };
        assert_eq!(
            (reversal.as_str(), what.amount, (what.withdrawn, what.returned)),
            ("dp_1", 300, gone),
            "{kind} {status}"
        );
    }
    let refund = json!({ "id": "re_1", "payment_intent": "pi_1" });
    assert!(matches!(read("refund.failed", &refund).fact, Fact::ByHand(words) if words.contains("re_1")));
}

#[test]
fn what_the_merchants_server_says_wins_over_the_rate() {
    let bought = |credits: Value, currency: &str| {
        let mut session = session("payment", "paid");
        session["metadata"] = json!({ "credits": credits });
        session["currency"] = currency.into();
        let Fact::Bought(purchase) = read("checkout.session.completed", &session).fact else { panic!() };
        purchase.bought(&rates()).map(|bought| bought.credits)
    };
    assert_eq!(bought("25".into(), "usd"), Ok(25));
    assert_eq!(bought(25.into(), "eur"), Ok(25), "no rate is needed");
    assert_eq!(bought(Value::Null, "usd"), Ok(15_000));
    for (credits, currency, says) in [
        (Value::Null, "eur", "no rate for `eur`"),
        ("".into(), "usd", "no whole number"),
        ("12.5".into(), "usd", "no whole number"),
        ("0".into(), "usd", "not between"),
        ("-5".into(), "usd", "not between"),
        ("9999999999999".into(), "usd", "not between"),
    ] {
        assert!(bought(credits.clone(), currency).is_err_and(|words| words.contains(says)), "{credits}");
    }
}

#[test]
fn what_is_not_about_credits_waits_for_nobody() {
    let connected = json!({
        "id": "evt_1", "type": "checkout.session.completed", "created": 1, "account": "acct_somebody",
        "data": { "object": session("payment", "paid") },
    });
    let other = read("customer.created", &json!({ "id": "cus_1" }));
    for event in [Event::read(connected.to_string().as_bytes()).unwrap(), other] {
        assert_eq!((&event.fact, event.waits_for().len(), event.links.len()), (&Fact::Nothing, 0, 0));
        assert_eq!(event.without_account(), EventState::Ignored);
    }
}

#[test]
fn a_body_that_is_no_event_is_refused() {
    for body in [
        &b""[..],
        b"{}",
        b"[]",
        b"\xff",
        br#"{"id": "evt_1", "type": "x", "created": 1}"#,
        br#"{"id": "evt_1", "type": "x", "created": "now", "data": {"object": {}}}"#,
        br#"{"id": "evt 1", "type": "x", "created": 1, "data": {"object": {}}}"#,
        br#"{"id": "", "type": "x", "created": 1, "data": {"object": {}}}"#,
        br#"{"id": "evt_\u0000", "type": "x", "created": 1, "data": {"object": {}}}"#,
    ] {
        assert_eq!(Event::read(body), Err(NotAnEvent), "{}", String::from_utf8_lossy(body));
    }
}
