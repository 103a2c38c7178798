//! Stripe's list of events, for those that never came.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::body::{BodyError, read_start, read_whole};
use crate::client::{self, ClientError};
use crate::message::presentable;

/// A page has a hundred events.
const DEADLINE: Duration = Duration::from_secs(30);

/// Events are at most some hundred kilobytes, and mostly a few.
const LONGEST_PAGE: usize = 32 << 20;

/// What is read of a refusal.
const LONGEST_REFUSAL: usize = 4096;

/// As many as Stripe gives at a time.
const PAGE: &str = "100";

/// Stripe, in the name of one key.
#[derive(Debug, Clone)]
pub struct StripeClient {
    http: Client,
    base: Url,
    key: SecretString,
}

/// Some of the events, newest first.
#[derive(Debug, Deserialize)]
pub struct EventPage {
    /// The events, as Stripe wrote them.
    pub data: Vec<Box<RawValue>>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// Why Stripe's events could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// No client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody answered, or not in time, or not to the end.
    #[error("no answer from {host}: {problem}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What went wrong.
        problem: String,
    },
    /// The key does not do.
    #[error(
        "Stripe refuses STRIPE_API_KEY ({status}): {message}. It must be a secret or restricted key that may read events"
    )]
    Key {
        /// HTTP status.
        status: u16,
        /// What Stripe said.
        message: String,
    },
    /// Another refusal.
    #[error("Stripe refuses ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What Stripe said.
        message: String,
    },
    /// Whatever answered is not Stripe.
    #[error("{0} answered, but not as Stripe does; check STRIPE_API_BASE")]
    Foreign(String),
}

impl StripeClient {
    /// A client of the Stripe at `base`. Nothing is sent yet.
    pub fn new(base: Url, key: SecretString) -> Result<Self, StripeError> {
        let http = client::build(&base, Duration::from_secs(10))?;
        Ok(Self { http, base, key })
    }

    /// Events of these kinds since then, newest first: those before the one with the id `before`.
    pub async fn events(
        &self,
        kinds: &[&str],
        since: DateTime<Utc>,
        before: Option<&str>,
    ) -> Result<EventPage, StripeError> {
        let mut url = client::endpoint(&self.base, &["v1", "events"]);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("limit", PAGE).append_pair("created[gte]", &since.timestamp().to_string());
            for kind in kinds {
                query.append_pair("types[]", kind);
            }
            if let Some(before) = before {
                query.append_pair("starting_after", before);
            }
        }
        let host = self.base.host_str().unwrap_or_default().to_owned();
        let unreachable = |error: reqwest::Error| StripeError::Unreachable {
            host: host.clone(),
            problem: if error.is_timeout() { "timed out".into() } else { client::causes(&error) },
        };
        let key = self.key.expose_secret();
        let request = self.http.get(url).timeout(DEADLINE).bearer_auth(key);
        let reply = request.send().await.map_err(unreachable)?;
        let status = reply.status();
        if !status.is_success() {
            let deadline = tokio::time::Instant::now() + DEADLINE;
            let body = read_start(reply, LONGEST_REFUSAL, deadline).await;
            let message = presentable(&words(&body), key);
            let status = status.as_u16();
            return Err(match status {
                401 | 403 => StripeError::Key { status, message },
                _ => StripeError::Refused { status, message },
            });
        }
        let body = read_whole(reply, LONGEST_PAGE).await.map_err(|error| match error {
            BodyError::Broken(error) => unreachable(error),
            BodyError::TooLong => StripeError::Foreign(host.clone()),
        })?;
        serde_json::from_slice(&body).map_err(|_| StripeError::Foreign(host.clone()))
    }
}

/// What a refusal says: `{"error": {"message": …}}`.
fn words(body: &[u8]) -> String {
    let refusal: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let said = refusal.as_ref().and_then(|refusal| refusal["error"]["message"].as_str());
    said.map_or_else(|| "it does not say why".to_owned(), str::to_owned)
}
