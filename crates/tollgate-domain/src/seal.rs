//! Answers that hold a secret, sealed under the API key of who asked.
//!
//! Of an API key only its hash is stored; the answer that made it, kept for its idempotency key, must not be the exception.
//! It is encrypted under a key that is derived from the asker's own, which we do not have once the request has ended: only
//! who asked can be told again.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tollgate_model::idempotency::Once;

use crate::{Error, Result};

const NONCE_LEN: usize = 12;

/// Seals one request's answer.
pub(crate) struct Seal<'a> {
    cipher: Aes256Gcm,
    once: &'a Once,
}

impl<'a> Seal<'a> {
    /// `presented`: the whole API key of who asks.
    pub(crate) fn new(presented: &str, once: &'a Once) -> Result<Self> {
        let mut mac =
            <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(presented.as_bytes()).map_err(failed)?;
        mac.update(b"tollgate answer\n");
        mac.update(once.key.as_bytes());
        let cipher = Aes256Gcm::new_from_slice(&mac.finalize().into_bytes()).map_err(failed)?;
        Ok(Self { cipher, once })
    }

    /// Encrypts an answer; it is bound to what was asked.
    pub(crate) fn close(&self, answer: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(failed)?;
        let payload = Payload { msg: answer, aad: &self.once.fingerprint };
        let sealed = self.cipher.encrypt(&Nonce::from(nonce), payload).map_err(failed)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts it for the same asker.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Error::SealedAnswer)?;
        let payload = Payload { msg: sealed, aad: &self.once.fingerprint };
        self.cipher.decrypt(&Nonce::from(*nonce), payload).map_err(|_| Error::SealedAnswer)
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("sealing an answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(fingerprint: u8) -> Once {
        Once { method: "POST", route: "/v1/api-keys".into(), key: "k".into(), fingerprint: [fingerprint; 32] }
    }

    #[test]
    fn only_who_asked_can_open_it_and_only_for_what_was_asked() {
        let (asked, other) = (once(1), once(2));
        let sealed = Seal::new("sk_live_a", &asked).unwrap().close(b"secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(Seal::new("sk_live_a", &asked).unwrap().open(&sealed).unwrap(), b"secret");
        for (key, once, sealed) in [
            ("sk_live_b", &asked, &sealed[..]),
            ("sk_live_a", &other, &sealed),
            ("sk_live_a", &asked, &sealed[1..]),
            ("sk_live_a", &asked, b"short"),
        ] {
            assert!(matches!(Seal::new(key, once).unwrap().open(sealed), Err(Error::SealedAnswer)));
        }
    }
}
