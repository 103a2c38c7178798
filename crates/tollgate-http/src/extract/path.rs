//! The id in a path.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use serde::de::DeserializeOwned;
use tollgate_model::account::AccountId;
use tollgate_model::dead_letter::DeadLetter;
use tollgate_model::guard::class::ClassName;
use tollgate_model::image::Image;
use tollgate_model::job::Job;
use tollgate_model::key::KeyInfo;
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use crate::problem::{Code, Problem};

/// The id of a `T`. What is no UUID is the id of nothing, so it is not found, just as an unknown one.
pub(crate) struct Id<T>(pub(crate) Uuid, PhantomData<T>);

/// What a client calls it.
pub(crate) trait Noun {
    const NOUN: &'static str;
}

impl Noun for Job {
    const NOUN: &'static str = "job";
}

impl Noun for Image {
    const NOUN: &'static str = "image";
}

impl Noun for KeyInfo {
    const NOUN: &'static str = "API key";
}

impl Noun for DeadLetter {
    const NOUN: &'static str = "dead letter";
}

impl Noun for ClassName {
    const NOUN: &'static str = "class; `GET /internal/gen-health` lists them";
}

impl Noun for QueueName {
    const NOUN: &'static str = "queue; `GET /internal/queues` lists them";
}

impl Noun for (AccountId, QueueName) {
    const NOUN: &'static str = "account or queue; `GET /internal/queues` lists the queues";
}

/// What a path names in full. What cannot be read is the name of nothing.
pub(crate) struct Named<T>(pub(crate) T);

impl<T: Noun + DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let named = Path::<T>::from_request_parts(parts, state).await;
        let unknown = |_| Problem::new(Code::NotFound, format!("no such {}", T::NOUN));
        named.map(|Path(named)| Self(named)).map_err(unknown)
    }
}

impl<T: Noun, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<Uuid>::from_request_parts(parts, state).await;
        let unknown = |_| Problem::new(Code::NotFound, format!("no such {}", T::NOUN));
        id.map(|Path(id)| Self(id, PhantomData)).map_err(unknown)
    }
}
