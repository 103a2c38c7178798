//! Bodies in and out: a request's, read up to a limit, and a reply's, whole or broken off as a fault wants it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use crate::stats::{InFlight, Outcome};

/// The largest request body that is kept: 4 MiB.
pub(crate) const MAX_BODY_BYTES: usize = 4 << 20;

/// The largest that is read to its end before it is refused.
const MAX_DRAINED_BYTES: usize = 8 * MAX_BODY_BYTES;

/// Why there is no request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    TooLarge,
    /// It did not arrive whole: the client went away or broke the framing.
    Broken,
}

/// Reads a request's body.
///
/// One that is too large is read on and thrown away, within limits: to close a socket under a client that is still
/// writing resets the connection, and the client would never see the 413.
pub(crate) async fn read(mut body: Incoming) -> Result<Vec<u8>, BodyError> {
    let mut kept = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        seen += data.len();
        if seen > MAX_DRAINED_BYTES {
            break;
        }
        if seen > MAX_BODY_BYTES {
            kept = Vec::new();
        } else {
            kept.extend_from_slice(&data);
        }
    }
    if seen > MAX_BODY_BYTES { Err(BodyError::TooLarge) } else { Ok(kept) }
}

/// How the connection is to end after half a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// RST.
    Reset,
    /// FIN.
    Close,
}

/// Asks the task that owns the connection to end it.
pub(crate) type Cutter = mpsc::Sender<Ending>;

#[derive(Debug)]
enum Tail {
    End,
    Silence,
    Cut(Ending, Cutter),
}

/// A reply's body.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    /// What is still to be sent.
    data: Option<Bytes>,
    /// The `content-length`.
    promised: u64,
    tail: Tail,
    guard: Option<InFlight>,
}

impl ReplyBody {
    /// All of `data`.
    pub(crate) fn whole(data: Vec<u8>) -> Self {
        Self { promised: data.len() as u64, data: Some(data.into()), tail: Tail::End, guard: None }
    }

    /// Whole, but cut short, with a `content-length` that agrees.
    pub(crate) fn halved(mut self) -> Self {
        self.keep_half();
        self.promised = self.data.as_ref().map_or(0, |data| data.len() as u64);
        self
    }

    /// Half of what is promised, then nothing.
    pub(crate) fn then_silence(mut self) -> Self {
        self.keep_half();
        Self { tail: Tail::Silence, ..self }
    }

    /// Half of what is promised, then the end of the connection.
    pub(crate) fn then_cut(mut self, ending: Ending, cutter: Cutter) -> Self {
        self.keep_half();
        Self { tail: Tail::Cut(ending, cutter), ..self }
    }

    /// Counts the request out at the end of this reply.
    pub(crate) fn guarded(self, guard: InFlight) -> Self {
        Self { guard: Some(guard), ..self }
    }

    fn keep_half(&mut self) {
        if let Some(data) = &mut self.data {
            data.truncate(data.len() / 2);
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(mut guard) = self.guard.take() {
            guard.finish(outcome);
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.data.take() {
            if matches!(self.tail, Tail::End) {
                // Before the bytes leave, so that a client that has its answer finds it counted.
                self.finish(Outcome::Completed);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let cut = match &self.tail {
            Tail::End => return Poll::Ready(None),
            Tail::Silence => false,
            // The channel has room for one, and no connection is cut twice.
            Tail::Cut(ending, cutter) => cutter.try_send(*ending).is_ok(),
        };
        if cut {
            self.finish(Outcome::Cut);
        }
        // Nothing wakes this: the connection ends, or the client does.
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && matches!(self.tail, Tail::End)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
