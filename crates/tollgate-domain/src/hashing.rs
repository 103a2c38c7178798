//! Argon2id, bounded: each computation takes 19 MiB and tens of milliseconds of CPU, so no more run at once than there
//! are processors. The permit belongs to the computation, not to the request that asked: a client that goes away leaves
//! its computation running, and must not make room for another.

use std::sync::{Arc, LazyLock};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;
use tollgate_model::key::ApiKey;

use crate::{Error, Result};

static PERMITS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Arc::new(Semaphore::new(processors))
});

/// The key's hash, as a PHC string.
pub(crate) async fn hash(key: &ApiKey) -> Result<String> {
    let key = key.clone();
    let hash = bounded(move || {
        Argon2::default().hash_password(key.expose().as_bytes()).map(|hash| hash.to_string())
    });
    hash.await?.map_err(|error| failed(&error))
}

/// Whether the hash is this key's.
pub(crate) async fn verify(key: &ApiKey, hash: &str) -> Result<bool> {
    let (key, hash) = (key.clone(), hash.to_owned());
    bounded(move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| Argon2::default().verify_password(key.expose().as_bytes(), &hash).is_ok())
    })
    .await
}

async fn bounded<T: Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let permit = PERMITS.clone().acquire_owned().await.map_err(|error| failed(&error))?;
    let computed = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        compute()
    });
    computed.await.map_err(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Internal(format!("hashing a key: {error}"))
}
