//! The id of a request: in the answer's header, in a problem document, and in every log line between.

use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const MAX_LEN: usize = 64;

/// A request's id: the client's own if it is one that can stand in a log as it is, or else a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(X_REQUEST_ID) {
            Some(own) if is_acceptable(own.as_bytes()) => Self(own.clone()),
            _ => Self::generate(),
        }
    }

    fn generate() -> Self {
        let id = tollgate_domain::ids::new_id().to_string();
        Self(HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-")))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

fn is_acceptable(id: &[u8]) -> bool {
    (1..=MAX_LEN).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_clients_own_id_is_kept_if_it_is_plain() {
        for own in ["a", "A-1_b.c", "0198c5a4-7a5e-7000-8000-000000000000", &"x".repeat(64)] {
            assert_eq!(of(own.as_bytes()), own);
        }
        for odd in [&b""[..], b"a b", b"a\"b", b"a\xffb", b"a;b", &[b'x'; 65]] {
            let made = of(odd);
            assert_eq!(made.len(), 36, "{odd:?} became {made}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
