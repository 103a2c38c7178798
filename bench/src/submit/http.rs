//! The complete submit over HTTP, at as many connections as told: first as fast as it will go, then at half of that rate.

use std::sync::Arc;
use std::time::Duration;

use super::arena::{Arena, Cost, TEMPLATE};
use super::load::{Load, NUMBER, Request};
use super::statements;
use crate::{Result, percentile};

const DATABASE: &str = "submit_tollgate";

/// What a case came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) per_sec: f64,
    pub(crate) cost: Cost,
    /// At half of `per_sec`, from when each request was due.
    pub(crate) half_p50_ms: f64,
    pub(crate) half_p99_ms: f64,
}

/// Submits of these keys' accounts. `faults`: where to write down what should not have been.
pub(crate) async fn measure(
    arena: &mut Arena,
    keys: &[String],
    connections: usize,
    window: Duration,
    with_statements: bool,
    faults: &mut Vec<String>,
) -> Result<Figures> {
    arena.fresh(DATABASE, TEMPLATE).await?;
    let (api, address) = arena.api(DATABASE).await?;
    let load = Load::new(address, keys.iter().map(|key| submit(key)).collect(), 202);
    warm(&load, keys, connections, faults).await?;
    if with_statements {
        statements::forget(arena.meter()).await?;
    }
    let before = arena.read(DATABASE, Some(&api)).await?;
    let full = load.closed(connections, window).await?;
    let after = arena.read(DATABASE, Some(&api)).await?;
    if with_statements {
        statements::print(arena.meter(), DATABASE, full.done).await?;
    }
    if full.done == 0 {
        return Err(full.fault().unwrap_or_else(|| "no answer within the window".into()).into());
    }
    let mut half = load.open(connections, full.per_sec() / 2.0, window).await?;
    faults.extend([full.fault(), half.fault()].into_iter().flatten());
    api.terminate().await;
    arena.drop(DATABASE).await?;
    Ok(Figures {
        per_sec: full.per_sec(),
        cost: after.since(&before, full.done as f64),
        half_p50_ms: percentile(&mut half.times, 0.5),
        half_p99_ms: percentile(&mut half.times, 0.99),
    })
}

/// Sends what is not measured: the first request of a key pays for its hash, the first of a connection for its plans.
pub(crate) async fn warm(
    load: &Arc<Load>,
    keys: &[String],
    connections: usize,
    faults: &mut Vec<String>,
) -> Result<()> {
    let requests = (keys.len().max(connections) * 2) as u64;
    faults.extend(load.send(connections, requests).await?.fault());
    Ok(())
}

/// A submission of some 200 bytes by the holder of the key, each with an `Idempotency-Key` of its own.
pub(crate) fn submit(key: &str) -> Request {
    Request::new(
        &format!(
            "POST /v1/jobs/generations HTTP/1.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
             Idempotency-Key: bench-{NUMBER}"
        ),
        &format!(
            r#"{{"type":"text","messages":[{{"role":"user","content":"What does a tollgate at the entry of a bridge tell a traveller who has no coin left? Answer in one sentence."}}],"max_tokens":100,"metadata":{{"n":"{NUMBER}"}}}}"#
        ),
    )
}
