//! A client of Tollgate's own API, for the commands (`tollgate job …`, `tollgate demo`) and the tests.

use std::time::Duration;

use reqwest::{Client, Method, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tollgate_model::job::{Job, JobEvent, JobStatus};
use tollgate_model::submission::Submission;
use uuid::Uuid;

use crate::client;

/// Tollgate's API answers at once or not at all; it waits for no provider.
const DEADLINE: Duration = Duration::from_secs(30);

/// A Tollgate at some URL, in the name of one key.
#[derive(Debug, Clone)]
pub struct TollgateClient {
    http: Client,
    url: Url,
    key: SecretString,
}

/// One page of a list.
#[derive(Debug, Clone, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next_cursor: Option<String>,
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The URL is none.
    #[error("`{url}` is not the URL of a Tollgate, such as http://127.0.0.1:8787: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answered, or not in time.
    #[error("no answer from {url}: {problem}. Is it running? (`tollgate dev` starts one)")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The API refused, with a problem document.
    #[error("{detail} ({status} {code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The stable code.
        code: String,
        /// For people.
        detail: String,
    },
    /// Whatever answered does not speak Tollgate's API.
    #[error("{0} answered, but not as Tollgate does; check the URL")]
    Foreign(String),
}

/// The part of a problem document that a client acts on.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
}

#[derive(Deserialize)]
struct Accepted {
    job_id: Uuid,
}

impl TollgateClient {
    /// A client of the Tollgate at `url`. Nothing is sent yet.
    pub fn new(url: &str, key: SecretString) -> Result<Self, ApiError> {
        let bad = |problem: String| ApiError::Url { url: url.to_owned(), problem };
        let base = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let http = client::build(&base, Duration::from_secs(5)).map_err(|error| bad(error.to_string()))?;
        Ok(Self { http, url: base, key })
    }

    /// Submits a job. Returns its id.
    pub async fn submit(&self, submission: &Submission) -> Result<Uuid, ApiError> {
        let body = serde_json::to_value(submission).unwrap_or_default();
        Ok(self.call::<Accepted>(Method::POST, "v1/jobs/generations", &[], Some(&body)).await?.job_id)
    }

    /// Submits a job as it stands in a file.
    pub async fn submit_json(&self, submission: &Value) -> Result<Uuid, ApiError> {
        Ok(self.call::<Accepted>(Method::POST, "v1/jobs/generations", &[], Some(submission)).await?.job_id)
    }

    /// One job.
    pub async fn job(&self, id: Uuid) -> Result<Job, ApiError> {
        self.call(Method::GET, &format!("v1/jobs/{id}"), &[], None).await
    }

    /// A page of jobs, newest first.
    pub async fn jobs(
        &self,
        status: Option<JobStatus>,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<Page<Job>, ApiError> {
        let limit = limit.to_string();
        let query =
            [("status", status.map(JobStatus::as_str)), ("limit", Some(limit.as_str())), ("cursor", cursor)];
        self.call(Method::GET, "v1/jobs", &query, None).await
    }

    /// A page of a job's events, oldest first.
    pub async fn events(&self, id: Uuid, cursor: Option<&str>) -> Result<Page<JobEvent>, ApiError> {
        self.call(Method::GET, &format!("v1/jobs/{id}/events"), &[("cursor", cursor)], None).await
    }

    /// Calls a job off.
    pub async fn cancel(&self, id: Uuid) -> Result<Job, ApiError> {
        self.call(Method::POST, &format!("v1/jobs/{id}/cancel"), &[], None).await
    }

    /// A path of this Tollgate as a whole URL; what is one already stays as it is.
    pub fn whole(&self, url: &str) -> String {
        self.url.join(url).map_or_else(|_| url.to_owned(), Into::into)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, Option<&str>)],
        body: Option<&Value>,
    ) -> Result<T, ApiError> {
        let segments: Vec<&str> = path.split('/').collect();
        let mut url = client::endpoint(&self.url, &segments);
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        let unreachable = |error: reqwest::Error| ApiError::Unreachable {
            url: self.url.to_string(),
            problem: if error.is_timeout() { "timed out".into() } else { client::causes(&error) },
        };
        let request = self.http.request(method, url).timeout(DEADLINE).bearer_auth(self.key.expose_secret());
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let reply = request.send().await.map_err(unreachable)?;
        let status = reply.status();
        let body = reply.bytes().await.map_err(unreachable)?;
        let foreign = |_| ApiError::Foreign(self.url.to_string());
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(foreign);
        }
        let Problem { code, detail } = serde_json::from_slice(&body).map_err(foreign)?;
        Err(ApiError::Refused { status: status.as_u16(), code, detail })
    }
}
