//! A simulated OpenAI-compatible provider: `tollgate provider-sim`, and what the tests talk to.
//!
//! It listens on a real socket and misbehaves on a real socket, because the faults that matter (a reset, a body
//! that stops half way, an answer that never comes) are lost in an in-process fake. It calls no model and says so
//! in every reply: the model's name ends in `-simulated`, the fingerprint is `fp_tollgate_simulated`, the `server`
//! header is `tollgate-provider-sim`, and the text is "Simulated answer …".
//!
//! # What it answers
//! | Route | |
//! |---|---|
//! | `POST /v1/chat/completions`, `POST /v1/responses` | whole answers; `stream: true` and `n` above 1 are refused |
//! | `POST /v1/images/generations` | a small PNG that depends on the prompt: as `b64_json`, or by URL for `response_format: url` and for `dall-e-…` |
//! | `GET /images/…` | what those URLs name |
//! | `GET /v1/models` | one model; every other name is accepted too |
//! | `GET /sim/stats` | [`Stats`] |
//! | `GET /sim/request-ids` | how often each `x-client-request-id` arrived, `{"id": n}` |
//! | `GET /sim/faults`, `PUT /sim/faults` | the [`Behaviour`] in force; replaces it (absent fields take defaults) |
//! | `POST /sim/script` | appends an array of [`Step`]s; answers [`ScriptSize`] |
//! | `POST /sim/reset` | statistics, script and behaviour as after the start; answers [`Stats`] |
//!
//! Tokens are counted as a quarter of the characters, rounded up. Tools, sampling parameters and response formats
//! are accepted and have no effect. Errors, those of `/sim` too, have the shape
//! `{"error": {"message", "type", "param", "code"}}`. `/sim` asks for no key: bind to a loopback address.
//!
//! # How a request's fate is decided
//! 1. A wrong key is 401, an unusable request 400 or 413.
//! 2. With [`Behaviour::requests_per_minute`], an empty token bucket is 429.
//! 3. The first [`Step`] with a `match` that occurs in the prompt applies; else the next step of the queue.
//! 4. Else the probabilities of [`Faults`] are thrown.
//!
//! Only step 4 is random. The throw for the n-th request that gets past step 2 depends on the seed and on n alone,
//! so a run is repeated by its seed whatever the timing.
//!
//! # Limits
//! Bodies up to 4 MiB, [`MAX_STEPS`] scripted steps, [`MAX_REQUEST_IDS`] request ids, waits up to
//! [`MAX_LATENCY_MS`]. A client counts as gone as soon as it closes its sending half; one that
//! pipelines its next request is noticed only when it is its turn.
//!
//! **Architecture invariant:** this crate depends on no other crate of the workspace; it is a peer over the network.

mod behaviour;
mod body;
mod bucket;
mod clock;
mod control;
mod fault;
mod latency;
mod openai;
mod picture;
mod plan;
mod prompt;
mod provider;
mod random;
mod routes;
mod server;
mod state;
mod stats;
mod step;

pub use behaviour::{Behaviour, BehaviourError, Faults, MAX_LATENCY_MS};
pub use control::Control;
pub use fault::{Fault, RetryAfter, RetryAfterError};
pub use plan::{MAX_STEPS, ScriptError, ScriptSize};
pub use server::Sim;
pub use stats::{MAX_REQUEST_IDS, Stats};
pub use step::{Step, StepError};
