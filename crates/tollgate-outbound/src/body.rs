//! Reading a body with a cap.
//!
//! The caps count bytes as they arrive; a `Content-Length` is believed only where it promises too much.
//! Collecting first and measuring afterwards, as `Response::bytes` would have it, lets the other side choose
//! how much memory we use.

use reqwest::Response;
use tokio::time::{Instant, timeout_at};

/// Why a body could not be had whole.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// It is longer than the cap. The rest was not read, and the connection is closed.
    TooLong,
    /// The connection broke, or ended before the body did.
    Broken(reqwest::Error),
}

/// The whole body, if it has at most `cap` bytes. Sets no deadline.
pub(crate) async fn read_whole(mut response: Response, cap: usize) -> Result<Vec<u8>, BodyError> {
    let promised = response.content_length().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if promised.is_some_and(|length| length > cap) {
        return Err(BodyError::TooLong);
    }
    let mut body = Vec::with_capacity(promised.unwrap_or(0));
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
        if chunk.len() > cap - body.len() {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The first bytes of a body, at most `cap`, as far as they come before `deadline` and before the connection
/// breaks. For the text of an error, where the status has already said what matters.
pub(crate) async fn read_start(mut response: Response, cap: usize, deadline: Instant) -> Vec<u8> {
    let mut body = Vec::new();
    let fill = async {
        while body.len() < cap
            && let Ok(Some(chunk)) = response.chunk().await
        {
            let room = cap - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
    };
    // Late or complete, what is there is used.
    let _ = timeout_at(deadline, fill).await;
    body
}
