//! The guard: everything that stands between a worker and a provider (SPEC G4 to G9, Q7), as pure state machines.
//!
//! One guard for each [class](class::ModelClass) of models, shared by all workers: its state lies in one row of the
//! database and is changed under the lock of that row (load, one step for each event, save). So nothing here knows a clock,
//! draws a random number or waits, and a test can replay what a fleet did.
//!
//! - [`class`]: which guard a call stands before, and [`settings`]: the figures by which it judges
//! - [`outcome`]: how a call ended, as far as that says something about the provider
//! - [`circuit`]: closed, open, half-open, disabled; probes; what a worker may do now ([`circuit::decide`])
//! - [`ramp`]: how much concurrency returns after the circuit has closed
//! - [`bucket`]: how many calls may begin, and what the provider's own limits say
//! - [`pause`]: until when nobody may call at all
//! - [`timeout`]: how long a call may take, from how long calls took
//!
//! Three clocks meet here. A class's state knows the database's alone. What a worker tells of its calls are ages, measured
//! on its monotonic clock, so that its wall clock may say what it likes. And the database's clock may step, as it does when
//! a standby takes over: a circuit moves its times along, a bucket would rather grant too little than too much.

pub mod bucket;
pub mod circuit;
pub mod class;
mod open_time;
pub mod outcome;
pub mod pause;
pub(crate) mod period;
mod probe;
pub mod ramp;
pub mod settings;
mod sketch;
pub mod state;
pub mod status;
mod time;
pub mod timeout;
mod window;
