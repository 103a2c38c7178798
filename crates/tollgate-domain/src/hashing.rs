//! Argon2id, bounded: each computation takes 19 MiB and tens of milliseconds of CPU.
//!
//! It runs on as many threads as there are processors, and on no others: a thread keeps the memory it once used, so
//! the process holds 19 MiB for each of these and not for each of a runtime's hundreds. A computation whose asker went
//! away before it began is not begun; one that has begun keeps its thread, so going away makes no room for more.

use std::sync::LazyLock;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;
use tollgate_model::key::ApiKey;

use crate::{Error, Result};

/// Used for its threads alone. `None`: the machine would not give it any.
static THREADS: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Builder::new_current_thread()
        .max_blocking_threads(processors)
        .thread_keep_alive(Duration::MAX)
        .thread_name("argon2")
        .build()
        .ok()
});

/// The key's hash, as a PHC string.
pub(crate) async fn hash(key: &ApiKey) -> Result<String> {
    let key = key.clone();
    let hash = on_a_thread(move || {
        Argon2::default().hash_password(key.expose().as_bytes()).map(|it| it.to_string())
    });
    hash.await?.map_err(|error| failed(&error))
}

/// Whether the hash is this key's.
pub(crate) async fn verify(key: &ApiKey, hash: &str) -> Result<bool> {
    let (key, hash) = (key.clone(), hash.to_owned());
    on_a_thread(move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(key.expose().as_bytes(), &hash).is_ok())
    })
    .await
}

async fn on_a_thread<T: Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let threads = THREADS.as_ref().ok_or_else(|| failed(&"no threads"))?;
    AbortOnDropHandle::new(threads.spawn_blocking(compute)).await.map_err(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Internal(format!("hashing a key: {error}"))
}
