//! What the handlers are given.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollgate_domain::auth::Authenticator;
use tollgate_domain::rate_limits::RateLimits;
use tollgate_domain::status::{Guards, Totals};
use tollgate_domain::submit::Entrance;
use tollgate_domain::{AdminToken, Database};
use tollgate_model::guard::class::GuardConfig;
use tollgate_model::job::Job;
use tollgate_model::queue::TimesToLive;
use tollgate_model::stripe::signature::SigningSecrets;
use tollgate_outbound::ImageStore;

use crate::extract::BodyLimit;
use crate::streams::Streams;

/// All that the API needs; made once, at start.
#[derive(Clone)]
pub struct Api {
    /// Connections as `app_api`.
    pub db: Database,
    /// Verifies keys.
    pub auth: Authenticator,
    /// Counts requests.
    pub rate_limits: RateLimits,
    /// What submissions go through.
    pub entrance: Arc<Entrance>,
    /// Whether anybody may see how much the platform has to do.
    pub public_status: bool,
    /// What operators are served with; `None`: no token is configured for them, and nobody is one.
    pub operators: Option<Operators>,
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// From the head of a request to the head of its answer, reading the body included.
    pub request_timeout: Duration,
    /// Event streams that may be open at once, over all accounts; one account may hold half of them.
    pub max_event_streams: usize,
    /// The classes of models that have a guard.
    pub guard: Arc<GuardConfig>,
    /// Whether the breaker's decisions hold, by the configuration as it is now.
    pub breaker_enabled: watch::Receiver<bool>,
    /// Where images are that are not in the database.
    pub images: Option<Arc<ImageStore>>,
    /// What the path of an image is put behind, so that it can be shown elsewhere, such as `https://ai.example.com`;
    /// empty: it stays a path.
    pub public_base: String,
    /// What Stripe's webhook needs; `None`: it is off.
    pub stripe: Option<StripeInbox>,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// The token that [`crate::serve()`] is given: event streams end when it is cancelled.
    pub shutdown: CancellationToken,
}

/// What the operators' routes need.
#[derive(Clone)]
pub struct Operators {
    /// Connections as `app_operator`.
    pub db: Database,
    /// What an operator must bring.
    pub token: AdminToken,
    /// How long a redriven task may take.
    pub ttls: TimesToLive,
}

/// What Stripe's webhook needs.
#[derive(Debug, Clone)]
pub struct StripeInbox {
    /// What events are signed with.
    pub secrets: SigningSecrets,
    /// How old a signature may be.
    pub tolerance: Duration,
    /// How long an event may take to be entered.
    pub ttl: Duration,
}

/// The router's state: [`Api`], and what the router itself keeps.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) streams: Streams,
    pub(crate) totals: Totals,
    pub(crate) guards: Guards,
}

impl App {
    pub(crate) fn new(api: Api) -> Self {
        let streams = Streams::new(api.max_event_streams);
        Self(Arc::new(Shared { api, streams, totals: Totals::default(), guards: Guards::default() }))
    }

    /// Makes the path of an image a whole URL, if it is known what we are called.
    pub(crate) fn complete(&self, url: &mut String) {
        if url.starts_with('/') {
            url.insert_str(0, &self.public_base);
        }
    }

    /// A job as clients are to see it.
    pub(crate) fn shown(&self, mut job: Job) -> Job {
        for image in job.output.iter_mut().flat_map(|output| &mut output.images) {
            self.complete(&mut image.url);
        }
        job
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.0.streams
    }

    pub(crate) fn guards(&self) -> &Guards {
        &self.0.guards
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.0.totals
    }
}

impl std::ops::Deref for App {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.0.api
    }
}

/// The part of the state that the operational routes need, in either role.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) db: Database,
    pub(crate) metrics: PrometheusHandle,
}

impl FromRef<App> for Ops {
    fn from_ref(app: &App) -> Self {
        Self { db: app.db.clone(), metrics: app.metrics.clone() }
    }
}

impl FromRef<App> for BodyLimit {
    fn from_ref(app: &App) -> Self {
        Self(app.max_body_bytes)
    }
}
