//! Generation jobs. Between the claim and the settlement there is no transaction, only the call.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tollgate_domain::images::NewImage;
use tollgate_domain::runs::{self, Run, Settled};
use tollgate_domain::{Database, Error, Result};
use tollgate_model::generation::{Decision, GenerationOutput, GenerationRequest, ProviderFailure};
use tollgate_model::guard::outcome::{Outcome as Seen, OutcomeKind};
use tollgate_model::guard::timeout::LatencyKey;
use tollgate_model::lanes::Plan;
use tollgate_model::queue::{ClaimedTask, QueueName};
use tollgate_outbound::Provider;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::backoff::{Backoff, in_time, jitter};
use crate::guard::{Guard, Leave, Pass};
use crate::held::HeldLease;
use crate::images::Images;
use crate::{Work, Worker};

/// The work of a line of `generation.create`: one call to a provider a job, behind a guard.
pub struct Generation {
    line: QueueName,
    provider: Arc<dyn Provider>,
    images: Images,
    guard: Guard,
    /// What a probe asks for where no job is there to be one.
    probe: GenerationRequest,
}

impl Generation {
    /// Calls this provider for the jobs of a line, and keeps their images there.
    pub fn new(
        line: QueueName,
        provider: Arc<dyn Provider>,
        images: Images,
        guard: Guard,
        probe: GenerationRequest,
    ) -> Self {
        Self { line, provider, images, guard, probe }
    }

    /// Whether a job asks for less time than such jobs, which are given `most`, get where they ask for none.
    fn is_hasty(&self, request: &GenerationRequest, most: Duration) -> bool {
        request.timeout < self.probe.timeout.min(most)
    }

    /// What the call's latency is compared with.
    fn key(&self, request: &GenerationRequest) -> LatencyKey {
        LatencyKey {
            provider: self.provider.name().to_owned(),
            model: request.model.clone(),
            kind: request.endpoint.kind(),
            size: request.size.clone(),
        }
    }
}

/// A job, and the leave to call.
pub struct Guarded {
    run: Run,
    pass: Pass,
}

impl Work for Generation {
    type Run = Guarded;
    type Leave = Leave;

    async fn admitted(&self) {
        self.guard.admitted().await;
    }

    fn leave(&self, want: usize) -> Option<(usize, Leave)> {
        self.guard.leave(want).map(|leave| (leave.count(), leave))
    }

    async fn claim(
        &self,
        db: &Database,
        worker: Uuid,
        settings: i64,
        plan: &mut Plan,
        mut leave: Leave,
    ) -> Result<Vec<Guarded>> {
        let runs = runs::claim(db, self.line, worker, settings, plan).await?;
        Ok(runs.into_iter().filter_map(|run| leave.take().map(|pass| Guarded { run, pass })).collect())
    }

    async fn nothing_there(&self) {
        if let Some(pass) = self.guard.lone_probe() {
            self.lone_probe(pass).await;
        }
    }

    fn guard_has_news(&self) {
        self.guard.has_news();
    }

    fn task(run: &Guarded) -> &ClaimedTask {
        &run.run.task
    }

    async fn run(worker: &Worker<Self>, run: Guarded, held: &HeldLease<'_>) {
        let Guarded { run, pass } = run;
        let lease = run.task.lease;
        let span = tracing::info_span!("run", job_id = %lease.task, account_id = %lease.account,
            queue = worker.queue().as_str(), attempt = run.task.attempt, provider = worker.work().provider.name(),
            model = run.request.as_ref().map_or("", |request| &request.model));
        call_and_settle(worker, run, pass, held).instrument(span).await;
    }
}

impl Generation {
    /// A probe is due, and no job is there to be it, or none that is fit: a prompt of our own, which belongs to nobody
    /// (SPEC G8).
    async fn lone_probe(&self, pass: Pass) {
        let request = GenerationRequest { request_id: tollgate_domain::ids::new_id(), ..self.probe.clone() };
        let span = tracing::info_span!(
            "probe",
            queue = QueueName::GenerationProbe.as_str(),
            provider = self.provider.name(),
            model = request.model
        );
        let _ = self.call(&request, pass).instrument(span).await;
    }

    /// One call, from the guard's leave to the guard's report. `None`: the guard has learnt that no call may begin.
    async fn call(
        &self,
        request: &GenerationRequest,
        pass: Pass,
    ) -> Option<Result<GenerationOutput, ProviderFailure>> {
        let id = request.request_id;
        let key = self.key(request);
        // A request may ask for less than what calls of its kind are given, not for more.
        let most = self.guard.timeout(&key);
        let (timeout, impatient) = (request.timeout.min(most), self.is_hasty(request, most));
        let request = GenerationRequest { timeout, ..request.clone() };
        let budget = self.guard.budget();
        let call = pass.begin(key, timeout).ok()?;
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%id, timeoutMs = timeout_ms, budgetBefore = budget, "gen.request");
        let began = Instant::now();
        // A defect in an adapter must not leave the job leased to a task that is no more.
        let answer =
            AssertUnwindSafe(self.provider.generate(&request)).catch_unwind().await.unwrap_or_else(|_| {
                let message = "the provider adapter panicked; the log has the details";
                Err(ProviderFailure::ours(Decision::Retry, message))
            });
        let latency = began.elapsed();
        match &answer {
            Ok(output) => {
                tracing::info!(%id, latencyMs = output.latency_ms, "gen.success");
                call.limits(output.limits);
                call.ended(Seen::Success { latency });
            }
            Err(failure) => {
                tracing::info!(%id, kind = failure.sign.name(), "gen.fail");
                call.limits(failure.limits);
                call.ended_by(failure, impatient);
            }
        }
        observe(self.provider.name(), &answer, latency);
        Some(answer)
    }
}

