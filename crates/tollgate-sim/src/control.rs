//! The controls, in process; [`crate::routes`] offers the same over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::behaviour::{Behaviour, BehaviourError};
use crate::plan::{ScriptError, ScriptSize};
use crate::state::Shared;
use crate::stats::Stats;
use crate::step::Step;

/// Watches and steers a running [`crate::Sim`]. Clones control the same one.
#[derive(Debug, Clone)]
pub struct Control(pub(crate) Arc<Shared>);

impl Control {
    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    /// How often each `x-client-request-id` arrived.
    pub fn request_ids(&self) -> BTreeMap<String, u64> {
        self.0.counters.request_ids()
    }

    /// How often this `x-client-request-id` arrived.
    pub fn arrivals_of(&self, request_id: &str) -> u64 {
        self.0.counters.arrivals_of(request_id)
    }

    /// The behaviour in force.
    pub fn behaviour(&self) -> Behaviour {
        self.0.plan().behaviour().clone()
    }

    /// Replaces the behaviour for all requests not yet decided on. A rate limit's bucket is full again, and the seed
    /// gives its first draws again; the script stays.
    pub fn set_behaviour(&self, behaviour: Behaviour) -> Result<(), BehaviourError> {
        behaviour.validate()?;
        self.0.plan().set_behaviour(behaviour);
        Ok(())
    }

    /// Appends to the script, all steps or none.
    pub fn script(&self, steps: impl IntoIterator<Item = Step>) -> Result<ScriptSize, ScriptError> {
        self.0.plan().script(steps.into_iter().collect())
    }

    /// Statistics to zero, the script emptied, the behaviour as at the start. Requests in flight go on.
    pub fn reset(&self) {
        self.0.plan().reset();
        self.0.counters.reset();
    }
}
