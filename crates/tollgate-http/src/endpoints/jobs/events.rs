//! `GET /v1/jobs/{id}/events`: a page, or a stream for those who ask for one.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::HeaderMap;
use http::header::ACCEPT;
use serde::Deserialize;
use tollgate_domain::jobs;
use tollgate_model::job::{Job, JobEvent};
use utoipa::{IntoParams, IntoResponses};

use super::follow;
use crate::api::App;
use crate::extract::{Caller, Id, JobsRead, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{Code, ForCaller, ForId, ForQuery, Problem, Responses, Unfinished, document};

type JobEventPage = Page<JobEvent>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Events a page may hold; a stream has no pages.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

pub(crate) struct NoPlace;

impl IntoResponses for NoPlace {
    fn responses() -> Responses {
        document(&[(
            Code::RateLimited,
            "as many requests as the key may make, or as many event streams as may be open",
        )])
    }
}

/// Shows what happened to a job, or follows it
///
/// With `Accept: text/event-stream` the answer is a stream of server-sent events: those there are, then each as it
/// comes. `id` is the event's `seq`, `event` its type, `data` the event as JSON. The stream ends after the event that
/// ends the job, and at the latest after half an hour; a client that reconnects with `Last-Event-ID`, as browsers do,
/// misses nothing, and gets `204` once there is nothing left to come.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    operation_id = "listJobEvents",
    tag = "jobs",
    security(("api_key" = ["jobs:read"])),
    params(
        ("id" = Uuid, Path, description = "The job."),
        EventsQuery,
        ("Last-Event-ID" = Option<i32>, Header, description = "A stream continues after this event."),
    ),
    responses(
        (status = 200, description = "A page of events, oldest first; or the stream.", content(
            (JobEventPage = "application/json"),
            (String = "text/event-stream", example = "id: 2\nevent: job.started\ndata: {\"seq\":2,\"type\":\"job.started\",\"data\":{\"attempt\":1},\"created_at\":\"2026-01-01T00:00:00Z\"}\n\n"),
        )),
        (status = 204, description = "Nothing will follow `Last-Event-ID`: the job has ended. (Streams only.)"),
        ForCaller, ForId, ForQuery, NoPlace, Unfinished,
    )
)]
pub(crate) async fn events(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    id: Id<Job>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // Named after the job, so that a cursor of another job's events is refused.
    let list = format!("jobs/{}/events", id.0);
    let after: i32 = page::after(&list, query.cursor.as_deref())?.unwrap_or(0);
    if wants_stream(&headers) {
        let after = last_event_id(&headers)?.unwrap_or(after);
        return follow::follow(app, caller, id.0, after).await;
    }
    let (events, _) = jobs::events(&app.db, caller.account, id.0, after, query.limit.and_one()).await?;
    Ok(Json(Page::new(&list, events, query.limit, |event| event.seq)).into_response())
}

/// Whether `Accept` names the type of a stream, and not to refuse it.
fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/event-stream"));
        let refused = |parameter: &str| {
            let weight = parameter.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
            weight.is_some_and(|q| q <= 0.0)
        };
        named && !parts.any(refused)
    })
}

/// The number of the last event that the client saw. Browsers send the header empty if there was none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i32>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|value| value.parse().ok()).filter(|seq| *seq >= 0);
    let wrong = || Problem::invalid("the header `Last-Event-ID` must be the `id` of an event of this job");
    seq.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_stream_is_for_those_who_ask_for_it() {
        for (accept, stream) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("*/*", false),
            ("application/json", false),
            ("text/event-stream; q=0", false),
            ("text/event-streams", false),
            ("é", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_bytes(accept.as_bytes()).unwrap());
            assert_eq!(wants_stream(&headers), stream, "{accept}");
        }
        assert!(!wants_stream(&HeaderMap::new()));
    }

    #[test]
    fn the_last_event_is_a_number() {
        let read = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", HeaderValue::from_bytes(value).unwrap());
            last_event_id(&headers).ok()
        };
        assert_eq!(read(b"7"), Some(Some(7)));
        assert_eq!(read(b""), Some(None));
        for wrong in [&b"-1"[..], b"x", b"1.5", b"99999999999", b"\xff"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
