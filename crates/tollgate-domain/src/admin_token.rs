//! The operators' token: one secret of the installation, compared in constant time.

use crate::Result;
use crate::process_secret::ProcessSecret;

/// What an operator's request must bring. It holds no copy of the token, only an HMAC of it under a secret that lives and
/// dies with the process; comparing those takes as long for a wrong token as for the right one, whatever its length.
#[derive(Clone)]
pub struct AdminToken {
    secret: ProcessSecret,
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
        let secret = ProcessSecret::draw()?;
        let tag = secret.tag(token.as_bytes());
        Ok(Self { secret, tag })
    }

    /// Whether this is it.
    pub fn is(&self, presented: &[u8]) -> bool {
        self.secret.verifies(presented, &self.tag)
    }
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
