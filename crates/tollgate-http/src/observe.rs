//! The outermost layer: a request's id, its span, its log line, its metrics, and the headers of every answer.
//!
//! Labels and fields hold the matched route, never the path, and no query string: paths hold ids, queries cursors,
//! and neither belongs into the name of a time series.

use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method};
use metrics::Unit;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field};

use crate::problem::Problem;
use crate::rate_limits::Shown;
use crate::request_id::{RequestId, X_REQUEST_ID};

/// A refused body of this size at most has arrived with its head, so the connection can go on after it.
const DRAINED_AT_ONCE: u64 = 8 * 1024;

const REQUESTS: &str = "tollgate_http_requests_total";
const DURATION: &str = "tollgate_http_request_duration_seconds";

/// Tells the exporter what the metrics are.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(REQUESTS, "Requests answered.");
    metrics::describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the head of a request to the head of its answer."
    );
    metrics::describe_gauge!("tollgate_http_event_streams", "Event streams open.");
    metrics::describe_gauge!("tollgate_http_connections", "Client connections open.");
    metrics::describe_gauge!("tollgate_database_away", "1 while PostgreSQL cannot be reached.");
    metrics::describe_counter!(
        "tollgate_submissions_refused_total",
        "Submissions refused because as much waits as may."
    );
    metrics::describe_counter!("tollgate_rate_limited_total", "Requests refused by the limit of their key.");
    metrics::describe_counter!(
        "tollgate_abuse_limited_total",
        "API keys that were not looked at, because too many wrong ones came before."
    );
    metrics::describe_counter!("tollgate_dead_letters_total", "Tasks given up, by queue and reason.");
    metrics::describe_counter!("tollgate_stripe_events_total", "Events of Stripe's: new, known, refused.");
    metrics::describe_counter!("tollgate_credits_granted_total", "Credits granted, by source.");
    metrics::describe_counter!("tollgate_credits_taken_back_total", "Credits taken back, by source.");
    metrics::describe_gauge!("tollgate_database_connections", "Database connections, open and in use.");
}

/// Answers a request, and takes note of it.
pub(crate) async fn observe(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let may_be_unread = request.body().size_hint().upper().is_none_or(|most| most > DRAINED_AT_ONCE);
    let private =
        ["/v1/", "/api/", "/internal/"].iter().any(|prefix| request.uri().path().starts_with(prefix));
    let watch = Watch::begin(&request, &id);
    let span = watch.span.clone();
    let limits = Shown::default();
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(limits.clone());

    let mut response = next.run(request).instrument(span).await;

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        problem.write(&mut response, &id);
    }
    let response_succeeded = response.status().is_success();
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.header());
    limits.write(headers);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if may_be_unread && !response_succeeded {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if private {
        // Unless the endpoint has something of its own to say of it, as an image has.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    watch.end(response.status().as_u16());
    response
}

/// A request under way. Dropped before its end, its client has gone.
struct Watch {
    span: Span,
    method: &'static str,
    route: Option<MatchedPath>,
    began: Instant,
    status: u16,
}

/// What nginx calls a request whose client did not wait for the answer.
const CLIENT_GONE: u16 = 499;

impl Watch {
    fn begin(request: &Request, id: &RequestId) -> Self {
        let method = label(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let span = tracing::info_span!(
            "request",
            request_id = id.as_str(),
            method,
            route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str),
            account_id = field::Empty,
            status = field::Empty,
            duration_ms = field::Empty,
        );
        Self { span, method, route, began: Instant::now(), status: CLIENT_GONE }
    }

    fn end(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (status, elapsed) = (self.status, self.began.elapsed());
        let route = self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str).to_owned();
        self.span.record("status", status);
        self.span.record("duration_ms", u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        // Probes and scrapes come every few seconds, for ever.
        let routine = matches!(route.as_str(), "/healthz" | "/readyz" | "/metrics") && status < 400;
        self.span.in_scope(|| if routine { tracing::debug!("answered") } else { tracing::info!("answered") });
        metrics::histogram!(DURATION, "method" => self.method, "route" => route.clone()).record(elapsed);
        metrics::counter!(REQUESTS, "method" => self.method, "route" => route, "status" => status.to_string())
            .increment(1);
    }
}

const UNMATCHED: &str = "unmatched";

/// A client may invent methods, but not time series.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}
