//! What the worker sees of a provider: a name and one call.

use futures_util::future::BoxFuture;
use tollgate_model::generation::{GenerationOutput, GenerationRequest, ProviderFailure};

/// Something that answers a [`GenerationRequest`].
///
/// The trait is object-safe, since the worker picks its provider at start and holds an `Arc<dyn Provider>`;
/// one boxed future a call is nothing beside a network round trip. An `async fn` in the trait was rejected
/// for that reason, and a generic worker because every type above it would have carried the parameter.
///
/// # The contract
///
/// - The call ends by `request.timeout`, whatever the other side does.
/// - Dropping the future ends the call: its socket closes at once, and no task goes on behind it. That is how
///   a cancelled job stops costing money (SPEC G3).
/// - It asks once. Whether to ask again is the [`Decision`](tollgate_model::generation::Decision) in the
///   failure, and the queue's business.
pub trait Provider: Send + Sync {
    /// The adapter's name, such as `openai`; it is stored with every result.
    fn name(&self) -> &'static str;

    /// Asks the provider once.
    ///
    /// # Errors
    ///
    /// Everything that is not an answer, as one of four kinds, with the decision about it.
    fn generate<'a>(
        &'a self,
        request: &'a GenerationRequest,
    ) -> BoxFuture<'a, Result<GenerationOutput, ProviderFailure>>;
}
