//! Whether a webhook is Stripe's: `Stripe-Signature: t=<unix>,v1=<hex>[,v1=<hex>…]` over the body's bytes as they came.
//!
//! The key is the whole secret, `whsec_` included; several `v1` are there while Stripe rolls a secret, and other schemes
//! (`v0`) count for nothing. Where Stripe's own libraries differ from each other or take more than Stripe sends (a second
//! `t`, a `t` that is no plain number, a time in the future), the stricter holds. What they refuse is refused: the fixtures
//! beside this file were signed and judged by the official one.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The endpoint's secrets: one, or two while one is being rolled.
#[derive(Clone)]
pub struct SigningSecrets(Vec<Hmac<Sha256>>);

impl fmt::Debug for SigningSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningSecrets").finish_non_exhaustive()
    }
}

/// Why these are no secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be one signing secret of Stripe's, whsec_…, or two with a comma between them while one is being rolled"
)]
pub struct NoSecret;

/// Why an event is not taken for Stripe's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Without exactly one `t` that is a number, or without any `v1`.
    #[error("the header `Stripe-Signature` must have the form `t=<unix time>,v1=<hex>`")]
    Malformed,
    /// No `v1` is the body's.
    #[error(
        "no v1 signature in `Stripe-Signature` fits the body: it is another endpoint's secret than \
         STRIPE_WEBHOOK_SECRET, or the body was changed on its way"
    )]
    Wrong,
    /// It is right, but of another time.
    #[error(
        "the signature's time is too far from now; if this is Stripe, look whether this machine's clock is right"
    )]
    Untimely,
}

impl SigningSecrets {
    /// As they are configured: with a comma between them.
    pub fn parse(text: &str) -> Result<Self, NoSecret> {
        let secrets: Vec<&str> = text.split(',').map(str::trim).collect();
        let plausible = |secret: &&str| {
            secret
                .strip_prefix("whsec_")
                .is_some_and(|rest| rest.len() >= 8 && rest.bytes().all(|byte| byte.is_ascii_graphic()))
        };
        if secrets.len() > 2 || !secrets.iter().all(plausible) {
            return Err(NoSecret);
        }
        let keyed =
            |secret: &str| Hmac::new_from_slice(secret.as_bytes()).map_err(|_any_length_is_right| NoSecret);
        secrets.into_iter().map(keyed).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `header` signs `body`, at about this time. It takes as long for a wrong signature as for the right one.
    pub fn verify(
        &self,
        header: &str,
        body: &[u8],
        now: DateTime<Utc>,
        tolerance: Duration,
    ) -> Result<(), BadSignature> {
        let mut times = Vec::new();
        let mut signatures = Vec::new();
        for (name, value) in header.split(',').filter_map(|item| item.split_once('=')) {
            match name {
                "t" => times.push(value),
                "v1" => signatures.push(value),
                _ => {}
            }
        }
        let ([time], false) = (times.as_slice(), signatures.is_empty()) else {
            return Err(BadSignature::Malformed);
        };
        let signed_at = unix_time(time).ok_or(BadSignature::Malformed)?;
        let mut signed = false;
        for secret in &self.0 {
            let mut mac = secret.clone();
            mac.update(time.as_bytes());
            mac.update(b".");
            mac.update(body);
            for signature in signatures.iter().filter_map(|hex| bytes(hex)) {
                signed |= mac.clone().verify_slice(&signature).is_ok();
            }
        }
        if !signed {
            return Err(BadSignature::Wrong);
        }
        // A difference of two clocks, in either direction.
        if now.timestamp().abs_diff(signed_at) > tolerance.as_secs() {
            return Err(BadSignature::Untimely);
        }
        Ok(())
    }
}

/// Digits alone: it is signed as it stands there.
fn unix_time(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// 32 bytes in lower-case hex, as Stripe writes them and its libraries compare them.
fn bytes(hex: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
