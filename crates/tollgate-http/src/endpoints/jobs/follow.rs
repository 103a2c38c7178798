//! A job's events, live: server-sent events until the job has ended.
//!
//! A stream asks the database, at intervals that grow from 100 ms to 1 s while nothing happens. Rejected: a
//! `LISTEN` for each stream, which holds a connection of the database each, and a `NOTIFY` in each transaction that
//! changes a job, which costs the queue more than half its rate; both to save an indexed read of one job a second.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::{HeaderName, HeaderValue, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep, timeout};
use tollgate_domain::{Error, jobs};
use tollgate_model::account::AccountId;
use tollgate_model::job::{JobEvent, JobStatus};
use uuid::Uuid;

use crate::api::App;
use crate::extract::Caller;
use crate::problem::{Code, Problem};
use crate::streams::Place;

/// Events that one read brings.
const BATCH: i64 = 100;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A comment this often tells proxies that the stream lives, and us whether the client does.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Then the client may come again; else a job that waits for days would hold a place that long.
const LONGEST_STREAM: Duration = Duration::from_mins(30);

/// Answers with the events after number `after`, those to come included.
pub(super) async fn follow<S>(
    app: App,
    caller: Caller<S>,
    job: Uuid,
    after: i32,
) -> Result<Response, Problem> {
    let place = app.streams().take(caller.account).ok_or_else(|| {
        Problem::new(Code::RateLimited, "too many event streams are open; close one, or poll the job")
            .retry_after(5)
    })?;
    let mut follower = Follower {
        account: caller.account,
        key: caller.presented,
        job,
        seen: after,
        ready: VecDeque::new(),
        ended: false,
        pause: SHORTEST_PAUSE,
        until: Instant::now() + LONGEST_STREAM,
        app,
        _place: place,
    };
    // Read once before the answer begins: afterwards it is too late to say that there is no such job.
    let (events, status) = follower.read().await?;
    if events.is_empty() && status.is_final() {
        // To a browser's EventSource, which reconnects after the end of each stream, this alone says "stop".
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    follower.take(events, status);
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))];
    Ok((unbuffered, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response())
}

struct Follower {
    app: App,
    account: AccountId,
    key: SecretString,
    job: Uuid,
    /// The number of the last event handed on.
    seen: i32,
    /// Read, but not handed on yet.
    ready: VecDeque<JobEvent>,
    /// Nothing will follow what is ready.
    ended: bool,
    pause: Duration,
    until: Instant,
    _place: Place,
}

impl Follower {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            if self.ended || !self.wait().await || !self.still_allowed().await {
                return None;
            }
            match self.read().await {
                Ok((events, status)) => self.take(events, status),
                // An answer that is no success would make a browser give up for good, so wait it out in here.
                Err(error) if error.is_unavailable() => {
                    self.app.db.suspect(Some(&error.to_string()));
                    self.pause = LONGEST_PAUSE;
                }
                Err(error) => {
                    tracing::error!(%error, job_id = %self.job, account_id = %self.account, "an event stream broke");
                    return None;
                }
            }
        }
        let event = self.ready.pop_front()?;
        self.seen = event.seq;
        let sent = Event::default().id(event.seq.to_string()).event(&event.kind).json_data(&event);
        sent.inspect_err(|error| tracing::error!(%error, "an event could not be written")).ok()
    }

    /// Waits for the next read; `false`: there will be none. While the database is away nobody reads.
    async fn wait(&mut self) -> bool {
        loop {
            tokio::select! {
                () = self.app.shutdown.cancelled() => return false,
                () = sleep(self.pause) => {}
            }
            self.pause = (self.pause * 3 / 2).min(LONGEST_PAUSE);
            if Instant::now() >= self.until {
                return false;
            }
            if !self.app.db.is_away() {
                return true;
            }
            self.pause = LONGEST_PAUSE;
        }
    }

    /// A key that was revoked must not go on reading: it is looked at again before each read, as for any request.
    async fn still_allowed(&self) -> bool {
        let asked = self.app.auth.authenticate(&self.app.db, self.key.expose_secret(), None);
        match self.in_time(asked).await {
            Ok(caller) => caller.is_some(),
            // The read that follows will fare no better, and decide.
            Err(error) => error.is_unavailable(),
        }
    }

    async fn read(&self) -> tollgate_domain::Result<(Vec<JobEvent>, JobStatus)> {
        self.in_time(jobs::events(&self.app.db, self.account, self.job, self.seen, BATCH)).await
    }

    /// What a request may take. A network that swallows everything would otherwise keep the stream waiting for ever.
    async fn in_time<T>(
        &self,
        ask: impl Future<Output = tollgate_domain::Result<T>>,
    ) -> tollgate_domain::Result<T> {
        timeout(self.app.request_timeout, ask).await.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    fn take(&mut self, events: Vec<JobEvent>, status: JobStatus) {
        let full = i64::try_from(events.len()) == Ok(BATCH);
        self.ended = status.is_final() && !full;
        if !events.is_empty() {
            // Where something happens, more is likely to.
            self.pause = SHORTEST_PAUSE;
        }
        self.ready.extend(events);
    }
}
