//! Histories of purchases, as Stripe would tell them, in any order and with repetitions: the credits are those of the story.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::stripe::rates::CreditRates;
use crate::stripe::reading::{Event, Fact};

/// What is kept of an account, as the store keeps it.
#[derive(Default)]
struct Books {
    bought: BTreeMap<String, (Bought, i64)>,
    payments: BTreeSet<(String, String)>,
    reversals: BTreeMap<String, (String, Reversal)>,
    credits: i64,
}

impl Books {
    fn enter(&mut self, fact: &Fact) {
        let rates: CreditRates = serde_json::from_str(r#"{"usd": 7}"#).unwrap();
        match fact {
            Fact::Bought(purchase) => {
                let bought = purchase.bought(&rates).unwrap();
                if self.bought.insert_if_new(&purchase.object, (bought, 0)) {
                    self.credits += bought.credits;
                }
                self.payments
                    .extend(purchase.payments.iter().map(|id| (id.clone(), purchase.object.clone())));
            }
            Fact::Paid { purchase, payments } => {
                self.payments.extend(payments.iter().map(|id| (id.clone(), purchase.clone())));
            }
            Fact::Reversed { reversal, payment, what, .. } => {
                let known =
                    self.reversals.entry(reversal.clone()).or_insert_with(|| (payment.clone(), *what));
                known.1 = known.1.join(*what);
            }
            Fact::Nothing | Fact::Links | Fact::ByHand(_) => {}
        }
        for (object, (bought, taken)) in &mut self.bought {
            let own = |payment: &String| self.payments.contains(&(payment.clone(), object.clone()));
            let reversals = self.reversals.values().filter(|(payment, _)| own(payment));
            let now = bought.taken_back(reversals.map(|(_, reversal)| *reversal));
            self.credits -= now - std::mem::replace(taken, now);
        }
    }
}

trait InsertIfNew<V> {
    fn insert_if_new(&mut self, key: &str, value: V) -> bool;
}

impl<V> InsertIfNew<V> for BTreeMap<String, V> {
    fn insert_if_new(&mut self, key: &str, value: V) -> bool {
        let new = !self.contains_key(key);
        if new {
            self.insert(key.to_owned(), value);
        }
        new
    }
}

#[derive(Debug, Clone)]
enum How {
    Session,
    AsyncSession,
    Invoice,
    InvoiceWithPaymentApart,
}

#[derive(Debug, Clone)]
enum Dispute {
    Open,
    Won,
    Lost,
    Inquiry,
}

/// What happened to one purchase.
#[derive(Debug, Clone)]
struct Story {
    how: How,
    amount: i64,
    refunds: Vec<i64>,
    dispute: Option<(Dispute, i64)>,
}

fn story() -> impl Strategy<Value = Story> {
    let how = prop_oneof![
        Just(How::Session),
        Just(How::AsyncSession),
        Just(How::Invoice),
        Just(How::InvoiceWithPaymentApart)
    ];
    let dispute =
        prop_oneof![Just(Dispute::Open), Just(Dispute::Won), Just(Dispute::Lost), Just(Dispute::Inquiry)];
    let dispute = prop::option::of((dispute, 1..2000_i64));
    (how, 1..2000_i64, prop::collection::vec(1..900_i64, 0..4), dispute)
        .prop_map(|(how, amount, refunds, dispute)| Story { how, amount, refunds, dispute })
}

impl Story {
    /// Stripe's events, in the order in which they happened.
    fn events(&self, nr: usize) -> Vec<(&'static str, Value)> {
        let (pi, cs, invoice) = (format!("pi_{nr}"), format!("cs_{nr}"), format!("in_{nr}"));
        let session = |status: &str| {
            json!({ "id": cs, "mode": "payment", "payment_status": status, "amount_total": self.amount,
                    "currency": "usd", "payment_intent": pi })
        };
        let mut paid =
            json!({ "id": invoice, "amount_paid": self.amount, "currency": "usd", "subscription": "sub" });
        let mut events = match self.how {
            How::Session => vec![("checkout.session.completed", session("paid"))],
            How::AsyncSession => vec![
                ("checkout.session.completed", session("unpaid")),
                ("checkout.session.async_payment_succeeded", session("paid")),
            ],
            How::Invoice => {
                paid["payment_intent"] = pi.clone().into();
                vec![("invoice.paid", paid)]
            }
            How::InvoiceWithPaymentApart => {
                let payment = json!({ "invoice": invoice, "payment": { "payment_intent": pi } });
                vec![("invoice_payment.paid", payment), ("invoice.paid", paid)]
            }
        };
        let mut refunded = 0;
        for refund in &self.refunds {
            refunded += refund;
            let charge =
                json!({ "id": format!("ch_{nr}"), "payment_intent": pi, "amount_refunded": refunded });
            events.push(("charge.refunded", charge));
        }
        if let Some((dispute, amount)) = &self.dispute {
            let steps: &[(&str, &str)] = match dispute {
                Dispute::Open => &[
                    ("charge.dispute.created", "needs_response"),
                    ("charge.dispute.funds_withdrawn", "under_review"),
                ],
                Dispute::Won => &[
                    ("charge.dispute.created", "needs_response"),
                    ("charge.dispute.funds_withdrawn", "under_review"),
                    ("charge.dispute.closed", "won"),
                    ("charge.dispute.funds_reinstated", "won"),
                ],
                Dispute::Lost => {
                    &[("charge.dispute.created", "needs_response"), ("charge.dispute.closed", "lost")]
                }
                Dispute::Inquiry => &[
                    ("charge.dispute.created", "warning_needs_response"),
                    ("charge.dispute.closed", "warning_closed"),
                ],
            };
            for (kind, status) in steps {
                let dispute = json!({ "id": format!("dp_{nr}"), "payment_intent": pi, "amount": amount, "status": status });
                events.push((kind, dispute));
            }
        }
        events
    }

