//! How a command ends: 0 done, 1 failed, 2 misuse; results on stdout, words on stderr.

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

/// Why a command failed, in words that say what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    misuse: bool,
}

impl Failure {
    /// It was tried, and did not work.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), misuse: false }
    }

    /// It was asked for in a way that cannot work.
    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Self { message: message.into(), misuse: true }
    }

    /// Says why on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("tollgate: {}", self.message);
        ExitCode::from(if self.misuse { 2 } else { 1 })
    }
}

macro_rules! failure_from {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.to_string())
            }
        })+
    };
}

failure_from!(
    std::io::Error,
    tollgate_devdb::Error,
    tollgate_domain::ConnectError,
    tollgate_domain::MigrateError,
    tollgate_http::TlsError,
    tollgate_outbound::ClientError,
    tollgate_outbound::StripeError,
);

impl From<tollgate_outbound::ApiError> for Failure {
    fn from(error: tollgate_outbound::ApiError) -> Self {
        use tollgate_outbound::ApiError as E;
        match error {
            E::Url { .. } | E::Refused { status: 400, .. } => Self::misuse(error.to_string()),
            other => Self::new(other.to_string()),
        }
    }
}

impl From<tollgate_domain::Error> for Failure {
    fn from(error: tollgate_domain::Error) -> Self {
        use tollgate_domain::Error as E;
        match error {
            E::Invalid { .. } | E::Submission(_) => Self::misuse(error.to_string()),
            E::NotFound("account") => Self::new("no such account; `tollgate account list` shows them all"),
            E::NotFound("API key") => {
                Self::new("the account has no such key; `tollgate key list` shows all it has")
            }
            E::NotFound("dead letter") => {
                Self::new("no such dead letter; `tollgate dlq list` shows those there are")
            }
            E::NotFound("event") => {
                Self::new("no such event; `tollgate stripe events` shows those that have come")
            }
            other => Self::new(other.to_string()),
        }
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::misuse(error.to_string())
    }
}

/// Prints a command's result: as one line of JSON, or for people.
pub(crate) fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let line = if json {
        serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?
    } else {
        text()
    };
    print_line(&line)
}

/// Prints a line to stdout. A reader that went away (`| head`) ends the command, but is no failure of it.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// What the user called us, so that a command we suggest can be pasted.
pub(crate) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "tollgate".into())
}
