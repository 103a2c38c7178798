//! OpenAI, and everything that speaks its protocol: vLLM, llama.cpp, gateways, our own simulator.
//!
//! One call reads from top to bottom in `OpenAi::call`: write the request ([`chat`], [`responses`] or [`images`]),
//! send it, read the reply under the same deadline, and turn it into an answer, or into a failure with its decision
//! ([`error`]). What the endpoints share of a reply is in [`reply`]. An image that the reply only points at is fetched
//! before the call ends, under the same deadline: it may be gone an hour later.
//!
//! An SDK crate was rejected: its client retries by itself, its types refuse replies with words they do not
//! know, and what it takes for an error has lost the headers that say when to come back.

mod chat;
mod error;
mod images;
mod reply;
mod responses;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::ACCEPT;
use reqwest::Response;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tollgate_model::generation::{Endpoint, GenerationOutput, GenerationRequest, ProviderFailure};
use tollgate_model::image::GeneratedImage;
use url::Url;

use self::error::Phase;
use self::images::Source;
use crate::body::{self, BodyError};
use crate::client::{self, ClientError};
use crate::download::Downloads;
use crate::limits::limits;
use crate::{Provider, message, nul, retry_after};

/// The adapter's name, as stored with results and named by prices.
pub const NAME: &str = "openai";

/// A request's timeout is believed up to a day, so that no arithmetic on it can overflow.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

/// Of the body of an error so much is read, and for so long: it is wanted for its text alone, and must not
/// hold a worker's slot to the end of the deadline.
const ERROR_BODY_BYTES: usize = 64 * 1024;
const ERROR_BODY_PATIENCE: Duration = Duration::from_secs(5);

/// Where the provider is and how to speak to it.
#[derive(Debug, Clone)]
pub struct OpenAiConfig {
    /// What the endpoints' paths are appended to, such as `https://api.openai.com/v1`; a trailing slash makes
    /// no difference. A query (Azure's `api-version`) is sent along.
    pub base_url: Url,
    /// The bearer token. White space around it is ignored; `None` and an empty one both mean that there is
    /// none, and then every call fails at once without a connection (SPEC G13).
    pub api_key: Option<SecretString>,
    /// The most time to establish a connection, TLS included; within the request's own deadline.
    pub connect_timeout: Duration,
    /// The most bytes that an answer's body may have, but for an image's.
    pub max_response_bytes: usize,
    /// The most bytes that an image may have.
    pub max_image_bytes: usize,
}

/// The adapter for OpenAI's chat completions, responses and images. Cheap to share; holds the connection pool.
///
/// # What is sent
///
/// The request's own fields, over its `params`, which are passed on as they are, except for what would bring
/// something other than one whole answer (`stream`, `stream_options`, `background`).
///
/// - Chat: the limit goes into `max_tokens`, or into `max_completion_tokens` if `params` has that field, as a
///   job type for the vendor's reasoning models must.
/// - Responses: the limit goes into `max_output_tokens`; `store` is false unless `params` has it; there is no
///   seed.
/// - Images: prompt and size; one image, and no seed.
///
/// # What fails, and what that means
///
/// The four kinds are those of SPEC G2. Two combinations say something of their own: `RATE_LIMIT` with
/// [`Decision::Fail`](tollgate_model::generation::Decision::Fail) is only ever an account without money, and
/// `SERVER_ERROR` with it is our own set-up (no key, a cap too low), not the provider's health.
pub struct OpenAi {
    client: reqwest::Client,
    chat_url: Url,
    responses_url: Url,
    images_url: Url,
    downloads: Downloads,
    api_key: Option<SecretString>,
    max_response_bytes: usize,
    max_image_bytes: usize,
}

impl OpenAi {
    /// Checks the configuration and makes the client; connects to nothing.
    ///
    /// # Errors
    ///
    /// A base URL that is none, a key that no header can carry, or a machine without TLS certificates. A
    /// *missing* key is no error here: the process runs, and the jobs say what is missing.
    pub fn new(config: OpenAiConfig) -> Result<Self, ClientError> {
        let OpenAiConfig { base_url, api_key, connect_timeout, max_response_bytes, max_image_bytes } = config;
        let client = client::build(&base_url, connect_timeout)?;
        let api_key = match api_key.as_ref().map(|key| key.expose_secret().trim()) {
            None | Some("") => None,
            Some(key) if key.bytes().all(|byte| byte.is_ascii_graphic()) => Some(SecretString::from(key)),
            Some(_) => return Err(ClientError::ApiKey),
        };
        let chat_url = client::endpoint(&base_url, &["chat", "completions"]);
        let responses_url = client::endpoint(&base_url, &["responses"]);
        let images_url = client::endpoint(&base_url, &["images", "generations"]);
        let downloads = Downloads::new(base_url, connect_timeout);
        Ok(Self {
            client,
            chat_url,
            responses_url,
            images_url,
            downloads,
            api_key,
            max_response_bytes,
            max_image_bytes,
        })
    }

