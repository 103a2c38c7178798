//! A secret that lives and dies with the process. What must be recognised but not kept is remembered by its HMAC.

use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{Error, Result};

/// Drawn anew by each process; clones are the same.
#[derive(Clone)]
pub(crate) struct ProcessSecret(Arc<[u8; 64]>);

impl ProcessSecret {
    /// Draws one.
    pub(crate) fn draw() -> Result<Self> {
        let mut secret = [0; 64];
        getrandom::fill(&mut secret).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Self(Arc::new(secret)))
    }

    /// What to remember `text` by.
    pub(crate) fn tag(&self, text: &[u8]) -> [u8; 32] {
        self.mac(text).finalize().into_bytes().into()
    }

    /// Whether this is the tag of `text`; takes as long for a wrong text as for the right one, whatever its length.
    pub(crate) fn verifies(&self, text: &[u8], tag: &[u8; 32]) -> bool {
        self.mac(text).verify_slice(tag).is_ok()
    }

    fn mac(&self, text: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&(*self.0).into());
        mac.update(text);
        mac
    }
}
