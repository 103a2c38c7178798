//! What an event of Stripe's says: whose it is, what belongs together, and the one fact about credits in it.
//!
//! Events have the shape of the API version that the endpoint, or the account, is pinned to. What moved from one version to
//! another is looked for in both places: since 2025 an invoice names neither its payment nor, at its top, its subscription,
//! and `invoice_payment.paid` says which payment was for which invoice.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::book::{Bought, Reversal};
use super::inbox::EventState;
use super::rates::CreditRates;
use crate::account::AccountId;
use crate::credits::MAX_GRANT;

/// The kinds of event that say something about credits; the webhook's endpoint at Stripe should be sent these.
pub const KINDS: [&str; 10] = [
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "invoice.paid",
    "invoice_payment.paid",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "charge.dispute.closed",
    "refund.failed",
];

/// An event, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`.
    pub id: String,
    /// Stripe's name for what happened.
    pub kind: String,
    /// When it happened, by Stripe's clock.
    pub created: DateTime<Utc>,
    /// `false`: of the test mode.
    pub livemode: bool,
    /// The customer it names: `cus_…`.
    pub customer: Option<String>,
    /// By what its account is known: the first of these that is known decides.
    pub clues: Vec<Clue>,
    /// Objects of Stripe's that are that account's from here on.
    pub links: Vec<String>,
    /// What it says about credits.
    pub fact: Fact,
}

/// By what an account is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clue {
    /// The merchant's own server named it, if there is such an account.
    Account(AccountId),
    /// It is the one that this object of Stripe's belongs to.
    Object(String),
}

/// What an event says about credits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Nothing.
    Nothing,
    /// Nothing yet, but it says whose objects those are.
    Links,
    /// Something was bought.
    Bought(Purchase),
    /// These payments were for that purchase.
    Paid {
        /// The purchase.
        purchase: String,
        /// Its payments.
        payments: Vec<String>,
    },
    /// Money of a payment went back, or will.
    Reversed {
        /// The charge, for its refunds; or the dispute.
        reversal: String,
        /// The payment.
        payment: String,
        /// The currency of the amount, if it is said: a bank may dispute in another one than was paid in.
        currency: Option<String>,
        /// How much, and whether it is gone.
        what: Reversal,
    },
    /// Something that only people can decide; in words.
    ByHand(String),
}

/// A checkout session or an invoice that was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// `cs_…` or `in_…`: granted once, however many events speak of it.
    pub object: String,
    /// In the currency's smallest unit, at least 1.
    pub amount: i64,
    /// As Stripe writes it: `usd`.
    pub currency: String,
    /// What the merchant's server wrote into `metadata.credits`.
    pub credits: Option<String>,
    /// What it was paid by, as far as the event knows.
    pub payments: Vec<String>,
}

/// Why a body is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an event as Stripe sends them: a JSON object with `id`, `type`, `created` and `data`")]
pub struct NotAnEvent;

impl Event {
    /// Reads an event.
    pub fn read(body: &[u8]) -> Result<Self, NotAnEvent> {
        let event: Value = serde_json::from_slice(body).map_err(|_| NotAnEvent)?;
        let id = id_like(&event["id"]).ok_or(NotAnEvent)?;
        let kind = id_like(&event["type"]).ok_or(NotAnEvent)?;
        let created =
            event["created"].as_i64().and_then(|at| DateTime::from_timestamp(at, 0)).ok_or(NotAnEvent)?;
        let object = &event["data"]["object"];
        if !object.is_object() {
            return Err(NotAnEvent);
        }
        let livemode = event["livemode"].as_bool().unwrap_or(false);
        let said = Said { object };
        let mut read = Self {
            id,
            kind,
            created,
            livemode,
            customer: said.id("customer"),
            clues: vec![],
            links: vec![],
            fact: Fact::Nothing,
        };
        // A connected account's sales are somebody else's, who may write into them what he likes.
        if event["account"].is_null() {
            (read.clues, read.links, read.fact) = said.about(&read.kind);
        }
        if read.fact == Fact::Nothing {
            (read.clues, read.links) = (vec![], vec![]);
        }
        Ok(read)
    }