/// What the call brought, and the image in it.
type Answer = Result<(GenerationOutput, Option<NewImage>), ProviderFailure>;

/// How the call ended.
#[expect(clippy::large_enum_variant, reason = "one a run, and nearly always an answer")]
enum Outcome {
    Answer(Answer),
    /// Between the claim and the call the guard has learnt that no call may begin; or the call was a probe, and has nothing
    /// to do with the job.
    HeldBack,
    /// The job was cancelled, or is another worker's.
    LeaseLost,
    /// The process is going down.
    HandBack,
}

async fn call_and_settle(worker: &Worker<Generation>, run: Run, pass: Pass, held: &HeldLease<'_>) {
    let began = Instant::now();
    let outcome = tokio::select! {
        answer = call_and_keep(worker.work(), &run, pass) => answer.map_or(Outcome::HeldBack, Outcome::Answer),
        () = held.lost() => Outcome::LeaseLost,
        () = worker.handing_back() => Outcome::HandBack,
    };
    // Here the call is over: its future is dropped and its socket closed, however it ended.
    let status = match &outcome {
        Outcome::Answer(answer) => {
            let settled = settle(worker, &run, answer, held).await;
            if matches!(settled, Some(Settled::Retrying(_))) {
                // The claiming loop may be asleep, and knows nothing of the time at which this is due.
                worker.look_again();
            }
            settled.map(Settled::as_str)
        }
        Outcome::LeaseLost => Some(Settled::LeaseLost.as_str()),
        Outcome::HeldBack => hand_back(worker, &run, "guard").await,
        Outcome::HandBack => hand_back(worker, &run, "shutdown").await,
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

/// What the provider did is reported before anything is kept: that our own store is down is no news of the provider.
async fn call_and_keep(work: &Generation, run: &Run, pass: Pass) -> Option<Answer> {
    let request = match &run.request {
        Ok(request) => request,
        Err(problem) => {
            let message = format!("this worker's version cannot read the job: {problem}");
            return Some(Err(ProviderFailure::ours(Decision::Retry, message)));
        }
    };
    let is_probe = pass.is_probe();
    let hasty = || work.is_hasty(request, work.guard.timeout(&work.key(request)));
    if is_probe && (hasty() || work.guard.credential_is_refused()) {
        // A job in a hurry cannot show that the provider is back, and one whose model alone is refused would be asked again
        // and again: neither shall decide for all the others.
        work.lone_probe(pass).await;
        return None;
    }
    let mut output = match work.call(request, pass).await? {
        Ok(output) => output,
        // It was asked whether our credential is taken again. Any other job would have been told the same.
        Err(failure) if is_probe && failure.sign == OutcomeKind::CredentialRefused => return None,
        Err(failure) => return Some(Err(failure)),
    };
    let image = work.images.keep(run.task.lease.account, request, &mut output).await;
    Some(image.map(|image| (output, image)))
}

fn observe(provider: &'static str, answer: &Result<GenerationOutput, ProviderFailure>, latency: Duration) {
    let outcome = answer.as_ref().map_or_else(|failure| failure.kind.code(), |_| "OK");
    metrics::counter!("tollgate_provider_calls_total", "provider" => provider, "outcome" => outcome)
        .increment(1);
    metrics::histogram!("tollgate_provider_call_duration_seconds", "provider" => provider)
        .record(latency.as_secs_f64());
}

/// Settles, again and again while the database cannot be reached: an answer that was paid for is not thrown away
/// while its lease may still hold. A settlement that committed unseen is found as a lost lease the next time, which
/// changes nothing. `None`: the process is going down.
async fn settle(
    worker: &Worker<Generation>,
    run: &Run,
    answer: &Answer,
    held: &HeldLease<'_>,
) -> Option<Settled> {
    let mut database = Backoff::new("settling", worker.db());
    let mut refused = None;
    loop {
        let answer = refused.as_ref().unwrap_or(answer);
        let settled = match answer {
            Ok((output, image)) => {
                let cost = run.cost(output);
                in_time(runs::settle_success(worker.db(), run.task.lease, output, image.as_ref(), cost)).await
            }
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
    ProviderFailure::ours(Decision::Retry, "the provider's answer could not be stored")
}

async fn hand_back(worker: &Worker<Generation>, run: &Run, why: &str) -> Option<&'static str> {
    match in_time(runs::release(worker.db(), worker.queue(), run.task.lease, why)).await {
        Ok(true) => Some("handed_back"),
        Ok(false) => Some(Settled::LeaseLost.as_str()),
        Err(error) => {
            tracing::warn!(%error, "could not hand the job back; it runs again after the visibility timeout");
            None
        }
    }
}
