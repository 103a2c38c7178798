//! Who is asking, and may they: from the key in a request to the account it acts for.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use tollgate_model::account::AccountId;
use tollgate_model::key::{ApiKey, Scope};
use uuid::Uuid;

use crate::api::App;
use crate::problem::{Code, Problem};
use crate::rate_limits;

pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The holder of a valid key with the scope `S`. Without one in its arguments, a handler has no account to act for.
pub(crate) struct Caller<S> {
    pub(crate) account: AccountId,
    pub(crate) key: Uuid,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) presented: SecretString,
    scope: PhantomData<S>,
}

/// A scope, as a type.
pub(crate) trait Needs: Send + Sync {
    const SCOPE: Scope;
}

macro_rules! scopes {
    ($($name:ident)+) => {
        $(
            #[doc = concat!("[`Scope::", stringify!($name), "`], as a type.")]
            pub(crate) enum $name {}

            impl Needs for $name {
                const SCOPE: Scope = Scope::$name;
            }
        )+
    };
}

scopes! { JobsWrite JobsRead KeysWrite BillingRead }

type Identified = (tollgate_domain::auth::Caller, SecretString);

impl<S: Needs> Caller<S> {
    async fn admit(
        parts: &mut Parts,
        app: &App,
        identified: Result<Identified, Problem>,
    ) -> Result<Self, Problem> {
        let (caller, presented) = identified.inspect_err(|_| rate_limits::show_attempts(parts, app))?;
        tracing::Span::current().record("account_id", tracing::field::display(caller.account));
        rate_limits::check(parts, app, &caller).await?;
        require(&caller.scopes, S::SCOPE)?;
        let tollgate_domain::auth::Caller { account, key, scopes, .. } = caller;
        Ok(Self { account, key, scopes, presented, scope: PhantomData })
    }
}

impl<S: Needs> FromRequestParts<App> for Caller<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let identified = identify(parts, app, false).await;
        Self::admit(parts, app, identified).await
    }
}

/// A [`Caller`] as this process knows the key, if it does, and has looked at it of late: for the endpoint whose transaction
/// reads the key's row again, and spares the round trip.
pub(crate) struct Recognised<S>(pub(crate) Caller<S>);

impl<S: Needs> FromRequestParts<App> for Recognised<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let identified = identify(parts, app, true).await;
        Caller::admit(parts, app, identified).await.map(Self)
    }
}

/// Whose key a request shows. `remembered`: as this process knows it, if it does.
async fn identify(parts: &Parts, app: &App, remembered: bool) -> Result<Identified, Problem> {
    let presented = presented(&parts.headers)?;
    let key = presented.expose_secret();
    if remembered && let Some(caller) = app.auth.recognise(key) {
        return Ok((caller, presented));
    }
    let caller = app.auth.authenticate(&app.db, key, rate_limits::address(parts)).await?;
    Ok((caller.ok_or_else(unknown)?, presented))
}

/// Where an endpoint also serves those who show no key. A key that is shown must be good.
impl<S: Needs> OptionalFromRequestParts<App> for Caller<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Option<Self>, Problem> {
        if [AUTHORIZATION, X_API_KEY].iter().any(|name| parts.headers.contains_key(name)) {
            return <Self as FromRequestParts<App>>::from_request_parts(parts, app).await.map(Some);
        }
        Ok(None)
    }
}

/// Refuses a holder of `scopes` who lacks one.
pub(crate) fn require(scopes: &[Scope], scope: Scope) -> Result<(), Problem> {
    if scopes.contains(&scope) {
        return Ok(());
    }
    Err(Problem::new(Code::ForbiddenScope, format!("this API key lacks the scope `{scope}`")))
}

/// Says the same of a key that never was, of one with a wrong secret, and of one that was revoked or has expired.
pub(crate) fn unknown() -> Problem {
    Problem::new(
        Code::Unauthorized,
        "this API key is not valid: it is unknown, or it was revoked, or it has expired",
    )
}

/// To who needs a key and shows none.
pub(crate) fn no_key() -> Problem {
    Problem::new(Code::Unauthorized, "no API key: send it as `Authorization: Bearer sk_live_…`")
}

/// The key in the headers: a bearer token, or else `X-API-Key`. A well-formed key only: junk costs no round trip.
fn presented(headers: &HeaderMap) -> Result<SecretString, Problem> {
    let refuse = |detail: &str| Err(Problem::new(Code::Unauthorized, detail));
    let bearer = headers.get(AUTHORIZATION).map(bearer);
    let Some(key) = bearer.flatten().or_else(|| headers.get(X_API_KEY).map(HeaderValue::as_bytes)) else {
        if bearer.is_none() {
            return Err(no_key());
        }
        return refuse("the header `Authorization` does not have the form `Bearer sk_live_…`");
    };
    match std::str::from_utf8(key).map(str::trim) {
        Ok(key) if ApiKey::parse(key).is_some() => Ok(SecretString::from(key)),
        _ => refuse("this is not the form of an API key: `sk_live_`, 12 characters, `_`, 38 characters"),
    }
}

pub(super) fn bearer(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: HeaderName, value: &[u8]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value).unwrap());
        let key = presented(&headers).map_err(|problem| {
            assert_eq!(problem.code(), Code::Unauthorized);
            problem.detail().to_owned()
        })?;
        Ok(key.expose_secret().to_owned())
    }

    #[test]
    fn a_key_comes_in_either_header() {
        let key = ApiKey::from_entropy(&[5; 44]).expose().to_owned();
        assert_eq!(read(AUTHORIZATION, format!("Bearer {key}").as_bytes()), Ok(key.clone()));
        assert_eq!(read(AUTHORIZATION, format!("bearer  {key} ").as_bytes()), Ok(key.clone()));
        assert_eq!(read(X_API_KEY, key.as_bytes()), Ok(key.clone()));
        assert!(read(AUTHORIZATION, key.as_bytes()).unwrap_err().contains("the form `Bearer"));
    }

    #[test]
    fn whatever_else_comes_is_refused_in_words() {
        assert!(presented(&HeaderMap::new()).unwrap_err().detail().starts_with("no API key"));
        for junk in
            [&b"Bearer"[..], b"Bearer ", b"Bearer sk_live_x", b"Basic YTpi", b"\xff\xfe", b"Bearer \xff"]
        {
            assert!(read(AUTHORIZATION, junk).is_err(), "{junk:?}");
        }
    }

    #[test]
    fn a_missing_scope_is_named() {
        let problem = require(&[Scope::JobsRead], Scope::JobsWrite).unwrap_err();
        assert_eq!(problem.code(), Code::ForbiddenScope);
        assert!(problem.detail().contains("`jobs:write`"));
        assert_eq!(require(&[Scope::JobsRead, Scope::JobsWrite], Scope::JobsWrite), Ok(()));
    }
}
