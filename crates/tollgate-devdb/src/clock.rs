//! The monotonic clock, and waiting by it.
//!
//! The workspace bans `Instant::now` in favour of tokio's clock, which tests can pause. This crate waits for
//! processes of the operating system, whom no test can pause, and knows no runtime.

use std::{
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(5);

/// This moment.
#[expect(clippy::disallowed_methods, reason = "the processes waited for live by the real clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Looks every few milliseconds until `look` finds something, for at most as long as given.
pub(crate) fn wait_for<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now() + within;
    loop {
        let found = look();
        if found.is_some() || now() >= end {
            return found;
        }
        thread::sleep(POLL);
    }
}
