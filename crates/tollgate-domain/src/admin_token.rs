//! The operators' token: one secret of the installation, compared in constant time.

use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{Error, Result};

/// What an operator's request must bring. It holds no copy of the token, only an HMAC of it under a secret that lives and
/// dies with the process; comparing those takes as long for a wrong token as for the right one, whatever its length.
#[derive(Clone)]
pub struct AdminToken {
    secret: Arc<[u8; 64]>,
    tag: [u8; 32],
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminToken").finish_non_exhaustive()
    }
}

impl AdminToken {
    /// The token that is configured.
    pub fn new(token: &str) -> Result<Self> {
        let mut secret = [0; 64];
        getrandom::fill(&mut secret).map_err(|error| Error::Internal(error.to_string()))?;
        let tag = mac(&secret, token.as_bytes()).finalize().into_bytes().into();
        Ok(Self { secret: Arc::new(secret), tag })
    }

    /// Whether this is it.
    pub fn is(&self, presented: &[u8]) -> bool {
        mac(&self.secret, presented).verify_slice(&self.tag).is_ok()
    }
}

fn mac(secret: &[u8; 64], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new(&(*secret).into());
    mac.update(text);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_itself_opens_and_nothing_else_does() {
        let token = AdminToken::new("a-token-of-24-characters").unwrap();
        assert!(token.is(b"a-token-of-24-characters"));
        for wrong in
            [&b""[..], b"a-token-of-24-character", b"a-token-of-24-characterS", b"a-token-of-24-characters "]
        {
            assert!(!token.is(wrong));
        }
        assert!(!format!("{token:?}").contains("24"));
    }
}
