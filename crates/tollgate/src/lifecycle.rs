//! When the process ends: Ctrl-C and SIGTERM ask once for an orderly end; the second time, at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::output::Failure;

/// A token that is cancelled by the first signal. The second one ends the process, as a shell would expect it to.
pub(crate) fn shutdown_on_signal() -> Result<CancellationToken, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    TaskTracker::new().spawn(async move {
        for seen in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if seen > 0 {
                tracing::warn!(
                    "a second signal: ending at once; leases are taken back after the visibility timeout"
                );
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(shutdown)
}
