//! What the tests share: one private cluster a test process, a migrated database a test, and the real binary.
//!
//! Nothing here imitates Tollgate. A [`TestApp`] is `tollgate api` and `tollgate worker` as processes of their own,
//! logged in as the roles they have in production; tests speak HTTP to them, kill them, and look into the database.

mod app;
mod books;
mod cluster;
mod look;
mod process;
mod proxy;
mod s3;
mod stripe;

pub use app::{TestApp, Tune};
pub use books::wrong_in_the_books;
pub use cluster::{TestDb, with_cluster};
pub use process::Process;
pub use proxy::{PgProxy, Sender};
pub use s3::S3Like;
pub use stripe::{STRIPE_SECRET, StripeLike, stripe_signature};

use std::future::Future;
use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; panics with `what` after `patience`.
#[expect(clippy::disallowed_methods, reason = "waits for other processes, whose time no test can pause")]
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