    /// What is left of it, worked out from the story itself.
    fn credits(&self) -> i64 {
        let disputed = match &self.dispute {
            Some((Dispute::Open | Dispute::Lost, amount)) => *amount,
            _ => 0,
        };
        let gone = (self.refunds.iter().sum::<i64>() + disputed).min(self.amount);
        self.amount * 7 - self.amount * 7 * gone / self.amount
    }
}

fn fact((kind, object): &(&'static str, Value)) -> Fact {
    let event = json!({ "id": "evt_1", "type": kind, "created": 1, "data": { "object": object } });
    Event::read(event.to_string().as_bytes()).unwrap().fact
}

proptest! {
    #[test]
    fn the_end_does_not_depend_on_order_or_repetition(
        stories in prop::collection::vec(story(), 1..4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        seed in any::<u64>(),
    ) {
        let told: Vec<_> = stories.iter().enumerate().flat_map(|(nr, story)| story.events(nr)).collect();
        // Some of them again, and then each once, in an order of its own.
        let mut heard: Vec<&(&str, Value)> = order.iter().map(|at| &told[at.index(told.len())]).collect();
        let mut rest: Vec<_> = told.iter().collect();
        let mut draw = seed;
        while !rest.is_empty() {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            heard.push(rest.swap_remove(usize::try_from(draw >> 33).unwrap() % rest.len()));
        }
        let mut books = Books::default();
        for event in heard {
            books.enter(&fact(event));
            prop_assert!(books.bought.values().all(|(bought, taken)| (0..=bought.credits).contains(taken)));
        }
        prop_assert_eq!(books.credits, stories.iter().map(Story::credits).sum::<i64>());
    }
}

#[test]
fn all_the_money_is_all_the_credits_and_a_part_is_rounded_for_the_account() {
    let bought = Bought { amount: 1000, credits: 7 };
    let refunded = |amount| [Reversal { amount, withdrawn: true, returned: false }];
    for (amount, taken) in [(0, 0), (1, 0), (142, 0), (143, 1), (999, 6), (1000, 7), (5000, 7), (i64::MAX, 7)]
    {
        assert_eq!(bought.taken_back(refunded(amount)), taken, "{amount}");
    }
    let huge = Bought { amount: i64::MAX, credits: i64::MAX };
    assert_eq!(huge.taken_back(refunded(i64::MAX)), i64::MAX);
}
