//! Workers before a provider that misbehaves, and what is to be seen of it from outside, with its times: the calls that
//! arrive at the provider, and the guard's row in the database.
//!
//! Provider, database and test are on one machine, so that one clock says when each thing was.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tollgate_model::guard::circuit::State;
use tollgate_model::guard::state::ClassState;
use tollgate_model::submission::Submission;
use tollgate_sim::{Behaviour, Control, Stats};
use tollgate_testkit::{Process, TestApp, Tune, eventually};
use uuid::Uuid;

use crate::operators::{BINARY, tune};

/// What a worker runs at a time.
pub(crate) const CONCURRENCY: usize = 2;

/// From the commit that closed a guard until every worker knows of it: a hint's way through PostgreSQL on a busy machine.
pub(crate) const NEWS: TimeDelta = TimeDelta::milliseconds(600);

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the provider had seen at some time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) at: DateTime<Utc>,
    pub(crate) arrivals: u64,
    pub(crate) in_flight: u64,
    pub(crate) aborted: u64,
}

/// All that was seen, the oldest first; only what had changed.
#[derive(Debug, Default)]
struct Seen {
    looks: Vec<Look>,
    states: Vec<State>,
    pauses: Vec<DateTime<Utc>>,
}

/// A Tollgate, its provider, and somebody who watches both.
pub(crate) struct Fleet {
    pub(crate) app: TestApp,
    pub(crate) log: NamedTempFile,
    provider: Control,
    seen: Arc<Mutex<Seen>>,
    _watching: AbortOnDropHandle<()>,
}

/// The figures of a guard in these tests: as by default, but in seconds what takes minutes.
pub(crate) fn quick(otherwise: &Value) -> Value {
    let mut settings = json!({
        "sample_max_age": "30s", "open_period": "1500ms", "open_growth": 1.5, "open_period_cap": "5s",
        "probe_interval": "200ms", "probe_slack": "1s", "ramp": "1s", "credential_recheck": "3s", "pause_spread": "0s",
        "timeout_floor": "1s", "timeout_initial": "1s", "timeout_ceiling": "1s", "timeout_margin": "500ms",
    });
    for (name, value) in otherwise.as_object().unwrap() {
        settings[name] = value.clone();
    }
    settings
}