    /// The objects of Stripe's by which its account may become known.
    pub fn waits_for(&self) -> Vec<&str> {
        let object = |clue| match clue {
            &Clue::Account(_) => None,
            Clue::Object(id) => Some(id.as_str()),
        };
        self.clues.iter().filter_map(object).collect()
    }

    /// What it is as long as its account is not known.
    pub fn without_account(&self) -> EventState {
        match self.fact {
            Fact::Nothing => EventState::Ignored,
            Fact::Links | Fact::Bought(_) => EventState::UnknownCustomer,
            Fact::Paid { .. } | Fact::Reversed { .. } | Fact::ByHand(_) => EventState::UnknownPayment,
        }
    }
}

impl Purchase {
    /// What was bought: `metadata.credits`, if the merchant's server has set it, or else what the money buys. An error says,
    /// in words, what an operator has to do.
    pub fn bought(&self, rates: &CreditRates) -> Result<Bought, String> {
        let credits = if let Some(text) = &self.credits {
            text.trim().parse().map_err(|_| {
                format!(
                    "`metadata.credits` of {} is no whole number: grant by hand with `tollgate account grant`",
                    self.object
                )
            })?
        } else {
            let rate = rates.of(&self.currency).ok_or_else(|| {
                format!(
                    "no rate for `{}`: set it in [stripe.credits_per_unit] of tollgate.toml, restart the workers, \
                     then `tollgate dlq redrive`",
                    self.currency
                )
            })?;
            self.amount.checked_mul(rate).unwrap_or(i64::MAX)
        };
        if !(1..=MAX_GRANT).contains(&credits) {
            return Err(format!(
                "{} would grant {credits} credits, which is not between 1 and {MAX_GRANT}: grant by hand with \
                 `tollgate account grant`",
                self.object
            ));
        }
        Ok(Bought { amount: self.amount, credits })
    }
}

/// What PostgreSQL and people can bear, and Stripe stays far below.
fn id_like(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let plausible = !text.is_empty() && text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic());
    plausible.then(|| text.to_owned())
}

/// An object's id, whether it stands for itself or was expanded.
fn id_of(value: &Value) -> Option<String> {
    id_like(value).or_else(|| id_like(&value["id"]))
}

/// The event's object.
struct Said<'a> {
    object: &'a Value,
}

type About = (Vec<Clue>, Vec<String>, Fact);

