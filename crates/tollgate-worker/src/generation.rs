//! Generation jobs. Between the claim and the settlement there is no transaction, only the call.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tollgate_domain::runs::{self, Run, Settled};
use tollgate_domain::{Database, Error, Result};
use tollgate_model::generation::{Decision, FailureKind, GenerationOutput, ProviderFailure};
use tollgate_model::lanes::Plan;
use tollgate_model::queue::ClaimedTask;
use tollgate_outbound::Provider;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::backoff::{Backoff, in_time, jitter};
use crate::held::HeldLease;
use crate::{Work, Worker};

/// The work of `generation.create`: one call to a provider a job.
pub struct Generation {
    provider: Arc<dyn Provider>,
}

impl Generation {
    /// Calls this provider.
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        Self { provider }
    }
}

impl Work for Generation {
    type Run = Run;

    async fn claim(&self, db: &Database, worker: Uuid, settings: i64, plan: &mut Plan) -> Result<Vec<Run>> {
        runs::claim(db, worker, settings, plan).await
    }

    fn task(run: &Run) -> &ClaimedTask {
        &run.task
    }

    async fn run(worker: &Worker<Self>, run: Run, held: &HeldLease<'_>) {
        let lease = run.task.lease;
        let span = tracing::info_span!("run", job_id = %lease.task, account_id = %lease.account,
            queue = worker.queue().as_str(), attempt = run.task.attempt, provider = worker.work().provider.name(),
            model = run.request.as_ref().map_or("", |request| &request.model));
        call_and_settle(worker, run, held).instrument(span).await;
    }
}

/// How the call ended.
enum Outcome {
    Answer(Result<GenerationOutput, ProviderFailure>),
    /// The job was cancelled, or is another worker's.
    LeaseLost,
    /// The process is going down.
    HandBack,
}

async fn call_and_settle(worker: &Worker<Generation>, run: Run, held: &HeldLease<'_>) {
    let began = Instant::now();
    let outcome = tokio::select! {
        answer = call(worker, &run) => Outcome::Answer(answer),
        () = held.lost() => Outcome::LeaseLost,
        () = worker.handing_back() => Outcome::HandBack,
    };
    // Here the call is over: its future is dropped and its socket closed, however it ended.
    let status = match &outcome {
        Outcome::Answer(answer) => {
            observe(worker, answer, began);
            let settled = settle(worker, &run, answer, held).await;
            if matches!(settled, Some(Settled::Retrying(_))) {
                // The claiming loop may be asleep, and knows nothing of the time at which this is due.
                worker.look_again();
            }
            settled.map(Settled::as_str)
        }
        Outcome::LeaseLost => Some(Settled::LeaseLost.as_str()),
        Outcome::HandBack => hand_back(worker, &run).await,
    };
    let status = status.unwrap_or("left_to_the_sweep");
    if status == Settled::LeaseLost.as_str() {
        metrics::counter!("tollgate_leases_lost_total").increment(1);
    }
    let error = match &outcome {
        Outcome::Answer(Err(failure)) => Some(failure.to_string()),
        _ => None,
    };
    tracing::info!(
        status,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        error,
        "run ended"
    );
}

/// A defect in an adapter must not leave the job leased to a task that is no more.
async fn call(worker: &Worker<Generation>, run: &Run) -> Result<GenerationOutput, ProviderFailure> {
    let request = run.request.as_ref().map_err(|problem| ProviderFailure {
        kind: FailureKind::ServerError,
        decision: Decision::Retry,
        message: format!("this worker's version cannot read the job: {problem}"),
    })?;
    AssertUnwindSafe(worker.work().provider.generate(request)).catch_unwind().await.unwrap_or_else(|_| {
        Err(ProviderFailure {
            kind: FailureKind::ServerError,
            decision: Decision::Retry,
            message: "the provider adapter panicked; the log has the details".into(),
        })
    })
}

fn observe(worker: &Worker<Generation>, answer: &Result<GenerationOutput, ProviderFailure>, began: Instant) {
    let outcome = answer.as_ref().map_or_else(|failure| failure.kind.code(), |_| "OK");
    let provider = worker.work().provider.name();
    metrics::counter!("tollgate_provider_calls_total", "provider" => provider, "outcome" => outcome)
        .increment(1);
    metrics::histogram!("tollgate_provider_call_duration_seconds", "provider" => provider)
        .record(began.elapsed().as_secs_f64());
}

/// Settles, again and again while the database cannot be reached: an answer that was paid for is not thrown away
/// while its lease may still hold. A settlement that committed unseen is found as a lost lease the next time, which
/// changes nothing. `None`: the process is going down.
async fn settle(
    worker: &Worker<Generation>,
    run: &Run,
    answer: &Result<GenerationOutput, ProviderFailure>,
    held: &HeldLease<'_>,
) -> Option<Settled> {
    let mut database = Backoff::new("settling", worker.db());
    let mut refused = None;
    loop {
        let answer = refused.as_ref().unwrap_or(answer);
        let settled = match answer {
            Ok(output) => in_time(runs::settle_success(worker.db(), run.task.lease, output)).await,
            Err(failure) => {
                let policy = worker.policy();
                in_time(runs::settle_failure(worker.db(), policy, &run.task, failure, jitter())).await
            }
        };
        match settled {
            Ok(settled) => {
                database.succeeded();
                return Some(settled);
            }
            Err(error) if error.is_about_values() && answer.is_ok() => {
                refused = Some(Err(not_storable(&error)));
            }
            Err(error) => tokio::select! {
                () = database.failed(&error) => {}
                () = held.lost() => return Some(Settled::LeaseLost),
                () = worker.handing_back() => return None,
            },
        }
    }
}

/// An answer that PostgreSQL will not take is a failed attempt, not an endless one.
fn not_storable(error: &Error) -> ProviderFailure {
    tracing::error!(%error, "the answer could not be stored");
    ProviderFailure {
        kind: FailureKind::ServerError,
        decision: Decision::Retry,
        message: "the provider's answer could not be stored".into(),
    }
}

async fn hand_back(worker: &Worker<Generation>, run: &Run) -> Option<&'static str> {
    match in_time(runs::release(worker.db(), run.task.lease, "shutdown")).await {
        Ok(true) => Some("handed_back"),
        Ok(false) => Some(Settled::LeaseLost.as_str()),
        Err(error) => {
            tracing::warn!(%error, "could not hand the job back; it runs again after the visibility timeout");
            None
        }
    }
}
