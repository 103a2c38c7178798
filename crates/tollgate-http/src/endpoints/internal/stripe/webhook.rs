//! `POST /internal/stripe/webhook`
//!
//! Its signature is its authorisation. Stripe sends an event again, for days, until it is answered with 2xx; so what
//! cannot be stored now is refused, and what has been stored is acknowledged, however often it comes.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::HeaderMap;
use serde::Serialize;
use tollgate_domain::stripe;
use utoipa::{IntoResponses, ToSchema};

use crate::api::App;
use crate::clock;
use crate::extract::{BodyLimit, read};
use crate::problem::{Code, Problem, Responses, Unfinished, document};

/// Stripe's events have some kilobytes; an invoice of many lines may have more than other bodies are allowed.
const LONGEST: BodyLimit = BodyLimit(1 << 20);

/// That an event is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({"received": true})))]
pub(crate) struct EventReceived {
    /// It is.
    received: bool,
}

pub(crate) struct ForStripe;

impl IntoResponses for ForStripe {
    fn responses() -> Responses {
        document(&[
            (
                Code::InvalidRequest,
                "the signature is missing, wrong, or of another time; or the body is no event",
            ),
            (Code::PayloadTooLarge, "the body is longer than 1 MiB"),
        ])
    }
}

/// Takes an event of Stripe's in
///
/// It is stored once, however often it comes; what it says about credits follows within moments. Without
/// `STRIPE_WEBHOOK_SECRET` it answers 503, and Stripe comes again later.
#[utoipa::path(
    post,
    path = "/internal/stripe/webhook",
    operation_id = "receiveStripeEvent",
    tag = "stripe",
    security(("stripe_signature" = [])),
    request_body(content = Object, description = "The event, as it was signed.", content_type = "application/json"),
    responses((status = 200, description = "It is stored.", body = EventReceived), ForStripe, Unfinished)
)]
pub(crate) async fn webhook(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EventReceived>, Problem> {
    let Some(inbox) = &app.stripe else {
        return Err(Problem::new(
            Code::Unavailable,
            "Stripe's webhook is off: STRIPE_WEBHOOK_SECRET is not set",
        ));
    };
    let body = read(body, LONGEST).await?;
    // What is no text is no signature either.
    let header = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or_default();
    inbox.secrets.verify(header, &body, clock::now(), inbox.tolerance).map_err(|error| {
        count("refused");
        Problem::invalid(error.to_string())
    })?;
    let received = stripe::receive(&app.db, &body, inbox.ttl).await?;
    count(received.as_str());
    Ok(Json(EventReceived { received: true }))
}

fn count(outcome: &'static str) {
    metrics::counter!("tollgate_stripe_events_total", "outcome" => outcome).increment(1);
}
