//! How fast one thread recognises keys that it has verified before.

use std::time::Duration;

use tokio::time::Instant;
use tollgate_domain::auth::Authenticator;
use tollgate_domain::{Database, Role};

use super::arena::{Arena, TEMPLATE};
use crate::{Result, cpu};

/// Keys recognised between two looks at the clock.
const BATCH: usize = 100;

/// A second of the thread's time, and of its processor time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) per_sec: f64,
    pub(crate) per_cpu_sec: f64,
}

pub(crate) async fn measure(arena: &Arena, window: Duration) -> Result<Rates> {
    let db = Database::connect(&arena.api_url(TEMPLATE), Role::Api, 1, true).await?;
    let authenticator = Authenticator::new()?;
    for key in &arena.keys {
        authenticator.authenticate(&db, key, None).await?.ok_or("a key that was just made is not known")?;
    }
    let (began, used) = (Instant::now(), cpu::own()?);
    let mut keys = arena.keys.iter().cycle();
    let (mut recognised, mut sent) = (0_u32, 0_u32);
    while began.elapsed() < window {
        for key in keys.by_ref().take(BATCH) {
            // Once a second and key, one of those who come is sent to read its row.
            *(if authenticator.recognise(key).is_some() { &mut recognised } else { &mut sent }) += 1;
        }
    }
    if u64::from(sent) > arena.keys.len() as u64 * (window.as_secs() + 2) {
        return Err(format!("keys that were verified were not recognised {sent} times").into());
    }
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu::own()? - used);
    db.close().await;
    let recognised = f64::from(recognised);
    Ok(Rates { per_sec: recognised / seconds, per_cpu_sec: recognised * 1e9 / used as f64 })
}