impl Fleet {
    /// So many workers before the simulated provider, with these figures for calls of text.
    pub(crate) async fn start(
        workers: usize,
        figures: &Value,
        settings: &[(&'static str, &str)],
        provider: Behaviour,
    ) -> Self {
        let app = Self::app(workers, &json!({"text": quick(figures)}), settings, provider).await;
        let control = app.0.provider.clone();
        Self::watch(app, control, Some("text"))
    }

    /// A Tollgate whose workers log into a file.
    pub(crate) async fn app(
        workers: usize,
        guard: &Value,
        settings: &[(&'static str, &str)],
        provider: Behaviour,
    ) -> (TestApp, NamedTempFile) {
        let log = NamedTempFile::new().unwrap();
        (TestApp::start(BINARY, tuned(workers, guard, settings, provider, &log)).await, log)
    }

    /// Watches this provider, and this class's guard.
    pub(crate) fn watch(
        (app, log): (TestApp, NamedTempFile),
        provider: Control,
        class: Option<&'static str>,
    ) -> Self {
        let seen = Arc::default();
        let watching = watch(app.owner.clone(), provider.clone(), class, Arc::clone(&seen));
        let watching = AbortOnDropHandle::new(TaskTracker::new().spawn(watching));
        Self { app, log, provider, seen, _watching: watching }
    }

    /// What the provider has counted.
    pub(crate) fn stats(&self) -> Stats {
        self.provider.stats()
    }

    /// From now on the provider behaves like this. Returns since when.
    pub(crate) fn provider_is(&self, behaviour: Behaviour) -> DateTime<Utc> {
        self.provider.set_behaviour(behaviour).unwrap();
        now()
    }

    /// Submits so many jobs of text.
    pub(crate) async fn submit(&self, jobs: usize) -> Vec<Uuid> {
        submit(&self.app, "text", jobs).await
    }

    /// The state that begins after `since` and is as wished, once it is there.
    pub(crate) async fn state(
        &self,
        what: &str,
        since: DateTime<Utc>,
        wish: impl Fn(&State) -> bool,
    ) -> State {
        eventually(what, PATIENCE, || async {
            let seen = self.seen.lock().unwrap();
            seen.states.iter().find(|state| state.since() >= since && wish(state)).cloned()
        })
        .await
    }

    /// When the circuit was first `name` after `since`.
    pub(crate) async fn becomes(&self, name: &str, since: DateTime<Utc>) -> DateTime<Utc> {
        self.state(name, since, |state| state.name() == name).await.since()
    }

    /// The names of the states that there were, one after the other, from the first that was not closed.
    pub(crate) fn states(&self) -> Vec<&'static str> {
        let seen = self.seen.lock().unwrap();
        seen.states.iter().map(State::name).skip_while(|name| *name == "closed").collect()
    }

    /// A metric, over all workers.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for worker in &self.app.workers {
            sum += worker.metric(name).await;
        }
        sum
    }

    /// The end of a pause that lasts until after `since`, once one is known.
    pub(crate) async fn pause(&self, since: DateTime<Utc>) -> DateTime<Utc> {
        eventually("a pause", PATIENCE, || async {
            self.seen.lock().unwrap().pauses.iter().copied().find(|until| *until > since)
        })
        .await
    }

    /// Calls that arrived in between.
    pub(crate) fn arrivals(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> u64 {
        let seen = self.seen.lock().unwrap();
        let before = |at| seen.looks.iter().rfind(|look| look.at <= at).map_or(0, |look| look.arrivals);
        before(to.max(from)) - before(from)
    }

    /// The first look after `since` that shows what is wished, once there is one.
    pub(crate) async fn look(
        &self,
        what: &str,
        since: DateTime<Utc>,
        wish: impl Fn(&Look) -> bool,
    ) -> DateTime<Utc> {
        eventually(what, PATIENCE, || async {
            let seen = self.seen.lock().unwrap();
            seen.looks.iter().find(|look| look.at >= since && wish(look)).map(|look| look.at)
        })
        .await
    }

    /// The most calls at once in between.
    pub(crate) fn most_at_once(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> u64 {
        let seen = self.seen.lock().unwrap();
        let first = seen.looks.iter().rfind(|look| look.at <= from).map_or(0, |look| look.in_flight);
        let within = seen.looks.iter().filter(|look| (from..to).contains(&look.at));
        within.map(|look| look.in_flight).fold(first, u64::max)
    }

    /// Calls that arrived while the circuit was open: those that were on their way when it opened, and the others.
    pub(crate) fn arrivals_while_open(&self) -> (u64, u64) {
        let periods: Vec<_> = self
            .periods(|state| matches!(state, State::Open { .. }))
            .into_iter()
            .map(|(state, since, end)| match state {
                State::Open { until: Some(until), .. } => (since, until.min(end)),
                _ => (since, end),
            })
            .collect();
        let parts = periods.into_iter().map(|(since, end)| {
            let known = (since + NEWS).min(end);
            (self.arrivals(since, known), self.arrivals(known, end))
        });
        parts.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    }

    /// The most calls at once, of those that began while the circuit was half-open. What began before is taken to be over
    /// first.
    pub(crate) fn probes_at_once(&self) -> u64 {
        let periods = self.periods(|state| matches!(state, State::HalfOpen { .. }));
        let seen = self.seen.lock().unwrap();
        let most = periods.into_iter().map(|(_, since, end)| {
            let (older, before) = seen
                .looks
                .iter()
                .rfind(|look| look.at <= since)
                .map_or((0, 0), |look| (look.in_flight, look.arrivals));
            let within = seen.looks.iter().filter(|look| (since..end).contains(&look.at));
            let probes = within.map(|look| {
                let (begun, under_way) = (look.arrivals - before, look.in_flight);
                let ended = older + begun - under_way;
                begun - ended.saturating_sub(older)
            });
            probes.max().unwrap_or(0)
        });
        most.max().unwrap_or(0)
    }

    /// The states of a kind, with beginning and end.
    fn periods(&self, kind: impl Fn(&State) -> bool) -> Vec<(State, DateTime<Utc>, DateTime<Utc>)> {
        let states = self.seen.lock().unwrap().states.clone();
        let ends = states.iter().skip(1).map(State::since).chain([now()]);
        let all = states.iter().cloned().zip(ends);
        all.filter(|(state, _)| kind(state)).map(|(state, end)| (state.clone(), state.since(), end)).collect()
    }

    /// Waits until every job has ended, and takes stock.
    pub(crate) async fn stock(&self) -> Stock {
        eventually("every job ended", PATIENCE, || async {
            let open = "SELECT count(*) FROM app.jobs WHERE finished_at IS NULL";
            (self.app.number(open).await == 0).then_some(())
        })
        .await;
        let sql = "SELECT id, status, attempts FROM app.jobs";
        let jobs: Vec<(Uuid, String, i32)> = sqlx::query_as(sql).fetch_all(&self.app.owner).await.unwrap();
        let mut stock = Stock { jobs: jobs.len(), ..Stock::default() };
        for (id, status, attempts) in jobs {
            let calls = self.provider.arrivals_of(&id.to_string());
            stock.calls += calls;
            stock.failed += usize::from(status != "succeeded");
            stock.burnt += u64::try_from(attempts).unwrap().saturating_sub(calls);
        }
        stock.probes = self.provider.stats().arrivals - stock.calls;
        let handed_back = "SELECT count(*) FROM app.job_events WHERE type = 'job.requeued'";
        stock.handed_back = self.app.number(handed_back).await;
        self.app.assert_consistent().await;
        stock
    }

    /// The workers' log lines that hold `text`.
    pub(crate) fn lines(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Another worker, with this environment.
    pub(crate) async fn worker_with(&mut self, settings: &[(&'static str, &str)]) -> Process {
        for (name, value) in settings {
            self.app.set(name, value);
        }
        self.app.start_worker().await
    }
}

/// What a fault has cost in the end.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    pub(crate) jobs: usize,
    pub(crate) failed: usize,
    /// Of these jobs; a probe of our own is no job's.
    pub(crate) calls: u64,
    /// Calls of no job: synthetic probes.
    pub(crate) probes: u64,
    /// Attempts that were counted without a call.
    pub(crate) burnt: u64,
    /// Claimed, and given back before the call.
    pub(crate) handed_back: i64,
}

impl Stock {
    pub(crate) fn calls_per_job(&self) -> f64 {
        self.calls as f64 / self.jobs as f64
    }
}

/// What such a Tollgate is started with.
pub(crate) fn tuned(
    workers: usize,
    guard: &Value,
    settings: &[(&'static str, &str)],
    provider: Behaviour,
    log: &NamedTempFile,
) -> Tune {
    let (guard, concurrency) = (guard.to_string(), CONCURRENCY.to_string());
    let usual = [
        ("GUARD", guard.as_str()),
        ("Q_GEN_CREATE_CONCURRENCY", &concurrency),
        ("GENERATION_RETRY_DELAYS", "200ms,400ms,800ms"),
        ("LOG_LEVEL", "info,tollgate_http=warn"),
    ];
    let mut tune = tune(workers, &[&usual[..], settings].concat()).provider(provider);
    tune.log = Some(log.path().to_owned());
    tune
}

/// Submits so many jobs, several at a time.
pub(crate) async fn submit(app: &TestApp, job_type: &str, jobs: usize) -> Vec<Uuid> {
    let mut submitting = JoinSet::new();
    for lane in 0..8 {
        let client = app.client();
        let numbers: Vec<_> = (lane..jobs).step_by(8).collect();
        let job_type = Some(job_type.to_owned());
        submitting.spawn(async move {
            let mut ids = Vec::new();
            for number in numbers {
                let prompt = Some(format!("number {number}"));
                let submission = Submission { prompt, job_type: job_type.clone(), ..Submission::default() };
                // A machine that is busy with other tests may let a submission wait for too long.
                let accepted =
                    eventually("accepted", PATIENCE, || async { client.submit(&submission).await.ok() });
                ids.push(accepted.await);
            }
            ids
        });
    }
    submitting.join_all().await.concat()
}

/// Looks at the provider every few milliseconds, and at the guard as fast as it can.
async fn watch(owner: PgPool, provider: Control, class: Option<&'static str>, seen: Arc<Mutex<Seen>>) {
    let calls = async {
        loop {
            let Stats { arrivals, in_flight, aborted, .. } = provider.stats();
            let look = Look { at: now(), arrivals, in_flight, aborted };
            let changed =
                |last: &Look| (last.arrivals, last.in_flight, last.aborted) != (arrivals, in_flight, aborted);
            {
                let looks = &mut seen.lock().unwrap().looks;
                if looks.last().is_none_or(changed) {
                    looks.push(look);
                }
            }
            pause(3).await;
        }
    };
    let guard = async {
        while let Some(class) = class {
            let state = "SELECT state FROM guard.classes WHERE class = $1 AND state <> 'null'";
            let state: Option<Value> =
                sqlx::query_scalar(state).bind(class).fetch_optional(&owner).await.unwrap();
            if let Some(state) = state {
                let state: ClassState = serde_json::from_value(state).unwrap();
                let circuit = state.circuit.state();
                let mut seen = seen.lock().unwrap();
                if seen
                    .states
                    .last()
                    .is_none_or(|last| (last.name(), last.since()) != (circuit.name(), circuit.since()))
                {
                    seen.states.push(circuit.clone());
                }
                if let Some(until) =
                    state.pause.until(now()).filter(|until| seen.pauses.last() != Some(until))
                {
                    seen.pauses.push(until);
                }
            }
            pause(10).await;
        }
    };
    tokio::join!(calls, guard);
}

/// Real time: what is watched are other processes.
pub(crate) async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[expect(clippy::disallowed_methods, reason = "the machine's clock, which is the database's")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}
