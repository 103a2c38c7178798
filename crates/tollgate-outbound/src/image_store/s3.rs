//! A bucket of S3, or of something that speaks its protocol: MinIO, Ceph, R2, GCS.
//!
//! Requests are signed in their URLs, each for itself and for a short time. A new object is written with
//! `If-None-Match: *`, so that it never takes another's place; a store that does not know this header overwrites, and
//! then two jobs of the same seed that run at the same moment can leave one image with the other's bytes.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, IF_NONE_MATCH};
use reqwest::{RequestBuilder, Response};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout_at};
use tollgate_model::image::{GeneratedImage, StorageKey};
use url::Url;

use super::ImageStoreError;
use crate::body::{self, BodyError};
use crate::client::{self, ClientError, causes};

/// From the request to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a signature holds: clocks may differ by some minutes.
const SIGNED_FOR: Duration = Duration::from_mins(5);
/// What is read of an error.
const ERROR_BODY_BYTES: usize = 16 * 1024;

/// Where the bucket is, and who we are to it.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The service; `None`: Amazon's, in the region.
    pub endpoint: Option<Url>,
    /// Such as `us-east-1`.
    pub region: String,
    /// The bucket's name.
    pub bucket: String,
    /// What every object's name begins with; empty: nothing.
    pub prefix: String,
    /// The access key's id.
    pub key_id: String,
    /// The access key's secret.
    pub secret: SecretString,
    /// Of temporary credentials.
    pub session_token: Option<SecretString>,
    /// The longest image that is read.
    pub max_bytes: usize,
}

#[derive(Debug)]
pub(super) struct S3 {
    client: reqwest::Client,
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    max_bytes: usize,
}

impl S3 {
    pub(super) fn new(config: S3Config) -> Result<Self, ClientError> {
        let S3Config { endpoint, region, bucket, prefix, key_id, secret, session_token, max_bytes } = config;
        // A service of one's own is reached by its name; the bucket's name before it would have to be known to the DNS.
        // Before Amazon's, a name with dots would not be covered by the certificate.
        let in_path = endpoint.is_some() || bucket.contains('.');
        let endpoint = match endpoint {
            Some(endpoint) => endpoint,
            None => Url::parse(&format!("https://s3.{region}.amazonaws.com"))
                .map_err(|_| ClientError::Store(format!("`{region}` is not a region")))?,
        };
        let client = client::build(&endpoint, CONNECT_TIMEOUT)?;
        let style = if in_path { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(endpoint, style, bucket, region)
            .map_err(|error| ClientError::Store(error.to_string()))?;
        let credentials = match session_token {
            Some(token) => Credentials::new_with_token(key_id, secret.expose_secret(), token.expose_secret()),
            None => Credentials::new(key_id, secret.expose_secret()),
        };
        let prefix = match prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { client, bucket, credentials, prefix, max_bytes })
    }

    /// `false`: there is an object already.
    pub(super) async fn create(
        &self,
        key: &StorageKey,
        image: &GeneratedImage,
    ) -> Result<bool, ImageStoreError> {
        let name = self.name(key);
        let mut action = self.bucket.put_object(Some(&self.credentials), &name);
        action.headers_mut().insert("if-none-match", "*");
        let request = self
            .client
            .put(action.sign(SIGNED_FOR))
            .header(IF_NONE_MATCH, "*")
            .header(CONTENT_TYPE, image.media_type.as_str())
            .body(image.bytes.clone());
        let deadline = Instant::now() + DEADLINE;
        let response = send(request, deadline).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::PRECONDITION_FAILED => Ok(false),
            _ => Err(refused("PUT", response, deadline).await),
        }
    }

    pub(super) async fn read(&self, key: &StorageKey) -> Result<Option<Vec<u8>>, ImageStoreError> {
        let name = self.name(key);
        let action = self.bucket.get_object(Some(&self.credentials), &name);
        let deadline = Instant::now() + DEADLINE;
        let response = send(self.client.get(action.sign(SIGNED_FOR)), deadline).await?;
        match response.status() {
            StatusCode::OK => {
                let read = timeout_at(deadline, body::read_whole(response, self.max_bytes)).await;
                read.map_err(|_| silent())?.map(Some).map_err(|error| match error {
                    BodyError::TooLong => ImageStoreError::new("an object is longer than an image may be"),
                    BodyError::Broken(error) => ImageStoreError::new(causes(&error)),
                })
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refused("GET", response, deadline).await),
        }
    }

    pub(super) async fn remove(&self, key: &StorageKey) -> Result<(), ImageStoreError> {
        let name = self.name(key);
        let action = self.bucket.delete_object(Some(&self.credentials), &name);
        let deadline = Instant::now() + DEADLINE;
        let response = send(self.client.delete(action.sign(SIGNED_FOR)), deadline).await?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(refused("DELETE", response, deadline).await),
        }
    }

    fn name(&self, key: &StorageKey) -> String {
        format!("{}{key}", self.prefix)
    }
}

async fn send(request: RequestBuilder, deadline: Instant) -> Result<Response, ImageStoreError> {
    let sent = timeout_at(deadline, request.send()).await.map_err(|_| silent())?;
    sent.map_err(|error| ImageStoreError::new(causes(&error)))
}

fn silent() -> ImageStoreError {
    ImageStoreError::new(format!("no answer within {DEADLINE:?}"))
}

/// With S3's own word for it, such as `NoSuchBucket` or `SignatureDoesNotMatch`.
async fn refused(method: &str, response: Response, deadline: Instant) -> ImageStoreError {
    let status = response.status();
    let body = body::read_start(response, ERROR_BODY_BYTES, deadline).await;
    let body = String::from_utf8_lossy(&body);
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("no code given", |(code, _)| code);
    ImageStoreError::new(format!("{method} was answered {status} ({code})"))
}
