//! In production, nothing is served but over HTTPS: with TLS that ends here, or at a proxy that is trusted (SPEC K4).
//!
//! This machine itself may ask without: health checks, sidecars and commands do. A proxy on this machine may not, unless it
//! is trusted: it would bring in plain HTTP from anywhere.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::STRICT_TRANSPORT_SECURITY;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::client::{Connection, TrustedProxies};
use crate::problem::Problem;

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Two years, as the lists that browsers are shipped with ask for.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains; preload");

/// What supervisors, load balancers and scrapers ask, from next door and without TLS.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// How requests may come.
#[derive(Debug, Clone, Default)]
pub struct Transport {
    proxies: Arc<TrustedProxies>,
    https_only: bool,
}

impl Transport {
    /// As they may in production, or, without `https_only`, in any way.
    pub fn new(proxies: TrustedProxies, https_only: bool) -> Self {
        Self { proxies: Arc::new(proxies), https_only }
    }

    /// Whether the request came over HTTPS; an error says why it must not be served in production.
    fn is_https(&self, connection: Connection, headers: &HeaderMap) -> Result<bool, &'static str> {
        let trusted = self.proxies.contain(connection.peer);
        let forwarded = headers.contains_key(X_FORWARDED_PROTO);
        if trusted && forwarded {
            let lines = headers.get_all(X_FORWARDED_PROTO).iter();
            // Each proxy on the way may have added its own.
            let mut schemes = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
            return if schemes.all(|scheme| scheme.trim_ascii().eq_ignore_ascii_case(b"https")) {
                Ok(true)
            } else {
                Err("this request came to the proxy over plain HTTP")
            };
        }
        if connection.tls {
            return Ok(true);
        }
        match connection.peer.is_loopback() {
            true if forwarded => Err("this request came through a proxy that TRUSTED_PROXIES does not name"),
            true => Ok(false),
            false => Err(
                "this request came over plain HTTP. (Operators: set TLS_CERT and TLS_KEY, or name the proxy \
                where TLS ends in TRUSTED_PROXIES)",
            ),
        }
    }
}

/// Around every route: takes note of the client's address, and refuses what did not come over HTTPS.
pub(crate) async fn transport(State(rules): State<Transport>, mut request: Request, next: Next) -> Response {
    // Without a connection there is only a test.
    let Some(connection) = request.extensions().get::<Connection>().copied() else {
        return next.run(request).await;
    };
    let https = rules.is_https(connection, request.headers());
    let client = rules.proxies.client(connection.peer, request.headers());
    request.extensions_mut().insert(client);
    let mut response = match https {
        Err(why) if rules.https_only && !OPEN.contains(&request.uri().path()) => {
            Problem::invalid(format!("only HTTPS is served, and {why}")).into_response()
        }
        _ => next.run(request).await,
    };
    if https == Ok(true) {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HSTS);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, tls: bool, said: &[&str]) -> Result<bool, &'static str> {
        let rules = Transport::new("192.0.2.0/24,127.0.0.9".parse().unwrap(), true);
        let mut headers = HeaderMap::new();
        for scheme in said {
            headers.append(X_FORWARDED_PROTO, scheme.parse().unwrap());
        }
        rules.is_https(Connection { peer: peer.parse().unwrap(), tls }, &headers)
    }

    #[test]
    fn only_https_or_this_machine_itself() {
        for (peer, tls, said, expected) in [
            ("198.51.100.1", false, &[][..], None),
            // Not of the proxy's network: what it says means nothing.
            ("198.51.100.1", false, &["https"], None),
            ("198.51.100.1", true, &[], Some(true)),
            ("198.51.100.1", true, &["http"], Some(true)),
            ("192.0.2.7", false, &["https"], Some(true)),
            ("192.0.2.7", false, &["HTTPS, https"], Some(true)),
            ("192.0.2.7", false, &["http"], None),
            ("192.0.2.7", false, &["https", "http"], None),
            ("192.0.2.7", false, &["https,http"], None),
            ("192.0.2.7", false, &[], None),
            // To the proxy it was not.
            ("192.0.2.7", true, &["http"], None),
            ("127.0.0.1", false, &[], Some(false)),
            ("::1", false, &[], Some(false)),
            // A proxy on this machine that nobody trusts.
            ("127.0.0.1", false, &["https"], None),
            ("127.0.0.9", false, &["https"], Some(true)),
            ("127.0.0.9", false, &["http"], None),
            ("127.0.0.9", false, &[], Some(false)),
        ] {
            assert_eq!(asked(peer, tls, said).ok(), expected, "{peer} {tls} {said:?}");
        }
    }
}
