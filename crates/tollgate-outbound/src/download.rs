//! Fetching what a provider's reply points at.
//!
//! A URL in a reply is somebody else's word. It is fetched without our key, without redirects, with the caller's
//! deadline and cap, and from the public internet alone; or from the very server that gave the reply, which the operator
//! has configured, wherever it is (a model on this machine, the simulator).
//!
//! These fetches go straight, past any configured proxy: it would be the proxy that looks the name up, and what stands
//! behind it on the inside is not for us to know.

use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use reqwest::Client;
use url::{Host, Url};

use crate::address::{NotPublic, is_public};
use crate::body::{self, BodyError};
use crate::client::{self, causes};

/// Why there are no bytes.
#[derive(Debug)]
pub(crate) enum DownloadError {
    /// It must not be fetched, and never will be.
    Refused(&'static str),
    /// It is longer than the cap.
    TooLong,
    /// It could not be had this time.
    Failed(String),
}

/// What fetches for one provider.
#[derive(Debug)]
pub(crate) struct Downloads {
    base: Url,
    connect_timeout: Duration,
    /// For all but the provider itself; made when it is first needed, since many providers never point anywhere, and a
    /// machine without certificates can do without.
    outside: OnceLock<Result<Client, String>>,
}

impl Downloads {
    /// For the provider at `base`.
    pub(crate) fn new(base: Url, connect_timeout: Duration) -> Self {
        Self { base, connect_timeout, outside: OnceLock::new() }
    }

    /// The bytes at `url`, at most `cap` of them. `provider` is the client of the provider itself. Sets no deadline.
    pub(crate) async fn fetch(
        &self,
        provider: &Client,
        url: &str,
        cap: usize,
    ) -> Result<Vec<u8>, DownloadError> {
        let url = Url::parse(url).map_err(|_| DownloadError::Refused("is not a whole URL"))?;
        let client = self.client_for(provider, &url)?;
        let response = client.get(url).send().await.map_err(|error| not_sent(&error))?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(DownloadError::Refused("answers with a redirect, which is not followed"));
            }
            status => return Err(DownloadError::Failed(format!("it answered {status}"))),
        }
        body::read_whole(response, cap).await.map_err(|error| match error {
            BodyError::TooLong => DownloadError::TooLong,
            BodyError::Broken(error) => DownloadError::Failed(causes(&error)),
        })
    }

    fn client_for<'a>(&'a self, provider: &'a Client, url: &Url) -> Result<&'a Client, DownloadError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(DownloadError::Refused("is neither http nor https"));
        }
        if url.origin() == self.base.origin() {
            return Ok(provider);
        }
        // The resolver is not asked about what is an address already.
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            Some(Host::Domain(_)) | None => None,
        };
        if literal.is_some_and(|address| !is_public(address)) {
            return Err(DownloadError::Refused("names an address that is not on the public internet"));
        }
        let outside = self
            .outside
            .get_or_init(|| client::build_outside(self.connect_timeout).map_err(|e| e.to_string()));
        outside.as_ref().map_err(|error| DownloadError::Failed(error.clone()))
    }
}

fn not_sent(error: &reqwest::Error) -> DownloadError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<NotPublic>() {
            return DownloadError::Refused("names a host that has no address on the public internet");
        }
        cause = inner.source();
    }
    DownloadError::Failed(causes(error))
}
