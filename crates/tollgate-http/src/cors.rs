//! Which pages of other origins may ask from a browser: none, unless they are named (SPEC K4).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Method};
use tower_http::cors::CorsLayer;

use crate::answer::REPLAYED;
use crate::extract::{IDEMPOTENCY_KEY, X_API_KEY};
use crate::rate_limits;
use crate::request_id::X_REQUEST_ID;

/// Origins, such as `https://app.example.com`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedOrigins(Vec<HeaderValue>);

/// No origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoOrigin(String);

impl fmt::Display for NoOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not an origin such as https://app.example.com: a scheme, a host, and no path",
            self.0
        )
    }
}

impl FromStr for AllowedOrigins {
    type Err = NoOrigin;

    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        text.split(',').map(|part| origin(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

/// An origin as browsers write it, letter by letter: it is compared so.
fn origin(text: &str) -> Result<HeaderValue, NoOrigin> {
    let wrong = || NoOrigin(text.to_owned());
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(wrong)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

impl AllowedOrigins {
    /// `None`: there is nothing to allow, and no header to say so.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        (!self.0.is_empty()).then(|| {
            let exposed: Vec<_> = rate_limits::HEADERS
                .into_iter()
                .chain([X_REQUEST_ID, RETRY_AFTER, LOCATION, REPLAYED])
                .collect();
            CorsLayer::new()
                .allow_origin(self.0.clone())
                .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
                .allow_headers([
                    AUTHORIZATION,
                    CONTENT_TYPE,
                    X_API_KEY,
                    X_REQUEST_ID,
                    IDEMPOTENCY_KEY,
                    http::HeaderName::from_static("last-event-id"),
                ])
                .expose_headers(exposed)
                .max_age(Duration::from_hours(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_a_host_and_nothing_else() {
        for right in ["https://a.example", "http://localhost:3000", "https://a.example, http://[::1]:80"] {
            assert!(right.parse::<AllowedOrigins>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "*",
            "null",
            "a.example",
            "https://",
            "https://a.example/",
            "https://A.example",
            "https://a b",
            "ftp://a",
        ] {
            let error = wrong.parse::<AllowedOrigins>().unwrap_err().to_string();
            assert!(error.contains("such as https://app.example.com"), "{wrong}: {error}");
        }
    }
}
