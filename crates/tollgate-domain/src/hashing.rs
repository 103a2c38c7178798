//! Argon2id, bounded: each computation takes 19 MiB and tens of milliseconds of CPU, unless it is set otherwise.
//!
//! It runs on as many threads as there are processors, and on no others: a thread keeps the memory it once used, so
//! the process holds that much for each of these and not for each of a runtime's hundreds. A computation whose asker went
//! away before it began is not begun; one that has begun keeps its thread, so going away makes no room for more.

use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
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

/// How new keys are hashed. Each hash says how it was made, so a change leaves the keys of before as good as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHashing {
    /// In KiB.
    memory: u32,
    passes: u32,
    lanes: u32,
}

impl Default for KeyHashing {
    fn default() -> Self {
        Self { memory: Params::DEFAULT_M_COST, passes: Params::DEFAULT_T_COST, lanes: Params::DEFAULT_P_COST }
    }
}

impl KeyHashing {
    fn params(self) -> Option<Params> {
        Params::new(self.memory, self.passes, self.lanes, None).ok()
    }
}

/// No way to hash keys that there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no way to hash keys; there is `argon2id`, and `argon2id:m=19456,t=2,p=1` with the memory in KiB (at most \
     {MOST_MEMORY}), the passes over it, and the lanes"
)]
pub struct UnknownHashing(String);

/// Of one computation, in KiB: a machine that cannot give it ends the process.
const MOST_MEMORY: u32 = 1024 * 1024;

impl FromStr for KeyHashing {
    type Err = UnknownHashing;

    fn from_str(text: &str) -> Result<Self, UnknownHashing> {
        read(text).ok_or_else(|| UnknownHashing(text.to_owned()))
    }
}

fn read(text: &str) -> Option<KeyHashing> {
    let rest = text.strip_prefix("argon2id")?;
    let (mut memory, mut passes, mut lanes) = (None, None, None);
    if !rest.is_empty() {
        for part in rest.strip_prefix(':')?.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let place = match name {
                "m" => &mut memory,
                "t" => &mut passes,
                "p" => &mut lanes,
                _ => return None,
            };
            if place.replace(value.parse::<u32>().ok()?).is_some() {
                return None;
            }
        }
    }
    let usual = KeyHashing::default();
    let read = KeyHashing {
        memory: memory.unwrap_or(usual.memory),
        passes: passes.unwrap_or(usual.passes),
        lanes: lanes.unwrap_or(usual.lanes),
    };
    (read.memory <= MOST_MEMORY && read.params().is_some()).then_some(read)
}

/// The key's hash, as a PHC string.
pub(crate) async fn hash(hashing: KeyHashing, key: &ApiKey) -> Result<String> {
    let key = key.clone();
    let params = hashing.params().ok_or_else(|| failed(&"no such parameters"))?;
    let hash = on_a_thread(move || {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password(key.expose().as_bytes()).map(|it| it.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_argon2id_is_a_way_to_hash_keys() {
        let read = str::parse::<KeyHashing>;
        let usual = KeyHashing::default();
        assert_eq!(read("argon2id"), Ok(usual));
        assert_eq!(read("argon2id:m=19456,t=2,p=1"), Ok(usual));
        assert_eq!(read("argon2id:t=3"), Ok(KeyHashing { passes: 3, ..usual }));
        for wrong in [
            "",
            "bcrypt",
            "argon2",
            "argon2i",
            "argon2id:",
            "argon2id,m=1",
            "argon2id:m=7",
            "argon2id:m=19456,m=19456",
            "argon2id:x=1",
            "argon2id:m=",
            "argon2id:m=-1",
            "argon2id:t=0",
            "argon2id:p=0",
            "argon2id:m=1048577",
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{wrong}` is no way")), "{error}");
        }
    }

    #[tokio::test]
    async fn a_hash_says_how_it_was_made_and_is_verified_so() {
        let key = ApiKey::from_entropy(&[3; 44]);
        let quick: KeyHashing = "argon2id:m=8,t=1,p=1".parse().unwrap();
        let quick = hash(quick, &key).await.unwrap();
        assert!(quick.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{quick}");
        let usual = hash(KeyHashing::default(), &key).await.unwrap();
        assert!(usual.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{usual}");
        for hash in [quick, usual] {
            assert!(verify(&key, &hash).await.unwrap());
            assert!(!verify(&ApiKey::from_entropy(&[4; 44]), &hash).await.unwrap());
        }
    }
}
