//! The id in a path.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use tollgate_model::job::Job;
use tollgate_model::key::KeyInfo;
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

impl Noun for KeyInfo {
    const NOUN: &'static str = "API key";
}

impl<T: Noun, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<Uuid>::from_request_parts(parts, state).await;
        let unknown = |_| Problem::new(Code::NotFound, format!("no such {}", T::NOUN));
        id.map(|Path(id)| Self(id, PhantomData)).map_err(unknown)
    }
}
