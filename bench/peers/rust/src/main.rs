//! The Rust drivers of the queue benchmark: `queue-bench PEER WORKLOAD`, one JSON line per result.
mod apalis_pg;
mod common;
mod graphile;
mod raw;
mod tollgate;

use common::{run, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [peer, workload] = args.as_slice() else {
        return Err("usage: queue-bench PEER WORKLOAD".into());
    };
    match peer.as_str() {
        "raw" => run(raw::Raw::new("raw", false, false), workload).await,
        "raw-notify" => run(raw::Raw::new("raw-notify", true, false), workload).await,
        "raw-delete" => run(raw::Raw::new("raw-delete", false, true), workload).await,
        "graphile_worker-rs" => run(graphile::Graphile::new().await?, workload).await,
        "apalis-postgres" => run(apalis_pg::Apalis::new().await?, workload).await,
        "tollgate" => run(tollgate::Tollgate::new("tollgate", 1).await?, workload).await,
        "tollgate-100" => run(tollgate::Tollgate::new("tollgate-100", 100).await?, workload).await,
        "tollgate-10000" => run(tollgate::Tollgate::new("tollgate-10000", 10_000).await?, workload).await,
        other => Err(format!("unknown peer {other}").into()),
    }?;
    std::process::exit(0)
}