impl Said<'_> {
    fn id(&self, field: &str) -> Option<String> {
        id_of(&self.object[field])
    }

    fn amount(&self, field: &str) -> i64 {
        self.object[field].as_i64().unwrap_or(0)
    }

    fn is(&self, field: &str, value: &str) -> bool {
        self.object[field] == value
    }

    /// A payment is known by its intent; by its charge where it has none.
    fn payment(&self) -> Option<String> {
        self.id("payment_intent").or_else(|| self.id("charge"))
    }

    fn about(&self, kind: &str) -> About {
        let nothing = || (vec![], vec![], Fact::Nothing);
        match (kind, self.id("id")) {
            ("checkout.session.completed" | "checkout.session.async_payment_succeeded", Some(id)) => {
                self.session(id)
            }
            ("invoice.paid", Some(id)) => self.invoice(id),
            ("invoice_payment.paid", _) => self.invoice_payment().unwrap_or_else(nothing),
            ("charge.refunded", Some(charge)) => {
                let payment = self.id("payment_intent").unwrap_or_else(|| charge.clone());
                let what =
                    Reversal { amount: self.amount("amount_refunded"), withdrawn: true, returned: false };
                self.reversed(payment, charge, what)
            }
            (_, Some(dispute)) if kind.starts_with("charge.dispute.") && KINDS.contains(&kind) => {
                let what = self.dispute(kind);
                self.payment().map_or_else(nothing, |payment| self.reversed(payment, dispute, what))
            }
            ("refund.failed", Some(refund)) => {
                let words = format!(
                    "the refund {refund} failed, after its credits were taken back: give them back with `tollgate account \
                     grant`, unless the customer is paid some other way"
                );
                self.payment().map_or_else(nothing, |payment| {
                    (vec![Clue::Object(payment)], vec![], Fact::ByHand(words))
                })
            }
            _ => nothing(),
        }
    }

    fn session(&self, id: String) -> About {
        let mut clues: Vec<Clue> = named(&self.object["metadata"]).into_iter().collect();
        clues.extend(account(&self.object["client_reference_id"]));
        let of_session = ["subscription", "customer"].map(|field| self.id(field)).into_iter().flatten();
        clues.extend(of_session.map(Clue::Object));
        let links = ["payment_intent", "invoice", "subscription", "customer"];
        let links: Vec<String> = links.map(|field| self.id(field)).into_iter().flatten().collect();
        // A subscription is granted by its invoices; what is not paid yet, by `async_payment_succeeded`.
        let paid = self.is("mode", "payment") && self.is("payment_status", "paid");
        let payments = self.id("payment_intent").into_iter().collect();
        let fact = match self.purchase(id, "amount_total", payments).filter(|_| paid) {
            Some(purchase) => Fact::Bought(purchase),
            None if links.is_empty() => Fact::Nothing,
            None => Fact::Links,
        };
        (clues, links, fact)
    }

    fn invoice(&self, id: String) -> About {
        let parent = &self.object["parent"]["subscription_details"];
        let subscription = self.id("subscription").or_else(|| id_of(&parent["subscription"]));
        let Some(subscription) = subscription else {
            // Of a checkout session that writes one, which grants by itself; or of something else.
            return (vec![], vec![], Fact::Nothing);
        };
        let metadata =
            [&self.object["metadata"], &self.object["subscription_details"]["metadata"], &parent["metadata"]];
        let mut clues: Vec<Clue> = metadata.into_iter().filter_map(named).collect();
        clues.push(Clue::Object(subscription.clone()));
        clues.extend(self.id("customer").map(Clue::Object));
        let mut payments: Vec<String> = self.payment().into_iter().collect();
        let listed = self.object["payments"]["data"].as_array().into_iter().flatten();
        payments.extend(listed.filter_map(|listed| Said { object: &listed["payment"] }.payment()));
        payments.dedup();
        let mut links = payments.clone();
        links.extend([id.clone(), subscription]);
        links.extend(self.id("customer"));
        let fact = self.purchase(id, "amount_paid", payments).map_or(Fact::Links, Fact::Bought);
        (clues, links, fact)
    }

    fn invoice_payment(&self) -> Option<About> {
        let purchase = self.id("invoice")?;
        let payment = Said { object: &self.object["payment"] }.payment()?;
        let clues = vec![Clue::Object(purchase.clone())];
        Some((clues, vec![payment.clone()], Fact::Paid { purchase, payments: vec![payment] }))
    }

    /// `None`: nothing was paid.
    fn purchase(&self, object: String, amount: &str, payments: Vec<String>) -> Option<Purchase> {
        let amount = self.amount(amount);
        let currency = id_like(&self.object["currency"])?;
        let credits = &self.object["metadata"]["credits"];
        let credits =
            (!credits.is_null()).then(|| credits.as_str().map_or_else(|| credits.to_string(), str::to_owned));
        (amount > 0).then_some(Purchase { object, amount, currency, credits, payments })
    }

    /// It is its payment by which it is known whose it is: a customer may buy for several accounts, and other things as well.
    fn reversed(&self, payment: String, reversal: String, what: Reversal) -> About {
        let currency = id_like(&self.object["currency"]);
        (vec![Clue::Object(payment.clone())], vec![], Fact::Reversed { reversal, payment, currency, what })
    }

    fn dispute(&self, kind: &str) -> Reversal {
        let status = self.object["status"].as_str().unwrap_or_default();
        let (withdrawn, returned) = match kind {
            // An inquiry is only announced: no money has moved.
            "charge.dispute.created" => (!status.starts_with("warning_"), false),
            "charge.dispute.closed" => (status == "lost", ["won", "warning_closed"].contains(&status)),
            "charge.dispute.funds_reinstated" => (false, true),
            _ => (true, false),
        };
        Reversal { amount: self.amount("amount"), withdrawn, returned }
    }
}

fn named(metadata: &Value) -> Option<Clue> {
    account(&metadata["account_id"])
}

fn account(value: &Value) -> Option<Clue> {
    value.as_str()?.trim().parse().ok().map(Clue::Account)
}

#[cfg(test)]
mod tests;
