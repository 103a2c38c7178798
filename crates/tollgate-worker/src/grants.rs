//! Credits that were bought, or taken back: one event of Stripe's a task, one commit an event. Nobody is called.

use tollgate_domain::{Database, Error, Result, queue, stripe};
use tollgate_model::job::{JobError, codes};
use tollgate_model::lanes::Plan;
use tollgate_model::queue::{ClaimedTask, QueueName};
use tollgate_model::retry::AfterFailure;
use tollgate_model::stripe::rates::CreditRates;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::backoff::{Backoff, in_time, jitter};
use crate::held::HeldLease;
use crate::{Work, Worker};

/// The work of `billing.credit_grant`.
#[derive(Debug)]
pub struct Grants {
    rates: CreditRates,
}

impl Grants {
    /// Grants by these rates.
    pub fn new(rates: CreditRates) -> Self {
        Self { rates }
    }
}

impl Work for Grants {
    type Run = ClaimedTask;
    type Leave = ();

    fn leave(&self, want: usize) -> Option<(usize, ())> {
        Some((want, ()))
    }

    async fn claim(
        &self,
        db: &Database,
        worker: Uuid,
        settings: i64,
        plan: &mut Plan,
        (): (),
    ) -> Result<Vec<ClaimedTask>> {
        queue::claim(db, QueueName::BillingCreditGrant, worker, settings, plan).await
    }

    fn task(run: &ClaimedTask) -> &ClaimedTask {
        run
    }

    async fn run(worker: &Worker<Self>, task: ClaimedTask, held: &HeldLease<'_>) {
        let span = tracing::info_span!("grant", task_id = %task.lease.task, account_id = %task.lease.account,
            queue = worker.queue().as_str(), attempt = task.attempt, kind = task.task_type);
        grant(worker, &task, held).instrument(span).await;
    }
}

/// Again and again while the database cannot be reached; a commit that nobody saw is found as a lost lease the next time.
async fn grant(worker: &Worker<Grants>, task: &ClaimedTask, held: &HeldLease<'_>) {
    let mut database = Backoff::new("granting", worker.db());
    loop {
        let entered =
            in_time(stripe::enter(worker.db(), task, &worker.work().rates, worker.policy().ttl)).await;
        let ended = match entered {
            Ok(entered) => Ok(entered.as_str()),
            Err(error) if error.is_unavailable() => Err(error),
            Err(error) => fail(worker, task, &error).await,
        };
        match ended {
            Ok(status) => {
                database.succeeded();
                tracing::info!(status, "event entered");
                return;
            }
            Err(error) => tokio::select! {
                () = database.failed(&error) => {}
                () = held.lost() => return,
                // The lease goes back when the worker signs out.
                () = worker.handing_back() => return,
            },
        }
    }
}

/// A failed attempt: the event itself is what cannot be entered.
async fn fail(worker: &Worker<Grants>, task: &ClaimedTask, error: &Error) -> Result<&'static str> {
    tracing::error!(%error, "an event of Stripe's could not be entered");
    let reason = JobError { code: codes::INTERNAL.into(), message: error.to_string() };
    let failed = in_time(queue::fail(worker.db(), worker.policy(), task, &reason, jitter())).await?;
    Ok(match failed {
        Some(AfterFailure::RetryAt(_)) => {
            worker.look_again();
            "retrying"
        }
        Some(AfterFailure::GiveUp) => "failed",
        None => "lease_lost",
    })
}
