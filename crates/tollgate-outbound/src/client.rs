//! The HTTP client itself, with everything it does by default and should not switched off.
//!
//! - **No retries.** reqwest 0.13 resends by itself what it takes for a protocol's refusal; it is told never
//!   to. What remains is in hyper's pool and has no switch here: a request that was handed to a kept
//!   connection which turned out closed goes to a fresh one, but only if not one byte of it had been written.
//!   That is the choice of a connection, not a second request; a test holds that a request is never seen
//!   twice.
//! - **No redirects.** An API does not redirect a POST. Following one would carry the key elsewhere.
//! - **Proxies** are used if the standard environment says so (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
//!   `NO_PROXY`), as operators expect of every program, and never by desktop settings. A base URL on the
//!   loopback is never sent through a proxy: the proxy's loopback is another machine's.
//! - **HTTP/1.1 only.** One call, one socket: a drop closes just that call, and one stalled connection cannot
//!   stall its neighbours.
//! - **No compression**, so the cap on a body is a cap on memory.
//! - **TLS** by rustls with ring, and the system's certificates. A plain `http://` base URL loads none, so
//!   that a machine without certificates can still speak to a local model.
//!
//! Name lookups go to the system's resolver on a blocking thread. Dropping a call abandons a lookup but cannot
//! interrupt it; it holds no socket of the call and ends by the resolver's own timeouts.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use url::{Host, Url};

use crate::address::PublicOnly;

/// Connections that are kept for one host. Beyond it a call opens its own and closes it afterwards.
const MAX_IDLE_CONNECTIONS: usize = 64;

/// How long an unused connection is kept. Shorter than common load balancers do (60 s and more): a connection
/// that the other side gives up just as it is used again costs a job an attempt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// Why no client could be made. Each is a mistake of the set-up, to be shown at start.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither `http` nor `https`.
    #[error("the base URL must start with http:// or https://, not {0}:")]
    Scheme(String),
    /// A user name or password in the URL, which ends up in logs.
    #[error("the base URL must not hold a user name or password; the key is a setting of its own")]
    Credentials,
    /// A key that no HTTP header can carry; most often two lines were pasted.
    #[error("the API key holds characters that no HTTP header can carry")]
    ApiKey,
    /// A bucket that cannot be.
    #[error("the image store cannot be used: {0}")]
    Store(String),
    /// The TLS side refused, most often for want of certificates.
    #[error("the HTTP client cannot be built (does this machine have CA certificates?): {0}")]
    Build(String),
}

/// Makes ring the process's TLS cryptography, if nothing else is already.
///
/// Called by everything here that builds a client, so calling it is needed only to be sure of the choice
/// before some other library makes one. Calling it again does nothing.
pub fn install_crypto_provider() {
    // The error says that one is installed, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Checks `base` and builds the client for calls below it.
pub(crate) fn build(base: &Url, connect_timeout: Duration) -> Result<reqwest::Client, ClientError> {
    if !matches!(base.scheme(), "http" | "https") {
        return Err(ClientError::Scheme(base.scheme().to_owned()));
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(ClientError::Credentials);
    }
    let mut builder = builder(connect_timeout);
    if is_loopback(base) {
        builder = builder.no_proxy();
    }
    if base.scheme() == "http" {
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| ClientError::Build(causes(&error)))
}

/// A client for hosts that others name: of the public internet alone, and past any proxy.
pub(crate) fn build_outside(connect_timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let builder = builder(connect_timeout).no_proxy().dns_resolver(Arc::new(PublicOnly));
    builder.build().map_err(|error| ClientError::Build(causes(&error)))
}

fn builder(connect_timeout: Duration) -> reqwest::ClientBuilder {
    install_crypto_provider();
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_TIMEOUT)
}

/// `base` with `segments` behind its path; a query of the base, such as Azure's `api-version`, stays.
pub(crate) fn endpoint(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    url.set_fragment(None);
    // Only URLs that are no base, such as `mailto:`, have no segments, and `build` has refused those.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// What went wrong underneath, outermost first. The outer text of a reqwest error names the URL, which may
/// hold secrets, and says nothing else, so it is left out if there is anything below it.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        cause = error.source();
    }
    if text.is_empty() { "no cause given".to_owned() } else { text }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn endpoints_join_with_and_without_a_slash() {
        for (base, expected) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
            ("http://localhost:8080", "http://localhost:8080/chat/completions"),
            ("http://localhost:8080/a/b/", "http://localhost:8080/a/b/chat/completions"),
            ("https://h.example/v1?api-version=3#x", "https://h.example/v1/chat/completions?api-version=3"),
        ] {
            assert_eq!(endpoint(&url(base), &["chat", "completions"]).as_str(), expected, "{base}");
        }
    }

    #[test]
    fn only_sound_base_urls_are_taken() {
        let second = Duration::from_secs(1);
        assert!(matches!(build(&url("ftp://h.example/"), second), Err(ClientError::Scheme(s)) if s == "ftp"));
        assert!(matches!(build(&url("mailto:a@h.example"), second), Err(ClientError::Scheme(_))));
        for text in ["https://me@h.example/", "https://:secret@h.example/"] {
            assert!(matches!(build(&url(text), second), Err(ClientError::Credentials)), "{text}");
        }
        assert!(build(&url("http://h.example/v1"), second).is_ok());
    }

    #[test]
    fn loopback_is_recognised() {
        for text in ["http://localhost/", "http://sim.localhost:1/", "http://127.0.0.9/", "http://[::1]:80/"]
        {
            assert!(is_loopback(&url(text)), "{text}");
        }
        for text in ["http://localhost.example/", "http://10.0.0.1/", "http://[fe80::1]/"] {
            assert!(!is_loopback(&url(text)), "{text}");
        }
    }

    #[test]
    fn the_crypto_provider_can_be_installed_again() {
        install_crypto_provider();
        install_crypto_provider();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}