    /// [`Self::call`], with what it says about a failure made fit to be shown. The one way out for messages.
    async fn answer(&self, request: &GenerationRequest) -> Result<GenerationOutput, ProviderFailure> {
        let Some(key) = self.api_key.as_ref().map(ExposeSecret::expose_secret) else {
            return Err(error::missing_key());
        };
        self.call(request, key).await.map_err(|mut failure| {
            failure.message = message::presentable(&failure.message, key);
            tracing::debug!(request_id = %request.request_id, %failure, "the provider gave no answer");
            failure
        })
    }

    async fn call(
        &self,
        request: &GenerationRequest,
        key: &str,
    ) -> Result<GenerationOutput, ProviderFailure> {
        let (url, body) = match request.endpoint {
            Endpoint::ChatCompletions => (&self.chat_url, chat::body(request)),
            Endpoint::Responses => (&self.responses_url, responses::body(request)),
            Endpoint::Images => (&self.images_url, images::body(request)),
        };
        let cap = match request.endpoint {
            Endpoint::ChatCompletions | Endpoint::Responses => self.max_response_bytes,
            Endpoint::Images => images::longest_reply(self.max_image_bytes),
        };
        let started = Instant::now();
        let deadline = started + request.timeout.min(LONGEST_TIMEOUT);

        let sending = self
            .client
            .post(url.clone())
            .bearer_auth(key)
            .header(ACCEPT, "application/json")
            .header("x-client-request-id", request.request_id.to_string())
            .json(&body)
            .send();
        let response = timeout_at(deadline, sending)
            .await
            .map_err(|_| error::deadline(Phase::Headers, request.timeout))?
            .map_err(|error| error::not_sent(&error))?;
        if !response.status().is_success() {
            return Err(refusal(response, deadline).await);
        }
        let limits = limits(response.headers());
        let bytes = timeout_at(deadline, body::read_whole(response, cap))
            .await
            .map_err(|_| error::deadline(Phase::Body, request.timeout))?
            .map_err(|error| match error {
                BodyError::TooLong => error::too_long(cap),
                BodyError::Broken(error) => error::cut_short(&error),
            })?;

        let mut raw: Value = serde_json::from_slice(&bytes).map_err(|error| error::not_json(&error))?;
        nul::strip(&mut raw);
        let (reply, image) = match request.endpoint {
            Endpoint::ChatCompletions => (chat::read(&raw)?, None),
            Endpoint::Responses => (responses::read(&raw)?, None),
            Endpoint::Images => {
                let (reply, source) = images::read(&mut raw)?;
                let image = timeout_at(deadline, self.image(source))
                    .await
                    .map_err(|_| error::deadline(Phase::Image, request.timeout))??;
                (reply, Some(image))
            }
        };
        let latency = started.elapsed();
        Ok(GenerationOutput {
            provider_id: reply.id,
            text: reply.text,
            image,
            limits,
            provider: NAME.to_owned(),
            model: if reply.model.is_empty() { request.model.clone() } else { reply.model },
            latency_ms: i64::try_from(latency.as_millis()).unwrap_or(i64::MAX),
            usage: reply.usage,
            cached_tokens: reply::cached_tokens(&raw),
            raw,
        })
    }

    /// The bytes, wherever they are, if they are an image of an allowed size.
    async fn image(&self, source: Source) -> Result<GeneratedImage, ProviderFailure> {
        let cap = self.max_image_bytes;
        let bytes = match source {
            Source::Here(bytes) => bytes,
            Source::At(url) => {
                let fetched = self.downloads.fetch(&self.client, &url, cap).await;
                fetched.map_err(|error| error::not_fetched(error, cap))?
            }
        };
        if bytes.len() > cap {
            return Err(error::image_too_long(cap));
        }
        GeneratedImage::recognise(bytes).ok_or_else(error::not_recognised)
    }
}

/// A reply whose status is no success. The status has been seen and decides, even if the body never comes.
async fn refusal(response: Response, deadline: Instant) -> ProviderFailure {
    let (status, headers) = (response.status(), response.headers().clone());
    let patience = deadline.min(Instant::now() + ERROR_BODY_PATIENCE);
    let body = body::read_start(response, ERROR_BODY_BYTES, patience).await;
    error::refused(status, &headers, &body, retry_after::wall_clock())
}

impl Provider for OpenAi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn generate<'a>(
        &'a self,
        request: &'a GenerationRequest,
    ) -> BoxFuture<'a, Result<GenerationOutput, ProviderFailure>> {
        Box::pin(self.answer(request))
    }
}

/// Without the client, whose own output would name proxies and what they are logged in with.
impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi")
            .field("chat_url", &self.chat_url.as_str())
            .field("responses_url", &self.responses_url.as_str())
            .field("images_url", &self.images_url.as_str())
            .field("api_key", &self.api_key)
            .field("max_response_bytes", &self.max_response_bytes)
            .field("max_image_bytes", &self.max_image_bytes)
            .finish_non_exhaustive()
    }
}
