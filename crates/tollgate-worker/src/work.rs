//! What a queue's tasks mean. The worker knows leases, lanes and slots; the work knows what a task stands for.

use tollgate_domain::{Database, Result};
use tollgate_model::lanes::Plan;
use tollgate_model::queue::ClaimedTask;
use uuid::Uuid;

use crate::Worker;
use crate::held::HeldLease;

/// One queue's work.
pub trait Work: Send + Sync + Sized + 'static {
    /// A claimed task with all that is needed to run it.
    type Run: Send + 'static;

    /// Leave to claim; what of it is not used goes back when it is dropped.
    type Leave: Send;

    /// Returns once something may be claimed, as far as the work itself has a say in it.
    fn admitted(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Leave to claim up to `want` tasks, and for how many it is; `None`: not now, wait until [`admitted`](Self::admitted).
    fn leave(&self, want: usize) -> Option<(usize, Self::Leave)>;

    /// Leases tasks as planned and prepares them, in one commit. Lowers the plan's limit where a cap of the queue does.
    fn claim(
        &self,
        db: &Database,
        worker: Uuid,
        settings: i64,
        plan: &mut Plan,
        leave: Self::Leave,
    ) -> impl Future<Output = Result<Vec<Self::Run>>> + Send;

    /// There was leave to claim, but nothing was there.
    fn nothing_there(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// What [`admitted`](Self::admitted) waits for may have changed.
    fn guard_has_news(&self) {}

    /// The task of a run.
    fn task(run: &Self::Run) -> &ClaimedTask;

    /// Does the work and ends the lease, one way or another. Stops early once the lease is lost, and hands the task back
    /// once the worker says so ([`Worker::handing_back`]).
    fn run(worker: &Worker<Self>, run: Self::Run, held: &HeldLease<'_>) -> impl Future<Output = ()> + Send;
}
